"""Which experts a token uses, with what weights, and how many of them an effort below 1 keeps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdec.model.layers import Mlp


class Kept(NamedTuple):
    """The experts that a row multiplies by.

    Attributes:
        experts: (kept,) expert numbers, rising.
        weights: (kept,) what multiplies their results, in the dtype of the router's logits.
        growth: the efforts of their matrices are multiplied by it, up to 1.
    """

    experts: NDArray[np.intp]
    weights: NDArray[np.floating]
    growth: float


def choose_experts(router_logits: NDArray[np.floating], mlp: Mlp) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
    """The experts of one token and their weights, by rising expert number.

    Args:
        router_logits: (experts,), any float dtype, the router's bias included.
        mlp: how many experts a token uses, and how they are weighted. Of equal logits the lower number is taken.

    Returns:
        Expert numbers (used,), and their weights (used,), in the dtype of the logits: the softmax over the chosen
        logits alone, or the chosen ones' shares of the softmax over all; these divided by their sum, where
        `mlp.renormalise`, are the same numbers.

    Source: Mixtral, Jiang et al. 2401.04088, section 2.1; Qwen3 (2505.09388) and OLMoE (2409.02060).
    """
    chosen = np.sort(np.argsort(-router_logits, kind="stable")[: mlp.experts_used])
    shifted = np.exp(router_logits - router_logits.max())
    total = shifted[chosen].sum() if mlp.renormalise else shifted.sum()
    return chosen, shifted[chosen] / total


def share_to_keep(effort: float) -> float:
    """Share of the squared weights of a row's chosen experts that the kept ones must have, see `kept_experts`."""
    return 1.0 - (1.0 - effort) ** 5 if effort < 1 else 1.0


def kept_experts(router_logits: NDArray[np.floating], mlp: Mlp, *, effort: float) -> Kept:
    """The experts that a row keeps at an effort: of the chosen ones the fewest, largest weights first, whose squared
    weights sum to at least 1 - (1 - effort)^5 of the sum of all chosen ones. At effort 1 it keeps all.

    Inside of them efforts grow by used / kept, up to 1, so that the share of the multiplications stays at most the
    effort. Of equal weights the lower number comes first. The weights stay as they are.

    The squared error of bucketMul in an expert falls about as (1 - effort)^5, so what is left out weighs about as much
    as what effort leaves out inside: of experts with nearly equal weights almost all are kept, of others the few that
    matter (docs/arithmetic.md has the measurement).

    Args:
        router_logits: see `choose_experts`.
        mlp: see `choose_experts`.
        effort: in (0, 1], see `Efforts.of_mixtures`.
    """
    experts, weights = choose_experts(router_logits, mlp)
    if effort >= 1:
        return Kept(experts, weights, 1.0)
    order = np.lexsort((experts, -router_logits[experts]))
    squares = np.cumsum(np.exp(router_logits[experts].astype(np.float64) - router_logits.max())[order] ** 2)
    count = min(1 + int(np.searchsorted(squares, share_to_keep(effort) * squares[-1])), len(experts))
    kept = np.sort(order[:count])
    return Kept(experts[kept], weights[kept], len(experts) / count)

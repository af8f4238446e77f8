"""Choosing a token from logits: `Sampler`, a pure function of (logits, seed, absolute position).

Gumbel-max: add Gumbel noise to the tempered logits and take the largest; the winner is distributed as their softmax
(Gumbel 1954; Maddison, Tarlow, Minka, "A* Sampling", 1411.0030, section 2). The noise of a token depends on the seed,
the position and the token id alone. So drafter and verifier, who share it, pick the same token whenever their
distributions allow (Daliri, Musco, Suresh, 2408.07978, section 3), and a run with speculation draws what a run without
it draws. How tokens are accepted is in `accept`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdec.checks import as_number, check_finite, is_integral
from specdec.errors import OptionError

_REMEMBERED_POSITIONS = 32  # a round draws at each of its positions up to twice: drafting, then verifying
_BLOCK = 64  # logits per block when top-k looks for its threshold
_BINS_PER_NAT = 64  # resolution of top-p's first look
_LAST_BIN = 104 * _BINS_PER_NAT  # tokens further below the top weigh nothing in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen.

    The filters apply in this order, each to what the one before left, and all to the distribution at temperature 1;
    the temperature comes last (the order of llama.cpp's default chain).

    Attributes:
        temperature: 0 takes the largest logit; above 0, logits are divided by it.
        top_k: keep the k largest logits, the lower id first where they are equal; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities sum to at least this; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
        seed: 0 to 2**64 - 1.

    Raises:
        OptionError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0 <= as_number(self.temperature) < math.inf, "a number of at least 0")
        _require("top_k", self.top_k, _whole(self.top_k) >= 0, "a whole number of at least 0 (0 keeps every token)")
        _require("top_p", self.top_p, 0 < as_number(self.top_p) <= 1, "a number above 0 and at most 1")
        _require("min_p", self.min_p, 0 <= as_number(self.min_p) <= 1, "a number from 0 to 1")
        _require("seed", self.seed, 0 <= _whole(self.seed) < 2**64, "a whole number from 0 to 2**64 - 1")


class Sampler:
    """Draws tokens from logits as they are, whatever came before: a `Chooser`.

    It remembers the noise of recent positions, which changes its speed and never its answer.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._noise: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, logits: np.ndarray, position: int, drafted: Sequence[int] = ()) -> int:  # noqa: ARG002
        """The token at `position`; see `draw`."""
        return self.draw(logits, position)

    def shape(self, logits: np.ndarray, drafted: Sequence[int]) -> np.ndarray:  # noqa: ARG002
        """The logits themselves."""
        return logits

    def allows(self, logits: np.ndarray, token: int, drafted: Sequence[int]) -> bool:  # noqa: ARG002
        """Any token can come."""
        return True

    def draw(self, logits: np.ndarray, position: int) -> int:
        """The token at `position`.

        Args:
            logits: float32 (V,); -inf marks a token that cannot be.
            position: absolute position of the token to choose, counted from the start of the prompt.

        Raises:
            ModelOutputError: the largest logit is not finite, so the model's output means nothing.
        """
        top = int(logits.argmax())  # the first of equal logits; NaN counts as largest
        highest = logits.item(top)
        check_finite(highest, position)
        if self.params.temperature == 0:
            return top
        noise = self._noise_of(position, len(logits))
        candidates = self._filter(logits, highest)
        if candidates is None:
            candidates = self._contenders(logits, highest, noise, top)
        # Relative to the largest, so that no temperature overflows: the best candidate's quotient is 0.
        with np.errstate(over="ignore"):
            tempered = (logits[candidates].astype(np.float64) - highest) / self.params.temperature
        return int(candidates[np.argmax(tempered + _gumbel(noise[candidates]))])

    def _filter(self, logits: np.ndarray, highest: float) -> np.ndarray | None:
        """Ids that pass top-k, top-p and min-p, ascending; None when no filter is on."""
        kept: np.ndarray | None = None
        if 0 < self.params.top_k < len(logits):
            kept = top_k_ids(logits, self.params.top_k)
        if self.params.top_p < 1:
            kept = _top_p(logits, kept, self.params.top_p, highest)
        if self.params.min_p > 0:
            lowest = highest + math.log(self.params.min_p)
            kept = np.flatnonzero(logits >= lowest) if kept is None else kept[logits[kept] >= lowest]
        return kept

    def _contenders(self, logits: np.ndarray, highest: float, noise: np.ndarray, top: int) -> np.ndarray:
        """Ids that can still win, ascending: those that would beat the likeliest token with the largest noise drawn."""
        largest, own = _gumbel(np.array([noise.max(), noise[top]], np.uint32))
        # A thousandth of a nat and the next float below leave room for rounding; extra contenders do no harm.
        lowest = highest - self.params.temperature * (largest - own + 1e-3)
        with np.errstate(over="ignore"):
            lowest = np.nextafter(np.float32(lowest), np.float32(-np.inf))
        return np.flatnonzero(logits >= lowest)

    def _noise_of(self, position: int, size: int) -> np.ndarray:
        """uint32 (size,): 32 random bits for every token id, from Philox (Salmon et al., "Parallel random numbers: as
        easy as 1, 2, 3", SC 2011) with the seed as key and the position in the counter's second word; the first word
        counts through the vocabulary."""
        noise = self._noise.get(position)
        if noise is None or len(noise) < size:
            generator = np.random.Philox(key=self.params.seed, counter=[0, position, 0, 0])
            noise = generator.random_raw((size + 1) // 2).astype("<u8", copy=False).view("<u4")
            self._noise[position] = noise
            if len(self._noise) > _REMEMBERED_POSITIONS:
                self._noise.popitem(last=False)
        return noise[:size]


def _gumbel(noise: np.ndarray) -> np.ndarray:
    """float64 standard Gumbel variates from 32-bit integers, by way of uniforms strictly between 0 and 1."""
    uniform = (noise.astype(np.float64) + 0.5) * 2.0**-32
    return np.asarray(-np.log(-np.log(uniform)))


def top_k_ids(logits: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k largest logits, ascending; of equal ones at the edge, the lower ids."""
    blocks = len(logits) // _BLOCK
    if blocks >= 4 * k:
        # k blocks have a maximum at or above the k-th largest maximum, so at least k logits are.
        maxima = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        candidates = np.flatnonzero(logits >= np.partition(maxima, blocks - k)[blocks - k])
    else:
        candidates = np.arange(len(logits))
    values = logits[candidates]
    edge = np.partition(values, len(values) - k)[len(values) - k]
    above = values > edge
    ties = np.flatnonzero(values == edge)[: k - int(above.sum())]
    above[ties] = True
    return np.asarray(candidates[above])


def _top_p(logits: np.ndarray, kept: np.ndarray | None, p: float, highest: float) -> np.ndarray:
    """Ids, ascending, of the fewest most likely tokens (of `kept`, or of all) that hold at least probability p.

    Tokens are put into bins by how far they lie below the top, so that only those of one bin, where the sum passes p,
    need sorting.
    """
    depths = np.float32(highest) - (logits if kept is None else logits[kept])
    weights = np.exp(-depths).astype(np.float64)
    bins = np.minimum(depths * np.float32(_BINS_PER_NAT), _LAST_BIN).astype(np.intp)
    sums = np.cumsum(np.bincount(bins, weights))
    needed = p * sums[-1]
    edge = int(np.searchsorted(sums, needed))
    within = np.flatnonzero(bins == edge)
    within = within[np.argsort(depths[within], kind="stable")]
    before = sums[edge - 1] if edge else 0.0
    reached = int(np.searchsorted(before + np.cumsum(weights[within]), needed))
    inside = bins < edge
    inside[within[: reached + 1]] = True
    return np.asarray(np.flatnonzero(inside) if kept is None else kept[inside])


def _whole(value: object) -> int:
    return int(value) if is_integral(value) else -1


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise OptionError(name, f"must be {wanted}, not {value!r}")

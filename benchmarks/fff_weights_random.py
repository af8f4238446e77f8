"""Random weights of the tree of arXiv 2311.10770, whose nodes are its neurons."""

from __future__ import annotations

from typing import Any

import numpy as np

from specdec.fff import TreeWeights


def tree_weights(width: int, depth: int, dtype: Any, seed: int) -> TreeWeights:
    """A layer `width` -> 2^(depth + 1) - 1 neurons -> `width`, with GELU and without biases."""
    rng = np.random.default_rng(seed)
    nodes, leaves, scale = 2**depth - 1, 2**depth, width**-0.5

    def some(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * scale).astype(dtype)

    return TreeWeights(
        some(1, nodes, width), np.zeros((1, nodes), dtype), some(1, leaves, 1, width), np.zeros((1, leaves, 1), dtype),
        some(1, leaves, 1, width), None, some(1, nodes, width), "gelu",
    )  # fmt: skip

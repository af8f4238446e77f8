"""Random fast feedforward layers, and rows whose choices are certain in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from specdec.kernels.reference import fff as reference

from specdec.fff import TreeWeights

# Depth, leaf width, trees, nodes add to the output, output bias, activation; inputs and outputs.
SHAPES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"depth": 0, "leaf_width": 3, "trees": 2}, (7, 5)),
    ({"depth": 1, "leaf_width": 1, "trees": 1, "biased": False}, (1, 1)),
    ({"depth": 3, "leaf_width": 8, "trees": 1, "activation": "gelu"}, (33, 10)),
    ({"depth": 5, "leaf_width": 1, "trees": 1, "path": True, "biased": False, "activation": "gelu"}, (96, 96)),
    ({"depth": 4, "leaf_width": 5, "trees": 3, "path": True, "activation": "silu"}, (131, 67)),
    ({"depth": 2, "leaf_width": 33, "trees": 2, "activation": "none"}, (250, 130)),
]


def random_weights(
    inputs: int, outputs: int, *, depth: int, leaf_width: int, trees: int = 1, path: bool = False, biased: bool = True,
    activation: Any = "relu", seed: int = 0, dtype: Any = np.float32,
) -> TreeWeights:  # fmt: skip
    """A layer whose weights are normally distributed and whose outputs are of order 1."""
    rng = np.random.default_rng(seed)
    nodes, leaves = 2**depth - 1, 2**depth
    near, far = inputs**-0.5, (trees * (leaf_width + depth * path)) ** -0.5
    return TreeWeights(
        node_weight=(rng.normal(size=(trees, nodes, inputs)) * near).astype(dtype),
        node_bias=(rng.normal(size=(trees, nodes)) * 0.1).astype(dtype),
        hidden_weight=(rng.normal(size=(trees, leaves, leaf_width, inputs)) * near).astype(dtype),
        hidden_bias=(rng.normal(size=(trees, leaves, leaf_width)) * 0.1).astype(dtype),
        output_weight=(rng.normal(size=(trees, leaves, leaf_width, outputs)) * far).astype(dtype),
        output_bias=rng.normal(size=(trees, leaves, outputs)).astype(dtype) if biased else None,
        node_output=(rng.normal(size=(trees, nodes, outputs)) * far).astype(dtype) if path else None,
        activation=activation,
    )


def certain_rows(weights: TreeWeights, count: int, seed: int = 1) -> np.ndarray:
    """Rows (count, in) float32 none of whose scores is so close to 0 that float32 could choose another child."""
    rng = np.random.default_rng(seed)
    arrays, found = weights.arrays(), list[np.ndarray]()
    while len(found) < count:
        row = rng.normal(size=(1, weights.inputs)).astype(np.float32)
        every = [np.abs(reference.scores(row.astype(np.float64), tree, arrays)) for tree in range(weights.trees)]
        if all((one > 1e-5).all() for one in every):
            found.append(row[0])
    return np.array(found)

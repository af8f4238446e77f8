"""Fast feedforward layers in NumPy float64: what the kernels and the MLX module compute, written for reading and tests.

Nodes are in the order of a heap, leaves from left to right; arrays are those of `specdec.fff.weights.TreeWeights`.

Source: arXiv 2308.14711, section 3; arXiv 2311.10770, section 2, for nodes that add to the output.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[np.floating]]


def activate(x: Floats, activation: str) -> Floats:
    """`relu`, `gelu` (by erf), `silu`, or the values themselves for `none`."""
    if activation == "relu":
        return np.maximum(x, 0.0)
    if activation == "silu":
        return np.asarray(x * sigmoid(x))
    if activation == "gelu":
        return np.asarray(x * 0.5 * (1.0 + error_function(x / np.sqrt(2.0))))
    return x


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def error_function(x: Floats) -> Floats:
    """The error function, by that of the C library."""
    from math import erf

    return np.asarray(np.vectorize(erf, otypes=[np.float64])(x), np.float64)


def scores(x: Floats, tree: int, arrays: Arrays) -> Floats:
    """Scores of all nodes of one tree: (M, N) of rows (M, in)."""
    weight = arrays["node_weight"][tree].astype(np.float64)
    return np.asarray(x @ weight.T + arrays["node_bias"][tree].astype(np.float64))


def leaf_numbers(node_scores: Floats) -> NDArray[np.int64]:
    """The leaf that each row reaches: a score of 0 and above goes right.

    Args:
        node_scores: (M, N) of one tree.

    Returns:
        (M,) numbers from left to right.
    """
    rows, nodes = np.arange(len(node_scores)), node_scores.shape[1]
    node = np.zeros(len(node_scores), np.int64)
    for _ in range((nodes + 1).bit_length() - 1):
        node = 2 * node + 1 + (node_scores[rows, node] >= 0)
    leaves: NDArray[np.int64] = node - nodes
    return leaves


def path_shares(node_scores: Floats, leaf_of: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
    """How much of each row reaches each node and leaf: by choices of probability sigmoid(score), or by hard choices.

    Args:
        node_scores: (M, N) of one tree.
        leaf_of: (M,) leaves of hard choices; None for soft ones.

    Returns:
        (M, N) and (M, L); each level of a row adds up to 1.
    """
    rows, nodes = node_scores.shape
    chances = sigmoid(node_scores) if leaf_of is None else (node_scores >= 0).astype(np.float64)
    share = np.ones((rows, 2 * nodes + 1))
    for node in range(nodes):
        share[:, 2 * node + 1] = share[:, node] * (1.0 - chances[:, node])
        share[:, 2 * node + 2] = share[:, node] * chances[:, node]
    return share[:, :nodes], share[:, nodes:]


def forward(x: NDArray[np.floating], arrays: Arrays, activation: str, *, soft: bool = False) -> Floats:
    """The layer's output.

    Args:
        x: (M, in).
        arrays: of the layer, by name.
        activation: of leaves, and of nodes that add to the output.
        soft: mix all leaves by their probability instead of taking one.

    Returns:
        (M, out).
    """
    rows = x.astype(np.float64)
    result = np.zeros((len(rows), arrays["output_weight"].shape[3]))
    for tree in range(len(arrays["output_weight"])):
        node_scores = scores(rows, tree, arrays)
        nodes, leaves = path_shares(node_scores, None if soft else leaf_numbers(node_scores))
        if "node_output" in arrays:
            result += (nodes * activate(node_scores, activation)) @ arrays["node_output"][tree].astype(np.float64)
        for leaf in range(leaves.shape[1]):
            hidden = rows @ arrays["hidden_weight"][tree, leaf].astype(np.float64).T
            hidden = activate(hidden + arrays["hidden_bias"][tree, leaf].astype(np.float64), activation)
            part = hidden @ arrays["output_weight"][tree, leaf].astype(np.float64)
            if "output_bias" in arrays:
                part = part + arrays["output_bias"][tree, leaf].astype(np.float64)
            result += leaves[:, leaf : leaf + 1] * part
    return result


def entropies(x: NDArray[np.floating], arrays: Arrays) -> Floats:
    """Mean entropy of each node's choice over rows (M, in), in nats: (T, N). 0 when all choices are certain."""
    found = []
    for tree in range(len(arrays["node_weight"])):
        node_scores = scores(x.astype(np.float64), tree, arrays)
        small = np.exp(-np.abs(node_scores))
        # H(sigmoid(s)) = log(1 + e^-|s|) + |s| * sigmoid(-|s|)
        found.append((np.log1p(small) + np.abs(node_scores) * small / (1.0 + small)).mean(axis=0))
    return np.array(found)

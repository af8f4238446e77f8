"""Weights of the `fastfeedforward` package (PyTorch) as layers of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.fff.weights import Activation, TreeWeights

_NAMES = ("node_weights", "node_biases", "w1s", "b1s", "w2s", "b2s")


def from_fastfeedforward(
    state: Mapping[str, Any], *, activation: Activation = "relu", prefix: str = "", output_bias: bool = True
) -> TreeWeights:
    """The layer whose `state_dict` this is; outputs equal the package's `training_forward` with hard decisions.

    Args:
        state: name to array, or to a tensor on the CPU: node_weights (N, in), node_biases (N, 1), w1s (L, in, W),
            b1s (L, W), w2s (L, W, out), b2s (L, out).
        activation: of the layer; the package's default is ReLU. A `state_dict` does not say it.
        prefix: in front of the names, such as "blocks.3.ffn.", where the layer is part of a model.
        output_bias: keep b2s. The package's evaluation mode (`eval_forward`, version 0.2.1) leaves b2s out, although
            training adds it: False gives the outputs of that mode.

    Raises:
        InvalidArgumentError: an array is missing, or the shapes do not fit such a layer.
    """
    arrays = {name: _array(state, prefix + name) for name in _NAMES}
    shapes = {name: array.shape for name, array in arrays.items()}
    if [len(shape) for shape in shapes.values()] != [2, 2, 3, 2, 3, 2] or shapes["node_biases"][1:] != (1,):
        raise InvalidArgumentError(f"these are not the shapes of a layer of fastfeedforward: {shapes}")
    return TreeWeights(
        node_weight=arrays["node_weights"][None],
        node_bias=arrays["node_biases"][None, :, 0],
        hidden_weight=arrays["w1s"].swapaxes(1, 2)[None],
        hidden_bias=arrays["b1s"][None],
        output_weight=arrays["w2s"][None],
        output_bias=arrays["b2s"][None] if output_bias else None,
        activation=activation,
    )


def to_fastfeedforward(weights: TreeWeights) -> dict[str, NDArray[np.float32]]:
    """The same layer under the names of the package, for `load_state_dict`.

    Raises:
        InvalidArgumentError: the layer has several trees, or nodes that add to the output: the package has neither.
    """
    if weights.trees != 1 or weights.node_output is not None:
        raise InvalidArgumentError(
            "fastfeedforward has one tree, whose nodes do not add to the output: this layer differs"
        )
    bias = weights.output_bias
    if bias is None:
        bias = np.zeros((1, weights.leaves, weights.outputs), np.float32)
    arrays = {
        "node_weights": weights.node_weight[0],
        "node_biases": weights.node_bias[0, :, None],
        "w1s": weights.hidden_weight[0].swapaxes(1, 2),
        "b1s": weights.hidden_bias[0],
        "w2s": weights.output_weight[0],
        "b2s": bias[0],
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()} | {
        "depth": np.array(weights.depth, np.int64)  # type: ignore[dict-item]
    }


def _array(state: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    if name not in state:
        raise InvalidArgumentError(
            f"there is no array {name!r}: a layer of fastfeedforward has {', '.join(_NAMES)}, perhaps after a prefix"
        )
    value = state[name]
    value = value.detach().numpy() if hasattr(value, "detach") else value
    return np.asarray(value, np.float32)

"""The weights of a fast feedforward layer, as plain arrays with checks. No arithmetic: that is in `hard` and `module`.

A layer has one or more binary trees. A node's sign chooses the child, a leaf is a small two-layer network, and nodes on
the path add to the output too if the layer has `node_output`.

    nodes       in order of a heap: the children of node i are 2 i + 1 (negative score) and 2 i + 2
    leaves      from left to right

Source: arXiv 2308.14711 (leaves), arXiv 2311.10770 (nodes that add to the output, several trees).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from specdec.checks import is_integral
from specdec.errors import InvalidArgumentError

Activation = Literal["relu", "gelu", "silu", "none"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
MOST_DEPTH, MOST_WIDTH, MOST_TREES = 20, 1 << 16, 1 << 12
# A layer's largest array must be addressable by the kernels.
MOST_VALUES = 1 << 31

_OPTIONAL = ("output_bias", "node_output")
NAMES = ("node_weight", "node_bias", "hidden_weight", "hidden_bias", "output_weight", *_OPTIONAL)


@dataclass(frozen=True, slots=True, eq=False)
class TreeWeights:
    """T trees of depth d with N = 2^d - 1 nodes and L = 2^d leaves of W neurons; float32, or float16 in all arrays.

    Attributes:
        node_weight: (T, N, in). A node's score is its weight times the input, plus its bias; 0 and above goes right.
        node_bias: (T, N).
        hidden_weight: (T, L, W, in), of the leaves' neurons.
        hidden_bias: (T, L, W).
        output_weight: (T, L, W, out).
        output_bias: (T, L, out), or None.
        node_output: (T, N, out): times activation(score), is added for each node on the path. None: nodes only choose.
        activation: of leaves, and of nodes that add to the output; `gelu` is the exact one, by erf.

    Raises:
        InvalidArgumentError: shapes or types do not fit together, or a value is not finite.
    """

    node_weight: NDArray[Any]
    node_bias: NDArray[Any]
    hidden_weight: NDArray[Any]
    hidden_bias: NDArray[Any]
    output_weight: NDArray[Any]
    output_bias: NDArray[Any] | None = None
    node_output: NDArray[Any] | None = None
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ACTIVATIONS)
        if np.ndim(self.hidden_weight) != 4 or np.ndim(self.output_weight) != 4:
            raise InvalidArgumentError(
                "hidden_weight and output_weight must have 4 axes: trees, leaves, neurons, and inputs or outputs"
            )
        trees, leaves, width, inputs = self.hidden_weight.shape
        outputs = self.output_weight.shape[3]
        if leaves < 1 or leaves & (leaves - 1):
            raise InvalidArgumentError(f"a tree has 1, 2, 4, 8, ... leaves, not {leaves}")
        check_sizes(inputs, outputs, leaves.bit_length() - 1, width, trees)
        nodes = leaves - 1
        shapes = {
            "node_weight": (trees, nodes, inputs),
            "node_bias": (trees, nodes),
            "hidden_bias": (trees, leaves, width),
            "output_weight": (trees, leaves, width, outputs),
            "output_bias": (trees, leaves, outputs),
            "node_output": (trees, nodes, outputs),
        }
        dtype = np.asarray(self.hidden_weight).dtype
        if dtype not in (np.float32, np.float16):
            raise InvalidArgumentError(f"weights must be float32 or float16, not {dtype}")
        for name in NAMES:
            array = getattr(self, name)
            if array is None and name in _OPTIONAL:
                continue
            if np.shape(array) != shapes.get(name, self.hidden_weight.shape):
                raise InvalidArgumentError(f"{name} must have the shape {shapes[name]}, not {np.shape(array)}")
            if array.dtype != dtype:
                raise InvalidArgumentError(
                    f"all weights must be {dtype} as hidden_weight is, and {name} is {array.dtype}"
                )
            if not np.isfinite(array).all():
                raise InvalidArgumentError(f"{name} holds values that are not finite")
            object.__setattr__(self, name, np.ascontiguousarray(array))

    @property
    def trees(self) -> int:
        """Number of trees."""
        return int(self.hidden_weight.shape[0])

    @property
    def leaves(self) -> int:
        """Leaves of a tree."""
        return int(self.hidden_weight.shape[1])

    @property
    def depth(self) -> int:
        """Choices on the way to a leaf."""
        return self.leaves.bit_length() - 1

    @property
    def leaf_width(self) -> int:
        """Neurons of a leaf."""
        return int(self.hidden_weight.shape[2])

    @property
    def inputs(self) -> int:
        """Values of a row."""
        return int(self.hidden_weight.shape[3])

    @property
    def outputs(self) -> int:
        """Values of a result."""
        return int(self.output_weight.shape[3])

    @property
    def neurons(self) -> int:
        """Neurons that add to the output, of all trees."""
        return self.trees * (self.leaves * self.leaf_width + (self.leaves - 1) * (self.node_output is not None))

    @property
    def neurons_used(self) -> int:
        """Neurons that add to the output of one row."""
        return self.trees * (self.leaf_width + self.depth * (self.node_output is not None))

    @property
    def multiplications(self) -> int:
        """Products of weights that one row takes, including nodes that only choose."""
        both = self.inputs + self.outputs
        return self.trees * (
            self.depth * (both if self.node_output is not None else self.inputs) + self.leaf_width * both
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, without fields that are None."""
        return {name: array for name in NAMES if (array := getattr(self, name)) is not None}

    def astype(self, dtype: Any) -> TreeWeights:
        """The same weights as float32, or rounded to float16.

        Raises:
            InvalidArgumentError: a value is too large for float16.
        """
        with np.errstate(over="ignore"):
            return self.replaced({name: array.astype(dtype) for name, array in self.arrays().items()})

    def replaced(self, arrays: dict[str, NDArray[Any]]) -> TreeWeights:
        """A copy with other arrays; arrays that are not named become None."""
        return TreeWeights(**arrays, activation=self.activation)

    def scaled(self, shift: NDArray[Any], scale: NDArray[Any]) -> TreeWeights:
        """Weights that take `x` where these take `(x - shift) * scale`; float32.

        Args:
            shift: (in,).
            scale: (in,).
        """
        arrays = {name: array.astype(np.float64) for name, array in self.arrays().items()}
        for weight, bias in (("node_weight", "node_bias"), ("hidden_weight", "hidden_bias")):
            arrays[weight] = arrays[weight] * scale
            arrays[bias] = arrays[bias] - arrays[weight] @ shift
        return self.replaced({name: array.astype(np.float32) for name, array in arrays.items()})


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InvalidArgumentError unless `value` is one of `choices`."""
    if value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_sizes(inputs: int, outputs: int, depth: int, leaf_width: int, trees: int) -> None:
    """Check the sizes of a layer.

    Raises:
        InvalidArgumentError: one is not a whole number or out of range, or all together are too large.
    """
    ranges = (
        ("inputs", inputs, 1, MOST_WIDTH),
        ("outputs", outputs, 1, MOST_WIDTH),
        ("depth", depth, 0, MOST_DEPTH),
        ("leaf_width", leaf_width, 1, MOST_WIDTH),
        ("trees", trees, 1, MOST_TREES),
    )
    for name, value, least, most in ranges:
        if not is_integral(value) or not least <= value <= most:
            raise InvalidArgumentError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    product = int(trees) * int(leaf_width) * 2 ** int(depth) * max(int(inputs), int(outputs))
    if product >= MOST_VALUES:
        raise InvalidArgumentError(
            f"the layer's largest matrix would have {product} values and may have {MOST_VALUES - 1}: choose a smaller "
            "depth, leaf_width or number of trees"
        )

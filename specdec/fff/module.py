"""A fast feedforward layer as an MLX module, for training. Hard inference by kernels lives in `hard` and `gpu`.

While training, a choice is a probability: every leaf is computed, and the output is their mixture. The hardening loss
(the mean entropy of the choices) pulls probabilities to 0 and 1, so that little is lost when only the likelier child is
taken afterwards.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Literal, get_args

import mlx.core as mx
import numpy as np

from specdec.checks import check_number
from specdec.errors import InvalidArgumentError
from specdec.fff.weights import ACTIVATIONS, NAMES, Activation, TreeWeights, check_choice, check_sizes

nn: Any = import_module("mlx.nn")  # without types
Choices = Literal["soft", "hard", "straight"]
_FUNCTIONS = {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu, "none": lambda x: x}


class FastFeedforward(nn.Module):  # type: ignore[misc]
    """T trees side by side, whose outputs add up.

    Calling it in training mode mixes all leaves; in evaluation mode (`layer.eval()`) each row takes one leaf of a tree.

    Args:
        inputs: values of a row.
        outputs: values of a result.
        depth: choices on the way to a leaf; a tree has 2^depth leaves.
        leaf_width: neurons of a leaf.
        trees: number of trees.
        activation: `relu`, `gelu` (exact), `silu` or `none`.
        node_outputs: nodes on the path add to the output as leaves do (arXiv 2311.10770).
        output_bias: leaves have a bias of the output.
        region_leak: chance that a choice is swapped while training (arXiv 2308.14711, section 3.3).

    Raises:
        InvalidArgumentError: a size is out of range.

    Attributes:
        choices: how training chooses: `soft`; `hard`, whose nodes learn only through their outputs; `straight`, hard
            with the gradient of soft choices.

    Source: arXiv 2308.14711, section 3; initial values as the `fastfeedforward` package draws them.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        depth: int,
        leaf_width: int,
        trees: int = 1,
        activation: Activation = "relu",
        node_outputs: bool = False,
        output_bias: bool = True,
        region_leak: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(inputs, outputs, depth, leaf_width, trees)
        inputs, outputs, depth, leaf_width, trees = map(int, (inputs, outputs, depth, leaf_width, trees))  # NumPy's
        check_choice("activation", activation, ACTIVATIONS)
        self._depth, self._activation = depth, activation
        self._region_leak = check_number("region_leak", region_leak, 0, 1)
        self._choices: Choices = "soft"
        nodes, leaves = 2**depth - 1, 2**depth
        near, far = 1 / math.sqrt(inputs), 1 / math.sqrt(leaf_width + depth * node_outputs)
        self.node_weight = mx.random.uniform(-near, near, (trees, nodes, inputs))
        self.node_bias = mx.random.uniform(-near, near, (trees, nodes))
        self.hidden_weight = mx.random.uniform(-near, near, (trees, leaves, leaf_width, inputs))
        self.hidden_bias = mx.random.uniform(-near, near, (trees, leaves, leaf_width))
        self.output_weight = mx.random.uniform(-far, far, (trees, leaves, leaf_width, outputs))
        if output_bias:
            self.output_bias = mx.random.uniform(-far, far, (trees, leaves, outputs))
        if node_outputs:
            self.node_output = mx.random.uniform(-far, far, (trees, nodes, outputs))

    @property
    def choices(self) -> Choices:
        """How training chooses."""
        return self._choices

    @choices.setter
    def choices(self, value: Choices) -> None:
        check_choice("choices", value, get_args(Choices))
        self._choices = value

    def __call__(self, x: mx.array) -> mx.array:
        """The output (..., out) of rows (..., in)."""
        return self.mixed(x)[0] if self.training else self.hard(x)

    def mixed(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """The output of training, and what the hardening loss needs.

        Args:
            x: (..., in).

        Returns:
            (..., out), and the mean entropy of each node's choice in nats, (trees, nodes).
        """
        rows = self._rows(x)
        scores = self._scores(rows)
        reached, mixture = self._shares(scores)
        trees, leaves, width, _ = self.hidden_weight.shape
        hidden = rows @ self.hidden_weight.reshape(-1, rows.shape[1]).T + self.hidden_bias.reshape(-1)
        hidden = _FUNCTIONS[self._activation](hidden).reshape(-1, trees, leaves, width) * mixture[..., None]
        outputs = self.output_weight.shape[-1]
        result = hidden.reshape(len(rows), -1) @ self.output_weight.reshape(-1, outputs)
        if "output_bias" in self:
            result = result + mixture.reshape(len(rows), -1) @ self.output_bias.reshape(-1, outputs)
        if "node_output" in self and self._depth:
            active = (_FUNCTIONS[self._activation](scores) * reached).reshape(len(rows), -1)
            result = result + active @ self.node_output.reshape(-1, outputs)
        return result.reshape(*x.shape[:-1], outputs), _entropy(scores).mean(axis=0)

    def hard(self, x: mx.array) -> mx.array:
        """The output (..., out) where every row takes one leaf of each tree, by MLX operations that gather weights."""
        rows = self._rows(x)
        count, trees = len(rows), self.hidden_weight.shape[0]
        tree = mx.arange(trees)[None]
        node = mx.zeros((count, trees), mx.int32)
        result = mx.zeros((count, self.output_weight.shape[-1]))
        column = rows[:, None, :, None]
        activate = _FUNCTIONS[self._activation]
        for _ in range(self._depth):
            score = (self.node_weight[tree, node][:, :, None] @ column)[..., 0, 0] + self.node_bias[tree, node]
            if "node_output" in self:
                result = result + (activate(score)[..., None] * self.node_output[tree, node]).sum(axis=1)
            node = 2 * node + 1 + (score >= 0).astype(mx.int32)
        leaf = node - (2**self._depth - 1)
        hidden = activate((self.hidden_weight[tree, leaf] @ column)[..., 0] + self.hidden_bias[tree, leaf])
        part = (hidden[:, :, None] @ self.output_weight[tree, leaf])[:, :, 0]
        if "output_bias" in self:
            part = part + self.output_bias[tree, leaf]
        whole: mx.array = (result + part.sum(axis=1)).reshape(*x.shape[:-1], -1)
        return whole

    def harden(self) -> TreeWeights:
        """The weights as NumPy arrays, for inference and for saving."""
        arrays = {name: np.array(self[name].astype(mx.float32)) for name in NAMES if name in self}
        return TreeWeights(**arrays, activation=self._activation)

    @classmethod
    def from_weights(cls, weights: TreeWeights) -> FastFeedforward:
        """A module with given weights, to train on."""
        layer = cls(
            weights.inputs, weights.outputs, depth=weights.depth, leaf_width=weights.leaf_width, trees=weights.trees,
            activation=weights.activation, node_outputs=weights.node_output is not None,
            output_bias=weights.output_bias is not None,
        )  # fmt: skip
        for name, array in weights.arrays().items():
            layer[name] = mx.array(array.astype(np.float32))
        return layer

    def _rows(self, x: mx.array) -> mx.array:
        inputs = self.hidden_weight.shape[-1]
        if x.ndim < 1 or x.shape[-1] != inputs:
            raise InvalidArgumentError(f"rows must have {inputs} values, not the shape {tuple(x.shape)}")
        return x.reshape(-1, inputs)

    def _scores(self, rows: mx.array) -> mx.array:
        """Scores (M, T, N)."""
        weight = self.node_weight.reshape(-1, rows.shape[1])
        if not self._depth:
            return mx.zeros((len(rows), *self.node_bias.shape))
        return (rows @ weight.T + self.node_bias.reshape(-1)).reshape(-1, *self.node_bias.shape)

    def _shares(self, scores: mx.array) -> tuple[mx.array, mx.array]:
        """How much of each row reaches each node (M, T, N) and each leaf (M, T, L)."""
        chance = mx.sigmoid(scores)
        if self._choices != "soft":
            certain = (scores >= 0).astype(chance.dtype)
            chance = certain if self._choices == "hard" else chance + mx.stop_gradient(certain - chance)
        if self._region_leak and self.training:
            swapped = mx.random.uniform(shape=chance.shape) < self._region_leak
            chance = mx.where(swapped, 1 - chance, chance)
        share = mx.ones((*scores.shape[:2], 1))
        levels = [share[..., :0]]
        for level in range(self._depth):
            levels.append(share)
            right = chance[..., 2**level - 1 : 2 ** (level + 1) - 1]
            share = mx.stack([share * (1 - right), share * right], axis=-1).reshape(*scores.shape[:2], -1)
        return mx.concatenate(levels, axis=-1), share


def hardening_loss(entropies: mx.array) -> mx.array:
    """The mean of entropies (trees, nodes) as `FastFeedforward.mixed` returns them; 0 for a layer without nodes."""
    return entropies.mean() if entropies.size else mx.array(0.0)


def _entropy(scores: mx.array) -> mx.array:
    """Entropy of a choice of probability sigmoid(score), in nats: log(1 + e^-|s|) + |s| sigmoid(-|s|)."""
    size = mx.abs(scores)
    return mx.log1p(mx.exp(-size)) + size * mx.sigmoid(-size)

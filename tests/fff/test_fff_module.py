"""The MLX module: soft and hard outputs against float64, its gradients, and that training hardens choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fff_weights import SHAPES, certain_rows, random_weights
from specdec.kernels.reference import fff as reference

from specdec.errors import InvalidArgumentError
from specdec.fff import FastFeedforward, HardFeedforward, hardening_loss

mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
CLOSE = 5e-6


@pytest.mark.parametrize(("shape", "sizes"), SHAPES)
def test_outputs_equal_the_reference(shape: Any, sizes: Any) -> None:
    weights = random_weights(*sizes, **shape)
    x = certain_rows(weights, 7)
    layer = FastFeedforward.from_weights(weights)
    soft, entropies = layer.mixed(mx.array(x))
    arrays = weights.arrays()
    assert np.abs(np.array(soft) - reference.forward(x, arrays, weights.activation, soft=True)).max() < CLOSE
    assert np.array(entropies).shape == weights.node_bias.shape
    if weights.depth:
        assert np.abs(np.array(entropies) - reference.entropies(x, arrays)).max() < CLOSE
    wanted = reference.forward(x, arrays, weights.activation)
    layer.eval()
    assert np.abs(np.array(layer(mx.array(x))) - wanted).max() < CLOSE
    layer.choices = "hard"
    assert np.abs(np.array(layer.mixed(mx.array(x))[0]) - wanted).max() < CLOSE
    layer.choices = "straight"
    assert np.abs(np.array(layer.mixed(mx.array(x))[0]) - wanted).max() < CLOSE
    kept = layer.harden().arrays()
    assert all(np.array_equal(kept[name], array) for name, array in arrays.items())


def test_gradients_of_choices() -> None:
    from mlx import nn

    layer = FastFeedforward(8, 4, depth=3, leaf_width=2)
    x = mx.random.normal((32, 8))

    def nodes_learn(choices: str) -> float:
        layer.choices = choices  # type: ignore[assignment]
        _, grads = nn.value_and_grad(layer, lambda one: (one(x) ** 2).sum())(layer)
        return float(mx.abs(grads["node_weight"]).max().item())

    assert nodes_learn("soft") > 0
    assert nodes_learn("hard") == 0
    assert nodes_learn("straight") > 0


def test_region_leak_swaps_choices_while_training_only() -> None:
    weights = random_weights(8, 4, depth=3, leaf_width=2)
    plain = FastFeedforward.from_weights(weights)
    leaky = FastFeedforward(8, 4, depth=3, leaf_width=2, region_leak=1.0)
    leaky.update(plain.parameters())
    x = mx.random.normal((5, 8))
    assert np.abs(np.array(plain(x)) - np.array(leaky(x))).max() > 1e-3
    plain.eval(), leaky.eval()
    assert np.array_equal(np.array(plain(x)), np.array(leaky(x)))


def test_the_hardening_loss_hardens() -> None:
    import mlx.optimizers as optim
    from mlx import nn

    mx.random.seed(0)
    layer, x = FastFeedforward(4, 1, depth=2, leaf_width=2), mx.random.normal((64, 4))
    step = nn.value_and_grad(layer, lambda one: hardening_loss(one.mixed(x)[1]))
    optimiser = optim.Adam(0.1)
    before = hardening_loss(layer.mixed(x)[1]).item()
    for _ in range(60):
        optimiser.update(layer, step(layer)[1])
    after = hardening_loss(layer.mixed(x)[1]).item()
    assert after < 0.25 * before
    assert hardening_loss(FastFeedforward(4, 1, depth=0, leaf_width=2).mixed(x)[1]).item() == 0


def test_module_and_native_kernels_agree() -> None:
    pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
    layer = FastFeedforward(20, 7, depth=4, leaf_width=3, trees=2, activation="silu", node_outputs=True)
    weights = layer.harden()
    x = certain_rows(weights, 20)
    assert np.abs(np.array(layer.hard(mx.array(x))) - HardFeedforward(weights)(x)).max() < CLOSE


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"depth": -1}, "depth must be a whole number from 0 to 20, not -1"),
        ({"depth": 21}, "depth must be a whole number from 0 to 20, not 21"),
        ({"leaf_width": 0}, "leaf_width must be a whole number from 1"),
        ({"trees": 1.5}, "trees must be a whole number from 1"),
        ({"region_leak": 2}, "region_leak must be a number from 0 to 1"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"depth": 20, "leaf_width": 4096}, "choose a smaller depth, leaf_width or number of trees"),
    ],
)
def test_wrong_sizes_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        FastFeedforward(4, 2, **({"depth": 2, "leaf_width": 2} | sizes))


def test_wrong_rows_and_choices_are_refused() -> None:
    layer = FastFeedforward(4, 2, depth=2, leaf_width=2)
    with pytest.raises(InvalidArgumentError, match=r"rows must have 4 values, not the shape \(3, 5\)"):
        layer(mx.zeros((3, 5)))
    with pytest.raises(InvalidArgumentError, match="choices must be one of soft, hard, straight"):
        layer.choices = "firm"  # type: ignore[assignment]

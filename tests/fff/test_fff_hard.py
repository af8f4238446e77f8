"""Hard inference by the native kernels: against float64, rows alone and together, every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fff_weights import SHAPES, certain_rows, random_weights
from specdec.kernels.reference import fff as reference

from specdec.errors import InvalidArgumentError
from specdec.fff import HardFeedforward, TreeWeights

native = pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
# Up to 250 products are added in float32, the largest of order 1.
CLOSE = 5e-6


@pytest.mark.parametrize("isa", native.supported_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("shape", "sizes"), SHAPES)
def test_kernels_equal_the_reference(
    monkeypatch: pytest.MonkeyPatch, isa: str, dtype: Any, shape: Any, sizes: Any
) -> None:
    monkeypatch.setenv("SPECDEC_CPU", isa)
    weights = random_weights(*sizes, **shape, dtype=dtype)
    x = certain_rows(weights, 33)
    layer = HardFeedforward(weights, threads=2)
    assert np.abs(layer(x) - reference.forward(x, weights.arrays(), weights.activation)).max() < CLOSE
    for tree in range(weights.trees):
        scores = reference.scores(x.astype(np.float64), tree, weights.arrays())
        assert np.array_equal(layer.leaves(x)[:, tree], reference.leaf_numbers(scores))


@pytest.mark.parametrize(("shape", "sizes"), SHAPES)
def test_rows_do_not_depend_on_each_other_or_on_threads(shape: Any, sizes: Any) -> None:
    weights = random_weights(*sizes, **shape)
    x = np.random.default_rng(2).normal(size=(1023, sizes[0])).astype(np.float32)
    together = HardFeedforward(weights, threads=1)(x)
    assert np.array_equal(HardFeedforward(weights, threads=3)(x), together)
    layer = HardFeedforward(weights, threads=2)
    for count in (1, 7, 300):
        assert np.array_equal(layer(x[:count]), together[:count])
    assert np.array_equal(np.array([layer(row) for row in x[-5:]]), together[-5:])


def test_a_score_of_zero_goes_right() -> None:
    weights = random_weights(4, 3, depth=2, leaf_width=2)
    still = weights.replaced(weights.arrays() | {"node_bias": np.zeros((1, 3), np.float32)})
    assert HardFeedforward(still).leaves(np.zeros(4)).tolist() == [3]
    assert HardFeedforward(still).leaves(-np.zeros((2, 4))).tolist() == [[3], [3]]


def test_shapes_and_types_of_rows() -> None:
    layer = HardFeedforward(random_weights(6, 4, depth=1, leaf_width=2, trees=2))
    x = np.arange(24).reshape(2, 2, 6)
    assert layer(x).shape == (2, 2, 4)
    assert layer.leaves(x).shape == (2, 2, 2)
    assert np.array_equal(layer(x), layer(x.astype(np.float64)))
    assert np.array_equal(layer(x[:, ::2]), layer(x)[:, ::2])
    assert layer(np.empty((0, 6))).shape == (0, 4)
    for wrong in (np.zeros(5), np.zeros((2, 7)), np.array("a"), np.zeros(6, complex)):
        with pytest.raises(InvalidArgumentError, match="rows must be 6 numbers each"):
            layer(wrong)
    with pytest.raises(InvalidArgumentError, match="threads must be"):
        HardFeedforward(layer.weights, threads=0)


def test_weights_are_checked() -> None:
    good = random_weights(6, 4, depth=2, leaf_width=3, path=True)
    arrays = good.arrays()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"node_bias": np.zeros((1, 4), np.float32)}, r"node_bias must have the shape \(1, 3\), not \(1, 4\)"),
        ({"node_output": np.zeros((1, 3, 4))}, "all weights must be float32"),
        ({"hidden_weight": np.zeros((1, 3, 3, 6), np.float32)}, "a tree has 1, 2, 4, 8, ... leaves, not 3"),
        ({"hidden_bias": np.full((1, 4, 3), np.nan, np.float32)}, "hidden_bias holds values that are not finite"),
        ({"hidden_weight": arrays["hidden_weight"].astype(np.float64)}, "must be float32 or float16, not float64"),
        ({"hidden_weight": np.zeros(3, np.float32)}, "must have 4 axes"),
        ({"activation": "tanh"}, "activation must be one of relu, gelu, silu, none, not 'tanh'"),
    ]
    for change, message in wrong:
        with pytest.raises(InvalidArgumentError, match=message):
            TreeWeights(**({"activation": "gelu", **arrays} | change))
    with pytest.raises(InvalidArgumentError, match="not finite"):
        good.replaced({name: array * np.float32(1e6) for name, array in arrays.items()}).astype(np.float16)


def test_what_a_row_costs() -> None:
    weights = random_weights(768, 768, depth=11, leaf_width=1, path=True, biased=False, activation="gelu")
    assert (weights.neurons, weights.neurons_used) == (4095, 12)
    assert weights.multiplications == 12 * 2 * 768
    assert random_weights(20, 10, depth=3, leaf_width=8).multiplications == 3 * 20 + 8 * 30


def test_scaled_inputs() -> None:
    weights = random_weights(9, 4, depth=3, leaf_width=2, trees=2, path=True)
    rng = np.random.default_rng(5)
    shift, scale = rng.normal(size=9), rng.uniform(0.5, 2, size=9)
    x = certain_rows(weights, 7)
    folded = weights.scaled(shift, scale)
    raw = (x / scale + shift).astype(np.float32)
    assert np.abs(HardFeedforward(folded)(raw) - HardFeedforward(weights)(x)).max() < 1e-4

"""The dithered twin: how large the noise is, what it depends on, and that the store says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_source, tiny_config

from specdec.store import Store, convert
from specdec.store.dither import BLOCK, dithered
from specdec.weights.dtypes import from_float32, to_float32


def quantised(outputs: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float16 bits of 4-bit blocks of 32, and the step of each weight's block, float32 (out, in)."""
    rng = np.random.default_rng(seed)
    blocks = -(-inputs // BLOCK)
    step = np.repeat(2.0 ** rng.integers(-8, -4, size=(outputs, blocks)), BLOCK, axis=1)[:, :inputs].astype(np.float32)
    levels = rng.integers(-8, 8, size=(outputs, inputs)).astype(np.float32)
    levels[:, 0::BLOCK], levels[:, 1::BLOCK] = 1, 2  # neighbours, so that every block shows its step
    return from_float32(levels * step, "float16"), step


def test_noise_is_uniform_over_one_step() -> None:
    bits, step = quantised(200, 320)
    noise = to_float32(dithered(bits, dtype="float16", name="m", seed=3), "float16") - to_float32(bits, "float16")
    share = (noise / step).ravel().astype(np.float64)
    # Rounding to float16 moves a sum by at most half a unit: 2**-12 of a weight of at most 8.5 steps.
    assert np.abs(share).max() <= 0.5 + 8.5 * 2**-12
    # 64000 uniform numbers: the mean has a standard error of 0.0012, the variance (1/12) one of 0.0003. Five of them.
    assert abs(share.mean()) < 0.006
    assert abs(share.var() - 1 / 12) < 0.0015
    assert np.histogram(share, bins=10, range=(-0.5, 0.5))[0].min() > 6000  # 6400 each, standard deviation 76


def test_it_makes_the_weights_hold_more_than_four_bits() -> None:
    bits, _ = quantised(64, 64)
    assert len(np.unique(dithered(bits, dtype="float16", name="m", seed=0)[0, :BLOCK])) > 24 > 16


@pytest.mark.parametrize("inputs", [1, 7, 33, 320])
def test_it_depends_on_seed_name_and_place_alone(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bits, _ = quantised(40, inputs)
    again = lambda name="m", seed=0: dithered(bits, dtype="float16", name=name, seed=seed)  # noqa: E731
    first = again()
    np.testing.assert_array_equal(again(), first)
    monkeypatch.setattr("specdec.store.dither._CHUNK_WEIGHTS", 3 * inputs)
    np.testing.assert_array_equal(again(), first)
    if inputs > 1:
        assert (again(name="n") != first).any()
        assert (again(seed=1) != first).any()


def test_known_noise() -> None:
    # A change of NumPy or of this code must not change the twin that a seed stands for.
    bits = from_float32(np.array([[0.0, 1.0, 2.0, 3.0]], dtype=np.float32), "float16")
    found = to_float32(dithered(bits, dtype="float16", name="layers.0.attn.q", seed=1), "float16")
    np.testing.assert_array_equal(
        found, np.array([[-0.402587890625, 0.8486328125, 1.6240234375, 2.7421875]], dtype=np.float32)
    )


def test_blocks_without_a_step_stay() -> None:
    bits = np.zeros((3, 70), dtype=np.uint16)
    bits[1] = 0x3C00
    bits[2, 40:] = 0x8000  # minus zero is no other value than zero
    np.testing.assert_array_equal(
        to_float32(dithered(bits, dtype="float16", name="m", seed=0), "float16"), to_float32(bits, "float16")
    )


def test_the_store_is_marked(tmp_path: Path) -> None:
    source = synthetic_source(tiny_config(tie_embeddings=False))
    store = Store.open(convert(source, tmp_path / "twin", dither=7, views=["int4"]))
    assert store.dithered == 7
    for name in source.config.matrices():
        expected = dithered(source.matrix(name), dtype="float16", name=name, seed=7)
        np.testing.assert_array_equal(store.exact(name).dense_bits(), expected)
    np.testing.assert_array_equal(store.table("embed"), source.matrix("embed"))
    assert Store.open(convert(source, tmp_path / "plain")).dithered is None
    assert Store.open(convert(source, tmp_path / "zero", dither=0)).dithered == 0

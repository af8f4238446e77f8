"""What a report says about a store, against the same numbers taken the long way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_source, tiny_config

from specdec.errors import StoreError
from specdec.store import BucketLayout, Store, convert
from specdec.store.inspect import inspect_store, tier_energy
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import to_float32

LAYOUT = BucketLayout(16, (2, 2, 4, 8))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers(tmp_path: Path, dtype: str) -> None:
    config = tiny_config(tie_embeddings=False, qkv_bias=True)
    source = synthetic_source(config, dtype=dtype)
    target = convert(source, tmp_path / "store", layout=LAYOUT, views=["int4"], dither=3)
    store, report = Store.open(target), inspect_store(target)
    assert report.checksum == store.checksum
    assert (report.verified, report.dithered, report.views, report.dtype) == (True, 3, ("int4",), dtype)
    assert report.layout == {"bucket_size": 16, "tier_sizes": [2, 2, 4, 8]}
    weights = 47 * 32 + sum(outputs * inputs for outputs, inputs in config.matrices().values())
    vectors = sum(config.vectors().values())
    assert (report.parameters, report.dense_bytes) == (weights + vectors, 2 * weights + 4 * vectors)
    assert report.file_bytes == {
        name: (target / name).stat().st_size for name in ("exact.safetensors", "view-int4.safetensors")
    }
    assert sum(report.part_bytes.values()) == report.file_bytes["exact.safetensors"]
    assert report.part_bytes["vectors"] == 4 * vectors
    assert report.part_bytes["tables"] == 2 * 47 * 32
    assert report.part_bytes["tier0.values"] == sum(store.exact(n).values[0].nbytes for n in config.matrices())
    assert set(report.matrices) == set(config.matrices())
    assert report.matrices["head"].nbytes == store.exact("head").nbytes


def test_energy(tmp_path: Path) -> None:
    config = tiny_config()
    target = convert(synthetic_source(config), tmp_path / "store", layout=LAYOUT)
    store, report = Store.open(target), inspect_store(target, verify=False)
    total = np.zeros(4)
    down = np.zeros(4)
    for name in config.matrices():
        matrix = store.exact(name)
        dense = np.zeros((matrix.shape[1], LAYOUT.buckets(matrix.shape[0]) * 16))
        dense[:, : matrix.shape[0]] = matrix.dequantise().T
        energy = np.array([(dense[matrix.tier_of_weight() == k] ** 2).sum() for k in range(4)])
        # Both are float64 sums of the same few thousand squares, in another order.
        np.testing.assert_allclose(report.matrices[name].energy, energy / energy.sum(), rtol=1e-12)
        total += energy
        down += energy if name.endswith("down") else 0
    np.testing.assert_allclose(report.energy, total / total.sum(), rtol=1e-12)
    np.testing.assert_allclose(report.energy_by_kind["down"], down / down.sum(), rtol=1e-12)
    assert list(report.energy_by_kind) == ["q", "k", "v", "o", "gate", "up", "down", "head"]
    # The two largest of 16 Gaussian weights hold more energy than the eight smallest.
    assert report.energy[0] > report.energy[3]


def test_energy_of_large_and_of_zero_matrices() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 0x3C00, size=(512, 700)).astype(np.uint16)  # more than one chunk
    matrix = BucketedMatrix.from_dense(bits, dtype="float16", layout=BucketLayout())
    expected = (to_float32(bits, "float16").astype(np.float64) ** 2).sum()
    # float64 sums of 4e5 positive numbers: 1e-12 is far above their rounding.
    np.testing.assert_allclose(tier_energy(matrix).sum(), expected, rtol=1e-12)
    zeros = BucketedMatrix.from_dense(np.zeros((4, 4), np.uint16), dtype="float16", layout=BucketLayout())
    assert tier_energy(zeros).tolist() == [0, 0, 0, 0]


def test_text_and_json(tmp_path: Path) -> None:
    target = convert(synthetic_source(), tmp_path / "store", views=["int4"], dither=9)
    report = inspect_store(target)
    assert json.loads(json.dumps(report.to_dict()))["checksum"] == report.checksum
    text = report.to_text()
    for part in (str(target), report.checksum, "seed 9", "exact, int4", "4 + 4 + 4 + 4", "tier2.mask", "down"):
        assert part in text
    assert "dithered    no\n" in inspect_store(convert(synthetic_source(), tmp_path / "plain")).to_text()


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        inspect_store(tmp_path / "nothing")

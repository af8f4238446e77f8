"""Stores of models that only a list of layers describes (format 4), from the description to the runtimes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, tiny_config

from specdec.errors import InvalidArgumentError, StoreError
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Layer, Mlp, Rope
from specdec.runtimes.base import forward_one
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert
from specdec.store.description import _checksum
from specdec.weights.dtypes import to_float32

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 24)]


def mixed_config(**changes: Any) -> ModelConfig:
    """A model of three different layers: plain; other heads, rotary base and window; a mixture."""
    plain = tiny_config()
    [layer] = plain.kinds
    turned = dataclasses.replace(
        layer.attention, heads=6, kv_heads=3, head_dim=16, rope=Rope(theta=500.0), window=4, qk_norm="head"
    )
    layers = (
        layer,
        Layer(attention=turned, mlp=Mlp(width=72)),
        Layer(attention=layer.attention, mlp=Mlp(width=40, experts=4, experts_used=2)),
        layer,
    )
    return dataclasses.replace(plain, layers=layers, tied=False, **changes)


def test_a_store_of_different_layers_is_read_as_it_was_written(tmp_path: Path) -> None:
    source = SyntheticSource(mixed_config())
    path = convert(source, tmp_path / "store")
    store = Store.open(path)
    assert store.config == source.config
    assert store.description.version == 5
    values = json.loads((path / "store.json").read_text())
    assert store.checksum == values["checksum"]
    assert values["config"]["layers"] == [0, 1, 2, 0]
    np.testing.assert_array_equal(store.vector("layers.1.attn.k_norm"), source.vector("layers.1.attn.k_norm"))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_list_of_layers_is_not_read_as_an_older_version(tmp_path: Path, version: int) -> None:
    path = convert(SyntheticSource(mixed_config()), tmp_path / "store") / "store.json"
    values = json.loads(path.read_text()) | {"version": version}
    body = {key: value for key, value in values.items() if key != "checksum"}
    path.write_text(json.dumps(body | {"checksum": _checksum(body)}))
    with pytest.raises(StoreError, match="model description does not fit this version"):
        Store.open(tmp_path / "store")


def test_the_reference_runs_layers_that_differ(tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    source = SyntheticSource(mixed_config())
    runtime = create_runtime("reference", Store.open(convert(source, tmp_path / "store")))
    names = source.config.matrices() | source.config.tables()
    weights = {name: to_float32(source.matrix(name), source.dtype) for name in names}
    wanted = DenseTransformer(source.config, weights.__getitem__, source.vector).logits(TOKENS)
    cache = runtime.new_cache(64)
    logits = np.concatenate([forward_one(runtime, part, cache).logits for part in (TOKENS[:7], TOKENS[7:])])
    # As in test_reference_runtime: some dozens of float32 roundings of numbers up to 4.
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1.5e-5)


def test_a_model_that_a_runtime_misses_something_for_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("specdec.kernels.cpu._native", exc_type=ImportError)
    store = Store.open(convert(SyntheticSource(mixed_config()), tmp_path / "store"))
    create_runtime("native", store)  # today's runtimes miss nothing of this model
    missing = classmethod(lambda *_: frozenset({"wings", "gills"}))
    monkeypatch.setattr("specdec.runtimes.native.runtime.NativeRuntime.missing", missing)
    with pytest.raises(InvalidArgumentError, match="native runtime does not execute gills, wings, which this model"):
        create_runtime("native", store)


def test_auto_takes_a_runtime_that_misses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    from specdec.runtimes import choose

    monkeypatch.setattr(choose, "missing_gpu", lambda: "no GPU")
    monkeypatch.setattr(choose, "_gpu_is_here", lambda: False)
    missing = classmethod(lambda *_: frozenset({"wings"}))
    monkeypatch.setattr("specdec.runtimes.native.runtime.NativeRuntime.missing", missing)
    store = Store.open(convert(SyntheticSource(mixed_config()), tmp_path / "store"))
    assert create_runtime("auto", store).info.name == "reference"

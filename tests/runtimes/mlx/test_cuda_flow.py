"""Drafts in 4 bits as one CUDA kernel through which weights flow: the kernel on the host against the reference."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from cuda_host_kernels import Grids, HostCuda, compiler
from cuda_texts import compile_text, nvcc
from synthetic import SyntheticSource, tiny_config
from test_rank_step import IDS

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Planned, Rows
from specdec.runtimes.mlx import addresses, device, runtime, step
from specdec.runtimes.mlx.kernels import Compiled
from specdec.runtimes.mlx.step_flow import FLOW_VARIABLE
from specdec.runtimes.reference.runtime import ReferenceRuntime
from specdec.store import Store, convert

mx: Any = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")]


WIDE = {"hidden_size": 288, "intermediate_size": 528, "num_heads": 2, "num_kv_heads": 1, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"head_dim": 16, "architecture": "mistral", "sliding_window": 2, "first_sliding_layer": 1},
    "wide": WIDE | {"architecture": "qwen2", "qkv_bias": True, "tie_embeddings": False, "vocab_size": 150},
    "normed heads": {"head_dim": 24, "architecture": "qwen3", "qk_norm": True},
}


@pytest.fixture
def shape() -> str:
    return "small"


@pytest.fixture
def store(shape: str, tmp_path: Path) -> Store:
    config = tiny_config(**SHAPES[shape])
    return Store.open(convert(SyntheticSource(config), tmp_path / "model.store"))


class _Kept:
    """Stands for NVRTC: machine code is the text."""

    texts: ClassVar[list[str]] = []

    def code(self, text: str) -> bytes:
        self.texts.append(text)
        return text.encode()


@pytest.fixture
def on_host(store: Store, tmp_path: Path, monkeypatch: Any) -> Any:
    """Gives a runtime whose steps run on the host, on a GPU of so many multiprocessors."""
    texts: Any = _Kept()

    def addresses_of(_: Any, arrays: Any) -> list[int]:
        mx.eval(list(arrays))
        return [np.array(array, copy=False).ctypes.data for array in arrays]

    def build(_: Any, backend: str, text: Any, *, shared_bytes: int = 0) -> Compiled:
        return Compiled(mx, text, texts, shared_bytes)

    monkeypatch.setenv(FLOW_VARIABLE, "1")
    monkeypatch.setattr(step, "build", build)
    for module in (step, addresses):
        monkeypatch.setattr(module, "addresses_of", addresses_of)

    def made(multiprocessors: int) -> Any:
        driver = HostCuda(0, Grids(1, Path(tempfile.mkdtemp(dir=tmp_path))), multiprocessors)
        monkeypatch.setattr(runtime, "find_gpu", lambda: device.Gpu(mx, "cuda", "host", "0", driver))
        one = runtime.MlxRuntime(store)
        assert one._transformer.whole is not None
        return one

    return made


def drafts(one: Any, passes: list[tuple[str, list[int]]], position: int) -> list[np.ndarray]:
    """Logits of the last rows of passes, from `position` tokens on."""
    cache, full = one.new_cache(320), resolve_efforts(1.0, one.config)
    ids = (IDS * 32)[:position]
    for token in ids:
        one.forward([Rows(cache, [token], full)])
    return [one.forward([Rows(cache, tokens, full)], view=view)[0].logits[-1] for view, tokens in passes]


def chosen(one: Any, ahead: int, least_margin: float = 0.0) -> list[Any]:
    """Choices of drafts after two tokens, by a launch or several."""
    cache, full, made = one.new_cache(320), resolve_efforts(1.0, one.config), list[Any]()
    for token in IDS[:2]:
        one.forward([Rows(cache, [token], full)])
    while len(made) < 4:
        rows = Rows(
            cache, [made[-1].token if made else 9], full, logits="choices", ahead=ahead, least_margin=least_margin
        )
        made += one.forward([rows], view="int4")[0].choices
        if ahead:
            break
    assert cache.length == 2 + len(made)
    return made


def test_a_launch_drafts_until_a_choice_is_close(on_host: Any) -> None:
    host = on_host(2)
    one_by_one = chosen(host, 0)
    assert chosen(host, 3) == one_by_one
    second = one_by_one[1].margin
    assert chosen(host, 3, 1e-3 + max(second, one_by_one[0].margin)) == one_by_one[:1]
    if second < one_by_one[0].margin:
        assert chosen(host, 3, (second + one_by_one[0].margin) / 2) == one_by_one[:2]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draft_is_the_reference(store: Store, on_host: Any) -> None:
    passes = [("int4", [7]), ("int4", [3]), ("exact", [11])]
    found, wanted = (drafts(one, passes, 3) for one in (on_host(3), ReferenceRuntime(store)))
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


@pytest.mark.skipif(nvcc() is None, reason="needs nvcc")
def test_the_kernel_compiles(on_host: Any, tmp_path: Path) -> None:
    one = on_host(132)
    one.compile([Planned(1, resolve_efforts(1.0, one.config), "int4")])
    (text,) = [text for text in _Kept.texts if "step_flow.cuh" in text and "#define GRID 132" in text]
    assert compile_text(tmp_path, "flow", text) == ""


def late(one: Any, effort: float) -> np.ndarray:
    """Logits of a draft after 300 random keys and values."""
    cache = one.new_cache(384)
    cache.reserve(384)
    shape = cache.arrays[0].shape
    cache.arrays = [mx.array((0.5 * np.random.default_rng(5).standard_normal(shape)).astype(np.float16))]
    cache.address = None
    cache.advance(300)
    logits = one.forward([Rows(cache, [7], resolve_efforts(effort, one.config))], view="int4")[0].logits[-1]
    return np.asarray(logits)


def test_blocks_share_the_positions(on_host: Any) -> None:
    few = on_host(3)
    alone, chosen_from = late(few, 1.0), late(few, 0.999999)  # the second by the kernel that chooses inputs
    shared = late(on_host(8), 1.0)
    for other in (chosen_from, shared):
        assert np.abs(alone - other).max() < 0.005 * np.abs(alone).max()

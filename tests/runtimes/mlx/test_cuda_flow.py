"""Drafts in 4 bits as one CUDA kernel through which weights flow: the kernel on the host against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_host_kernels import Grids, HostCuda, compiler
from synthetic import SyntheticSource, tiny_config
from test_metal_shares import wider
from test_rank_step import IDS, use_host  # noqa: F401 (a fixture)

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows
from specdec.runtimes.mlx import runtime, step
from specdec.runtimes.mlx.kernels import Compiled
from specdec.runtimes.reference.runtime import ReferenceRuntime
from specdec.store import Store, convert

mx: Any = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(convert(SyntheticSource(wider(tiny_config())), tmp_path / "model.store"))


def on_host(store: Store, folder: Path, monkeypatch: Any, use_host: Any, blocks: int) -> Any:  # noqa: F811
    class Texts:
        def code(self, text: str) -> bytes:
            return text.encode()

    def addresses_of(_: Any, arrays: Any) -> list[int]:
        mx.eval(list(arrays))
        return [np.array(array, copy=False).ctypes.data for array in arrays]

    def build(_: Any, backend: str, text: Any, *, shared_bytes: int = 0) -> Compiled:
        texts: Any = Texts()
        return Compiled(mx, text, texts, shared_bytes)

    folder.mkdir()
    use_host(HostCuda(0, Grids(1, folder), blocks))
    monkeypatch.setattr(step, "build", build)
    monkeypatch.setattr(step, "addresses_of", addresses_of)
    made = runtime.MlxRuntime(store)
    assert made._transformer.whole is not None
    return made


def drafts(one: Any, passes: list[tuple[str, list[int]]], position: int) -> list[np.ndarray]:
    """Logits of the last rows of passes, from `position` tokens on."""
    cache, full = one.new_cache(320), resolve_efforts(1.0, one.config)
    ids = (IDS * 32)[:position]
    for token in ids:
        one.forward([Rows(cache, [token], full)])
    return [one.forward([Rows(cache, tokens, full)], view=view)[0].logits[-1] for view, tokens in passes]


def chosen(one: Any, ahead: int, least_margin: float = 0.0) -> list[Any]:
    """Choices of drafts after five tokens, by a launch or several."""
    cache, full, made = one.new_cache(320), resolve_efforts(1.0, one.config), list[Any]()
    for token in IDS[:5]:
        one.forward([Rows(cache, [token], full)])
    while len(made) < 4:
        rows = Rows(
            cache, [made[-1].token if made else 9], full, logits="choices", ahead=ahead, least_margin=least_margin
        )
        made += one.forward([rows], view="int4")[0].choices
        if ahead:
            break
    assert cache.length == 5 + len(made)
    return made


def test_a_launch_drafts_until_a_choice_is_close(store: Store, use_host: Any, monkeypatch: Any, tmp_path: Path) -> None:  # noqa: F811
    host = on_host(store, tmp_path / "host", monkeypatch, use_host, 4)
    one_by_one = chosen(host, 0)
    assert chosen(host, 3) == one_by_one
    second = one_by_one[1].margin
    assert chosen(host, 3, 1e-3 + max(second, one_by_one[0].margin)) == one_by_one[:1]
    if second < one_by_one[0].margin:
        assert chosen(host, 3, (second + one_by_one[0].margin) / 2) == one_by_one[:2]


def test_a_draft_is_the_reference(store: Store, use_host: Any, monkeypatch: Any, tmp_path: Path) -> None:  # noqa: F811
    passes = [("int4", [7]), ("int4", [3]), ("exact", [11])]
    host = on_host(store, tmp_path / "host", monkeypatch, use_host, 3)
    found = drafts(host, passes, 5)
    wanted = drafts(ReferenceRuntime(store), passes, 5)
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def test_weights_by_a_ring_give_the_same_bits(
    store: Store,
    use_host: Any,
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    passes = [("exact", [7]), ("exact", [3])]
    plain = drafts(on_host(store, tmp_path / "plain", monkeypatch, use_host, 3), passes, 3)
    monkeypatch.setattr(step, "RING_PIECES", 5)
    ring = drafts(on_host(store, tmp_path / "ring", monkeypatch, use_host, 3), passes, 3)
    assert all(np.array_equal(one, other) for one, other in zip(plain, ring, strict=True))

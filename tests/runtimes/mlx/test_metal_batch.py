"""Passes over several sequences on the mlx runtime, with Metal kernels on the host: a batch equals its parts.

Chains and trees, mixed efforts, paths that are kept, forks, growth; other threads; what a failed pass leaves behind.
"""

from __future__ import annotations

from threading import Thread
from typing import Any

import numpy as np
import pytest
from batches import Company
from metal_host_kernels import compiler
from metal_runtime import use_host
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

from specdec.errors import InvalidArgumentError
from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.runtimes.base import Rows, forward_one
from specdec.store import Store, convert

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

SPAN = 8  # instead of 256: splits of attention and the growth of caches within short texts
FULL = EffortSchedule()


@pytest.fixture
def runtime_of(monkeypatch, programs, tmp_path):
    """The runtime of a source with the steps of few sizes, since each kernel takes a second to compile."""
    mx = use_host(monkeypatch, programs)
    from specdec.runtimes.mlx import attention_ops, cache, ops, runtime, steps

    for module in (cache, attention_ops, steps):
        monkeypatch.setattr(module, "SPAN", SPAN)
    monkeypatch.setattr(ops, "ROW_STEPS", (1, 16))
    monkeypatch.setattr(ops, "CACHE_STEPS", (1, 4))
    assert mx is runtime.find_gpu().mx
    return lambda source, **how: runtime.MlxRuntime(
        Store.open(convert(source, tmp_path / "store", **how), verify=False)
    )


def source_of(name: str) -> Any:
    if name == "16 bits":
        return SyntheticSource(tiny_config(num_layers=1, qkv_bias=True, architecture="qwen2"))
    return quantised_source(quantised_config(num_layers=1, intermediate_size=256), "q8_0", dtype="float16")


def play(company: Company, rounds: int) -> None:
    for number in range(rounds):
        company.round()
        if number == 0:
            company.fork(0)


@pytest.mark.parametrize(
    ("name", "efforts"),
    [
        ("16 bits", (1.0,)),
        pytest.param("16 bits", (1.0, 0.6, 0.3), marks=pytest.mark.slow),
        pytest.param("quantised", (1.0, 0.6, 0.3), marks=pytest.mark.slow),
    ],
)
def test_a_batch_equals_its_parts(runtime_of, name, efforts):
    runtime = runtime_of(source_of(name), **({} if name == "16 bits" else {"quantised": "keep"}))
    company = Company(runtime, 1, efforts=efforts, lengths=(3, 7), most=5)
    play(company, 2)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["own", "nested", "int4"])
def test_a_batch_of_drafts_equals_its_parts(runtime_of, view):
    runtime = runtime_of(source_of("quantised"), quantised="keep")
    play(Company(runtime, 2, efforts=(1.0, 0.5), view=view, lengths=(2, 5), most=3), 2)


def test_growing_and_threads_and_what_a_failed_pass_leaves(runtime_of, monkeypatch):
    runtime = runtime_of(source_of("16 bits"))
    caches, found = [runtime.new_cache(24), runtime.new_cache(70)], []
    assert [cache.nbytes for cache in caches] == [0, 0]
    efforts = resolve_efforts(FULL, runtime.config)
    forward_one(runtime, range(9), caches[0], effort=FULL, logits="none")
    batch = [Rows(caches[0], [3, 4], efforts), Rows(caches[1], list(range(17)), efforts, logits="last")]
    run = runtime._transformer.run

    def fail_second(kind: Any, state: Any, *rest: Any) -> Any:
        if state[1] == 3:  # of 19 rows
            raise MemoryError
        return run(kind, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runtime._transformer, "run", fail_second)
        with pytest.raises(MemoryError):
            runtime.forward(batch)
    assert [cache.length for cache in caches] == [9, 0]
    assert [cache.positions for cache in caches] == [16, 32]
    each = 2 * 2 * runtime.config.num_kv_heads * runtime.config.head_dim
    assert [cache.nbytes for cache in caches] == [16 * each, 32 * each]
    with pytest.raises(InvalidArgumentError, match="no room for 16"):
        runtime.forward([batch[1], Rows(caches[0], list(range(16)), efforts)])
    assert [cache.length for cache in caches] == [9, 0]
    wanted = [made.logits for made in runtime.forward(batch)]
    for cache, length in zip(caches, (9, 0), strict=True):
        cache.trim(length)
    thread = Thread(target=lambda: found.extend(made.logits for made in runtime.forward(batch)))
    thread.start()
    thread.join()
    assert [np.array_equal(*pair) for pair in zip(found, wanted, strict=True)] == [True, True]
    forward_one(runtime, range(12), caches[0], effort=FULL, logits="none")
    assert (caches[0].length, caches[0].positions) == (23, 24)  # no more than the capacity
    forked = caches[1].fork(10, 12)
    assert (forked.length, forked.positions, forked.capacity) == (10, 16, 12)

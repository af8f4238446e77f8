"""Refusals of the interface between engine and runtimes: one clear sentence, and every cache as it was before.

The same for every runtime. After an error, or an interrupt in the middle of a pass, a cache has its old length and its
next row the old bits.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime, fake_config
from metal_host_kernels import compiler
from metal_runtime import use_host
from synthetic import synthetic_source, tiny_config

from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import (
    MAX_PASS_ROWS,
    MAX_SEQUENCES,
    MAX_TREE_ROWS,
    Cache,
    Rows,
    Runtime,
)
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

VOCAB, LAYERS, CAPACITY, HELD = 47, 2, 300, 5

Bad = Callable[[Runtime, list[Cache]], list[Rows]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    source = synthetic_source(tiny_config(max_context=2048))
    return Store.open(convert(source, tmp_path_factory.mktemp("stores") / "store"), verify=False)


@pytest.fixture(scope="module", params=["fake", "reference", "native"])
def runtime(request: pytest.FixtureRequest, store: Store) -> Runtime:
    if request.param == "fake":
        return FakeRuntime(fake_config(vocab_size=VOCAB))
    pytest.importorskip("mlx.core" if request.param == "reference" else "specdec.kernels.cpu._native")
    return create_runtime(request.param, store)


def rows(runtime: Runtime, cache: Any, tokens: Any = (1, 2), **values: Any) -> Rows:
    return Rows(cache, tokens, resolve_efforts(1.0, runtime.config), **values)


def filled(runtime: Runtime, count: int = 2) -> list[Cache]:
    """Caches that hold some tokens, each others."""
    caches = [runtime.new_cache(CAPACITY) for _ in range(count)]
    for number, cache in enumerate(caches):
        runtime.forward([rows(runtime, cache, [number, 3, 1, 4, 1])])
    return caches


def next_row(runtime: Runtime, cache: Cache) -> np.ndarray:
    """Logits of one more row; the cache is as before afterwards."""
    held = cache.length
    found = runtime.forward([rows(runtime, cache, [7])])[0].logits
    cache.trim(held)
    return found


def assert_one_sentence(error: BaseException) -> None:
    text = str(error)
    assert len(text) > 15, text
    assert "\n" not in text
    assert ". " not in text
    assert not text.endswith((".", "!")), text


def assert_unchanged(runtime: Runtime, caches: list[Cache], wanted: list[np.ndarray]) -> None:
    assert [cache.length for cache in caches] == [HELD] * len(caches)
    for cache, logits in zip(caches, wanted, strict=True):
        assert np.array_equal(next_row(runtime, cache), logits)


# A batch for two filled caches. The first share is a good one where the bad one allows it.
BATCHES: dict[str, Bad] = {
    "empty": lambda _, __: [],
    "too many sequences": lambda runtime, _: [
        rows(runtime, runtime.new_cache(4), [1]) for _ in range(MAX_SEQUENCES + 1)
    ],
    "no cache": lambda runtime, caches: [rows(runtime, caches[0]), rows(runtime, None)],
    "another runtime's cache": lambda runtime, caches: [
        rows(runtime, caches[0]),
        rows(runtime, object()),
    ],
    "a cache twice": lambda runtime, caches: [rows(runtime, caches[0]), rows(runtime, caches[0])],
    "too many rows": lambda runtime, caches: [
        rows(runtime, caches[0], [1] * 256),
        rows(runtime, caches[1], [1] * (MAX_PASS_ROWS - 255)),
    ],
    **{
        f"layers {layers!r}": lambda runtime, caches, layers=layers: [
            rows(runtime, caches[0]),
            rows(runtime, caches[1], layers=layers),
        ]
        for layers in (0, -1, LAYERS + 1, True, 1.0, "1")
    },
    **{
        f"logits {logits!r}": lambda runtime, caches, logits=logits: [
            rows(runtime, caches[0]),
            rows(runtime, caches[1], logits=logits),
        ]
        for logits in ("some", None, 1)
    },
    **{
        f"parents {parents!r}": lambda runtime, caches, parents=parents: [
            rows(runtime, caches[0]),
            rows(runtime, caches[1], [1, 2, 3], parents=parents),
        ]
        for parents in ((), (-1,), (-1, 0, 1, 2), (-1, 1, 0), (-1, 0, 2), (0, 0, 0), (-2, 0, 1), (-1, 0, 0.5))
    },
    "a tree too large": lambda runtime, caches: [
        rows(runtime, caches[0]),
        rows(runtime, caches[1], [1] * (MAX_TREE_ROWS + 1), parents=range(-1, MAX_TREE_ROWS)),
    ],
    **{
        f"tokens {tokens!r}": lambda runtime, caches, tokens=tokens: [
            rows(runtime, caches[0]),
            rows(runtime, caches[1], tokens),
        ]
        for tokens in ((), (-1,), (VOCAB,), (1, 2, VOCAB), (2**31,), (2**32 + 1,), (2**70,), (1, -(2**70)))
    },
    "many tokens and a bad one": lambda runtime, caches: [
        rows(runtime, caches[0]),
        rows(runtime, caches[1], [1] * 100 + [VOCAB]),
    ],
    "no room": lambda runtime, caches: [
        rows(runtime, caches[0]),
        rows(runtime, caches[1], [1] * (CAPACITY - HELD + 1)),
    ],
    "no room for a tree": lambda runtime, caches: [
        rows(runtime, caches[0]),
        rows(runtime, runtime.new_cache(3), [1] * 4, parents=(-1, -1, -1, -1), logits="last"),
    ],
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_is_refused_changes_no_cache(runtime: Runtime, name: str) -> None:
    caches = filled(runtime)
    wanted = [next_row(runtime, cache) for cache in caches]
    with pytest.raises(InvalidArgumentError) as caught:
        runtime.forward(BATCHES[name](runtime, caches))
    assert_one_sentence(caught.value)
    assert_unchanged(runtime, caches, wanted)


@pytest.mark.parametrize("name", BATCHES)
def test_a_refusal_is_the_same_in_a_draft_view(runtime: Runtime, name: str) -> None:
    caches, view = filled(runtime), next(iter(runtime.views()))
    wanted = [next_row(runtime, cache) for cache in caches]
    with pytest.raises(InvalidArgumentError):
        runtime.forward(BATCHES[name](runtime, caches), view=view)
    assert_unchanged(runtime, caches, wanted)


def test_an_unknown_view_is_named(runtime: Runtime) -> None:
    caches = filled(runtime)
    wanted = [next_row(runtime, cache) for cache in caches]
    with pytest.raises(UnknownNameError, match="int5"):
        runtime.forward([rows(runtime, cache) for cache in caches], view="int5")
    if runtime.info.name != "fake":
        with pytest.raises(UnknownNameError, match="int5"):
            runtime.prepare("int5")
    assert_unchanged(runtime, caches, wanted)


@pytest.mark.parametrize("capacity", [0, -1, True, 1.0, "4", None])
def test_capacity(runtime: Runtime, capacity: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        runtime.new_cache(capacity)
    assert_one_sentence(caught.value)
    [cache] = filled(runtime, 1)
    with pytest.raises(InvalidArgumentError) as caught:
        cache.fork(0, capacity)
    assert_one_sentence(caught.value)


CHANGES: dict[str, Callable[[Any], Any]] = {
    **{f"trim {length!r}": lambda c, length=length: c.trim(length) for length in (-1, HELD + 1, True, 1.0, "1", None)},
    **{f"base {base!r}": lambda c, base=base: c.keep(base, []) for base in (-1, HELD + 1, True, 1.0, "1", None)},
    **{
        f"rows {kept!r}": lambda c, kept=kept: c.keep(2, kept)
        for kept in ((3,), (-1,), (1, 1), (1, 0), (0, 1, 2, 3), (0.0,), (0, True), (0, 1.5), ("0",), (None,))
    },
    **{
        f"fork {length!r}": lambda c, length=length: c.fork(length, 8)
        for length in (-1, HELD + 1, True, 1.0, "1", None)
    },
    "fork for less": lambda c: c.fork(4, 3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_refused_changes_nothing(runtime: Runtime, name: str) -> None:
    caches = filled(runtime)
    wanted = [next_row(runtime, cache) for cache in caches]
    with pytest.raises(InvalidArgumentError) as caught:
        CHANGES[name](caches[0])
    assert_one_sentence(caught.value)
    assert_unchanged(runtime, caches, wanted)


def test_whole_numbers_of_numpy_are_whole_numbers(runtime: Runtime) -> None:
    """Tokens, rows and parents often come from an array."""
    [cache] = filled(runtime, 1)
    parents, kept = list(np.array([-1, 0, 0])), list(np.array([0, 2]))
    result = runtime.forward([rows(runtime, cache, [1, 2, 3], parents=parents)])[0]
    assert result.logits.shape == (3, VOCAB)
    cache.keep(HELD, kept)
    assert cache.length == HELD + 2


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """A function that interrupts this thread after so many seconds, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield lambda delay_s: signal.setitimer(signal.ITIMER_REAL, delay_s) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupted_pass_happens_as_a_whole_or_not_at_all(runtime: Runtime, alarm: Callable[[float], None]) -> None:
    caches = filled(runtime, 3)
    wanted = [next_row(runtime, cache) for cache in caches]
    batch = [
        rows(runtime, cache, [2] * (90 if runtime.info.name == "native" else 8), logits="last") for cache in caches
    ]

    def turn(delay_s: float) -> bool:
        """Whether the pass was interrupted."""
        try:
            alarm(delay_s)
            runtime.forward(batch)
            alarm(0)
            return False
        except KeyboardInterrupt:
            return True
        finally:
            alarm(0)
            assert {cache.length for cache in caches} in ({HELD}, {HELD + len(batch[0].tokens)})
            for cache in caches:
                cache.trim(HELD)
            assert_unchanged(runtime, caches, wanted)

    start_s = time.perf_counter()
    assert not turn(60)
    took_s = time.perf_counter() - start_s
    # The machine may be busier or idler than it was: delays reach from nothing to twice the measured time.
    assert sum(turn(took_s * 2.0 ** -(part / 4)) for part in range(-4, 40)) > 0


def test_an_interrupt_in_the_middle_of_the_fake_runtime() -> None:
    runtime = FakeRuntime(fake_config(vocab_size=VOCAB))
    caches = filled(runtime)
    wanted = [next_row(runtime, cache) for cache in caches]
    runtime.fail_at_pass = len(runtime.passes) + 2  # the second share
    with pytest.raises(KeyboardInterrupt):
        runtime.forward([rows(runtime, cache) for cache in caches])
    runtime.fail_at_pass = None
    assert_unchanged(runtime, caches, wanted)


def test_a_cache_of_another_model_is_refused(runtime: Runtime, tmp_path: Any) -> None:
    if runtime.info.name == "fake":
        pytest.skip("the fake runtime's caches hold no numbers")
    source = synthetic_source(tiny_config(num_layers=1, head_dim=16))
    other = create_runtime(runtime.info.name, Store.open(convert(source, tmp_path / "store"), verify=False))
    caches = filled(runtime)
    wanted = [next_row(runtime, cache) for cache in caches]
    with pytest.raises(ValueError, match="cache") as caught:
        runtime.forward([rows(runtime, caches[0]), rows(runtime, other.new_cache(CAPACITY))])
    assert_one_sentence(caught.value)
    assert_unchanged(runtime, caches, wanted)


def test_the_gpu_runtime_refuses_the_same(store: Store, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    """Empty caches, so that no kernel runs on the host, which takes a second."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    if compiler() is None:
        pytest.skip("needs a C++ compiler")
    use_host(monkeypatch, programs)
    try:
        from specdec.runtimes.mlx.runtime import MlxRuntime

        runtime = MlxRuntime(store)
    finally:
        sys.modules.pop("specdec.runtimes.mlx.runtime", None)
    caches = [runtime.new_cache(CAPACITY) for _ in range(2)]
    for name, bad in BATCHES.items():
        if name == "no room":  # for caches that hold something
            continue
        with pytest.raises(InvalidArgumentError) as caught:
            runtime.forward(bad(runtime, caches))
        assert_one_sentence(caught.value)
        assert [cache.length for cache in caches] == [0, 0], name
    for capacity in (0, True, 1.0):
        with pytest.raises(InvalidArgumentError):
            runtime.new_cache(capacity)
    for change in (lambda c: c.trim(1), lambda c: c.keep(0, [0]), lambda c: c.keep(1, []), lambda c: c.fork(1, 4)):
        with pytest.raises(InvalidArgumentError):
            change(caches[0])

"""Rows that attend to a part of the context: which positions those are, on the reference runtime, which defines it, and
on the native one."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from synthetic import SyntheticSource, tiny_config

from specdec.errors import InvalidArgumentError
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows, forward_one
from specdec.runtimes.checks import check_batch
from specdec.runtimes.choose import create_runtime
from specdec.runtimes.reference.cache import KeyValueCache
from specdec.runtimes.window import WINDOW_BLOCK, Window
from specdec.store import Store, convert

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
native = pytest.importorskip("specdec.runtimes.native.runtime", reason="the native runtime is not built")

RUNTIMES = ("reference", "native")
LENGTH = 2 * WINDOW_BLOCK + 40  # tokens before the row that is looked at
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one layer": {"num_layers": 1},
    "one layer, windowed": {"num_layers": 1, "architecture": "mistral", "sliding_window": LENGTH - 1},
    "one layer, narrow": {"num_layers": 1, "architecture": "mistral", "sliding_window": 30},
}


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory):
    """A runtime of a small random model; each made once."""

    @cache
    def store_of(model: str) -> Store:
        return Store.open(
            convert(SyntheticSource(tiny_config(**MODELS[model])), tmp_path_factory.mktemp("s") / "store")
        )

    return cache(lambda name, model: create_runtime(name, store_of(model)))


def row_after(runtime: Any, tokens: list[int], window: Window | None, held: Any = None) -> Any:
    """The pass of a row after some tokens, of which `held` may hold a beginning."""
    kv = runtime.new_cache(len(tokens) + 1) if held is None else held
    if missing := tokens[kv.length :]:
        forward_one(runtime, missing, kv, logits="none")
    return runtime.forward([Rows(kv, [7], resolve_efforts(1.0, runtime.config), window=window)])[0]


def changed_row(runtime: Any, tokens: list[int], window: Window | None, place: int, held: Any) -> np.ndarray:
    """Logits of the row after another token at `place`. `held` has keys and values of `tokens`."""
    if isinstance(held, KeyValueCache):  # whose passes take long: the value itself is another
        kv = held.fork(len(tokens), len(tokens) + 1)
        kv._values[0][:, place] += 1.0
        return row_after(runtime, tokens, window, kv).logits
    changed = [*tokens[:place], (tokens[place] + 1) % 46, *tokens[place + 1 :]]
    return row_after(runtime, changed, window).logits


def text(length: int) -> list[int]:
    return [token * 7 % 46 for token in range(length)]


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(
    ("model", "window", "seen"),
    [
        ("one layer", None, [(0, LENGTH)]),
        ("one layer", Window(50, 3), [(0, 3), (WINDOW_BLOCK, LENGTH)]),  # 297 - 50 lies in the second block
        ("one layer", Window(41, 0), [(2 * WINDOW_BLOCK, LENGTH)]),
        ("one layer", Window(42, 128), [(0, 128), (WINDOW_BLOCK, LENGTH)]),
        ("one layer", Window(LENGTH - WINDOW_BLOCK + 2, 2), [(0, LENGTH)]),
        ("one layer, windowed", Window(41, 5), [(2, 5), (2 * WINDOW_BLOCK, LENGTH)]),
        ("one layer, narrow", Window(41, 5), [(LENGTH - 29, LENGTH)]),
    ],
)
def test_a_row_sees_the_first_positions_and_the_latest(runtime_of, name, model, window, seen):
    """In one layer a key depends on its own token alone: another token moves the logits where the row sees it."""
    runtime, tokens = runtime_of(name, model), text(LENGTH)
    held = runtime.new_cache(LENGTH + 1)
    forward_one(runtime, tokens, held, logits="none")
    known = row_after(runtime, tokens, window, held.fork(LENGTH, LENGTH + 1)).logits
    edges = {place + step for part in [(0, LENGTH), (2, 5), *seen] for place in part for step in (-1, 0)}
    for place in sorted(edges & set(range(LENGTH))):
        is_seen = any(first <= place < last for first, last in seen)
        assert np.array_equal(changed_row(runtime, tokens, window, place, held), known) == (not is_seen), place


@pytest.mark.parametrize("window", [None, Window(60, 4), Window(1, 0), Window(140, 128)])
def test_native_computes_what_reference_defines(runtime_of, window):
    tokens = text(LENGTH)
    found = [row_after(runtime_of(name, "plain"), tokens, window) for name in RUNTIMES]
    # The native cache rounds keys and values to 11 bits.
    assert np.allclose(found[0].logits, found[1].logits, atol=2e-3 * np.abs(found[0].logits).max())


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_short_context_is_seen_whole(runtime_of, name):
    runtime, tokens = runtime_of(name, "plain"), text(WINDOW_BLOCK + 10)
    whole, part = (row_after(runtime, tokens, window) for window in (None, Window(100, 2)))
    assert np.array_equal(whole.logits, part.logits)
    assert whole.bytes_read == part.bytes_read
    assert (
        row_after(runtime, text(LENGTH), Window(100, 2)).bytes_read < row_after(runtime, text(LENGTH), None).bytes_read
    )


@pytest.mark.parametrize("name", RUNTIMES)
def test_bytes_are_those_of_the_positions_seen(runtime_of, name):
    runtime = runtime_of(name, "one layer")
    of_position = 2 * runtime.config.layers[0].attention.kv_width * (4 if name == "reference" else 2)
    whole, part = (row_after(runtime, text(LENGTH), window).bytes_read for window in (None, Window(41, 3)))
    assert whole - part == (2 * WINDOW_BLOCK - 3) * of_position


@pytest.mark.parametrize(("recent", "sinks"), [(0, 4), (-1, 4), (1.5, 4), (True, 4), (10, -1), (10, 129), (10, 2.0)])
def test_a_window_of_other_numbers_is_refused(recent, sinks):
    with pytest.raises(InvalidArgumentError, match="of a window must be a whole number from"):
        Window(recent, sinks)


def test_a_runtime_that_attends_to_everything_says_so(runtime_of):
    runtime = runtime_of("reference", "plain")
    kv = runtime.new_cache(4)
    rows = Rows(kv, [1], resolve_efforts(1.0, runtime.config), window=Window(10))
    with pytest.raises(InvalidArgumentError, match="attends to all of the context"):
        check_batch([rows], runtime.config, type(kv))


@pytest.mark.parametrize("window", [None, Window(200, 4)])
def test_threads_that_share_positions_change_nothing(runtime_of, window):
    """Partial sums of fixed blocks of positions, joined in their order."""
    tokens, found = text(5 * WINDOW_BLOCK + 9), []
    for threads in (1, 2, 3, 5):
        runtime = native.NativeRuntime(runtime_of("native", "plain")._store, threads=threads)
        found.append(row_after(runtime, tokens, window).logits)
        kv = runtime.new_cache(len(tokens) + 1)
        forward_one(runtime, tokens[: -2 * WINDOW_BLOCK], kv, logits="none")  # read in other pieces
        forward_one(runtime, tokens[-2 * WINDOW_BLOCK :], kv, logits="none")
        found.append(row_after(runtime, tokens, window, kv).logits)
    assert all(np.array_equal(one, found[0]) for one in found)

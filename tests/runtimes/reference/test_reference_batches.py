"""The reference runtime with several sequences and trees in a pass: every row has the bits it has alone."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from featured_models import FEATURED
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SyntheticSource, tiny_config

from specdec.errors import InvalidArgumentError
from specdec.model.effort import Efforts, resolve_efforts
from specdec.runtimes.base import Rows, depths, forward_one, path_to
from specdec.store import Store, convert

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)

from specdec.runtimes.reference.runtime import ReferenceRuntime

MODELS = {
    "llama": tiny_config(),
    "window": tiny_config(architecture="mistral", sliding_window=4, first_sliding_layer=1),
    "mixture": tiny_config(architecture="mixtral", num_experts=4, experts_per_token=2, tie_embeddings=False),
} | FEATURED
TREE = [-1, 0, 0, 1, -1, 2, 5, 4]


@pytest.fixture(scope="module", params=MODELS)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceRuntime:
    source = SyntheticSource(MODELS[request.param])
    return ReferenceRuntime(Store.open(convert(source, tmp_path_factory.mktemp("stores") / "store", views=("int4",))))


def efforts_of(runtime: ReferenceRuntime, effort: float) -> Efforts:
    return resolve_efforts(effort, runtime.config)


def filled(runtime: ReferenceRuntime, tokens: list[int], effort: float = 1.0, view: str = "exact") -> Any:
    cache = runtime.new_cache(64)
    if tokens:
        forward_one(runtime, tokens, cache, effort=effort, view=view, logits="none")
    return cache


def row_alone(runtime: ReferenceRuntime, tokens: list[int], effort: float, view: str) -> np.ndarray:
    """Logits of the last of `tokens`, fed one at a time."""
    cache = runtime.new_cache(len(tokens))
    return [forward_one(runtime, [token], cache, effort=effort, view=view).logits for token in tokens][-1][0]


@pytest.mark.parametrize(("view", "effort"), [("exact", 1.0), ("exact", 0.4), ("int4", 0.5)])
def test_rows_of_a_tree_have_the_bits_of_chains(runtime: ReferenceRuntime, view: str, effort: float) -> None:
    history, nodes = [5, 9, 2, 40, 11], [7, 8, 9, 10, 11, 12, 13, 14]
    cache = filled(runtime, history, effort, view)
    tree = Rows(cache, nodes, efforts_of(runtime, effort), TREE)
    [result] = runtime.forward([tree], view=view)
    for row in range(len(nodes)):
        path = [nodes[node] for node in path_to(TREE, row)]
        assert np.array_equal(result.logits[row], row_alone(runtime, history + path, effort, view))


@pytest.mark.parametrize("path", [[], [0], [0, 1, 3], [0, 2, 5, 6], [4, 7]])
def test_keep_leaves_the_cache_of_a_chain(runtime: ReferenceRuntime, path: list[int]) -> None:
    history, nodes = [5, 9, 2, 40, 11], [7, 8, 9, 10, 11, 12, 13, 14]
    cache = filled(runtime, history)
    runtime.forward([Rows(cache, nodes, efforts_of(runtime, 1.0), TREE)])
    cache.keep(len(history), path)
    assert cache.length == len(history) + len(path)
    after = forward_one(runtime, [3], cache).logits[0]
    assert np.array_equal(after, row_alone(runtime, [*history, *(nodes[row] for row in path), 3], 1.0, "exact"))


def test_keep_after_a_pass_over_some_layers(runtime: ReferenceRuntime) -> None:
    cache = runtime.new_cache(300)
    rows = Rows(cache, [7, 8, 9], efforts_of(runtime, 1.0), [-1, 0, 0], layers=1)
    alone = forward_one(runtime, [7, 9, 4], runtime.new_cache(8), layers=1).logits
    assert np.array_equal(runtime.forward([rows])[0].logits[2], alone[1])
    cache.keep(0, [0, 2])
    assert np.array_equal(forward_one(runtime, [4], cache, layers=1).logits[0], alone[2])


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_a_fork_and_its_origin_do_not_see_each_other(runtime: ReferenceRuntime, length: int) -> None:
    history = [5, 9, 2, 40, 11]
    cache = filled(runtime, history)
    fork = cache.fork(length, 400)
    assert (fork.length, fork.capacity) == (length, 400)
    of_fork = forward_one(runtime, [1, 2, 3], fork).logits
    of_origin = forward_one(runtime, [30, 31], cache).logits
    assert np.array_equal(of_fork[-1], row_alone(runtime, [*history[:length], 1, 2, 3], 1.0, "exact"))
    assert np.array_equal(of_origin[-1], row_alone(runtime, [*history, 30, 31], 1.0, "exact"))
    with pytest.raises(InvalidArgumentError, match="a fork of a cache of 7 tokens"):
        cache.fork(8, 400)
    with pytest.raises(InvalidArgumentError, match="a fork of a cache"):
        cache.fork(3, 2)


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_batch_equals_its_parts(runtime: ReferenceRuntime, data: st.DataObject) -> None:
    view, token = data.draw(st.sampled_from(["exact", "int4", "bucket"])), st.integers(0, 46)
    batch, parts = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        history = data.draw(st.lists(token, max_size=6))
        tokens = data.draw(st.lists(token, min_size=1, max_size=6))
        parents = None
        if data.draw(st.booleans()):
            parents = [data.draw(st.integers(-1, row - 1)) for row in range(len(tokens))]
        efforts = efforts_of(runtime, data.draw(st.sampled_from([1.0, 0.6, 0.3])))
        options = data.draw(st.sampled_from([None, 1])), data.draw(st.sampled_from(["all", "last", "none"]))
        for share in (batch, parts):
            share.append(Rows(filled(runtime, history), tokens, efforts, parents, *options))
    together = runtime.forward(batch, view=view, states=True)
    alone = [runtime.forward([rows], view=view, states=True)[0] for rows in parts]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.states, other.states)
    after = [forward_one(runtime, [3], rows.cache, view=view, layers=1).logits for rows in batch]
    assert all(
        np.array_equal(one, forward_one(runtime, [3], rows.cache, view=view, layers=1).logits)
        for one, rows in zip(after, parts, strict=True)
    )
    read = sum(one.bytes_read for one in together)
    assert read <= sum(one.bytes_read for one in alone)


def test_shares_of_the_bytes_add_up(runtime: ReferenceRuntime) -> None:
    """The weights of a pass are read once: two equal sequences of a pass share what one reads alone."""

    def rows() -> Rows:
        return Rows(runtime.new_cache(8), [7, 8, 9], efforts_of(runtime, 1.0))

    config = runtime.config
    own = 3 * (2 * config.hidden_size + 8 * config.num_layers * config.num_kv_heads * config.head_dim)
    [alone], pair = runtime.forward([rows()]), runtime.forward([rows(), rows()])
    assert sum(one.bytes_read for one in pair) == alone.bytes_read + own


def test_depth_counts_as_position(runtime: ReferenceRuntime) -> None:
    assert depths(TREE) == [0, 1, 1, 2, 0, 2, 3, 1]
    cache = runtime.new_cache(8)
    [result] = runtime.forward([Rows(cache, [7, 7, 7], efforts_of(runtime, 1.0), [-1, -1, 1])])
    assert np.array_equal(result.logits[0], result.logits[1])
    assert not np.array_equal(result.logits[1], result.logits[2])


def test_a_pass_that_fails_leaves_every_cache_as_it_was(
    runtime: ReferenceRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = filled(runtime, [1, 2, 3]), filled(runtime, [4, 5])
    batch = [Rows(first, [7, 8], efforts_of(runtime, 1.0)), Rows(second, [9], efforts_of(runtime, 1.0))]
    with pytest.raises(InvalidArgumentError, match="outside the vocabulary"):
        runtime.forward([batch[0], Rows(second, [99], efforts_of(runtime, 1.0))])
    head = runtime._exact["head"]
    monkeypatch.setitem(runtime._exact, "head", None)
    with pytest.raises(AttributeError):
        runtime.forward(batch)
    monkeypatch.setitem(runtime._exact, "head", head)
    assert (first.length, second.length) == (3, 2)
    results = runtime.forward(batch)
    assert np.array_equal(results[0].logits[-1], row_alone(runtime, [1, 2, 3, 7, 8], 1.0, "exact"))
    assert np.array_equal(results[1].logits[-1], row_alone(runtime, [4, 5, 9], 1.0, "exact"))


def test_passes_from_any_thread(runtime: ReferenceRuntime) -> None:
    """Caches go from thread to thread, and threads that run at once wait for each other."""
    expected = {seed: row_alone(runtime, [seed, 8, 9, 10], 0.5, "exact") for seed in (1, 2, 3)}
    caches = {seed: filled(runtime, [seed], 0.5) for seed in expected}
    found: dict[int, np.ndarray] = {}

    def go(seed: int) -> None:
        forward_one(runtime, [8, 30], caches[seed], effort=0.5)
        caches[seed].keep(1, [0])
        fork = caches[seed].fork(2, 9)
        found[seed] = forward_one(runtime, [9, 10], fork, effort=0.5).logits[-1]

    threads = [threading.Thread(target=go, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], expected[seed]) for seed in expected)

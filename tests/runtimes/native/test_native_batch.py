"""Passes of several sequences on the native runtime: random schedules of chunks, single rows, trees, forks and trims,
in every view, give each sequence the bits that it gets alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from featured_models import FEATURED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import random_config
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

from specdec.errors import InvalidArgumentError
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import MAX_PASS_ROWS, Rows, Window, depths, forward_one, path_to
from specdec.store import Store, convert

native = pytest.importorskip("specdec.runtimes.native.runtime", reason="the native runtime is not built")
NativeRuntime = native.NativeRuntime
BLOCK = int(native.native_module().CACHE_BLOCK)

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"architecture": "mistral", "sliding_window": 5, "first_sliding_layer": 1},
    "mixtral": {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False},
}
FEATURES = [*FEATURED, *(f"random {seed}" for seed in range(8))]
VIEWS = ("exact", "bucket", "bucket8", "int4")
QUANTISED_VIEWS = ("exact", "own", "nested", "int4")


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A runtime of a small random model; each made once."""

    @cache
    def build(name: str, threads: int = 2) -> Any:
        path = tmp_path_factory.mktemp("stores") / "store"
        if name in MODELS:
            convert(SyntheticSource(tiny_config(**MODELS[name])), path)
        elif name in FEATURED:
            convert(SyntheticSource(FEATURED[name]), path)
        elif name.startswith("random"):
            convert(SyntheticSource(random_config(int(name.split()[1]))), path)
        elif name.startswith("features"):
            config = random_config(int(name.split()[1]), unit=256)
            convert(quantised_source(config, "q4_k", "q8_0", "16", "q6_k", "q5_0"), path, quantised="keep")
        else:
            convert(quantised_source(quantised_config(), name), path, quantised="keep")
        return NativeRuntime(Store.open(path, verify=False), threads=threads)

    return build


class Text:
    """A sequence of a schedule: its cache, the tokens that it holds, and what it runs with."""

    def __init__(
        self, schedule: Schedule, kv: Any, tokens: list[int], effort: float, layers: int | None, window: Window | None
    ) -> None:
        self.schedule, self.kv, self.tokens, self.effort, self.layers = schedule, kv, tokens, effort, layers
        self.window = window

    def wanted(self, tokens: list[int]) -> np.ndarray:
        """Logits of the last of `tokens` by themselves, in one chain."""
        known, way = self.schedule.known, (self.effort, self.layers, self.window)
        if (tuple(tokens), *way) not in known:
            alone = self.schedule.alone
            efforts, kv = resolve_efforts(self.effort, alone.config), alone.new_cache(len(tokens))
            chain = Rows(kv, tokens, efforts, layers=self.layers, window=self.window)
            rows = alone.forward([chain], view=self.schedule.view)[0].logits
            for end in range(1, len(tokens) + 1):
                known[(tuple(tokens[:end]), *way)] = rows[end - 1]
        return known[(tuple(tokens), *way)]


class Schedule:
    """Random passes over random sequences, each row checked against a runtime that runs it alone."""

    def __init__(self, runtime: Any, alone: Any, view: str, seed: int) -> None:
        self.runtime, self.alone, self.view, self.random = runtime, alone, view, random.Random(seed)
        self.known: dict[Any, np.ndarray] = {}
        self.texts: list[Text] = []

    def run(self, passes: int) -> None:
        """Sequences join, fork, are trimmed and leave between passes."""
        for _ in range(passes):
            while not self.texts or (len(self.texts) < 6 and self.random.random() < 0.5):
                self.join()
            if len(self.texts) > 1 and self.random.random() < 0.2:
                self.texts.pop(self.random.randrange(len(self.texts)))
            for text in self.texts:
                if self.random.random() < 0.15:
                    text.tokens = text.tokens[: self.random.randint(0, len(text.tokens))]
                    text.kv.trim(len(text.tokens))
            self.one_pass([text for text in self.texts if self.random.random() < 0.8] or self.texts[:1])

    def join(self) -> None:
        """A new sequence, or a fork of one."""
        if self.texts and self.random.random() < 0.4:
            old = self.random.choice(self.texts)
            length = self.random.randint(0, len(old.tokens))
            kv = old.kv.fork(length, 400)
            self.texts.append(Text(self, kv, old.tokens[:length], old.effort, old.layers, old.window))
            return
        effort, layers = self.random.choice([1.0, 1.0, 0.6, 0.3]), self.random.choice([None, None, 1])
        window = self.random.choice([None, None, Window(10, 3), Window(150, 4), Window(1, 0)])
        self.texts.append(Text(self, self.runtime.new_cache(400), [], effort, layers, window))

    def one_pass(self, texts: list[Text]) -> None:
        """One pass over some of the sequences; of trees, a path is kept."""
        batch = [self.rows(text) for text in texts]
        while sum(len(rows.tokens) for rows in batch) > MAX_PASS_ROWS:
            batch.pop()
        texts = texts[: len(batch)]
        for text, rows, found in zip(texts, batch, self.runtime.forward(batch, view=self.view), strict=True):
            paths = [path_to(rows.parents or range(-1, len(rows.tokens) - 1), row) for row in range(len(rows.tokens))]
            shown = {"all": paths, "last": paths[-1:], "none": []}[rows.logits]
            assert found.logits.shape == (len(shown), 47)
            for path, logits in zip(shown, found.logits, strict=True):
                assert np.array_equal(logits, text.wanted(text.tokens + [rows.tokens[row] for row in path]))
            if rows.parents is not None:
                kept = self.random.choice(paths)[: self.random.randint(0, 5)]
                text.kv.keep(len(text.tokens), kept)
                text.tokens = text.tokens + [rows.tokens[row] for row in kept]
            else:
                text.tokens = text.tokens + list(rows.tokens)
            assert text.kv.length == len(text.tokens)

    def rows(self, text: Text) -> Rows:
        """A chunk, a row, or a tree."""
        kind, room = self.random.random(), 390 - len(text.tokens)
        count = 1 if kind < 0.3 else self.random.randint(1, 12) if kind < 0.85 else self.random.randint(60, 140)
        count, parents = max(1, min(count, room)), None
        if kind > 0.4 and count <= 64:
            parents = [self.random.randint(max(-1, row - 4), row - 1) for row in range(count)]
        tokens = [self.random.randrange(47) for _ in range(count)]
        efforts = resolve_efforts(text.effort, self.runtime.config)
        logits = self.random.choice(["all", "all", "last", "none"])
        return Rows(text.kv, tokens, efforts, parents, text.layers, logits, window=text.window)


def schedules(names: Any, views: tuple[str, ...], examples: int) -> Callable[[Any], Any]:
    """Decorate a test with random models, views and seeds."""

    def decorate(test: Any) -> Any:
        quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        return quiet(
            given(name=st.sampled_from(sorted(names)), view=st.sampled_from(views), seed=st.integers(0, 2**32))(test)
        )

    return decorate


@schedules(MODELS, VIEWS, 30)
def test_any_schedule_gives_each_sequence_its_own_bits(runtime_of, name, view, seed):
    if view == "bucket8" and name == "mixtral":
        view = "bucket"  # one of each is enough
    Schedule(runtime_of(name), runtime_of(name, 1), view, seed).run(8)


@schedules(["q4_k", "q6_k", "q8_0"], QUANTISED_VIEWS, 12)
def test_any_schedule_of_a_quantised_model_does(runtime_of, name, view, seed):
    Schedule(runtime_of(name), runtime_of(name, 1), view, seed).run(6)


@schedules(FEATURES, VIEWS, 40)
def test_any_schedule_of_any_features_does(runtime_of, name, view, seed):
    Schedule(runtime_of(name), runtime_of(name, 1), view, seed).run(6)


@schedules(["features 0", "features 1", "features 2"], QUANTISED_VIEWS, 10)
def test_any_schedule_of_quantised_features_does(runtime_of, name, view, seed):
    Schedule(runtime_of(name), runtime_of(name, 1), view, seed).run(4)


@pytest.mark.slow
@schedules([*MODELS, *FEATURES], VIEWS, 1000)
def test_a_thousand_schedules(runtime_of, name, view, seed):
    Schedule(runtime_of(name), runtime_of(name, 1), view, seed).run(8)


@pytest.mark.slow
@schedules(["q4_k", "q6_k", "q8_0"], QUANTISED_VIEWS, 1000)
def test_a_thousand_schedules_of_quantised_models(runtime_of, name, view, seed):
    Schedule(runtime_of(name), runtime_of(name, 1), view, seed).run(6)


def test_a_tree_across_a_block_is_stored_as_its_path(runtime_of):
    runtime = runtime_of("mistral")
    prompt = [token % 47 for token in range(BLOCK - 3)]
    parents = [-1, 0, 0, 1, 2, 3, 4, 5, 6, 8]
    tokens = list(range(10))
    kv, efforts = runtime.new_cache(2 * BLOCK), resolve_efforts(1.0, runtime.config)
    forward_one(runtime, prompt, kv)
    tree = runtime.forward([Rows(kv, tokens, efforts, parents)])[0].logits
    assert depths(parents)[9] == 5
    for row in range(10):
        other = runtime.new_cache(2 * BLOCK)
        chain = forward_one(runtime, prompt + path_to(parents, row), other, logits="last").logits
        assert np.array_equal(tree[row], chain[0])
    kv.keep(len(prompt), path_to(parents, 9))
    assert np.array_equal(forward_one(runtime, [5, 6], kv).logits, forward_one(runtime, [5, 6], other).logits)


def test_memory_grows_with_the_text_and_forks_share_it(runtime_of):
    runtime = runtime_of("llama")
    kv = runtime.new_cache(10**30)
    assert (kv.length, kv.capacity, kv.nbytes) == (0, 10**30, 0)
    forward_one(runtime, [1], kv)
    block = kv.nbytes
    forward_one(runtime, [1] * (3 * BLOCK), kv)
    assert kv.nbytes == 4 * block
    assert kv.fork(2 * BLOCK + 1, 400).nbytes == 3 * block
    kv.trim(5)
    assert kv.nbytes == 2 * block  # and one to spare


def test_the_bytes_of_a_batch_are_those_of_one_pass(runtime_of):
    runtime = runtime_of("q8_0")
    efforts = resolve_efforts(1.0, runtime.config)

    def read(*counts: int) -> list[int]:
        batch = [Rows(runtime.new_cache(20), [1] * count, efforts) for count in counts]
        return [one.bytes_read for one in runtime.forward(batch)]

    one, three = read(1)[0], read(1, 1, 1)
    own = 2 * runtime.config.hidden_size + 4 * runtime.config.num_layers * 2 * 32  # embedding row, keys and values
    assert sum(three) == one + 2 * own
    assert max(three) - min(three) <= 2 * runtime.config.num_layers


def test_refusals_leave_every_cache_alone(runtime_of):
    runtime = runtime_of("llama")
    efforts, kv, other = resolve_efforts(1.0, runtime.config), runtime.new_cache(8), runtime.new_cache(8)
    good = Rows(kv, [1, 2], efforts)

    def refusals() -> Iterator[tuple[list[Rows], str]]:
        yield [], "1 to 64 sequences"
        yield [good] * 65, "1 to 64 sequences"
        yield [good, good], "once in a pass"
        yield [good, Rows(other, [1, 47], efforts)], "outside the vocabulary"
        yield [good, Rows(other, [1] * 9, efforts)], "no room for 9"
        yield [good, Rows(other, [1, 2], efforts, [0, 0])], "must follow an earlier row"
        yield [good, Rows(other, [1, 2], efforts, [-1])], "one parent a row"
        yield [good, Rows(other, [1], efforts, layers=3)], "layers must be"
        yield [good, Rows(runtime.new_cache(600), [1] * 511, efforts)], "takes 512 rows"

    for batch, sentence in refusals():
        with pytest.raises(InvalidArgumentError, match=sentence):
            runtime.forward(batch)
        assert (kv.length, other.length) == (0, 0)
    forward_one(runtime, [1] * 6, kv)
    for base, rows in ((7, []), (2, [4]), (2, [1, 1]), (2, [-1])):
        with pytest.raises(InvalidArgumentError):
            kv.keep(base, rows)
    for length, capacity in ((7, 8), (-1, 8), (3, 2), (3, 0)):
        with pytest.raises(InvalidArgumentError):
            kv.fork(length, capacity)
    assert kv.length == 6


def test_a_pass_without_memory_is_refused(runtime_of, monkeypatch):
    runtime = runtime_of("llama")
    kv = runtime.new_cache(8)
    inner = runtime._model

    class Full:
        def forward(self, *arguments: Any) -> Any:
            raise MemoryError

    monkeypatch.setattr(runtime, "_model", Full())
    with pytest.raises(InvalidArgumentError, match="no memory"):
        forward_one(runtime, [1], kv)
    monkeypatch.setattr(runtime, "_model", inner)
    assert kv.length == 0


def test_forks_run_in_threads_of_their_own(runtime_of):
    """Caches that share blocks are written to by different threads, whose passes take turns."""
    runtime = runtime_of("llama")
    base, tokens = runtime.new_cache(600), [token % 47 for token in range(2 * BLOCK)]
    forward_one(runtime, tokens, base)
    wanted = forward_one(runtime, [3] * 150, base.fork(BLOCK + 9, 600)).logits
    found: list[np.ndarray] = []

    def work(kv: Any) -> None:
        for _ in range(10):
            rows = [forward_one(runtime, [3] * 50, kv).logits for _ in range(3)]
            found.append(np.concatenate(rows))
            kv.trim(BLOCK + 9)

    threads = [threading.Thread(target=work, args=(base.fork(BLOCK + 9, 600),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert all(np.array_equal(rows, wanted) for rows in found)

"""Bounds of a batch: bytes of keys and values, the queue, deadlines; and whose texts are shared with whom."""

from __future__ import annotations

import threading
import time
import weakref

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeCache, FakeRuntime, fake_config

import specdec
from specdec.drafters.base import LoadedModel
from specdec.errors import ContextLengthError, InvalidArgumentError, QueueFullError, SpecdecError
from specdec.model.loaded import Model

ENDLESS = ByteTokenizer(eos=frozenset())
TOKEN_BYTES = 64  # of the fake runtime, in blocks of 16 tokens


class CountedCache(FakeCache):
    """Known to its runtime as long as it lives; blocks of 16 tokens are shared with forks, as far as they are full."""

    def __init__(self, runtime: CountedRuntime, capacity: int) -> None:
        super().__init__(capacity)
        self.runtime, self.shared = runtime, {}
        runtime.made += 1
        self.first = runtime.made << 20  # numbers of its own blocks
        runtime.caches.add(self)

    def blocks(self):
        numbers = [self.shared.get(block, self.first + block) for block in range(self.nbytes // (16 * TOKEN_BYTES))]
        return dict.fromkeys(numbers, 16 * TOKEN_BYTES)

    def fork(self, length: int, capacity: int) -> CountedCache:
        other = CountedCache(self.runtime, capacity)
        other.entries = self.entries[:length]
        other.shared = {block: list(self.blocks())[block] for block in range(length // 16)}
        return other


class CountedRuntime(FakeRuntime):
    """Counts the bytes of all its caches after each pass, what they share once; passes wait for `gate`."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.caches: weakref.WeakSet[CountedCache] = weakref.WeakSet()
        self.made = self.most_bytes = 0
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def new_cache(self, capacity: int) -> CountedCache:
        return CountedCache(self, capacity)

    def forward(self, batch, *, view="exact", states=False):
        assert self.gate.wait(60)
        time.sleep(0.0005)
        self.batches.append(len(batch))
        found = super().forward(batch, view=view, states=states)
        blocks: dict[int, int] = {}
        for cache in list(self.caches):
            blocks.update(cache.blocks())
        self.most_bytes = max(self.most_bytes, sum(blocks.values()))
        return found


def counted_model(**options) -> Model:
    return Model(CountedRuntime(fake_config(max_context=2048), **options), ENDLESS)


def tokens_of(generation) -> list[int]:
    return [token for piece in generation for token in piece.tokens]


def plain(model: Model, prompt, **options):
    return specdec.generate(model, prompt, speculate=False, **options).tokens


def until(condition, seconds: float = 30.0) -> None:
    """Wait for what another thread does."""
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)


# --- bytes ---


@pytest.mark.parametrize("seed", range(3))
def test_keys_and_values_never_take_more_than_allowed(seed):
    """Random requests, shared beginnings and broken-off answers; the bound holds after each pass, answers are right."""
    random = np.random.default_rng(seed)
    model, bound = counted_model(seed=seed), TOKEN_BYTES * 16 * 24
    beginnings = [random.integers(0, 256, 100).tolist() for _ in range(3)]
    asked = []
    with specdec.Batch(model, cache_bytes=bound) as batch:
        for number in range(30):
            prompt = [*beginnings[number % 3][: random.integers(1, 100)], *random.integers(0, 256, 5).tolist()]
            options = {"max_tokens": int(random.integers(1, 60)), "temperature": number % 2, "seed": number}
            generation = batch.submit(prompt, owner=str(number % 2), **options)
            if random.random() < 0.2:
                generation.close()
            asked.append((generation, prompt, options))
        found = [tokens_of(generation) for generation, _, _ in asked]
        until(lambda: batch.status().running == 0)
        assert batch.status().cache_bytes_used <= bound
        assert batch.status().cached_prompt_tokens > 50
    assert bound / 2 < model.runtime.most_bytes <= bound
    for tokens, (generation, prompt, options) in zip(found, asked, strict=True):
        whole = plain(model, prompt, **options)
        assert tokens == (whole[: len(tokens)] if generation.result().stopped_by == "caller" else whole)


def test_a_request_waits_until_its_worst_case_fits():
    model = counted_model()
    with specdec.Batch(model, cache_bytes=TOKEN_BYTES * 160) as batch:
        asked = [batch.submit([number], max_tokens=63) for number in range(6)]  # 64 tokens each: two fit
        found = [tokens_of(one) for one in asked]
    assert max(model.runtime.batches) == 2
    assert found == [plain(model, [number], max_tokens=63) for number in range(6)]


def test_a_small_request_does_not_overtake_a_large_one():
    """First come, first served: a stream of small requests cannot starve one that needs all the room."""
    model = counted_model()
    ends: list[str] = []
    with specdec.Batch(model, cache_bytes=TOKEN_BYTES * 160) as batch:
        model.runtime.gate.clear()
        asked = {"small": batch.submit([1], max_tokens=30), "large": batch.submit([2], max_tokens=150)}
        asked |= {f"small {number}": batch.submit([3, number], max_tokens=20) for number in range(5)}
        model.runtime.gate.set()
        readers = [
            threading.Thread(target=lambda name=name, one=one: (list(one), ends.append(name)))
            for name, one in asked.items()
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
    assert ends[:2] == ["small", "large"]


def test_what_can_never_fit_is_refused():
    model = counted_model()
    with specdec.Batch(model, cache_bytes=TOKEN_BYTES * 160) as batch:
        with pytest.raises(InvalidArgumentError, match="10 tokens of prompt and 200 of an answer may"):
            batch.submit([1] * 10, max_tokens=200)
        assert len(tokens_of(batch.submit([1] * 10, max_tokens=150))) == 150
        with pytest.raises(ContextLengthError) as refused:
            batch.submit([1] * 2048, max_tokens=3)
    error = refused.value
    assert (error.prompt_tokens, error.max_tokens, error.context) == (2048, 3, 2048)


@pytest.mark.parametrize("drafter", ["model:other", "chain:ngram,model:other"])
def test_models_that_draft_count(drafter):
    model, other = counted_model(), CountedRuntime(fake_config(max_context=100))
    model.load_other = lambda _name: LoadedModel(other, ByteTokenizer())
    with specdec.Batch(model, cache_bytes=TOKEN_BYTES * (160 + 112)) as batch:
        with pytest.raises(InvalidArgumentError, match="cache_bytes allows"):
            batch.submit([1] * 10, max_tokens=160, drafter=drafter)
        generation = batch.submit([1] * 10, max_tokens=150, drafter=drafter)
        next(generation)
        until(lambda: batch.status().cache_bytes_reserved == TOKEN_BYTES * (160 + 112))
        waiting = batch.submit([2] * 10, max_tokens=150, speculate=False)
        tokens_of(generation)
        assert len(tokens_of(waiting)) == 150
        assert other.batches


def test_kept_texts_go_to_make_room_the_oldest_first():
    model = counted_model()
    with specdec.Batch(model, cache_bytes=TOKEN_BYTES * 16 * 11) as batch:
        for first in (10, 20, 30):
            tokens_of(batch.submit([first] * 40, max_tokens=8))  # three blocks each
        until(lambda: batch.status().kept_texts == 3)
        assert tokens_of(batch.submit([10] * 40, max_tokens=1))  # the latest now
        tokens_of(batch.submit([40] * 60, max_tokens=4))  # four blocks: one text has to go
        until(lambda: batch.status().running == 0)
        known = {}
        for first in (10, 30, 20):
            generation = batch.submit([first] * 40, max_tokens=1)
            tokens_of(generation)
            known[first] = generation.result().stats.cached_prompt_tokens
        assert known == {10: 39, 30: 39, 20: 0}


# --- shared beginnings ---


def test_answers_under_way_share_what_they_have_read():
    """Sixteen prompts with one beginning come together: it is read once."""
    model = counted_model()
    shared = list(range(200))
    with specdec.Batch(model) as batch:
        model.runtime.gate.clear()
        asked = [batch.submit([*shared, number, 7], max_tokens=12) for number in range(16)]
        model.runtime.gate.set()
        found = [tokens_of(one) for one in asked]
        cached = [one.result().stats.cached_prompt_tokens for one in asked]
    assert cached == [0] + [200] * 15
    read = sum(rows for view, _, start, rows in model.runtime.passes if view == "exact" and start < 200)
    assert read < 210
    assert found == [plain(model, [*shared, number, 7], max_tokens=12) for number in range(16)]


def test_a_prompt_goes_on_from_an_answer_under_way():
    model = counted_model()
    with specdec.Batch(model) as batch:
        first = batch.submit([1, 2, 3], max_tokens=400)
        known = [token for _ in range(30) for token in next(first).tokens]
        second = batch.submit([1, 2, 3, *known, 9], max_tokens=5)
        tokens = tokens_of(second)
        assert second.result().stats.cached_prompt_tokens == 3 + len(known)
        first.close()
    assert tokens == plain(model, [1, 2, 3, *known, 9], max_tokens=5)


def test_owners_share_nothing():
    model = counted_model()
    with specdec.Batch(model) as batch:
        running = batch.submit([1] * 50, owner="a", max_tokens=400)
        next(running)
        cached = []
        for owner in ("b", "a", "b", "", "c"):
            generation = batch.submit([1] * 50, owner=owner, max_tokens=2)
            tokens_of(generation)
            cached.append(generation.result().stats.cached_prompt_tokens)
        running.close()
    assert cached == [0, 49, 49, 0, 0]


def test_a_prompt_is_read_by_itself_when_the_one_it_waited_for_is_closed():
    model = counted_model()
    shared = [5] * 1500
    with specdec.Batch(model, max_rows=64) as batch:
        model.runtime.gate.clear()
        first, second = (batch.submit([*shared, number], max_tokens=4) for number in range(2))
        model.runtime.gate.set()
        until(lambda: len(model.runtime.passes) > 3)
        first.close()
        assert tokens_of(second) == plain(model, [*shared, 1], max_tokens=4)
        assert 0 < second.result().stats.cached_prompt_tokens < 1500


# --- queue and deadlines ---


def test_a_full_queue_refuses_and_says_when_to_come_again():
    model = counted_model()
    with specdec.Batch(model, max_sequences=2, queue=3) as batch:
        asked = [batch.submit([number], max_tokens=200) for number in range(2)]
        until(lambda: batch.status().running == 2)
        asked += [batch.submit([number], max_tokens=20) for number in range(2, 5)]
        with pytest.raises(QueueFullError, match="3 requests wait already") as full:
            batch.submit([9])
        assert full.value.retry_after_s >= 1
        status = batch.status()
        assert (status.running, status.queue, status.max_sequences) == (2, 3, 2)
        for one in asked[:2]:
            one.close()
        assert [len(tokens_of(one)) for one in asked[2:]] == [20] * 3
        assert len(tokens_of(batch.submit([9], max_tokens=3))) == 3


def test_no_queue_at_all():
    with specdec.Batch(counted_model(), max_sequences=2, queue=0) as batch:
        first, second = batch.submit([1], max_tokens=400), batch.submit([2], max_tokens=400)
        with pytest.raises(QueueFullError):
            batch.submit([3])
        until(lambda: batch.status().running == 2)
        with pytest.raises(QueueFullError, match="no place is free to answer in: try again in"):
            batch.submit([3])
        first.close()
        until(lambda: batch.status().running == 1)
        assert len(tokens_of(batch.submit([3], max_tokens=3))) == 3
        second.close()


def test_deadlines_end_answers_that_run_and_that_wait():
    model = counted_model()
    with specdec.Batch(model, max_sequences=1) as batch:
        running = batch.submit([1], max_tokens=1900, deadline_s=0.8)
        waiting = batch.submit([2], max_tokens=1900, deadline_s=0.2)
        other = batch.submit([3], max_tokens=4, deadline_s=60)
        tokens = tokens_of(running)
        assert 0 < len(tokens) < 1900
        assert tokens == plain(model, [1], max_tokens=len(tokens))
        for one in (running, waiting):
            assert (one.result().stopped_by, one.result().finish_reason) == ("deadline", "length")
        assert tokens_of(waiting) == waiting.result().tokens == []
        assert len(tokens_of(other)) == 4
        for value in (0, -1, True, "1", float("nan"), 10**400):
            with pytest.raises(InvalidArgumentError, match="deadline_s must be a number of seconds above 0"):
                batch.submit([1], deadline_s=value)


def test_text_that_was_held_back_comes_at_the_deadline():
    """A stop string may have begun: what was not shown because of it belongs to the answer when that ends."""
    model = counted_model()
    text = specdec.generate(model, [1], max_tokens=400, speculate=False).text
    with specdec.Batch(model) as batch:
        generation = batch.submit([1], max_tokens=1900, deadline_s=0.6, stop=text[:300] + "never")
        shown = "".join(piece.text for piece in generation)
        assert shown == generation.result().text
        assert shown == ENDLESS.decode(generation.result().tokens).replace("<end>", "")


# --- the end ---


def test_a_graceful_end_lets_answers_come_to_theirs():
    model = counted_model()
    batch = specdec.Batch(model, max_sequences=2)
    asked = [batch.submit([number], max_tokens=30) for number in range(5)]
    closer = threading.Thread(target=lambda: batch.close(finish=True))
    closer.start()
    until(lambda: batch._is_closing)
    with pytest.raises(SpecdecError, match="this batch is closed"):
        batch.submit([1])
    closer.join(60)
    assert [tokens_of(one) for one in asked] == [plain(model, [number], max_tokens=30) for number in range(5)]


def test_a_graceful_end_takes_as_long_as_allowed():
    batch = specdec.Batch(counted_model())
    answer = batch.submit([1], max_tokens=2000)
    next(answer)
    batch.close(finish=True, timeout_s=0.05)
    assert len(tokens_of(answer)) < 1999
    assert answer.result().stopped_by == "caller"
    with pytest.raises(InvalidArgumentError, match="timeout_s must be"):
        batch.close(timeout_s=-1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_ends_every_reader_and_refuses_others():
    class BrokenError(Exception):
        pass

    batch = specdec.Batch(counted_model(), max_sequences=2)
    asked = [batch.submit([number], max_tokens=2000) for number in range(4)]
    next(asked[0])

    def step():
        raise BrokenError("the scheduler is broken")

    batch._scheduler.step = step
    for one in asked:
        with pytest.raises(BrokenError, match="the scheduler is broken"):
            tokens_of(one)
    until(lambda: batch._failure is not None)
    with pytest.raises(SpecdecError, match="its thread failed: BrokenError: the scheduler is broken"):
        batch.submit([1])
    batch.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_exit_in_the_thread_is_not_its_readers(kind):
    def processor(tokens, logits):
        raise kind("mine")

    batch = specdec.Batch(counted_model())
    other = batch.submit([1], max_tokens=2000)
    next(other)
    for one in (batch.submit([2], max_tokens=4, logits_processors=[processor]), other):
        with pytest.raises(SpecdecError, match=f"its thread failed: {kind.__name__}: mine; make another one"):
            tokens_of(one)
    batch.close()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"cache_bytes": 0}, "cache_bytes must be a whole number of bytes of at least 1, not 0"),
        ({"cache_bytes": 1.5}, "cache_bytes must be a whole number of bytes"),
        ({"queue": -1}, "queue must be a whole number of requests of at least 0, not -1"),
        ({"queue": True}, "queue must be a whole number of requests"),
        ({"max_rows": 0}, "max_rows must be a whole number from 1 to"),
    ],
)
def test_numbers_out_of_range_are_refused(options, problem):
    with pytest.raises(InvalidArgumentError, match=problem):
        specdec.Batch(counted_model(), **options)


def test_the_status_counts():
    model = counted_model()
    with specdec.Batch(model) as batch:
        assert (batch.status().running, batch.status().tok_per_s, batch.status().cache_bytes_used) == (0, 0.0, 0)
        asked = [batch.submit([number] * 20, max_tokens=900) for number in range(3)]
        for one in asked:
            next(one)
        until(lambda: batch.status().running == 3)
        status = batch.status()
        assert (status.waiting, status.prompt_tokens, status.ended) == (0, 60, 0)
        assert status.cache_bytes_reserved == 3 * TOKEN_BYTES * 928
        until(lambda: batch.status().tok_per_s > 0)
        for one in asked:
            one.close()
        until(lambda: batch.status().ended == 3)
        status = batch.status()
        assert (status.running, status.kept_texts, status.tok_per_s, status.cache_bytes_reserved) == (0, 3, 0.0, 0)
        assert status.generated_tokens == sum(len(one.result().tokens) for one in asked)

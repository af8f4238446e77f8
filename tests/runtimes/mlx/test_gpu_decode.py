"""Passes over many answers on a real GPU, where a step is one kernel: choices, tokens ahead and caches as of steps.

Skipped where MLX has no GPU, saying so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gpu_models import STEP_MODELS, Model, needed_gpu, runtimes_of

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows, forward_one

needed_gpu()

# Odd sizes, a window, biases and norms of heads; a wide model has many blocks of the step for a tile.
MODELS: dict[str, Model] = {
    **STEP_MODELS,
    "q5_0 q8_0": (("q5_0", "q8_0"), {"architecture": "qwen2", "qkv_bias": True, "intermediate_size": 2336}),
}
LENGTHS = [3, 250, 120, 17, 255, 256, 301, 1, 99, 64]
PLACES = 400


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return runtimes_of(
        MODELS,
        tmp_path_factory,
        needs=lambda runtime: runtime._wide._decoder is not None,
        without="this model or GPU has no wide passes",
    )


def begun(runtime: Any, count: int) -> list[Any]:
    """Caches that hold texts of different lengths."""
    caches = []
    for number in range(count):
        made, length = runtime.new_cache(PLACES), LENGTHS[number % len(LENGTHS)]
        ids = np.random.default_rng(number).integers(0, runtime.config.vocab_size, length)
        forward_one(runtime, ids.tolist(), made, logits="none")
        caches.append(made)
    return caches


def rows_of(runtime: Any, held: Any, number: int, count: int, ahead: int, logits: Any = "choices") -> Rows:
    vocab, efforts = runtime.config.vocab_size, resolve_efforts(1.0, runtime.config)
    return Rows(held, [(7 * number + n) % vocab for n in range(count)], efforts, logits=logits, ahead=ahead)


def kept(runtime: Any, held: Any) -> np.ndarray:
    """What a cache holds: logits that follow are made of it."""
    logits: np.ndarray = forward_one(runtime, [1], held).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("count", "ahead"), [(3, 15), (9, 15), (17, 15), (20, 0), (33, 7), (64, 9)])
def test_many_answers_go_on_as_each_alone(runtime_of, name: str, count: int, ahead: int) -> None:
    runtime = runtime_of(name)
    caches, others = begun(runtime, count), begun(runtime, count)
    together = runtime.forward([rows_of(runtime, held, n, 1, ahead) for n, held in enumerate(caches)])
    for number, (held, other, found) in enumerate(zip(caches, others, together, strict=True)):
        alone = runtime.forward([rows_of(runtime, other, number, 1, ahead)])[0]
        assert list(found.choices) == list(alone.choices)
        assert len(found.choices) == 1 + ahead
        assert held.length == other.length
        assert np.array_equal(kept(runtime, held), kept(runtime, other))


@pytest.mark.parametrize("name", MODELS)
def test_drafts_of_many_answers_are_verified_as_each_alone(runtime_of, name: str) -> None:
    runtime, counts = runtime_of(name), [1, 5, 1, 2, 9, 1, 1, 3, 4, 1]
    caches, others = begun(runtime, len(counts)), begun(runtime, len(counts))
    batch = [rows_of(runtime, held, n, counts[n], 0) for n, held in enumerate(caches)]
    for number, found in enumerate(runtime.forward(batch)):
        other = others[number]
        alone = runtime.forward([rows_of(runtime, other, number, counts[number], 0)])[0]
        assert list(found.choices) == list(alone.choices)
        assert np.array_equal(kept(runtime, caches[number]), kept(runtime, other))


def test_choices_are_those_of_logits(runtime_of) -> None:
    runtime = runtime_of("quantised")
    caches, others = begun(runtime, 30), begun(runtime, 30)
    chosen = runtime.forward([rows_of(runtime, held, n, 1, 0) for n, held in enumerate(caches)])
    shown = runtime.forward([rows_of(runtime, held, n, 1, 0, "all") for n, held in enumerate(others)])
    for choices, logits in zip(chosen, shown, strict=True):
        assert [choice.token for choice in choices.choices] == logits.logits.argmax(axis=1).tolist()
        assert choices.choices[0].highest == logits.logits.max()


def alone(runtime: Any, held: Any, number: int, count: int) -> list[Any]:
    """Choices of one sequence, as many at least."""
    made = list(runtime.forward([rows_of(runtime, held, number, 1, 15)])[0].choices)
    while len(made) < count:
        rows = replace(rows_of(runtime, held, number, 1, 15), tokens=[made[-1].token])
        made += runtime.forward([rows])[0].choices
    return made


@pytest.mark.parametrize("name", MODELS)
def test_answers_go_on_alike_where_the_next_tokens_are_begun(runtime_of, monkeypatch, name: str) -> None:
    runtime, count = runtime_of(name), 24
    caches, others = begun(runtime, count), begun(runtime, count)
    expected = [alone(runtime, held, number, 60) for number, held in enumerate(others)]
    decoder, turns = runtime._wide._decoder, []
    begin = decoder._begin
    monkeypatch.setattr(decoder, "_begin", lambda *given: (turns.append(given[2]), begin(*given))[1])
    seen: list[list[Any]] = [[] for _ in range(count)]
    alive = list(range(count))
    # Ahead, further, those that leave then, and turns that begin: what was begun before is taken, as far as it goes.
    for ahead, further, lost, begins in (
        (0, 0, (), [1]), (3, 4, (), [4, 4]), (9, 9, (4, 11), [9]), (5, 6, (), [6]), (5, 0, (0, 1), []),
        (15, 15, (), [16, 15]), (2, 0, (), []), (4, 0, (), [5]),
    ):  # fmt: skip
        batch = []
        for number in alive:
            rows = rows_of(runtime, caches[number], number, 1, ahead)
            tokens = [seen[number][-1].token] if seen[number] else rows.tokens
            batch.append(replace(rows, tokens=tokens, further=further))
        turns.clear()
        for number, found in zip(alive, runtime.forward(batch), strict=True):
            seen[number] += found.choices
            assert found.begun == (begins[-1] if further else 0)
        assert turns == begins
        alive = [number for number in alive if number not in lost]
    for number, (held, other) in enumerate(zip(caches, others, strict=True)):
        assert seen[number] == expected[number][: len(seen[number])]
        other.trim(held.length)
        assert np.array_equal(kept(runtime, held), kept(runtime, other))


@pytest.mark.parametrize("name", MODELS)
def test_many_answers_share_a_pass_with_prompts(runtime_of, monkeypatch, name: str) -> None:
    runtime, count = runtime_of(name), 20
    caches, others = begun(runtime, count), begun(runtime, count)
    texts = [
        [token % runtime.config.vocab_size for token in range(first, last)] for first, last in ((5, 105), (40, 60))
    ]
    new, apart = ([runtime.new_cache(PLACES) for _ in texts] for _ in range(2))
    full, turns = resolve_efforts(1.0, runtime.config), []
    decoder = runtime._wide._decoder
    begin = decoder._begin
    monkeypatch.setattr(decoder, "_begin", lambda *given: (turns.append(len(given[0])), begin(*given))[1])
    prompts = [Rows(held, text, full, logits="last") for held, text in zip(new, texts, strict=True)]
    rows = [rows_of(runtime, held, n, 1, 0) for n, held in enumerate(caches)]
    together = runtime.forward([prompts[0], *rows, prompts[1]])
    assert turns == [count]
    for number, found in enumerate(together[1:-1]):
        (alone,) = runtime.forward([rows_of(runtime, others[number], number, 1, 0)])
        assert list(found.choices) == list(alone.choices)
        assert np.array_equal(kept(runtime, caches[number]), kept(runtime, others[number]))
    for found, held, text in zip((together[0], together[-1]), apart, texts, strict=True):
        assert np.array_equal(found.logits, forward_one(runtime, text, held, logits="last").logits)

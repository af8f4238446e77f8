"""Choices and tokens ahead on a real GPU, where a step is one kernel: those that logits and single steps give.

Skipped where MLX has no GPU, saying so. What the engine makes of them is in `test_ahead.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gpu_models import STEP_MODELS, needed_gpu, runtimes_of

from specdec.drafters.signals import LogitDistribution
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows, forward_one

needed_gpu()

CASES = [
    ("float16", "exact", 1.0), ("float16", "exact", 0.5), ("float16", "int4", 1.0), ("float16", "int4", 0.4),
    ("float16", "bucket", 0.3), ("bfloat16", "exact", 1.0), ("bfloat16", "exact", 0.6), ("quantised", "exact", 1.0),
    ("quantised", "exact", 0.4), ("quantised", "nested", 1.0), ("quantised", "nested", 0.5), ("quantised", "own", 0.6),
]  # fmt: skip


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return runtimes_of(STEP_MODELS, tmp_path_factory, needs=lambda runtime: runtime.info.chooses)


def ids_of(runtime: Any, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, runtime.config.vocab_size, count).tolist()  # type: ignore[no-any-return]


def cache_of(runtime: Any, length: int, seed: int = 0) -> Any:
    made = runtime.new_cache(400)
    forward_one(runtime, ids_of(runtime, length, seed), made, logits="none")
    return made


@pytest.mark.parametrize(("name", "view", "effort"), CASES)
@pytest.mark.parametrize("count", [1, 3, 8, 18])
def test_choices_are_those_of_the_logits(runtime_of, name, view, effort, count):
    runtime = runtime_of(name)
    held, efforts, tokens = cache_of(runtime, 250), resolve_efforts(effort, runtime.config), ids_of(runtime, count, 1)
    logits = runtime.forward([Rows(held, tokens, efforts)], view=view)[0].logits
    held.trim(250)
    shown = runtime.forward([Rows(held, tokens, efforts, logits="choices")], view=view)[0]
    assert shown.logits.shape == (0, runtime.config.vocab_size)
    assert [choice.token for choice in shown.choices] == logits.argmax(axis=1).tolist()
    for choice, row in zip(shown.choices, logits, strict=True):
        shape = LogitDistribution(row)
        assert choice.highest == row.max()
        assert choice.margin == pytest.approx(shape.margin, abs=1e-6)
        assert choice.entropy == pytest.approx(shape.entropy, rel=1e-4, abs=1e-5)
        assert choice.top_probability == pytest.approx(shape.top_probability, rel=1e-4)


@pytest.mark.parametrize(("name", "view", "effort"), CASES)
def test_going_ahead_gives_the_tokens_of_single_steps(runtime_of, name, view, effort):
    runtime = runtime_of(name)
    efforts, wanted, token = resolve_efforts(effort, runtime.config), [], 5
    held = cache_of(runtime, 240)  # a split of attention ends on the way
    for _ in range(30):
        token = int(runtime.forward([Rows(held, [token], efforts)], view=view)[0].logits[0].argmax())
        wanted.append(token)
    after = forward_one(runtime, [1], held).logits
    for ahead in (1, 6, 15):
        held, found = cache_of(runtime, 240), [5]
        while len(found) <= 30:
            most = min(ahead, 30 - len(found))
            rows = Rows(held, found[-1:], efforts, logits="choices", ahead=most)
            found += [choice.token for choice in runtime.forward([rows], view=view)[0].choices]
        assert found[1:] == wanted
        assert held.length == 270
        assert np.array_equal(forward_one(runtime, [1], held).logits, after)


@pytest.mark.parametrize("name", STEP_MODELS)
def test_sequences_go_ahead_together_as_alone(runtime_of, name):
    runtime = runtime_of(name)
    efforts, lengths = resolve_efforts(1.0, runtime.config), (3, 250, 120, 17, 255)

    def rows(number: int, **options: Any) -> Rows:
        held = cache_of(runtime, lengths[number], number)
        return Rows(held, [number + 1], efforts, logits="choices", ahead=9, **options)

    together = runtime.forward([rows(number) for number in range(5)])
    for number, one in enumerate(together):
        assert list(one.choices) == list(runtime.forward([rows(number)])[0].choices)
        assert len(one.choices) == 10


def test_a_launch_ends_with_an_end_token_and_the_cache(runtime_of):
    runtime = runtime_of("float16")
    efforts = resolve_efforts(1.0, runtime.config)
    held = cache_of(runtime, 30)
    choices = runtime.forward([Rows(held, [3], efforts, logits="choices", ahead=15)])[0].choices
    tokens = [choice.token for choice in choices]
    first = tokens.index(tokens[5])
    held.trim(30)
    ended = runtime.forward([Rows(held, [3], efforts, logits="choices", ahead=15, ends=frozenset({tokens[5]}))])[0]
    assert list(ended.choices) == list(choices[: first + 1])
    assert held.length == 31 + first
    short = runtime.new_cache(12)
    forward_one(runtime, ids_of(runtime, 8), short, logits="none")
    assert len(runtime.forward([Rows(short, [3], efforts, logits="choices", ahead=15)])[0].choices) == 4
    assert short.length == 12


def test_logits_and_choices_of_one_pass(runtime_of):
    runtime = runtime_of("quantised")
    efforts = resolve_efforts(1.0, runtime.config)
    alone = forward_one(runtime, [4, 5], cache_of(runtime, 40)).logits
    chosen = runtime.forward([Rows(cache_of(runtime, 9), [6, 7, 8], efforts, logits="choices")])[0]
    batch = [
        Rows(cache_of(runtime, 40), [4, 5], efforts),
        Rows(cache_of(runtime, 9), [6, 7, 8], efforts, logits="choices"),
    ]
    batch.append(Rows(cache_of(runtime, 12), [1, 2], efforts, logits="none"))
    first, second, third = runtime.forward(batch)
    assert np.array_equal(first.logits, alone)
    assert first.choices is None
    assert list(second.choices) == list(chosen.choices)
    assert third.logits.shape[0] == 0

"""Timing passes: what counts as one, that they take turns, and that the cache is left as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scripted_model import PASS_S, ROW_S, STEP_S, Clock, ScriptedRuntime, scripted_model

from specdec.runtimes.base import Pass, Rows, forward_one
from specdec.runtimes.timing import PassTimer, Timed, timed


def test_a_pass_is_timed_and_its_rows_are_taken_back(clock: Clock) -> None:
    runtime = scripted_model(clock).runtime
    cache, other = runtime.new_cache(16), runtime.new_cache(16)
    for one in (cache, other):
        forward_one(runtime, [1, 2, 3], one)
    result, seconds = timed(runtime, [4, 5], cache, effort=1.0)
    assert seconds == PASS_S + ROW_S
    assert cache.length == 3
    assert np.array_equal(result.logits, forward_one(runtime, [4, 5], other).logits)


def test_an_error_leaves_the_cache_as_it_was(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = scripted_model(clock).runtime
    cache = runtime.new_cache(16)
    forward_one(runtime, [1, 2, 3], cache)

    def fail(batch: list[Rows], **_: object) -> list[Pass]:
        batch[0].cache.entries.append((b"", ()))  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        timed(runtime, [4], cache, effort=1.0)
    assert cache.length == 3


@pytest.mark.parametrize(("compiles", "untimed"), [(False, 1), (True, 2)])
def test_passes_take_turns_after_those_that_warm_up(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, compiles: bool, untimed: int
) -> None:
    runtime = scripted_model(clock).runtime
    monkeypatch.setattr(ScriptedRuntime, "info", replace(runtime.info, compiles=compiles))
    assert isinstance(runtime, ScriptedRuntime)
    passes = [Timed(3, warm_up=False), Timed(1, 1.0, "int4")]
    before = runtime.passes
    seconds = PassTimer(runtime, runtime.new_cache(8), [1, 2, 3], passes).run(4)
    assert seconds == [[PASS_S + 2 * ROW_S] * 4, [STEP_S] * 4]
    assert runtime.passes - before == 4 * 2 + untimed


def test_a_stall_in_one_round_does_not_move_the_least(clock: Clock) -> None:
    model = scripted_model(clock, stalls={2: 5.0})
    (seconds,) = PassTimer(model.runtime, model.runtime.new_cache(8), [1], [Timed(1)]).run(3)
    assert sorted(seconds) == [PASS_S, PASS_S, 5 * PASS_S]


def test_no_round_begins_after_the_budget(clock: Clock) -> None:
    runtime = scripted_model(clock).runtime

    def rounds(budget_s: float) -> int:
        timer = PassTimer(runtime, runtime.new_cache(8), [1], [Timed(1, warm_up=False)])
        return len(timer.run(4, budget_s=budget_s)[0])

    assert [rounds(PASS_S * n) for n in (0.5, 1, 1.5, 9)] == [1, 2, 2, 4]

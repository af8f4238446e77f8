"""Trying draft schedules where they will be used: on the model's own greedy text, after passages of the calibration
text, with history at verify quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdec.lab.tune.divergence import Comparison
from specdec.lab.tune.sensitivity import advance, draft_step
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Runtime, forward_one

_FULL = EffortSchedule()


def try_schedules(
    runtime: Runtime,
    starts: Sequence[Sequence[int]],
    schedules: Sequence[EffortSchedule],
    *,
    view: str,
    length: int,
    done: Callable[[int], None],
) -> tuple[list[float], list[float]]:
    """Agreement and divergence of every schedule with the model itself.

    Args:
        runtime: runs the model.
        starts: passages, at least one token each, that the model continues from.
        schedules: what to try.
        view: draft view.
        length: tokens that the model writes after each passage.
        done: called with the number of tokens written so far.

    Returns:
        For each schedule the share of positions at which it chooses what the model chooses, and the mean KL in nats.
    """
    agreed, kl, count = [0] * len(schedules), [0.0] * len(schedules), 0
    for start in starts:
        tokens = list(start)
        cache = runtime.new_cache(len(start) + length)
        for _ in range(length):
            advance(runtime, cache, tokens[:-1])
            drafts = [draft_step(runtime, cache, tokens[-1], schedule, view) for schedule in schedules]
            right = Comparison(forward_one(runtime, [tokens[-1]], cache, effort=_FULL).logits[0])
            for index, logits in enumerate(drafts):
                agreed[index] += int(logits.argmax()) == right.token
                kl[index] += right.divergence(logits)
            tokens.append(right.token)
            count += 1
            done(count)
    return [hits / count for hits in agreed], [total / count for total in kl]

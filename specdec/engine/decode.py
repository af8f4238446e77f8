"""Decoding one sequence: its prompt, and its rounds. Many sequences together are in `scheduler`."""

from __future__ import annotations

import time
from collections.abc import Callable

from specdec.drafters.base import Ask, Reply
from specdec.engine.round import Round
from specdec.engine.sequence import Sequence
from specdec.runtimes.base import MAX_PASS_ROWS, Rows

PREFILL_CHUNK = MAX_PASS_ROWS  # tokens a pass over the prompt: bounds its memory, and how long an interrupt waits


class Stopped(Exception):  # noqa: N818  # not an error
    """The caller does not want the answer any more; raised between passes only."""


def never() -> bool:
    """A stop signal that never fires."""
    return False


def read_prompt(
    sequence: Sequence,
    *,
    stopped: Callable[[], bool] = never,
    passed: Callable[[int, float], None] | None = None,
    most: int = PREFILL_CHUNK,
) -> int:
    """Read what is left of the prompt, the same passes with and without speculation; returns the bytes read.

    Args:
        sequence: whose prompt.
        stopped: whether the caller does not want the answer any more.
        passed: called after every pass with the bytes that it read and its seconds.
        most: tokens a pass, at most `PREFILL_CHUNK`.

    Raises:
        Stopped: `stopped` said so between two passes.
    """
    total = 0
    while sequence.unread:
        if stopped():
            raise Stopped
        start_s = time.perf_counter()
        result = sequence.runtime.forward([sequence.prompt_rows(min(most, PREFILL_CHUNK))])[0]
        sequence.note_prompt(result)
        total += result.bytes_read
        if passed is not None:
            passed(result.bytes_read, time.perf_counter() - start_s)
    return total


def step(sequence: Sequence, *, stopped: Callable[[], bool] = never) -> Round:
    """One round of a sequence alone. It happens as a whole or, when anything raises, not at all.

    Raises:
        Stopped: `stopped` said so between two passes.
    """
    if sequence.is_ahead:
        return sequence.take_ahead()
    try:
        rows = _proposed(sequence, stopped)
        rows = sequence.going_ahead(rows, sequence.most_ahead(rows))
        if stopped():
            raise Stopped
        start_s = time.perf_counter()
        result = sequence.runtime.forward([rows])[0]
        return sequence.settle(result, seconds=time.perf_counter() - start_s)
    except BaseException:
        sequence.rewind()
        raise


def _proposed(sequence: Sequence, stopped: Callable[[], bool]) -> Rows:
    """The rows of the verify pass; what the drafter asks for is answered at once."""
    proposal = sequence.propose()
    try:
        ask = next(proposal)
        while True:
            if stopped():
                raise Stopped
            try:
                reply = answer(ask)
            except Exception as error:
                if (named := sequence.refused(error)) is error:
                    raise
                raise named from error
            ask = proposal.send(reply)
    except StopIteration as stop:
        rows: Rows = stop.value
        return rows


def answer(ask: Ask) -> Reply:
    """Run the pass that a drafter asks for, alone."""
    start_s = time.perf_counter()
    result = ask.runtime.forward([ask.rows], view=ask.view)[0]
    seconds = time.perf_counter() - start_s
    return Reply(result, seconds, seconds)

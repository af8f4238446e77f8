"""A list of answers run to their ends in the caller's thread: `generate_all`. Requests at any time are in `batch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.engine.answer import Answer
from specdec.engine.result import Piece, Result
from specdec.engine.scheduler import Event, Scheduler

if TYPE_CHECKING:
    from specdec.model.loaded import Model


def apply(event: Event, answer: Answer) -> Piece | None:
    """Take what a step did for an answer's sequence; the piece, if the step ended a round or the answer.

    Raises:
        Exception: the event's error, or what the answer's text or trace runs into.
    """
    if event.error is not None:
        raise event.error
    if event.done is None:
        return answer.read_prompt(event.bytes_read, event.seconds)
    if event.bytes_read or event.seconds:
        answer.read_prompt(event.bytes_read, event.seconds)
    return answer.take(event.done)


def generate_all(model: Model, answers: list[Answer]) -> list[Result]:
    """Run answers to their ends in this thread. When one fails or the caller interrupts, all are closed.

    Raises:
        Exception: of the first answer that fails.
    """
    scheduler = Scheduler(model.runtime, costs=model.memory.passes)
    open_answers: dict[int, Answer] = {}
    try:
        for answer in answers:
            assert answer.sequence is not None
            scheduler.add(answer.sequence)
            open_answers[id(answer.sequence)] = answer
        while open_answers:
            with model.lock:
                for event in scheduler.step():
                    answer = open_answers[id(event.sequence)]
                    apply(event, answer)
                    if answer.stopped_by is not None:
                        scheduler.remove(event.sequence)
                        del open_answers[id(event.sequence)]
                        answer.close()
        return [answer.result() for answer in answers]
    finally:
        for answer in answers:
            answer.close()

"""The events of one answer of the batch: `answer_events`. What its text means is the reader's business."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from specdec.engine.prompt import EncodedPrompt
from specdec.server.answers import Answers, RunningAnswer
from specdec.server.chat_reader import ChatReader
from specdec.server.echo import Echo
from specdec.server.events import ChatEvent, Finished, Usage
from specdec.server.timings import plain_decoding, speculative_decoding, timings_of, usage_of


async def answer_events(
    answers: Answers,
    prompt: EncodedPrompt,
    reader: ChatReader,
    *,
    options: Mapping[str, Any],
    owner: str,
    deadline_s: float | None,
    asked_s: float,
    echo: Echo | None = None,
    patient: bool = False,
    counts: bool = False,
) -> AsyncGenerator[ChatEvent, None]:
    """An answer's events, `Finished` last. Closing the generator ends the answer at the next pass.

    Args:
        answers: begins it.
        prompt: in tokens.
        reader: makes events of the answer's pieces.
        options: of `specdec.stream`; the seed among them.
        owner: the client that asks.
        deadline_s: seconds after which the answer ends where it is.
        asked_s: when the request arrived, by `time.perf_counter`.
        echo: the prompt's text, which comes first.
        patient: wait where the queue is full.
        counts: every event has the usage so far.

    Raises:
        ApiError: the server is shutting down.
        SpecdecError: see `Batch.submit`.
    """
    running = await answers.begin(
        prompt, owner=owner, deadline_s=deadline_s, options=options, asked_s=asked_s, patient=patient
    )
    written = 0

    def counted(event: ChatEvent) -> ChatEvent:
        return replace(event, usage=Usage(len(prompt.ids), written, running.cached_tokens)) if counts else event

    async with running:
        async for piece in running:
            written += len(piece.tokens)
            if echo is not None:
                # The prompt's log-probabilities are known by now; asking for them waits for a pass boundary.
                told = (await answers.work(running.result)).prompt_logprobs if echo.has_logprobs else None
                yield counted(echo.event(told))
                echo = None
            for event in reader.read(piece):
                yield counted(event)
        for event in reader.finish(running.result()):
            yield counted(event)
        yield _finished(running, reader, options["seed"])


def _finished(running: RunningAnswer, reader: ChatReader, seed: int) -> Finished:
    result = running.result()
    stats = result.stats
    return Finished(
        reason="tool_calls" if reader.has_called and result.finish_reason == "stop" else result.finish_reason,
        usage=usage_of(stats, reasoning_tokens=reader.reasoning_tokens),
        stop_string=result.stop_string,
        timings=timings_of(stats, running.clock, first_tokens=running.first_tokens),
        metrics={
            "speculative_decoding": speculative_decoding(stats),
            "plain_decoding": plain_decoding(stats, first_tokens=running.first_tokens),
        },
        seed=seed,
        identical_to=result.identical_to,
    )

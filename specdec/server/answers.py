"""The batch of a loaded model as the event loop sees it: `Answers` begins answers, `RunningAnswer` is read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from specdec.engine.batch import Batch
from specdec.engine.generation import Generation
from specdec.engine.prompt import EncodedPrompt
from specdec.engine.result import Piece, Result
from specdec.errors import ContextLengthError, InvalidArgumentError, QueueFullError
from specdec.model.loaded import Model
from specdec.server.errors import ApiError, bad_request, shutting_down
from specdec.server.metrics import Metrics, Speculated
from specdec.server.timings import Clock

T = TypeVar("T")
_MOST_THREADS = 16
_MOST_WAIT_S = 1.0


class RunningAnswer:
    """An answer that grows. Iterate over it for its pieces; leaving its `async with` block ends it.

    Args:
        generation: of the batch.
        metrics: counts it.
        asked_s: when the request arrived, by `time.perf_counter`.
    """

    def __init__(self, generation: Generation, metrics: Metrics, asked_s: float) -> None:
        self._generation, self._metrics, self._asked_s = generation, metrics, asked_s
        self._first_s: float | None = None
        self._last_s = asked_s
        self._speculated = Speculated()
        self._ended: str | None = None
        self.first_tokens = 0

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            async for piece in self._generation:
                self._count(piece)
                yield piece
        except Exception:
            self._end("error")
            raise
        self._end(self.result().finish_reason)

    def result(self) -> Result:
        """The whole answer; to be called once the iteration has ended."""
        return self._generation.result()

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not read again; to be asked for once a piece has come."""
        return self._generation.stats.cached_prompt_tokens

    @property
    def clock(self) -> Clock:
        """Times so far."""
        first_s = self._last_s if self._first_s is None else self._first_s
        return Clock(first_s - self._asked_s, self._last_s - first_s)

    async def __aenter__(self) -> RunningAnswer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._generation.close()
        self._end("abort")

    def _count(self, piece: Piece) -> None:
        now, stats, count = time.perf_counter(), self._generation.stats, len(piece.tokens)
        if self._first_s is None:
            self._first_s, self.first_tokens = now, count
            self._metrics.first_token(
                now - self._asked_s, prompt_tokens=stats.prompt_tokens, cached_tokens=stats.cached_prompt_tokens
            )
        elif count:
            self._metrics.gap(count, now - self._last_s)
        self._metrics.tokens(count)
        self._metrics.speculation(stats, self._speculated)
        self._last_s = now

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
            self._metrics.finished(reason, time.perf_counter() - self._asked_s)


class Answers:
    """Begins answers without ever keeping the event loop waiting.

    Args:
        model: that answers.
        batch: of the model.
        metrics: counts answers.
        context: most tokens of a prompt and its answer.
        most: answers that one request may have in the batch at once.

    Attributes:
        context: most tokens of a prompt and its answer.
        most: answers that one request may have in the batch at once.
        is_closing: no further answers are begun.
    """

    def __init__(self, model: Model, batch: Batch, metrics: Metrics, *, context: int, most: int) -> None:
        self.model, self.metrics, self._batch = model, metrics, batch
        self.context, self.most, self.is_closing = context, most, False
        workers = min(_MOST_THREADS, 4 + (os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="specdec request")

    async def work(self, function: Callable[[], T]) -> T:
        """What `function` returns, which a thread of the pool runs: tokenising, templates, grammars."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    def check_open(self) -> None:
        """Refuse what cannot be answered any more.

        Raises:
            ApiError: the server is shutting down, or the batch has failed.
        """
        if self.is_closing:
            raise shutting_down()
        if self._batch.failure is not None:
            raise ApiError(503, "the server has failed and answers nothing more: start it again", kind="server_error")

    async def encode(self, encode: Callable[[], EncodedPrompt], *, param: str) -> EncodedPrompt:
        """The prompt that `encode` makes, in a thread of the pool.

        Args:
            encode: see `encode_prompt`.
            param: field of the request that the prompt comes from.

        Raises:
            ApiError: there is no such prompt, or it leaves no room for an answer.
        """
        try:
            prompt = await self.work(encode)
        except ContextLengthError as error:
            raise self._too_long(error.size, param) from None
        except InvalidArgumentError as error:
            raise bad_request(str(error), param) from None
        if len(prompt.ids) >= self.context:
            raise self._too_long(f"{len(prompt.ids)} tokens", param)
        return prompt

    async def begin(
        self,
        prompt: EncodedPrompt,
        *,
        owner: str,
        deadline_s: float | None,
        options: Mapping[str, Any],
        asked_s: float,
        patient: bool = False,
    ) -> RunningAnswer:
        """Submit a prompt.

        Args:
            prompt: in tokens.
            owner: the client that asks; prefixes are shared between requests of one owner only.
            deadline_s: seconds after the request's arrival at which the answer ends where it is.
            options: of `specdec.stream`.
            asked_s: when the request arrived, by `time.perf_counter`.
            patient: wait where the queue is full.

        Raises:
            ApiError: see `check_open`, or the time is over.
            SpecdecError: see `Batch.submit`.
        """
        room = self.context - len(prompt.ids)
        given = {**options, "max_tokens": min(options.get("max_tokens", room), room)}
        while True:
            self.check_open()
            left_s = None if deadline_s is None else deadline_s - (time.perf_counter() - asked_s)
            if left_s is not None and left_s <= 0:
                raise ApiError(504, "the request's time was over before it could begin", kind="server_error")
            submit = partial(self._batch.submit, prompt, owner=owner, deadline_s=left_s, **given)
            submitted = self._pool.submit(submit)
            try:
                return RunningAnswer(await asyncio.wrap_future(submitted), self.metrics, asked_s)
            except asyncio.CancelledError:
                submitted.add_done_callback(_close)
                self.metrics.finished("abort", time.perf_counter() - asked_s)
                raise
            except QueueFullError as error:
                if not patient:
                    raise
                await asyncio.sleep(min(error.retry_after_s, _MOST_WAIT_S))

    def _too_long(self, size: str, param: str) -> ApiError:
        return bad_request(
            f"This model's maximum context length is {self.context} tokens, answer included. However, your prompt has "
            f"{size}: shorten it.",
            param,
            code="context_length_exceeded",
        )

    def close(self) -> None:
        """End the threads of the pool; the batch is its owner's to close."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _close(submitted: Future[Generation]) -> None:
    """End an answer whose reader is gone."""
    if not submitted.cancelled():
        with contextlib.suppress(Exception):
            submitted.result().close()

"""The batch of a loaded model as the event loop sees it: `Answers` begins answers, `RunningAnswer` is read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from specdec.engine.batch import Batch
from specdec.engine.generation import Generation
from specdec.engine.prompt import EncodedPrompt
from specdec.engine.result import Piece, Result
from specdec.model.loaded import Model
from specdec.runtimes.base import MAX_SEQUENCES
from specdec.server.errors import bad_request, shutting_down
from specdec.server.metrics import Metrics, Speculated
from specdec.server.timings import Clock

T = TypeVar("T")
_MOST_THREADS = 16


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
        context: most tokens of a prompt and its answer; None for the model's own limit.
        most: answers that one request may have in the batch at once.

    Attributes:
        context: most tokens of a prompt and its answer.
        most: answers that one request may have in the batch at once.
        is_closing: no further answers are begun.
    """

    def __init__(
        self, model: Model, batch: Batch, metrics: Metrics, *, context: int | None = None, most: int = MAX_SEQUENCES
    ) -> None:
        self.model, self.metrics, self._batch = model, metrics, batch
        self.most, self.is_closing = most, False
        most = model.config.max_context
        self.context = most if context is None else min(context, most)
        workers = min(_MOST_THREADS, 4 + (os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="specdec request")

    async def work(self, function: Callable[[], T]) -> T:
        """What `function` returns, which a thread of the pool runs: tokenising, templates, grammars."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def encode(self, encode: Callable[[], EncodedPrompt]) -> EncodedPrompt:
        """The prompt that `encode` makes, in a thread of the pool.

        Raises:
            ApiError: it leaves no room for an answer.
        """
        prompt = await self.work(encode)
        self.check_fits(prompt, "messages")
        return prompt

    def check_fits(self, prompt: EncodedPrompt, param: str) -> None:
        """Refuse a prompt that leaves no room for an answer.

        Args:
            prompt: in tokens.
            param: field of the request that it comes from.

        Raises:
            ApiError: it is too long.
        """
        if len(prompt.ids) >= self.context:
            raise bad_request(
                f"This model's maximum context length is {self.context} tokens, answer included. However, your prompt "
                f"has {len(prompt.ids)} tokens: shorten it.",
                param,
                code="context_length_exceeded",
            )

    async def begin(
        self,
        prompt: EncodedPrompt,
        *,
        owner: str,  # noqa: ARG002
        deadline_s: float | None,  # noqa: ARG002
        options: Mapping[str, Any],
        asked_s: float,
    ) -> RunningAnswer:
        """Submit a prompt.

        Args:
            prompt: in tokens.
            owner: who asks; prefixes are shared between requests of one owner only.
            deadline_s: seconds after which the answer ends where it is.
            options: of `specdec.stream`.
            asked_s: when the request arrived, by `time.perf_counter`.

        Raises:
            ApiError: the server is shutting down.
            SpecdecError: see `Batch.submit`.
        """
        if self.is_closing:
            raise shutting_down()
        room = self.context - len(prompt.ids)
        given = {**options, "max_tokens": min(options.get("max_tokens", room), room)}
        submitted = self._pool.submit(lambda: self._batch.submit(prompt, **given))
        try:
            generation = await asyncio.wrap_future(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_close)
            raise
        return RunningAnswer(generation, self.metrics, asked_s)

    def close(self) -> None:
        """End the threads; the batch is its owner's to close."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _close(submitted: Future[Generation]) -> None:
    """End an answer that nobody will read."""
    if not submitted.cancelled():
        with contextlib.suppress(Exception):
            submitted.result().close()

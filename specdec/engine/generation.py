"""What a caller reads an answer from: `Generation`, and `Stream`, whose reader runs the passes itself.

Threads: any thread may call `close` and `result`. One thread at a time reads; it need not be the one that began. The
reader of a `Stream` runs its passes, so nothing runs unless it is read; a `Batch` (`batch`) runs them in a thread
of its own.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, TypeVar

from specdec.engine import decode
from specdec.engine.answer import Answer
from specdec.engine.result import Piece, Result
from specdec.engine.stats import Stats
from specdec.errors import SpecdecError
from specdec.turns import Turns

G = TypeVar("G", bound="Generation")

_END = object()


class Generation(Iterator[Piece], AsyncIterator[Piece]):
    """Iterate over it for the pieces of an answer, one for every round; `result` is there at any time.

    `for` and `async for` both work. When a round fails or is interrupted, it counts as not having happened: the pieces
    so far stand, and the generation is closed. To continue, start another one whose prompt is the old one and
    the tokens so far, with the same seed: since every token depends on its history, its position and the seed alone,
    the answer continues as it would have. Closing early, by `close` from any thread, by leaving a `with` block, or by
    dropping the object, has no other effect: the reader's loop ends, and `stopped_by` is "caller".
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    @property
    def stats(self) -> Stats:
        """Counts and times so far; `result().stats` is a copy that does not change."""
        return self._answer.stats

    @abstractmethod
    def __next__(self) -> Piece:
        """The next piece.

        Raises:
            SpecdecError: another thread is reading, or the model cannot go on.
        """

    @abstractmethod
    def close(self) -> None:
        """End the answer at the next pass boundary; more than once does no harm."""

    def result(self) -> Result:
        """The answer so far, as it will not change any more; the whole of it once the iteration has ended."""
        return self._answer.result()

    def __aiter__(self: G) -> G:
        return self

    async def __anext__(self) -> Piece:
        piece: Any = await asyncio.to_thread(next, self, _END)
        if piece is _END:
            raise StopAsyncIteration
        return piece  # type: ignore[no-any-return]

    def __enter__(self: G) -> G:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Stream(Generation):
    """An answer whose reader runs the passes.

    Args:
        answer: before its prompt is read.
        lock: held while a round runs; what generations of a model share belongs to its holder.
    """

    def __init__(self, answer: Answer, lock: Turns) -> None:
        super().__init__(answer)
        self._passes = lock
        self._state = threading.RLock()  # of the fields below; a signal handler may close while it is held
        self._reader: int | None = None  # thread that runs passes now
        self._is_closing = False

    def __next__(self) -> Piece:
        me, ended = threading.get_ident(), True
        if self._reader == me:
            raise SpecdecError("this answer is being read: a function that its passes call cannot iterate over it")
        try:
            self._begin(me)
            piece = self._advance()
            ended = self._answer.stopped_by is not None
        except decode.Stopped:
            raise StopIteration from None
        finally:
            # The thread that runs the passes hands caches on, never `close` in another thread.
            with self._state:
                if self._reader == me:
                    self._reader = None
                    if ended or self._is_closing:
                        self._answer.close()
        return piece

    def _begin(self, me: int) -> None:
        """Become the reader.

        Raises:
            SpecdecError: another thread is.
            Stopped: the answer has ended.
        """
        with self._state:
            if self._reader is not None:
                raise SpecdecError("another thread is reading this answer: one thread at a time may iterate over it")
            if self._is_closing or self._answer.sequence is None:
                self._answer.close()
                raise decode.Stopped
            self._reader = me

    def close(self) -> None:
        """End the answer at the next pass boundary; more than once does no harm."""
        with self._state:
            self._is_closing = True
            if self._reader is None:
                self._answer.close()

    def _advance(self) -> Piece:
        answer = self._answer
        sequence = answer.sequence
        assert sequence is not None
        with self._passes:
            ended: list[Piece] = []

            def passed(bytes_read: int, seconds: float) -> None:
                if (piece := answer.read_prompt(bytes_read, seconds)) is not None:
                    ended.append(piece)

            decode.read_prompt(sequence, stopped=self._stopped, passed=passed)
            if ended:
                return ended[0]
            return answer.take(decode.step(sequence, stopped=self._stopped))

    def _stopped(self) -> bool:
        return self._is_closing

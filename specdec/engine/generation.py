"""An answer as it grows: runs the engine, turns tokens into text, ends where the caller's conditions say."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from specdec.engine.prompt_cache import PromptCache
from specdec.engine.result import Piece, Result
from specdec.engine.round import Engine
from specdec.engine.stats import Stats
from specdec.engine.stops import StopStrings
from specdec.engine.trace import TraceWriter

if TYPE_CHECKING:
    from specdec.tokenizers import IncrementalDetokenizer

FINISH_REASONS = {
    "end token": "stop",
    "stop string": "stop",
    "max_tokens": "length",
    "context": "length",
    "caller": "interrupted",
}


class Generation(Iterator[Piece]):
    """Iterate over it for the pieces of an answer, one for every round; `result` is there at any time.

    When a round fails or is interrupted, it counts as not having happened: the pieces so far stand, and the generation
    is closed. To go on from there, start another one whose prompt is the old one and the tokens so far, with the same
    seed: since every token depends on its history, its position and the seed alone, the answer continues as it would
    have. Closing early, by `close`, by leaving a `with` block, or by dropping the object, has no other effect.

    Args:
        engine: before its prefill.
        max_tokens: most tokens of the answer.
        end_tokens: token ids that end it; they become part of `tokens`, not of the text.
        stops: watches the text.
        detokenizer: turns tokens into text; None leaves the text empty.
        identical_to: what the result says of itself.
        draft_view: for the statistics.
        trace: gets every round; closed with the generation.
        prompt_cache: gets the engine's cache when the generation is closed.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_tokens: int,
        end_tokens: frozenset[int],
        stops: StopStrings,
        detokenizer: IncrementalDetokenizer | None,
        identical_to: str,
        draft_view: str | None = None,
        trace: TraceWriter | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.stats = Stats(
            draft_view=draft_view, prompt_tokens=len(engine.tokens), cached_prompt_tokens=engine.cache.length
        )
        self._prompt_cache = prompt_cache
        self._engine: Engine | None = engine
        self._speculation = engine.speculation
        self._max_tokens, self._end_tokens, self._stops = max_tokens, end_tokens, stops
        self._detokenizer, self._identical_to, self._trace = detokenizer, identical_to, trace
        self._pieces: list[Piece] = []
        self._is_prefilled = False
        self._stopped_by: str | None = None

    def __next__(self) -> Piece:
        if self._engine is None:
            raise StopIteration
        try:
            piece = self._advance(self._engine)
        except BaseException:
            self.close()
            raise
        if self._stopped_by is not None:
            self.close()
        return piece

    def result(self) -> Result:
        """The answer so far, as it will not change any more; the whole of it once the iteration has ended."""
        stopped_by = self._stopped_by or "caller"
        if self._speculation is not None:
            self.stats.policy = self._speculation.policy.summary()
        return Result(
            text="".join(piece.text for piece in self._pieces),
            tokens=[token for piece in self._pieces for token in piece.tokens],
            finish_reason=FINISH_REASONS[stopped_by],
            stopped_by=stopped_by,
            stats=copy.deepcopy(self.stats),
            identical_to=f"nothing (trusted {self.stats.trusted} tokens)" if self.stats.trusted else self._identical_to,
        )

    def close(self) -> None:
        """End the generation here and let go of its cache and its trace; more than once does no harm."""
        engine, self._engine = self._engine, None
        if engine is not None and self._prompt_cache is not None and self._is_prefilled:
            self._prompt_cache.keep(engine, self.stats.prompt_tokens)
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.close()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, engine: Engine) -> Piece:
        if not self._is_prefilled:
            start_s = time.perf_counter()
            self.stats.prefill_bytes_read = engine.prefill()
            self.stats.prefill_s = time.perf_counter() - start_s
            self._is_prefilled = True
        start_s = time.perf_counter()
        done = engine.step()
        piece, stopped_by = self._read(done.tokens, room=engine.limit - done.position)
        piece.origins.extend(done.origins[: len(piece.tokens)])
        if self._trace is not None:
            self._trace.write(self.stats.rounds, done, piece)
        self.stats.add(done, emitted=len(piece.tokens), wall_s=time.perf_counter() - start_s)
        self._pieces.append(piece)
        self._stopped_by = stopped_by
        return piece

    def _read(self, run: list[int], *, room: int) -> tuple[Piece, str | None]:
        """The piece that a round's tokens make, cut where the answer ends, and what ended it.

        Args:
            run: the round's tokens.
            room: how many of them fit before the engine's limit.
        """
        parts: list[str] = []
        stopped_by = None
        for count, token in enumerate(run, start=1):
            parts.append("" if self._detokenizer is None else self._stops.feed(self._detokenizer.add(token)))
            if token in self._end_tokens:
                stopped_by = "end token"
            elif self._stops.found is not None:
                stopped_by = "stop string"
            elif self.stats.emitted + count == self._max_tokens:
                stopped_by = "max_tokens"
            elif count == room:
                stopped_by = "context"
            if stopped_by is not None:
                run = run[:count]
                break
        if stopped_by is not None and self._stops.found is None and self._detokenizer is not None:
            parts[-1] += self._stops.feed(self._detokenizer.finish())  # may complete a stop string
            parts[-1] += self._stops.flush()
            stopped_by = "stop string" if self._stops.found is not None else stopped_by
        return Piece("".join(parts), run, parts), stopped_by

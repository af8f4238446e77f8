"""An answer as it grows: tokens become text, and end where the caller's conditions say. `Answer`.

`decode` and `scheduler` run the passes; a caller reads from `generation`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from specdec.engine.advice import advice_on_effort
from specdec.engine.prompt_cache import PromptCache
from specdec.engine.result import Piece, Result
from specdec.engine.round import Round
from specdec.engine.sequence import Sequence
from specdec.engine.stats import Stats
from specdec.engine.stops import StopStrings
from specdec.engine.trace import TraceWriter
from specdec.errors import SpecdecError
from specdec.progress import Progress
from specdec.turns import Turns

if TYPE_CHECKING:
    from specdec.engine.speculation import Drafting
    from specdec.runtimes.base import Cache
    from specdec.tokenizers import IncrementalDetokenizer

FINISH_REASONS = {
    "end token": "stop",
    "stop string": "stop",
    "grammar": "stop",
    "max_tokens": "length",
    "context": "length",
    "deadline": "length",
    "caller": "interrupted",
}

READING = "reading the prompt"


class Answer:
    """The text, the statistics and the end of one sequence.

    The thread that runs the passes calls everything but `result`, which any thread may call.

    Args:
        sequence: before its prompt is read.
        max_tokens: most tokens of the answer.
        end_tokens: token ids that end it; they become part of `tokens`, not of the text.
        stop_tokens: of `end_tokens`, those that the caller's stop strings stand for.
        stops: watches the text.
        detokenizer: turns tokens into text; None leaves the text empty.
        identical_to: what the result says of itself.
        seed: that the tokens are drawn with; None where none matters.
        has_logprobs: log-probabilities were asked for.
        drafting: what it drafts with from `start` on; None decodes one token a round.
        trace: gets every round; closed with the answer.
        prompt_cache: gets the sequence's cache at the end.
        lock: held while passes run and while a model's policies are called.
        progress: reports how much of the prompt is read; called by the thread that runs the passes.

    Attributes:
        sequence: None once the answer has ended.
        stopped_by: what ended it: a key of `FINISH_REASONS`, or None.
    """

    def __init__(
        self,
        sequence: Sequence,
        *,
        max_tokens: int,
        end_tokens: frozenset[int],
        stop_tokens: Mapping[int, str],
        stops: StopStrings,
        detokenizer: IncrementalDetokenizer | None,
        identical_to: str,
        seed: int | None = None,
        has_logprobs: bool = False,
        drafting: Drafting | None = None,
        trace: TraceWriter | None = None,
        prompt_cache: PromptCache | None = None,
        lock: Turns,
        progress: Progress | None = None,
    ) -> None:
        self.sequence: Sequence | None = sequence
        draft_view = None if drafting is None else drafting.crew.known.offered[0].view
        self.stats = Stats(draft_view=draft_view, seed=seed, prompt_tokens=len(sequence.tokens))
        self._prompt_logprobs, self._has_logprobs = sequence.prompt_logprobs, has_logprobs
        self.stopped_by: str | None = None
        self._drafting = drafting
        self._prompt_cache, self._trace = prompt_cache, trace
        self._max_tokens, self._end_tokens, self._stops = max_tokens, end_tokens, stops
        self._detokenizer, self._identical_to, self._stop_tokens = detokenizer, identical_to, stop_tokens
        self._pieces: list[Piece] = []
        self._passes, self._progress = lock, progress
        self._lock = threading.Lock()  # of what `result` reads
        self._summary_error: SpecdecError | None = None

    def worst_bytes(self) -> int:
        """Most bytes of keys and values that the answer may take, those of its drafters included."""
        sequence, drafting = self.sequence, self._drafting
        assert sequence is not None
        drafts = 0 if drafting is None else drafting.cache_bytes(sequence.limit)
        return sequence.runtime.cache_bytes(sequence.limit) + drafts

    def start(self, cache: Cache | None = None, *, measures: bool = True) -> None:
        """Get ready for the first pass. The caller holds the lock.

        Args:
            cache: holds a beginning of the prompt; None leaves the sequence its own.
            measures: costs that are known may be measured again; False where others wait for their passes.
        """
        sequence = self.sequence
        assert sequence is not None
        sequence.end_tokens = self._end_tokens
        if cache is not None:
            sequence.cache = cache
            self.stats.cached_prompt_tokens = cache.length
        if self._drafting is not None:
            sequence.speculation = self._drafting.begin(sequence, self._end_tokens, measures=measures)
        self._tell(sequence)

    def expire(self) -> Piece:
        """End the answer here because its time is over; the piece holds the text that was held back."""
        text = ""
        if self._detokenizer is not None:
            text = self._stops.feed(self._detokenizer.finish()) + self._stops.flush()
        piece = Piece(text, [])
        with self._lock:
            self._pieces.append(piece)
            self.stopped_by = "stop string" if self._stops.found is not None else "deadline"
        return piece

    def read_prompt(self, bytes_read: int, seconds: float) -> Piece | None:
        """Count a pass over the prompt. Where nothing is to follow, the empty piece that ends the answer."""
        self.stats.prefill_bytes_read += bytes_read
        self.stats.prefill_s += seconds
        if self.sequence is not None:
            self._tell(self.sequence)
        if self.sequence is None or self.sequence.unread or not self.sequence.reads_only:
            return None
        with self._lock:
            self.stopped_by = "max_tokens"
            self._pieces.append(Piece("", []))
        return self._pieces[-1]

    def _tell(self, sequence: Sequence) -> None:
        """Say how much of the prompt is read, where any of it had to be."""
        if self._progress is None:
            return
        total = self.stats.prompt_tokens - (not sequence.reads_only)  # else the first round reads the last token
        if self.stats.cached_prompt_tokens < total:
            self._progress(READING, total - sequence.unread, total)

    def take(self, done: Round) -> Piece:
        """The piece that a finished round adds; `stopped_by` says afterwards whether it was the last one."""
        assert self.sequence is not None
        start_s = time.perf_counter()
        run = done.tokens
        piece, stopped_by = self._read(run, room=self.sequence.limit - done.position, complete_at=done.complete_at)
        piece.origins.extend(done.origins[: len(piece.tokens)])
        piece.logprobs.extend(done.logprobs[: len(piece.tokens)])
        if done.further and len(piece.tokens) < len(run):
            self.sequence.drop(len(run) - len(piece.tokens))
        if self._trace is not None:
            for number, (step, part) in enumerate(_steps(done, piece)):
                self._trace.write(self.stats.rounds + number, step, part)
        with self._lock:
            wall_s = done.round_s + time.perf_counter() - start_s
            self.stats.add(done, emitted=len(piece.tokens), wall_s=wall_s)
            self._pieces.append(piece)
            self.stopped_by = stopped_by
        return piece

    def close(self) -> None:
        """End the answer here, hand its cache on and close its trace; more than once does no harm."""
        sequence, self.sequence = self.sequence, None
        self._drafting = None  # drafters hold keys and values, too
        if sequence is not None:
            sequence.rewind()
            self._sum_up(sequence)
            self._end_drafting(sequence)
            if self._prompt_cache is not None:
                self._prompt_cache.keep(sequence.runtime, sequence.tokens, sequence.cache, efforts=sequence.efforts)
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.close()

    def result(self) -> Result:
        """The answer so far, as it will not change any more; the whole of it once it has ended.

        Raises:
            SpecdecError: the policy cannot say what it did.
        """
        if self.sequence is not None:
            with self._passes:
                if (sequence := self.sequence) is not None:
                    self._sum_up(sequence)
        if self._summary_error is not None:
            raise self._summary_error
        with self._lock:
            stopped_by = self.stopped_by or "caller"
            identical_to = self._identical_to
            if self.stats.trusted:
                identical_to = f"nothing (trusted {self.stats.trusted} tokens)"
            tokens = [token for piece in self._pieces for token in piece.tokens]
            stop_token = self._stop_tokens.get(tokens[-1]) if stopped_by == "end token" else None
            logprobs = [one for piece in self._pieces for one in piece.logprobs]
            return Result(
                text="".join(piece.text for piece in self._pieces),
                tokens=tokens,
                seed=self.stats.seed,
                logprobs=logprobs if self._has_logprobs else None,
                prompt_logprobs=None if self._prompt_logprobs is None else list(self._prompt_logprobs),
                finish_reason=FINISH_REASONS[stopped_by],
                stopped_by=stopped_by,
                stop_string=self._stops.found or stop_token,
                stats=self.stats.copied(),
                identical_to=identical_to,
            )

    def _end_drafting(self, sequence: Sequence) -> None:
        """Let drafters keep the answer; an error waits as in `_sum_up`."""
        if sequence.speculation is not None:
            try:
                sequence.speculation.end()
            except SpecdecError as error:
                self._summary_error = error

    def _sum_up(self, sequence: Sequence) -> None:
        """Ask the policy what it has to say of the run; an error is raised when the result is asked for."""
        if sequence.speculation is not None:
            try:
                speculation = sequence.speculation
                self.stats.policy = speculation.sum_up()
                if speculation.is_effort_asked and speculation.usual_draft is not None:
                    self.stats.advice = advice_on_effort(self.stats, speculation.draft_effort, speculation.usual_draft)
            except SpecdecError as error:
                self._summary_error = error

    def _read(self, run: list[int], *, room: int, complete_at: int | None) -> tuple[Piece, str | None]:
        """The piece that a round's tokens make, cut where the answer ends, and what ended it.

        Args:
            run: the round's tokens.
            room: how many of them fit before the sequence's limit.
            complete_at: after how many of them the answer's grammar has come to its end; None while it has not.
        """
        parts: list[str] = []
        stopped_by = None
        detokenizer, ends, stops, left = self._detokenizer, self._end_tokens, self._stops, self._max_tokens
        left -= self.stats.emitted
        plain = detokenizer.add if detokenizer is not None and not stops.watches else None
        for count, token in enumerate(run, start=1):
            if plain is not None:
                parts.append(plain(token))
            else:
                parts.append("" if detokenizer is None else self._watched(detokenizer, token))
            if token in ends:
                stopped_by = "end token"
            elif stops.found is not None:
                stopped_by = "stop string"
            elif count == complete_at:
                stopped_by = "grammar"
            elif count == left:
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

    def _watched(self, detokenizer: IncrementalDetokenizer, token: int) -> str:
        """Text of a token that is safe to show."""
        return self._stops.feed(detokenizer.add(token), control=detokenizer.control(token))


def _steps(done: Round, piece: Piece) -> Iterator[tuple[Round, Piece]]:
    """A round with its part of the piece, then each plain step that its pass went ahead for, with its own."""
    if not done.further:
        yield done, piece
        return
    first = len(done.tokens) - len(done.further)
    cuts = [0, *range(first, len(piece.tokens) + 1)]
    share_s = done.verify_s / (1 + len(done.further))
    for number, (low, high) in enumerate(pairwise(cuts)):
        step = replace(
            done, position=done.position + low, bonus_token=[done.bonus_token, *done.further][number], further=(),
            verify_s=share_s,
        )  # fmt: skip
        parts = piece.parts[low:high]
        yield step, Piece("".join(parts), piece.tokens[low:high], parts, piece.origins[low:high])

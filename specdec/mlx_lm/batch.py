"""mlx-lm's `batch_generate`: several answers that share passes, each with the tokens that it would have alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from specdec.checks import check_count
from specdec.engine.answer import Answer
from specdec.engine.scheduler import Scheduler
from specdec.engine.together import apply
from specdec.errors import InvalidArgumentError
from specdec.mlx_lm.answer import Begun, Request
from specdec.mlx_lm.chooser import RandomStream, logprobs_of
from specdec.mlx_lm.foreign_tokenizer import wrapped
from specdec.mlx_lm.generate_utils import BatchStats, peak_memory_gb
from specdec.mlx_lm.models.cache import KVCache, copied, make_prompt_cache
from specdec.mlx_lm.sample_utils import LogitsProcessor, Sampler, greedy_sampler
from specdec.runtimes.base import MAX_PASS_ROWS, MAX_SEQUENCES, MAX_TREE_ROWS

if TYPE_CHECKING:
    from specdec.model.loaded import Model


@dataclass
class BatchResponse:
    """The answers to several prompts.

    Attributes:
        texts: of the answers.
        stats: counts and times.
        caches: prompt caches that continue from each answer, if they were asked for.
        token_ids: of each answer, without the token that ended it, if they were asked for.
        logprobs: log-probabilities of those tokens, after logits processors, if they were asked for.
    """

    texts: list[str]
    stats: BatchStats
    caches: list[list[Any]] | None
    token_ids: list[list[int]] | None = None
    logprobs: list[list[float]] | None = None


@dataclass(slots=True)
class _Row:
    """One answer of a batch, under way."""

    begun: Begun
    cache: list[KVCache]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        return self.begun.answer


def batch_generate(
    model: Model,
    tokenizer: Any,
    prompts: list[list[int]],
    prompt_caches: list[list[Any]] | None = None,
    max_tokens: int | list[int] = 128,
    verbose: bool = False,
    return_prompt_caches: bool = False,
    return_token_ids: bool = False,
    return_logprobs: bool = False,
    **kwargs: Any,
) -> BatchResponse:
    """Answers to several prompts. Each has the tokens that its prompt gets alone.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompts: token ids.
        prompt_caches: that each answer continues from; they stay as they are.
        max_tokens: most tokens of an answer, or a number for each.
        verbose: print progress and times.
        return_prompt_caches: return caches that continue from the answers.
        return_token_ids: return the answers' tokens.
        return_logprobs: return their log-probabilities.
        kwargs: `sampler`, `logits_processors` (for every answer), `max_kv_size`, `completion_batch_size` (answers that
            grow together, 32), `prefill_batch_size` (prompts that are read together, 8), `prefill_step_size` (most
            tokens of a pass, 2048; at least 64 and at most 512 are taken) and `stream`.

    Raises:
        InvalidArgumentError: an argument is out of range or refused.
        TypeError: an argument that there is not.
    """
    limits = _limits(max_tokens, len(prompts))
    if prompt_caches is not None and len(prompt_caches) != len(prompts):
        raise InvalidArgumentError(f"{len(prompts)} prompts need as many prompt_caches, not {len(prompt_caches)}")
    run = _Run(model, wrapped(tokenizer), verbose=verbose, wants_logprobs=return_logprobs, **kwargs)
    rows = run.answers(prompts, prompt_caches, limits)
    if verbose:
        _report(run.stats)
    return BatchResponse(
        texts=[run.words.decode(row.tokens) for row in rows],
        stats=run.stats,
        caches=[row.cache for row in rows] if return_prompt_caches else None,
        token_ids=[row.tokens for row in rows] if return_token_ids else None,
        logprobs=[row.logprobs for row in rows] if return_logprobs else None,
    )


class _Run:
    """A batch under way."""

    def __init__(
        self,
        model: Model,
        words: Any,
        *,
        verbose: bool,
        wants_logprobs: bool,
        sampler: Sampler | None = None,
        logits_processors: Sequence[LogitsProcessor] | None = None,
        completion_batch_size: int = 32,
        prefill_batch_size: int = 8,
        prefill_step_size: int = 2048,
        max_kv_size: int | None = None,
        stream: Any = None,
    ) -> None:
        self.model, self.words, self.stats = model, words, BatchStats()
        self._verbose, self._wants_logprobs = verbose, wants_logprobs
        self._sampler, self._processors = sampler, logits_processors or ()
        self._max_kv_size, self._stream = max_kv_size, stream
        self._ends = frozenset(words.eos_token_ids)
        self._reading = check_count("prefill_batch_size", prefill_batch_size)
        self._growing = max(check_count("completion_batch_size", completion_batch_size), self._reading)
        step_size = check_count("prefill_step_size", prefill_step_size)
        rows = min(MAX_PASS_ROWS, max(MAX_TREE_ROWS, step_size))
        self._scheduler = Scheduler(
            model.runtime, max_sequences=min(self._growing, MAX_SEQUENCES), max_rows=rows, costs=model.memory.passes
        )

    def answers(
        self, prompts: Sequence[Sequence[int]], caches: Sequence[list[KVCache]] | None, limits: Sequence[int]
    ) -> list[_Row]:
        """Run all to their ends. When one fails or the caller interrupts, all are closed.

        Raises:
            Exception: of the first answer that fails.
        """
        start_s = time.perf_counter()
        rows: list[_Row] = []
        try:
            for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
                rows.append(self._row(prompt, None if caches is None else caches[number], limit))
            self._work(rows)
        finally:
            for row in rows:
                row.begun.close()
        stats = self.stats
        stats.wall_time = time.perf_counter() - start_s
        stats.prompt_tokens = sum(len(prompt) for prompt in prompts)
        stats.peak_memory = peak_memory_gb()
        return rows

    def _row(self, prompt: Sequence[int], cache: list[KVCache] | None, limit: int) -> _Row:
        is_drawn = self._sampler is not None and self._sampler is not greedy_sampler
        own = make_prompt_cache(self.model) if cache is None else copied(cache)
        request = Request(
            prompt=prompt,
            max_tokens=limit,
            sampler=self._sampler,
            processors=self._processors,
            cache=own,
            max_kv_size=self._max_kv_size,
            end_tokens=self._ends,
            stream=self._stream,
            random=RandomStream() if is_drawn else None,
        )
        return _Row(Begun(self.model, request), own)

    def _work(self, rows: Sequence[_Row]) -> None:
        waiting, growing, done = list(rows), dict[int, _Row](), 0
        self._tell(done, len(rows))
        while waiting or growing:
            with self.model.lock:
                while waiting and len(growing) < self._growing and self._unread(growing) < self._reading:
                    row = waiting.pop(0)
                    row.begun.begin()
                    assert row.answer.sequence is not None
                    growing[id(row.answer.sequence)] = row
                    self._scheduler.add(row.answer.sequence)
                ended = self._step(growing)
            if ended:
                done += ended
                self._tell(done, len(rows))

    def _step(self, growing: dict[int, _Row]) -> int:
        """A round of every answer; returns how many ended with it."""
        start_s, prompt_s, ended, has_rounds = time.perf_counter(), 0.0, 0, False
        for event in self._scheduler.step():
            row = growing[id(event.sequence)]
            prompt_s += event.seconds
            piece = apply(event, row.answer)
            if piece is None:
                continue
            has_rounds = True
            self._take(row, piece)
            if row.answer.stopped_by is not None:
                self._scheduler.remove(event.sequence)
                del growing[id(event.sequence)]
                row.begun.close()
                ended += 1
        self.stats.prompt_time += prompt_s
        self.stats.decode_time += max(0.0, time.perf_counter() - start_s - prompt_s)
        self.stats.generation_steps += has_rounds
        return ended

    def _take(self, row: _Row, piece: Any) -> None:
        for one in row.begun.tokens_of(piece):
            self.stats.generation_tokens += 1
            if one.token in self._ends:
                continue
            row.tokens.append(one.token)
            if self._wants_logprobs:
                row.logprobs.append(float(logprobs_of(one.logits)[one.token].item()))

    def _unread(self, growing: dict[int, _Row]) -> int:
        return sum(bool(row.answer.sequence and row.answer.sequence.unread) for row in growing.values())

    def _tell(self, done: int, count: int) -> None:
        if self._verbose:
            print(f"[batch_generate] Finished processing {done}/{count} ...", end="\r" if done < count else "\n")


def _limits(max_tokens: int | Sequence[int], count: int) -> list[int]:
    """Most tokens of each answer.

    Raises:
        InvalidArgumentError: there are not as many numbers as prompts.
    """
    if isinstance(max_tokens, (list, tuple)):
        if len(max_tokens) != count:
            raise InvalidArgumentError(f"max_tokens needs a number for each of {count} prompts, not {len(max_tokens)}")
        return list(max_tokens)
    return [max_tokens] * count  # type: ignore[list-item]


def _report(stats: BatchStats) -> None:
    print(f"[batch_generate] Prompt: {stats.prompt_tokens} tokens, {stats.prompt_tps:.3f} tokens-per-sec")
    print(f"[batch_generate] Generation: {stats.generation_tokens} tokens, {stats.generation_tps:.3f} tokens-per-sec")
    print(f"[batch_generate] Peak memory: {stats.peak_memory:.3f} GB")

"""One request's tokens and cache: `Sequence`. A round of it is `propose`, a pass, and `settle`. All tokens, no text.

What this file promises: whatever the policy and the drafter propose, the tokens are those of one-by-one decoding at the
verify effort. It rests on three things. The verify pass reads the exact view at the verify effort for every token that
stays in the cache; a row of it is computed from its own token and history alone, whatever shares the pass
(`runtimes.base`); and a token is drawn from its row by a pure function of logits, seed and position (`sampler`).

`decode` runs the passes of one sequence, `scheduler` of many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from collections.abc import Sequence as Tokens
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from specdec.drafters.base import Ask, Draft, Reply
from specdec.drafters.signals import LogitDistribution
from specdec.engine.accept import ChosenRows, Verdict, accept
from specdec.engine.ahead import Ahead, Asking
from specdec.engine.chooser import Chooser, Rules, TokenChooser
from specdec.engine.drafter_guard import checked_ask, checked_draft, checked_drafting, faults_of, refused_pass
from specdec.engine.logprobs import TokenLogprob, path_logprobs, token_logprob
from specdec.engine.open_round import OpenRound
from specdec.engine.outcomes import OthersTimes, outcome_of, outcome_of_turns
from specdec.engine.policy import Distribution, DraftPlan
from specdec.engine.round import Round
from specdec.engine.sampler import Sampler
from specdec.engine.turns_ahead import TurnsAhead
from specdec.runtimes.base import Cache, Choice, Logits, Pass, Recycling, Rows, Runtime

if TYPE_CHECKING:
    from specdec.engine.speculation import Speculation
    from specdec.model.effort import Efforts

Proposal: TypeAlias = Generator[Ask, Reply, Rows]
ChooserMaker: TypeAlias = Callable[[Tokens[int]], Chooser]

_SHOWN_ROWS = 64  # of a prompt in a pass whose logits are wanted: a large vocabulary's take 40 MB
_CHOSEN = ChosenRows()


class Sequence:
    """The state of one generation: between rounds the cache holds every token but the last one, which is pending.

    Only the thread that runs its passes may call it.

    Args:
        runtime: runs the model.
        prompt: token ids, at least one.
        limit: most tokens in all, prompt included; above `len(prompt)`, at most the model's context.
        efforts: of verification, and so of every token that stays in the cache.
        sampler: draws every token, for drafter and verifier alike.
        rules: the caller's other rules for tokens.
        logprobs: likeliest tokens that every token's log-probability comes with; None computes none.
        prompt_logprobs: the same for the prompt.
        reads_only: the prompt is read whole, its last token included, and no round follows.
        cache: of the runtime, with room for `limit` tokens, holding a beginning of the prompt; None begins with an
            empty one.
        chooser: makes what chooses the tokens of the answer, in place of `sampler` and `rules`, from the sequence's own
            list of tokens. It is called once for each token, in order, and never about drafts.

    Attributes:
        tokens: prompt and answer so far.
        cache: keys and values, at verify quality between rounds.
        chooser: chooses every token.
        draft_chooser: chooses the tokens of drafts.
        prompt_logprobs: of the prompt's tokens as far as it has been read; None where they are not wanted.
        speculation: None decodes one token a round.
        rows_beside: rows that other sequences are expected to have in the next verify pass; the policy gets the number.
        rounds: rounds finished that a policy was asked about, or did not want to be.
        end_tokens: tokens after which nothing follows.
    """

    def __init__(
        self,
        runtime: Runtime,
        prompt: Tokens[int],
        *,
        limit: int,
        efforts: Efforts,
        sampler: Sampler,
        rules: Rules | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        reads_only: bool = False,
        cache: Cache | None = None,
        chooser: ChooserMaker | None = None,
    ) -> None:
        self.runtime, self.efforts = runtime, efforts
        self.tokens, self.limit, self.reads_only = list(prompt), limit, reads_only
        self._ruled = TokenChooser(sampler, rules, self.tokens, runtime.config.vocab_size) if rules else None
        self.chooser: Chooser = self._ruled or sampler
        self.draft_chooser = self.chooser
        if chooser is not None:
            self.chooser = chooser(self.tokens)
        self._logprobs, self._prompt_logprobs = logprobs, prompt_logprobs
        self.prompt_logprobs: list[TokenLogprob | None] | None = None if prompt_logprobs is None else [None]
        self.cache = runtime.new_cache(limit) if cache is None else cache
        self.speculation: Speculation | None = None
        self.rows_beside = self.rounds = 0
        self.end_tokens: frozenset[int] = frozenset()
        # Greedy decoding without rules needs no logits where the runtime chooses.
        self._takes_choices = (
            runtime.info.chooses and self.chooser is sampler and sampler.params.temperature == 0 and logprobs is None
        )
        self._ahead, self._turns = Ahead(runtime.info.most_ahead), TurnsAhead()
        self._last_distribution: Distribution | None = None
        self._open: OpenRound | None = None
        self._asking = Asking()

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are still to be read before the first round."""
        if self._open is not None or self.is_ahead:
            return 0
        return len(self.tokens) - (not self.reads_only) - self.cache.length

    @property
    def rows_to_first(self) -> int:
        """Rows from here to the first token: what is unread of the prompt, and the pending token where it can be in the
        pass over its end."""
        unread = self.unread
        return unread + 1 if unread and self._may_begin else unread

    @property
    def _may_begin(self) -> bool:
        """Whether the first round may share a pass with the end of the prompt."""
        return not self.reads_only and self._prompt_logprobs is None

    def prompt_rows(self, most: int, *, begins: bool = False) -> Rows:
        """The next `most` tokens of the prompt, or as many as are left; its last token is the first to be pending.

        Args:
            most: rows.
            begins: where all that is left fits, the pending token is included, and with the logits of its row the first
                round begins, which has no draft: `settle` ends it. The rows say so: they show the logits of the last.
        """
        start, unread, wants = self.cache.length, self.unread, self._prompt_logprobs is not None
        if begins and self._may_begin and 0 < unread < most:
            self._open = OpenRound(is_first=True)
            return Rows(self.cache, self.tokens[start:], self.efforts, logits="last")
        count = min(most, unread, _SHOWN_ROWS if wants else most)
        return Rows(self.cache, self.tokens[start : start + count], self.efforts, logits="all" if wants else "none")

    def note_prompt(self, result: Pass) -> None:
        """Keep what is wanted of a pass over the rows of `prompt_rows`."""
        if self.prompt_logprobs is not None and self._prompt_logprobs is not None:
            first = self.cache.length - len(result.logits) + 1
            for row, token in zip(result.logits, self.tokens[first:], strict=False):
                self.prompt_logprobs.append(token_logprob(row, token, self._prompt_logprobs))

    @property
    def is_due(self) -> bool:
        """Whether to ask the policy in a round of asking: seldom where it did not draft, or drafted in vain."""
        return self.speculation is not None and (not self.may_wait or self._asking.is_due(len(self.tokens)))

    @property
    def may_wait(self) -> bool:
        """Whether rounds may pass without asking: yes for a policy that learns, no for one with a fixed rule."""
        return self.speculation is not None and self.speculation.may_wait

    def propose(self, *, asks: bool = True) -> Proposal:
        """Begin a round: plan and draft. A generator that asks for the drafter's passes and returns the rows of the
        verify pass: the pending token, then the draft. `settle` ends the round, `rewind` takes it back.

        Args:
            asks: False leaves the policy out, so that the round is a plain step.
        """
        began_s = time.perf_counter()
        opened = self._open = OpenRound()
        position = len(self.tokens)  # of the first token to emit; the pending token sits at position - 1
        if asks and self.speculation is not None and self.speculation.is_quiet(self.rounds, self.rows_beside):
            asks, opened.is_quiet = False, True
        opened.plan = plan = self._plan(position) if asks else None
        opened.is_asked = asks
        drafting_s = time.perf_counter()
        opened.plan_s = drafting_s - began_s
        if plan is not None and (turn_rows := self._turn_rows(plan)):
            rows = min(turn_rows, plan.num_draft_tokens + 1)
            wish = Recycling(self.tokens, rows, self.limit, self.speculation.owner if self.speculation else None)
            pending = Rows(self.cache, self.tokens[-1:], self.efforts, logits="choices")
            return replace(pending, ahead=plan.turns - 1, ends=self.end_tokens, recycling=wish)
        if plan is not None:
            assert self.speculation is not None
            self.speculation.make_ready(plan)
            opened.ready_s = time.perf_counter() - drafting_s
            drafting_s += opened.ready_s
            yield from self._draft(opened, plan, drafting_s)
            # Keys and values that the drafter left are of draft quality: the verify pass overwrites these positions.
            self.cache.trim(position - 1)
        if self.speculation is not None and self.speculation.rules is not None:
            ruled_s = time.perf_counter()
            opened.draft = self.speculation.rules.completed(opened.draft)
            opened.draft_s += time.perf_counter() - ruled_s
        draft = opened.draft
        parents = None if draft.parents is None else [-1, *(parent + 1 for parent in draft.parents)]
        shown: Logits = "choices" if self.takes_choices else "all"
        likely = self.speculation.observers.likely if asks and self.speculation is not None else 0
        return Rows(self.cache, [self.tokens[-1], *draft.tokens], self.efforts, parents, logits=shown, likely=likely)

    @property
    def takes_choices(self) -> bool:
        """Whether a verify pass needs only the runtime's choices, and no logits."""
        return self._takes_choices and (self.speculation is None or not self.speculation.observers.want_logits)

    def most_ahead(self, rows: Rows) -> int:
        """Tokens that the pass over the rows of `propose` may go ahead for."""
        if rows.recycling is not None:
            return rows.ahead
        asks = self.speculation is not None and not self.speculation.turn_rows  # turns are considered only now and then
        return self._ahead.room(rows, left=self.limit - len(self.tokens) - 1, asks=asks)

    def room_ahead(self, rows: Rows) -> int:
        """Tokens to go ahead for in a shared pass: `most_ahead` where a policy has to be asked, else all that fit."""
        if self.speculation is not None and not self.may_wait:
            return self.most_ahead(rows)
        alone = rows.logits == "choices" and len(rows.tokens) == 1
        return self.limit - len(self.tokens) - 1 if alone else 0

    def going_ahead(self, rows: Rows, count: int, further: int = 0) -> Rows:
        """The rows for a pass that goes ahead for `count` tokens, at most `most_ahead`, and may begin with others."""
        is_so = count == rows.ahead and not further
        return rows if is_so else replace(rows, ahead=count, ends=self.end_tokens, further=further)

    @property
    def is_ahead(self) -> bool:
        """Whether the next round needs no pass: `take_ahead` ends it."""
        return bool(self._ahead or self._turns)

    def take_ahead(self) -> Round:
        """The next round, a plain step, from a pass that went ahead."""
        try:
            done, self._last_distribution = (self._turns or self._ahead).take(len(self.tokens))
        except BaseException:
            self.rewind()
            raise
        self.tokens.extend(done.tokens)
        return done

    def settle_all(self, result: Pass, *, seconds: float, pass_s: float, rows_beside: int = 0) -> Round:
        """`settle`, and in the same round all tokens that the pass went ahead for."""
        done = self.settle(result, seconds=seconds, pass_s=pass_s, rows_beside=rows_beside)
        if self._ahead:
            last = self._ahead.take_with(done)
            self.tokens.extend(done.further)
            self._last_distribution = last or self._last_distribution
        return done

    def drop(self, count: int) -> None:
        """Forget the last tokens of a round that went ahead: the answer has ended before them."""
        self._ahead.clear()
        del self.tokens[len(self.tokens) - count :]
        self.cache.trim(len(self.tokens) - 1)

    def settle(self, result: Pass, *, seconds: float, pass_s: float | None = None, rows_beside: int = 0) -> Round:
        """End the round: keep what the verifier agrees with, then report to the policy.

        It happens as a whole or, when anything raises, not at all: the sequence is then as before the round.

        Args:
            result: of the pass over the rows that `propose` returned.
            seconds: the share of the pass's time that is this sequence's.
            pass_s: the whole time of the pass; None when the sequence was alone.
            rows_beside: rows that others had in it.
        """
        opened = self._open
        assert opened is not None  # propose comes first
        position = len(self.tokens)
        if result.turns:
            return self._settle_turns(opened, result, position, seconds)
        try:
            whole_s = seconds
            result, seconds = self._ahead.split(result, 1 + len(opened.draft.tokens), whole_s)
            if pass_s is not None and seconds < whole_s:
                pass_s *= seconds / whole_s
            done, verdict = self._decide(opened, result, position, seconds)
            self._commit(done)
            self._open = None
            others_s = 0.0 if pass_s is None else pass_s - seconds
            self._report(opened, done, verdict, others_s=others_s, rows_beside=rows_beside)
        except BaseException:
            del self.tokens[position:]
            self._open = self._open or opened
            self.rewind()
            raise
        self.rounds += (opened.is_asked or opened.is_quiet) and not opened.is_first
        if opened.is_asked and self.speculation is not None:
            self._asking.noted(len(self.tokens), kept=bool(done.kept))
        if not opened.is_first:
            self._ahead.noted(drafted=bool(done.draft.tokens), seconds=seconds)
        return done

    def _settle_turns(self, opened: OpenRound, result: Pass, position: int, seconds: float) -> Round:
        """End the first of the rounds that the runtime ran by itself; `take_ahead` ends the others."""
        turns, plan, speculation = result.turns, opened.plan, self.speculation
        assert turns
        assert plan is not None
        assert speculation is not None
        try:
            self._turns.begin(turns, plan, seconds=seconds, bytes_read=result.bytes_read)
            done, distribution = self._turns.take(position)
            self.cache.trim(position + len(done.kept) + len(self._turns))
            self.tokens.extend(done.tokens)
            self._open = None
            round_s = opened.plan_s + seconds
            speculation.policy.observe(outcome_of_turns(turns, plan, position, verify_s=seconds, round_s=round_s))
            self._last_distribution = distribution
        except BaseException:
            del self.tokens[position:]
            self._open = self._open or opened
            self.rewind()
            raise
        self.rounds += 1
        return done

    def rewind(self) -> None:
        """Take back a round that was begun and not settled: one token is pending, the cache holds those before it."""
        opened, self._open = self._open, None
        is_ahead = self.is_ahead
        self._ahead.clear()
        self._turns.clear()
        if opened is None:
            if is_ahead:
                self.cache.trim(len(self.tokens) - 1)
            return
        try:
            if opened.steps is not None:
                assert self.speculation is not None
                with faults_of(self.speculation.drafter_of(opened.plan), "draft, which was to end"):
                    opened.steps.close()
        finally:
            length = len(self.tokens) - 1
            if self.cache.length > length:
                self.cache.trim(length)

    def refused(self, error: Exception) -> Exception:
        """The error of a pass that the drafter asked for, under the drafter's name where it asked for nonsense."""
        if self._open is None or self.speculation is None:
            return error
        return refused_pass(self.speculation.drafter_of(self._open.plan), error)

    def _plan(self, position: int) -> DraftPlan | None:
        """The policy's plan for this round; None for a plain step."""
        if (speculation := self.speculation) is None:
            return None
        state = speculation.state(
            round_index=self.rounds,
            position=position,
            # A round emits one token more than it accepts, so the last one before the limit needs no draft.
            max_draft_tokens=self.limit - position - 1,
            distribution=self._last_distribution,
            rows_beside=self.rows_beside,
        )
        plan = speculation.policy.plan(state)
        return plan if plan.num_draft_tokens else None

    def _turn_rows(self, plan: DraftPlan) -> int:
        """Rows of the turns that the runtime drafts itself under a plan; 0 where the drafter drafts."""
        if self.rows_beside or not self.takes_choices or self.speculation is None:
            return 0
        return self.speculation.turn_rows.get(self.speculation.drafter_of(plan), 0)

    def _draft(self, opened: OpenRound, plan: DraftPlan, start_s: float) -> Generator[Ask, Reply, None]:
        """Let the drafter propose under a plan; its time is its own and its share of the passes that it asks for."""
        speculation = self.speculation
        assert speculation is not None
        policy = speculation.policy
        name = speculation.drafter_of(plan)
        with faults_of(name, "draft"):
            outcome = speculation.crew.drafters[name].draft(plan, speculation.context, policy=policy)
        if isinstance(outcome, Draft):
            draft = outcome
        else:
            steps = opened.steps = checked_drafting(name, outcome)
            reply: Reply | None = None
            while True:
                with faults_of(name, "draft"):
                    try:
                        ask = checked_ask(name, next(steps) if reply is None else steps.send(reply))
                    except StopIteration as stop:
                        draft = stop.value
                        break
                opened.draft_s += time.perf_counter() - start_s
                reply = yield ask
                opened.others_s += reply.pass_s - reply.seconds
                start_s = time.perf_counter() - reply.seconds
            opened.steps = None
        most = self.limit - len(self.tokens) - 1
        opened.draft = checked_draft(name, draft, plan, most=most, vocab_size=self.runtime.config.vocab_size)
        opened.draft_s += time.perf_counter() - start_s

    def _decide(self, opened: OpenRound, result: Pass, position: int, seconds: float) -> tuple[Round, Verdict]:
        """What the verifier keeps. Row j + 1 of the pass saw draft token j; a trusted token is in the pass as well, so
        that its keys and values are those of the verify effort."""
        began_s = time.perf_counter()
        draft = opened.draft
        trusted = self.speculation.trusted(draft) if self.speculation is not None else []
        choices = result.choices
        rows, chooser = (result.logits, self.chooser) if choices is None else (choices, _CHOSEN)
        verdict = accept(draft.tokens, rows, chooser, position=position, parents=draft.parents, trusted=trusted)
        if self.speculation is not None and opened.is_asked and not opened.is_first:
            seen = [self.tokens[-1], *draft.tokens]
            self.speculation.observers.judged(seen, result, verdict.kept)
        tokens = [*(draft.tokens[index] for index in verdict.kept), verdict.bonus_token]
        logprobs = [] if self._logprobs is None else path_logprobs(result.logits, verdict.kept, tokens, self._logprobs)
        done = Round(
            position=position,
            plan=opened.plan,
            draft=draft,
            kept=verdict.kept,
            bonus_token=verdict.bonus_token,
            draft_s=opened.draft_s,
            verify_s=seconds,
            round_s=opened.plan_s + opened.ready_s + opened.draft_s + seconds + time.perf_counter() - began_s,
            verify_bytes_read=result.bytes_read,
            trusted=trusted,
            logprobs=logprobs,
            complete_at=None if self._ruled is None else self._ruled.complete_at(tokens),
        )
        return done, verdict

    def _commit(self, done: Round) -> None:
        if done.draft.parents is None:
            self.cache.trim(done.position + len(done.kept) + len(self._ahead))
        else:
            self.cache.keep(done.position - 1, [0, *(index + 1 for index in done.kept)])
        self.tokens.extend(done.tokens)

    def _report(self, opened: OpenRound, done: Round, verdict: Verdict, *, others_s: float, rows_beside: int) -> None:
        """Tell the policy what came of the round, in the times of whole passes.

        `others_s`: seconds of the verify pass that are the share of other sequences.
        """
        if (speculation := self.speculation) is None:
            return
        distribution: Distribution = verdict.logits
        if not isinstance(distribution, Choice):
            is_top = speculation.context.is_greedy and self.chooser is self.draft_chooser
            distribution = LogitDistribution(verdict.logits, done.bonus_token if is_top else None)
        if opened.is_first or not opened.is_asked:
            self._last_distribution = distribution
            return
        others = OthersTimes(opened.others_s, others_s, opened.ready_s)
        speculation.policy.observe(outcome_of(done, others, rows_beside=rows_beside, ahead=len(self._ahead)))
        self._last_distribution = distribution

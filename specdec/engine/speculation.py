"""The drafters and the policy of an answer: `Speculation`, and how options become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from specdec.conforms import conforms
from specdec.drafters.base import Archivist, Draft, DraftContext, Drafter, DrafterSetup, late_in
from specdec.drafters.hindsight import Hindsight
from specdec.drafters.registry import create as create_drafter
from specdec.drafters.text_match import TextMatch
from specdec.engine.chooser import LenientRules, TokenChooser
from specdec.engine.costs import keep_costs, machine_costs
from specdec.engine.crew import Crew
from specdec.engine.drafter_guard import faults_of, match_length
from specdec.engine.efforts import EffortScale, effort_scale
from specdec.engine.measure_turns import TURN_WIDTHS
from specdec.engine.observers import Observers
from specdec.engine.options import Options
from specdec.engine.policy import (
    CostTable,
    Distribution,
    DraftOption,
    DraftPlan,
    Knowledge,
    Policy,
    RoundState,
)
from specdec.engine.policy_guard import GuardedPolicy
from specdec.engine.sequence import Sequence
from specdec.engine.successors import provide_successors
from specdec.errors import InvalidArgumentError, MemoryShortError, PluginError, SpecdecError
from specdec.interrupts import unless_signalled
from specdec.model.effort import EffortSchedule
from specdec.policies.registry import create as create_policy
from specdec.progress import Progress
from specdec.runtimes.base import Compiler, Planned
from specdec.warn import warn

if TYPE_CHECKING:
    from specdec.model.loaded import Model

AUTO_DRAFTERS = ("effort", "ngram", "recycle")  # what the drafter "auto" offers
TRIED_EFFORTS = (0.2, 0.5, 1.0)  # whose draft steps are measured beforehand
_OTHER_EFFORT = 0.15  # of draft views other than the fastest one


@dataclass(slots=True, kw_only=True)  # made for every answer: frozen ones take four times as long
class Speculation:
    """The drafters, which propose tokens, and the policy, which decides how many at what effort.

    Attributes:
        crew: the drafters.
        policy: decides; its answers are trusted here, `policy_guard` checks them.
        context: what the drafter works with; its history and cache are the engine's own.
        rules: what the caller put on the tokens; None where there is nothing.
        draft_len: draft length that the caller asked for.
        draft_effort: mean effort that the caller asked for.
        verify_effort: mean effort of verification.
        temperature: of the sampling.
        is_effort_asked: the caller named the draft effort.
        usual_draft: draft view and mean effort that the model drafts with where the caller names none.
        owner: whose earlier answers drafts may come from; None for nobody's.
        successors: for tokens, their usual successors, as far as they are known.
        keep_costs: asks what the policy has learnt of costs, at the end, and keeps it.
        trust: entropy in nats under which a draft token is kept without a check; None checks all.
        options: the drafters with the views that the policy may choose from, the default first.
        named: drafters that the caller named.
        turn_rows: most rows of a turn, by the name of the drafter that the runtime's turns replace.
        text_match: match of the text's end with the text before.
        may_wait: rounds of shared passes may go by without the policy: it decides by what pays, not by a rule.
        quiet_rounds: first rounds, alone, that go by without the policy.
    """

    crew: Crew
    options: tuple[DraftOption, ...]
    policy: GuardedPolicy
    context: DraftContext
    draft_len: int
    draft_effort: float
    verify_effort: float
    temperature: float = 0.0
    is_effort_asked: bool = True
    named: frozenset[str] = frozenset()
    trust: float | None = None
    rules: LenientRules | None = None
    usual_draft: tuple[str, float] | None = None
    owner: str | None = None
    successors: Mapping[int, list[int]] = field(default_factory=dict, repr=False)
    keep_costs: Callable[[Callable[[], CostTable | None]], None] = field(default=lambda _: None, repr=False)
    turn_rows: Mapping[str, int] = field(init=False)
    text_match: TextMatch = field(default_factory=TextMatch, init=False, repr=False)
    _hindsight: Hindsight | None = field(default=None, init=False, repr=False)  # made when a policy is first asked
    may_wait: bool = field(init=False)
    quiet_rounds: int = field(init=False)

    def __post_init__(self) -> None:
        self.turn_rows = {option.drafter: option.turn_rows for option in self.options if option.turn_rows}
        self.may_wait = self.policy.learns
        self.quiet_rounds = self.policy.quiet_rounds if self.turn_rows and not self.named else 0

    @property
    def observers(self) -> Observers:
        """Of the drafters, those that learn from verify passes: none before a round first needs a drafter."""
        return self.crew.observers

    def is_quiet(self, rounds: int, rows_beside: int) -> bool:
        """Whether the round after this number of rounds goes by without the policy."""
        return rounds < self.quiet_rounds and not rows_beside

    def drafter_of(self, plan: DraftPlan | None) -> str:
        """Name of the drafter of a plan: the first option's where the plan names none."""
        assert plan is not None
        return plan.drafter or self.options[0].drafter

    def make_ready(self, plan: DraftPlan) -> None:
        """Make the view that a plan drafts with, where it was left until now."""
        drafter = self.crew.drafters[self.drafter_of(plan)]
        view = plan.view or (drafter.views[0] if drafter.views else None)
        runtime = late_in(drafter, view)
        if runtime is None or view is None:
            return
        runtime.prepare(view)
        if conforms(runtime, Compiler):
            runtime.compile([Planned(1, self.context.efforts(plan.effort), view)])

    def matches(self, *, alone: bool) -> dict[str, int]:
        """Lengths of the matches of drafters that know them before drafting, by name. For a sequence alone whose
        runtime drafts turn after turn: the match of its turns, and the matches of drafters that the caller named."""
        turns, crew = alone and bool(self.turn_rows), self.crew
        found = dict.fromkeys(self.turn_rows, self.text_match.length(self.context.history)) if turns else {}
        if turns and not self.named:
            return found
        for name in crew.drafters:
            if name in crew.foretellers and name not in found and (not turns or name in self.named):
                found[name] = match_length(name, crew.foretellers[name], self.context)
        return found

    def state(
        self,
        *,
        round_index: int,
        position: int,
        max_draft_tokens: int,
        distribution: Distribution | None,
        rows_beside: int,
    ) -> RoundState:
        """The policy's input before a round; see `RoundState`."""
        return RoundState(
            round_index=round_index,
            position=position,
            max_draft_tokens=max_draft_tokens,
            draft_len=self.draft_len,
            draft_effort=self.draft_effort,
            verify_effort=self.verify_effort,
            options=self.options,
            temperature=self.temperature,
            is_effort_asked=self.is_effort_asked,
            matches=self.matches(alone=not rows_beside),
            distribution=distribution,
            rows_beside=rows_beside,
            named=self.named,
            missed=self._missed() if not rows_beside else [],
        )

    def _missed(self) -> list[int]:
        """What turns would have kept since the last plan, where the policy learns."""
        if not (self.turn_rows and self.may_wait):
            return []
        if self._hindsight is None:
            self._hindsight = Hindsight(self.context.prompt_length, self.successors)
        return self._hindsight.kept(self.context.history)

    def end(self) -> None:
        """Tell the drafters that keep answers that this one has ended.

        Raises:
            PluginError: one of them raises something that is not an error of specdec.
        """
        # Without an owner those that no round has needed have nothing to keep.
        for name, drafter in (self.crew.made if self.owner is None else self.crew.drafters).items():
            if conforms(drafter, Archivist):
                try:
                    drafter.ended(self.context)
                except SpecdecError:
                    raise
                except unless_signalled(Exception) as error:
                    raise PluginError.raised("drafter", name, error, doing="ended") from error

    def sum_up(self) -> dict[str, Any]:
        """What the policy has to say in the statistics; what it has learnt of costs is kept.

        Raises:
            PluginError: it cannot say.
        """
        self.keep_costs(self.policy.costs)
        return self.policy.summary()

    def trusted(self, draft: Draft) -> list[bool]:
        """For each drafted token whether it is kept without a check; empty when all are checked.

        A token whose drafter shows no distribution is always checked.
        """
        if self.trust is None:
            return []
        with faults_of(draft.sources[0] if draft.sources else "draft", "the entropy of a signal"):
            return [one is not None and one.distribution.entropy < self.trust for one in draft.aligned]


@dataclass(slots=True, kw_only=True)
class Drafting:
    """Drafters and policy of an answer that has not begun: nothing here depends on its keys and values.

    Attributes:
        model: that answers.
        options: of the answer.
        crew: the drafters.
        named: drafters that the caller named.
        chosen: the policy as it is.
        policy: the same, guarded.
        efforts: of all matrices for a mean draft effort.
        verify_effort: mean effort of verification.
        usual: draft view and efforts that the model drafts with where the caller names none.
        owner: whose earlier answers drafts may come from; None for nobody's.
    """

    model: Model
    options: Options
    crew: Crew
    named: frozenset[str]
    chosen: Policy
    policy: GuardedPolicy
    efforts: EffortScale
    verify_effort: float
    usual: tuple[str, EffortSchedule]
    owner: str | None = None

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes of keys and values that drafters have of their own for a sequence of `capacity` tokens."""
        return self.crew.cache_bytes(capacity)

    def begin(self, sequence: Sequence, end_tokens: frozenset[int], *, measures: bool = True) -> Speculation:
        """Everything that the rounds of a sequence need to draft; the caller holds the model's lock.

        A policy that learns gets this machine's costs, measured when the model is first used, and the model's memory.
        With `measures` False costs that are known are not measured again.
        """
        options, model = self.options, self.model
        offered = self._offered_for(sequence, measures=measures)
        if self.policy.learns:
            tried = TRIED_EFFORTS if options.draft_effort is None else (self.efforts.mean,)
            costs = machine_costs(model, offered, self.efforts, tried, crew=self.crew, measures=measures)
            self.policy.begin(Knowledge(costs=costs, memory=model.memory.of_policy(self.chosen)))
        chooser = sequence.chooser
        rules = LenientRules(chooser, sequence.tokens, sequence.limit) if isinstance(chooser, TokenChooser) else None
        return Speculation(
            crew=self.crew,
            options=offered,
            policy=self.policy,
            context=DraftContext(
                history=sequence.tokens,
                cache=sequence.cache,
                efforts=self.efforts,
                sample=sequence.draft_chooser if rules is None else rules,
                end_tokens=end_tokens,
                prompt_length=len(sequence.tokens),
                is_greedy=options.temperature == 0,
                rules=rules,
            ),
            draft_len=options.draft_len,
            draft_effort=self.efforts.mean,
            verify_effort=self.verify_effort,
            temperature=options.temperature,
            is_effort_asked=options.draft_effort is not None,
            named=self.named,
            trust=options.trust,
            rules=rules,
            usual_draft=(self.usual[0], effort_scale(self.usual[1], model.config).mean),
            owner=self.owner,
            successors=model.memory.drafters.successors,
            keep_costs=partial(keep_costs, model),
        )

    def _offered_for(self, sequence: Sequence, *, measures: bool) -> tuple[DraftOption, ...]:
        """The options of a sequence: the runtime drafts by itself where its own choices are the tokens, and all weights
        are read. Views that take seconds to make are left out on such a runtime, unless the caller named their drafter:
        drafts by the model cost time there with every model that was measured."""
        offered, runtime = self.crew.known.offered, self.model.runtime
        rows = max((option.turn_rows for option in offered), default=0)
        if not rows:
            return offered
        offered = tuple(option for option in offered if not option.waits or option.drafter in self.named)
        chooses = sequence.takes_choices and not self.crew.observers.want_logits
        if not chooses or self.options.trust is not None or not sequence.efforts.is_full:
            return tuple(replace(option, turn_rows=0) for option in offered)
        wanted, compiled = (rows, sequence.efforts), self.model.memory.turns_compiled
        if self.policy.learns and wanted not in compiled and conforms(runtime, Compiler):
            runtime.compile([Planned(count, sequence.efforts, recycles=True) for count in TURN_WIDTHS if count <= rows])
            compiled.add(wanted)
        provide_successors(self.model, surveys=measures)
        return offered


def choose_drafting(
    model: Model, options: Options, *, owner: str | None = None, progress: Progress | None = None
) -> Drafting:
    """What an answer with these options drafts with, from the earlier answers of `owner` as well. `progress` is told of
    draft views that are built.

    Raises:
        InvalidArgumentError: a policy or drafter refuses its parameters, or a drafter is asked for twice.
        UnknownNameError: no policy, drafter or draft view of that name.

    Warns:
        UserWarning: drafting at a higher effort than verification.
    """
    usual = model.auto_draft
    base = options.draft_schedule or _default_effort(model, options.draft_view, usual)
    efforts = effort_scale(base, model.config)
    verify_effort = options.verify_schedule.mean(model.config)
    if options.draft_effort is not None and efforts.mean > verify_effort:
        warn(f"draft effort {efforts.mean:g} is above verify effort {verify_effort:g}: drafts cost more than they save")
    policy = options.policy
    policy_name = policy.partition(":")[0] if isinstance(policy, str) else type(policy).__name__
    chosen = create_policy(policy) if isinstance(policy, str) else policy
    guarded, asked = GuardedPolicy(chosen, policy_name), _asked(options)
    return Drafting(
        model=model,
        options=options,
        crew=_crew(model, options, asked, owner, progress, usual=usual[0], waits=guarded.learns),
        named=frozenset(_name(one) for one in asked if one != "auto"),
        chosen=chosen,
        policy=guarded,
        efforts=efforts,
        verify_effort=verify_effort,
        usual=usual,
        owner=owner,
    )


def _crew(
    model: Model,
    options: Options,
    asked: list[str | Drafter],
    owner: str | None,
    progress: Progress | None,
    *,
    usual: str,
    waits: bool,
) -> Crew:
    """The drafters that were asked for. Those of "auto" may be made late, where an earlier answer has had them.

    `usual`: draft view that the model drafts with; `waits`: the policy may never want a view.
    """
    memory, is_auto = model.memory, asked == ["auto"]
    view = _auto_view(model, options, usual) if options.draft_view == "auto" else options.draft_view
    make = partial(_drafters, model, options, asked, owner, progress, view=view, waits=waits)
    kind = (AUTO_DRAFTERS, view, waits)
    known = memory.crews.get(kind) if is_auto else None
    if known is not None and known.holds(model.runtime):
        return Crew(make, known)
    with memory.drafters.lock:
        crew = Crew(make)
    if is_auto and crew.may_wait and len(crew.made) == len(AUTO_DRAFTERS):
        memory.crews[kind] = crew.known
    return crew


def _default_effort(model: Model, view: str, usual: tuple[str, EffortSchedule]) -> EffortSchedule:
    """What to draft at where the caller leaves it open: its proportions, and its mean where the policy takes that."""
    first = view.split(",")[0]
    if first not in ("auto", model.runtime.info.auto_draft[0]):
        return EffortSchedule(_OTHER_EFFORT)
    fastest, efforts = usual
    return efforts if first in ("auto", fastest) else EffortSchedule(model.runtime.info.auto_draft[1])


def _auto_view(model: Model, options: Options, usual: str) -> str:
    """The view that "auto" stands for: that of a profile; else where the caller named an effort, what agrees most."""
    if options.draft_schedule is None or usual != model.runtime.info.auto_draft[0]:
        return usual
    return model.runtime.info.view_at(options.draft_schedule.mean(model.config))


def _drafters(
    model: Model,
    options: Options,
    asked: list[str | Drafter],
    owner: str | None,
    progress: Progress | None,
    *,
    view: str,
    waits: bool,
) -> dict[str, Drafter]:
    """The drafters that were asked for, by name, in order.

    Raises:
        InvalidArgumentError: one is asked for twice.
    """
    tokenizer = model.tokenizer
    setup = DrafterSetup(
        model.runtime,
        view,
        vocabulary=None if tokenizer is None else tokenizer.fingerprint,
        tokenizer=tokenizer,
        load_model=model.load_other,
        memory=model.memory.drafters,
        owner=owner,
        progress=progress,
        waits=waits,
    )
    drafters: dict[str, Drafter] = {}
    for one in asked:
        for spec in AUTO_DRAFTERS if one == "auto" else (one,):
            name = _name(spec)
            if name in drafters:
                raise InvalidArgumentError(f"drafter {name!r} is asked for twice")
            try:
                drafters[name] = create_drafter(spec, setup) if isinstance(spec, str) else spec
            except MemoryShortError as error:
                if one != "auto" or options.draft_view != "auto":
                    raise
                warn(f"{error}; drafting continues without it")
    return drafters


def _name(spec: str | Drafter) -> str:
    """Name of a drafter that was asked for."""
    return spec if isinstance(spec, str) else type(spec).__name__


def _asked(options: Options) -> list[str | Drafter]:
    """What may draft, one by one."""
    asked: list[str | Drafter] = []
    for one in options.drafters:
        asked += [part.strip() for part in one.split(";")] if isinstance(one, str) else [one]
    return asked

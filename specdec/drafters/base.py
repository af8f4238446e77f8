"""Interface of a drafter, which proposes the next tokens of a sequence, cheaply and possibly wrongly.

The engine verifies every proposal, so a drafter can never change the output, only its speed. Drafters know nothing of
text, stop conditions or statistics. A drafter asks for passes and does not make them: the engine answers one sequence
at once, and runs the passes that many sequences ask for as one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from specdec.conforms import conforms
from specdec.drafters.earlier import Archive
from specdec.drafters.suffix_index import SuffixIndex
from specdec.engine.policy import DraftPlan, Policy, StepSignals
from specdec.model.effort import Efforts
from specdec.progress import Progress
from specdec.runtimes.base import Cache, Pass, Rows, Runtime

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer


GRAMMAR = "grammar"  # source of tokens that a grammar leaves no choice about


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Another model, for drafters that bring one.

    Attributes:
        runtime: runs it.
        tokenizer: None for a model without one.
    """

    runtime: Runtime
    tokenizer: Tokenizer | None = None


@dataclass(slots=True)
class DrafterMemory:
    """What drafters keep from one generation of a model to the next. It must serve generations side by side.

    Attributes:
        tables: indices of files' texts, by file and its state.
        models: other models, by the name that was asked for.
        answers: that ended, by owner.
        frequent: tokens that draft heads begin with, by vocabulary and number.
        successors: for frequent tokens, their usual successors, the likeliest first; empty where nobody asked.
        lock: held while drafters are built.
    """

    tables: dict[tuple[str, int, int], SuffixIndex] = field(default_factory=dict)
    models: dict[str, LoadedModel] = field(default_factory=dict)
    answers: Archive = field(default_factory=Archive)
    frequent: dict[tuple[int, str | None, int], tuple[int, ...]] = field(default_factory=dict)
    successors: dict[int, list[int]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


@dataclass(frozen=True, slots=True)
class DrafterSetup:
    """What a drafter is built from, once per generation.

    Attributes:
        runtime: runs the model that is being sped up.
        view: draft view that the caller asked for, or "auto".
        vocabulary: fingerprint of the tokenizer's vocabulary, or None for a model without one; a drafter that brings
            its own model compares it.
        tokenizer: of the model, for drafters that read text; None for a model without one.
        load_model: loads another model by catalogue name or path, or None where there is no way to.
        memory: of the model's drafters.
        owner: whose earlier answers drafters may learn from; None for nobody's.
        progress: reports draft views that are built; None if no one listens.
        waits: the policy learns, and may never want a view: those that a runtime can make late need not be ready.
    """

    runtime: Runtime
    view: str
    vocabulary: str | None = None
    tokenizer: Tokenizer | None = None
    load_model: Callable[[str], LoadedModel] | None = None
    memory: DrafterMemory = field(default_factory=DrafterMemory)
    owner: str | None = None
    progress: Progress | None = None
    waits: bool = False


class Sample(Protocol):
    """Draws a token, see `DraftContext`."""

    def __call__(self, logits: np.ndarray, position: int, drafted: Sequence[int] = ()) -> int: ...


class DraftRules(Protocol):
    """What the caller put on the tokens, for drafters that show their distribution."""

    def shape(self, logits: np.ndarray, drafted: Sequence[int]) -> np.ndarray | None:
        """What the token after `drafted` is drawn from, float32 (V,), -inf for a token that cannot be; None where none
        can."""
        ...

    def draw(self, logits: np.ndarray, position: int) -> int:
        """A token from what `shape` returned."""
        ...

    def forced(self, drafted: Sequence[int]) -> list[int]:
        """Tokens that a grammar makes follow `drafted`: they need no pass to be drafted. Their source is `GRAMMAR`."""
        ...

    def room(self, drafted: Sequence[int]) -> int:
        """Tokens that may be drafted after `drafted` in this round."""
        ...


@dataclass(frozen=True, slots=True)
class DraftContext:
    """What a drafter works with in every round of one generation.

    Attributes:
        history: every token so far, prompt and answer; grows between rounds and is not the drafter's to change. The
            last one is pending: it is not in the cache yet.
        cache: the cache that drafting shares with verification. At the start of a round it holds `history` without its
            last token, all at verify quality. A drafter may append to it, and leaves the clearing up to the engine.
        efforts: efforts of all matrices for a mean effort, in the proportions that the caller asked for.
        sample: `(logits (V,) float32, absolute position, tokens drafted before it) -> token`. It draws with the very
            noise with which the verifier draws at that position, which is what makes the two agree (2408.07978,
            section 3), and under the same masks and penalties. A drafter with logits must use it, and must not mix it
            with any other use of randomness.
        end_tokens: tokens after which nothing follows; drafting past one is wasted.
        prompt_length: tokens of `history` that are the prompt.
        is_greedy: `sample` takes the largest logit.
        rules: what `sample` does in two steps, where the caller put masks, penalties or biases on the tokens; None
            where the logits are drawn from as they are.
    """

    history: Sequence[int]
    cache: Cache
    efforts: Callable[[float], Efforts]
    sample: Sample
    end_tokens: frozenset[int] = frozenset()
    prompt_length: int = 0
    is_greedy: bool = False
    rules: DraftRules | None = None


@dataclass(slots=True)
class Draft:
    """A proposal for one round.

    Attributes:
        tokens: proposed tokens; may be empty. Without `parents` a chain, the first one at position `len(history)`.
        signals: one per token of the drafter's own, or none when it has no distribution to show.
        bytes_read: bytes of weights and cache read for it.
        sources: per token, the name of the drafter that proposed it, or `GRAMMAR`; empty when it is the drafter's own
            for all.
        expected_acceptance: the drafter's own estimate of the chance that a token is kept when those before it are,
            where it keeps book of that.
        parents: None for a chain, else a tree: for each token the number of the earlier one that it follows, or -1 for
            the history's last token. Siblings must differ.
    """

    tokens: list[int] = field(default_factory=list)
    signals: list[StepSignals] = field(default_factory=list)
    bytes_read: int = 0
    sources: list[str] = field(default_factory=list)
    expected_acceptance: float | None = None
    parents: list[int] | None = None

    @property
    def forced(self) -> int:
        """Tokens that a grammar left no choice about."""
        return self.sources.count(GRAMMAR)

    @property
    def aligned(self) -> list[StepSignals | None]:
        """For every token its signals, None where there are none."""
        signals = iter(self.signals)
        if GRAMMAR not in self.sources:
            return [*signals, *[None] * (len(self.tokens) - len(self.signals))]
        return [None if source == GRAMMAR else next(signals, None) for source in self.sources]

    def add_forced(self, tokens: Sequence[int]) -> None:
        """Add tokens that a grammar leaves no choice about to the end of a chain whose sources are filled in."""
        self.tokens += tokens
        self.sources += [GRAMMAR] * len(tokens)


class Ask(NamedTuple):
    """A pass that a drafter wants.

    Attributes:
        runtime: that runs it: the model's, or that of a model of the drafter's own.
        rows: its share of the pass.
        view: form of the weights to read.
    """

    runtime: Runtime
    rows: Rows
    view: str


class Reply(NamedTuple):
    """The answer to an `Ask`.

    Attributes:
        result: of the pass, for the rows that were asked.
        seconds: the share of the pass's time that is theirs.
        pass_s: the whole time of the pass, which rows of other sequences may share.
    """

    result: Pass
    seconds: float
    pass_s: float


Drafting: TypeAlias = Generator[Ask, Reply, Draft]


@runtime_checkable
class Drafter(Protocol):
    """Proposes tokens. May be stateful; one object serves one generation.

    One that never drafts more than a few tokens in a round may say so in an attribute `most_tokens`. One whose steps
    attend to a window of long contexts or to all of them, as `plan.windowed` says, has the least length of such
    contexts in an attribute `windowed_from`.
    """

    @property
    def views(self) -> tuple[str, ...]:
        """Draft views that it can read weights from, its default first; empty when it reads none."""
        ...

    @property
    def takes_effort(self) -> bool:
        """Whether the effort of a plan and of `policy.next_step` means anything to it."""
        ...

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft | Drafting:
        """Propose at most `plan.num_draft_tokens` tokens, asking `policy.next_step` between one and the next.

        A drafter that needs passes is a generator: it yields each as an `Ask`, is sent the `Reply`, and returns its
        draft. One that needs none returns the draft itself. A drafter without a distribution to show does not ask the
        policy. `plan.view`, one of `views` or None for the first, says where to read weights from.
        """
        ...


@runtime_checkable
class Extender(Drafter, Protocol):
    """A drafter without a model that can go on where a cheaper one ended, as a later level of a chain."""

    def extend(self, draft: Draft, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Add to the end of `draft`, which is a chain.

        Args:
            draft: at most `plan.num_draft_tokens` tokens; empty asks for what the method `draft` gives. The cache holds
                none of them.
            plan: as for the method `draft`; its length includes what `draft` holds.
            context: as for the method `draft`.
            policy: as for the method `draft`.

        Returns:
            The tokens of `draft`, and tokens of its own; `sources` says which is which, and `bytes_read` counts both.
        """
        ...


@runtime_checkable
class Foreteller(Protocol):
    """A drafter that knows before the round, at next to no cost, whether it has anything to propose."""

    def match_length(self, context: DraftContext) -> int:
        """Tokens of context that speak for its proposal, 0 when it has nothing to propose.

        For a lookup: how long the end of the text is that it found again. The policy gets it in `RoundState.matches`.
        """
        ...


@runtime_checkable
class Observer(Protocol):
    """A drafter that learns from every verify pass, whichever drafter proposed the tokens.

    One that has no use for logits in an answer says so in an attribute `wants_logits`, False, and may not be called.
    """

    def verified(self, tokens: Sequence[int], logits: np.ndarray, kept: Sequence[int]) -> None:
        """A verify pass has been judged. Called in every round, and its time counts: a look at a row of logits takes
        microseconds.

        Args:
            tokens: of the pass's rows, M: the pending token, then the draft.
            logits: float32 (M, V), before masks and penalties; not the drafter's to change.
            kept: numbers of the draft tokens that were kept, ascending; token j is in row j + 1.
        """
        ...


@runtime_checkable
class ChoiceObserver(Protocol):
    """A drafter that learns from the tokens that the verifier found likeliest, and needs no logits."""

    def chosen(self, tokens: Sequence[int], choices: Sequence[int], kept: Sequence[int]) -> None:
        """A verify pass has been judged. Called in every round, and its time counts.

        Args:
            tokens: of the pass's rows, M: the pending token, then the draft.
            choices: M tokens, the likeliest after each, before masks and penalties; some are only found when looked at.
            kept: numbers of the draft tokens that were kept, ascending; token j is in row j + 1.
        """
        ...


@runtime_checkable
class LikelyObserver(Protocol):
    """A drafter that learns from the likeliest tokens of every row, on runtimes that return them (`Pass.likely`)."""

    @property
    def likely(self) -> int:
        """Tokens of a row that it wants to see of the next verify pass; with 0 it is not called about it."""
        ...

    def ranked(self, likely: Sequence[Sequence[int]], kept: Sequence[int]) -> None:
        """A verify pass has been judged. Called in every round in which it wants something, and its time counts.

        Args:
            likely: for each row of the pass (the pending token, then the draft) its likeliest tokens, before masks and
                penalties, in no order: at least as many as it wants, unless there are no more.
            kept: numbers of the draft tokens that were kept, ascending; token j is in row j + 1.
        """
        ...


@runtime_checkable
class Archivist(Protocol):
    """A drafter that keeps answers for later ones of the same owner."""

    def ended(self, context: DraftContext) -> None:
        """The answer has ended; called once, and not where the caller named a drafter that is an object."""
        ...


@runtime_checkable
class Rememberer(Protocol):
    """A drafter with its own keys and values, in addition to the cache that it shares with verification."""

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes that they take for a sequence of at most `capacity` tokens."""
        ...


def wants_logits(drafter: Drafter) -> bool:
    """Whether a drafter learns from the verifier's logits."""
    return conforms(drafter, Observer) and bool(getattr(drafter, "wants_logits", True))


def late_in(drafter: Drafter, view: str | None) -> Runtime | None:
    """The runtime of a drafter that runs a model, where it has yet to make the view; else None."""
    runtime = getattr(drafter, "runtime", None)
    if view is None or not hasattr(runtime, "views"):
        return None
    info = cast("Runtime", runtime).views().get(view)
    return None if info is None or info.late is None else cast("Runtime", runtime)


def finish(outcome: Draft | Drafting) -> Drafting:
    """The draft that a drafter has returned, or will return after its passes; to be used with `yield from`."""
    if isinstance(outcome, Draft):
        return outcome
    return (yield from outcome)

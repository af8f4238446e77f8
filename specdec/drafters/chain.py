"""Several drafters, one after the other: the cheapest proposes, those after it check and extend. `ChainDrafter`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from specdec.conforms import conforms
from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.base import (
    Archivist,
    ChoiceObserver,
    Draft,
    DraftContext,
    Drafter,
    DrafterSetup,
    Drafting,
    Extender,
    Foreteller,
    LikelyObserver,
    Observer,
    Rememberer,
    finish,
    wants_logits,
)
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError

# An unchecked proposal goes to the verifier when its tokens are kept at least this often; else the next level drafts
# afresh. With a verify row at 0.05 dense steps and draft steps at 0.25, 90% of them kept: four drafted tokens give
# 4.1 tokens in 2.2 steps; eight looked-up ones that give as many for their 1.4 steps must be kept 64% of the time.
WORTH_KEEPING = 0.64
_UNTRIED = 0.7  # acceptance that is assumed of a level that keeps no book itself, until its proposals show another one


class ChainDrafter:
    """Levels of drafters, cheapest first; only the verifier decides what stays.

    The first level proposes. Each later one gets the proposal so far. A level without a model (`ngram`, `recycle`,
    `replay`) adds to its end. A level with a model would have to run a step for each token to check it, which costs as
    much as drafting it: a proposal that is likely to be kept passes unchecked, and any other is dropped for the level's
    own draft.

    Args:
        argument: names of at least two drafters with commas between, each with its own argument, as in
            `ngram:min=3,max=6,effort`; a part `key=value` belongs to the drafter before it.

    Raises:
        InvalidArgumentError: fewer than two levels, or one after the first that can only start a draft.
    """

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        from specdec.drafters.registry import create  # it registers this class

        specs = _split(argument)
        if len(specs) < 2:
            raise InvalidArgumentError("drafter 'chain' needs at least two drafters, as in chain:ngram,effort")
        if any(spec.partition(":")[0] == "chain" for spec in specs):
            raise InvalidArgumentError("drafter 'chain' cannot be a level of a chain: name its levels themselves")
        self.levels: list[tuple[str, Drafter]] = [(spec.partition(":")[0], create(spec, setup)) for spec in specs]
        self._book = ProposalBook(_UNTRIED)  # by level
        for name, level in self.levels[1:]:
            if not level.views and not conforms(level, Extender):
                raise InvalidArgumentError(f"drafter {name!r} can only come first in a chain: it has no method extend")
        # The last level that reads weights does most of the work: its views are the chain's.
        self.views = next((level.views for _, level in reversed(self.levels) if level.views), ())
        self.takes_effort = any(level.takes_effort for _, level in self.levels)
        reading = [level for _, level in self.levels if level.views]
        self.windowed_from: int | None = getattr(reading[-1], "windowed_from", None) if reading else None

    def match_length(self, context: DraftContext) -> int:
        """The longest match of a level; a level that cannot tell has always something to propose, and counts as 1."""
        return max(one.match_length(context) if conforms(one, Foreteller) else 1 for _, one in self.levels)

    @property
    def wants_logits(self) -> bool:
        """Whether a level learns from logits."""
        return any(wants_logits(level) for _, level in self.levels)

    def chosen(self, tokens: Sequence[int], choices: Sequence[int], kept: Sequence[int]) -> None:
        """Show the levels what the verifier chose."""
        for _, level in self.levels:
            if conforms(level, ChoiceObserver):
                level.chosen(tokens, choices, kept)

    def verified(self, tokens: Sequence[int], logits: np.ndarray, kept: Sequence[int]) -> None:
        """Show the levels what the verifier computed."""
        for _, level in self.levels:
            if wants_logits(level) and conforms(level, Observer):
                level.verified(tokens, logits, kept)

    @property
    def likely(self) -> int:
        """Likely tokens of a row that a level learns from, at most."""
        return max(level.likely if conforms(level, LikelyObserver) else 0 for _, level in self.levels)

    def ranked(self, likely: Sequence[Sequence[int]], kept: Sequence[int]) -> None:
        """Show the levels what the verifier thought likely."""
        for _, level in self.levels:
            if conforms(level, LikelyObserver) and level.likely:
                level.ranked(likely, kept)

    def ended(self, context: DraftContext) -> None:
        """Tell the levels."""
        for _, level in self.levels:
            if conforms(level, Archivist):
                level.ended(context)

    def cache_bytes(self, capacity: int) -> int:
        """Bytes of the levels' own keys and values."""
        found = [level.cache_bytes(capacity) for _, level in self.levels if conforms(level, Rememberer)]
        return sum(found)

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Drafting:
        """What the levels make of it together."""
        self._book.learn(context.history)
        held, draft = context.cache.length, Draft()
        for number, (name, level) in enumerate(self.levels):
            own = replace(plan, view=plan.view if plan.view in level.views else None)
            if draft.tokens and conforms(level, Extender):
                draft = level.extend(draft, own, context, policy=policy)
            elif not draft.tokens or not self._is_worth_keeping(draft, number - 1):
                read = draft.bytes_read
                draft = yield from finish(level.draft(own, context, policy=policy))
                draft.bytes_read += read
            draft.sources += [name] * (len(draft.tokens) - len(draft.sources))
            if len(draft.signals) + draft.forced != len(draft.tokens):
                draft.signals = []
            # The next level is to find the history in the cache, and nothing of this level's making.
            context.cache.trim(held)
            self._book.note(number, len(context.history), draft.tokens)
        return draft

    def _is_worth_keeping(self, draft: Draft, number: int) -> bool:
        """Whether a proposal that level `number` made or passed on should go to the verifier unchecked."""
        expected = draft.expected_acceptance
        return (self._book.rate(number) if expected is None else expected) >= WORTH_KEEPING


def _split(argument: str) -> list[str]:
    """The levels of "ngram:min=3,max=6,effort": a part "key=value" belongs to the drafter before it."""
    specs: list[str] = []
    for part in argument.split(",") if argument else ():
        head, equals, _ = part.partition("=")
        if specs and equals and ":" not in head:
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs

"""A round as `goodput` sees it before and while it runs: `Prospect`, and the `Situation` that it is judged in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specdec.policies.goodput.acceptance import UNKNOWN, MatchAcceptance
from specdec.policies.goodput.learnt import Learnt
from specdec.policies.goodput.length import least_row
from specdec.policies.goodput.menu import Menu
from specdec.policies.goodput.offer import Offer
from specdec.policies.goodput.ways import Way

from specdec.engine.policy import DraftOption, RoundState


@dataclass(slots=True)
class Prospect:
    """A round that may be, or is being, run.

    Attributes:
        rate: tokens that a dense step is worth.
        tokens: expected, the verifier's own included.
        cost: expected, in dense steps.
        option: what drafts; None for a plain step.
        way: how it drafts; None for a plain step.
        effort: of the first step, or of all of a trial.
        length: most tokens to draft.
        turns: turns that the runtime runs by itself; the other fields are for one of them. 0 for a round run by the
            engine.
        menu: efforts to choose from, for drafters that run a model.
        match: length of the match that a lookup found.
        acceptance: of the lookup.
        kept_whole: tokens drafted, once all of them were kept.
        is_trial: run to find out.
        counts: its outcome tells how good the way of drafting is.
        greedy: nothing is drawn at random.
        chance: that all tokens drafted so far are kept.
        expected: tokens that the draft so far is expected to bring.
        verify: cost of the verify pass by this sequence's rows, 0 to `MOST_ROWS`.
        classes: of the signals so far, after one for what came before the draft.
    """

    rate: float = 1.0
    tokens: float = 1.0
    cost: float = 1.0
    option: DraftOption | None = None
    way: Way | None = None
    effort: float = 1.0
    length: int = 0
    turns: int = 0
    menu: Menu | None = None
    match: int = 0
    acceptance: MatchAcceptance | None = None
    kept_whole: int = 0
    is_trial: bool = False
    counts: bool = False
    greedy: bool = True
    chance: float = 1.0
    expected: float = 1.0
    verify: Sequence[float] = ()
    classes: list[int] = field(default_factory=lambda: [UNKNOWN])

    @property
    def net(self) -> float:
        """Tokens to be gained over what the cost would bring at the going rate."""
        return self.tokens - self.rate * self.cost


@dataclass(slots=True)
class Situation:
    """What a decision before a round rests on.

    Attributes:
        learnt: of the model.
        state: what the engine tells.
        offer: the options of `state`.
        verify: cost of the verify pass by this sequence's rows, 0 to `MOST_ROWS`.
        last: the round before.
        rate: tokens that a dense step is worth.
        turns: the option that the runtime drafts by itself in the round to come.
        cheapest: `verify` at the lowest plausible price, once a trial has asked for it.
    """

    learnt: Learnt
    state: RoundState
    offer: Offer
    verify: Sequence[float]
    last: Prospect
    rate: float = 1.0
    turns: DraftOption | None = field(init=False)
    cheapest: Sequence[float] | None = None
    _row: float | None = None

    def __post_init__(self) -> None:
        self.turns = self.offer.turns(self.state)

    @property
    def row(self) -> float:
        """The least that a further row costs."""
        if self._row is None:
            self._row = least_row(self.verify) if self.state.rows_beside else self.learnt.costs.row()
        return self._row

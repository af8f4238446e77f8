"""Ways to draft: `Way`, a drafter with a view and the part of the context that its steps attend to.

In long contexts an option may offer both: a window of the context, which makes steps cheaper, and all of it, which
makes tokens likelier to be kept. They are two ways, each with its own costs and results. Costs are kept apart by the
length of the context as well: of a plain step, the unit, attention is the larger share the longer the context is.
"""

from __future__ import annotations

from typing import NamedTuple

from specdec.engine.policy import DraftOption, RoundState

# A row's attention to a position, in plain steps of an empty context, and its precision before anything was seen: small
# and medium models on few and on many cores have shown 1e-5 to 2.5e-4.
ATTENTION, _PRECISION = 1e-4, 1e8
_SEEN = 1024  # positions that a window holds, about
_ERROR = 0.1  # of a cost that the attention is inferred from


class Reach(NamedTuple):
    """What a draft step attends to.

    Attributes:
        context: tokens of context, about; 0 where there is no choice, as in short ones.
        windowed: to a window of it.
    """

    context: int = 0
    windowed: bool = False

    @property
    def lean(self) -> float:
        """Share of the difference between all of the context and a window of it that acceptance has more: half of it,
        or half of it less; 0 where there is no choice."""
        return (-0.5 if self.windowed else 0.5) if self.context else 0.0

    @property
    def seen(self) -> int:
        """Positions that a step attends to."""
        return min(self.context, _SEEN) if self.windowed else self.context

    def cost(self, short: float, attention: float) -> float:
        """The cost in dense steps of a step that takes `short` ones where the context is short."""
        return (short + attention * self.seen) / (1.0 + attention * self.context)

    def attention(self, short: float, cost: float) -> float:
        """A row's attention to a position, by the cost of a step that takes `short` dense steps where the context is
        short: `cost` solved for it, and drawn towards `ATTENTION` where that says little."""
        slope, precision = cost * self.context - self.seen, 1.0 / (_ERROR * cost) ** 2
        known = slope * slope * precision
        return max(0.0, (_PRECISION * ATTENTION + slope * precision * (short - cost)) / (_PRECISION + known))


SHORT = Reach()


class Way(NamedTuple):
    """A way to draft: drafter, view (None for a drafter that reads no weights), and what steps attend to."""

    drafter: str
    view: str | None
    reach: Reach = SHORT


class Arm(NamedTuple):
    """A way to draft at an effort, for trials; `PLAIN` is not to draft.

    The effort is `ANY` where the windows of a way are on trial, at the effort that is thought best.
    """

    drafter: str
    view: str | None
    effort: float
    windowed: bool = False


PLAIN = Arm("", None, 0.0)
ANY = 0.0


def ways_of(option: DraftOption, state: RoundState) -> tuple[Way, ...]:
    """The ways of an option in the round to come: one, or in long contexts that with a window and that without."""
    least, context = option.windowed_from, state.position - 1
    if least is None or context < least:
        return (Way(option.drafter, option.view),)
    middle = 3 * (least << ((context // least).bit_length() - 1)) // 2  # of this doubling of the context
    return tuple(Way(option.drafter, option.view, Reach(middle, windowed)) for windowed in (True, False))

"""The drafters of an answer: `Crew`. Those of a kind that the model has had before are made when first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from specdec.conforms import conforms
from specdec.drafters.base import Drafter, Foreteller, Rememberer
from specdec.drafters.effort import EffortDrafter
from specdec.engine.drafter_guard import options_of
from specdec.engine.observers import Observers
from specdec.engine.policy import DraftOption
from specdec.runtimes.base import DraftHead, Runtime

_NONE: Mapping[str, Drafter] = MappingProxyType({})
_NOBODY = Observers(_NONE)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of drafters before they are made, from others of the same kinds.

    Attributes:
        offered: the drafters with their views, the default first.
        timed: names of those that are the model itself at low effort, whose steps are timed beforehand.
    """

    offered: tuple[DraftOption, ...]
    timed: frozenset[str]

    def holds(self, runtime: Runtime) -> bool:
        """Whether drafters of the runtime would offer the same now: a view that had yet to be made may be there."""
        late = {name for name, info in runtime.views().items() if info.late is not None}
        return all(option.waits == (option.view in late) for option in self.offered)


class Crew:
    """The drafters of one answer, by name.

    In many answers no round drafts, or the runtime does so by itself. Where it is known what the drafters offer, they
    are made, all together, when a round first needs one of them.

    Args:
        make: makes the drafters, the default first.
        known: of them; None makes them at once.

    Attributes:
        known: of the drafters.
        made: the drafters, once they are made; none before.
        observers: of those, the ones that learn from verify passes.
        foretellers: of those, the ones that can tell beforehand what they have found.

    Raises:
        PluginError: a drafter's properties fail or make no sense.
    """

    def __init__(self, make: Callable[[], Mapping[str, Drafter]], known: Known | None = None) -> None:
        self._make = make
        self.made, self.observers = _NONE, _NOBODY
        self.foretellers: Mapping[str, Foreteller] = {}
        if known is None:
            offered = [option for name, one in self.drafters.items() for option in options_of(name, one)]
            known = Known(tuple(offered), frozenset(self.heads()))
        self.known = known

    @property
    def drafters(self) -> Mapping[str, Drafter]:
        """The drafters, which are made if they are not."""
        if not self.made:
            self.made = self._make()
            self.observers = Observers(self.made)
            self.foretellers = {name: one for name, one in self.made.items() if conforms(one, Foreteller)}
        return self.made

    def heads(self) -> dict[str, DraftHead | None]:
        """Tokens that the steps of the timed drafters score, by their names."""
        return {name: one.head.rows for name, one in self.drafters.items() if type(one) is EffortDrafter}

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes of their own keys and values for a sequence of `capacity` tokens."""
        found = [one.cache_bytes(capacity) for one in self.made.values() if conforms(one, Rememberer)]
        return sum(found)

    @property
    def may_wait(self) -> bool:
        """Whether others of the same kinds may be made late: before that, only what is `known` of them matters."""
        return not self.observers.want_logits and not any(conforms(one, Rememberer) for one in self.made.values())

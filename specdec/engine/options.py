"""Everything that a caller may ask of one generation, checked: `GenerationSettings`."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from specdec.checks import check_effort
from specdec.drafters.base import Drafter
from specdec.engine.policy import Policy
from specdec.engine.sampler import SamplingParams
from specdec.errors import InvalidArgumentError
from specdec.model.effort import EffortSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What to generate and how, in the engine's own types; `specdec.generate` describes each.

    Raises:
        InvalidArgumentError: a value is out of range.
    """

    max_tokens: int = 256
    draft_effort: EffortSchedule | None = None
    draft_view: str = "auto"
    verify_effort: EffortSchedule = field(default_factory=EffortSchedule)
    draft_len: int = 4
    policy: str | Policy = "auto"
    drafter: str | Drafter | tuple[str | Drafter, ...] = "auto"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    speculate: bool = True
    trust: float | None = None

    def __post_init__(self) -> None:
        _check_count("max_tokens", self.max_tokens)
        _check_count("draft_len", self.draft_len, "; use speculate=False to decode without drafts")
        if self.trust is not None and not (_is_number(self.trust) and self.trust > 0):
            raise InvalidArgumentError(f"trust must be an entropy above 0 nats, not {self.trust!r}")
        drafters = self.drafter if isinstance(self.drafter, tuple) else (self.drafter,)
        if not drafters:
            raise InvalidArgumentError("drafter must be at least one: use speculate=False to decode without drafts")
        named = [("policy", Policy, self.policy), *(("drafter", Drafter, drafter) for drafter in drafters)]
        for name, kind, value in named:
            if not isinstance(value, (str, kind)):
                raise InvalidArgumentError(f"{name} must be a name or an object with a {name}'s methods, not {value!r}")


def effort_schedule(name: str, value: float | EffortSchedule) -> EffortSchedule:
    """A schedule from the argument called `name`.

    Raises:
        InvalidArgumentError: it is neither a schedule nor a number in (0, 1].
    """
    return value if isinstance(value, EffortSchedule) else EffortSchedule(check_effort(value, name))


def stop_strings(value: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings from one string or several.

    Raises:
        InvalidArgumentError: one of them is empty or no text.
    """
    if not isinstance(value, Iterable):
        raise InvalidArgumentError(f"stop must be text or a sequence of texts, not {value!r}")
    stops = (value,) if isinstance(value, str) else tuple(value)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InvalidArgumentError(f"a stop string must be text of at least one character, not {stop!r}")
    return stops


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_count(name: str, value: object, hint: str = "") -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise InvalidArgumentError(f"{name} must be a whole number of at least 1, not {value!r}{hint}")

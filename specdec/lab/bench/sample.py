"""One answer of one contender, measured: `Sample`, and its form in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from specdec.engine.result import Result


class Place(NamedTuple):
    """Which answer it is: indices into the conditions and prompts of a run, and the contender's name."""

    condition: int
    prompt: int
    contender: str
    repetition: int


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer.

    Attributes:
        place: which one it is.
        tokens: its tokens, end token included.
        stopped_by: what ended it.
        stats: `Stats.to_dict()` of the engine.
    """

    place: Place
    tokens: list[int]
    stopped_by: str
    stats: dict[str, Any]

    @classmethod
    def of(cls, place: Place, result: Result) -> Sample:
        """From what the library returned."""
        return cls(place, result.tokens, result.stopped_by, result.stats.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sample:
        """From what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: that is not what `values` are.
        """
        return cls(Place(*values["place"]), list(values["tokens"]), str(values["stopped_by"]), dict(values["stats"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"place": list(self.place)}

    @property
    def seconds(self) -> float:
        """Time of all rounds, without the passes over the prompt."""
        return float(self.stats["decode_s"])

    @property
    def emitted(self) -> int:
        """Tokens that the caller got."""
        return int(self.stats["emitted"])

"""One answer of one contender, measured: `Sample`, and the journal that keeps answers: `open_answers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from specdec.lab.journal import Journal

if TYPE_CHECKING:
    from specdec.engine.result import Result


class Place(NamedTuple):
    """Which answer it is: indices into the conditions and prompts of a run, and the contender's name."""

    condition: int
    prompt: int
    contender: str
    repetition: int

    @property
    def key(self) -> str:
        """Its name in a journal."""
        return f"{self.condition} {self.prompt} {self.repetition} {self.contender}"


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


def open_answers(
    path: Path, header: Mapping[str, Any], *, extra: Mapping[str, Any] | None = None, restart: bool = False
) -> Journal[Sample]:
    """The journal of a run's answers by `Place.key`.

    Args:
        path: the file.
        header: `Plan.header`.
        extra: noted in a new file.
        restart: forget what it holds.

    Raises:
        InvalidArgumentError: it is of another run, damaged, or cannot be read or written.
    """
    return Journal(path, "specdec bench", header, decode=Sample.from_dict, extra=extra, strict=True, restart=restart)

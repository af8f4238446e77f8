"""Whether every answer is plain decoding's, token for token: `Comparison`."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.lab.bench.grid import PLAIN
from specdec.lab.bench.plan import Plan
from specdec.lab.bench.sample import Place, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An answer that is not plain decoding's.

    Attributes:
        place: whose it is.
        position: index of the first token that differs; None when only what ended the answer does.
        found: the answer's token there; None if it has ended.
        expected: the same in plain decoding's.
    """

    place: Place
    position: int | None
    found: int | str | None
    expected: int | str | None

    def sentence(self, plan: Plan) -> str:
        """What differs, for people."""
        prompt = plan.prompts[self.place.prompt]
        where = f"{self.place.contender} on {prompt.task} prompt {prompt.name}"
        where += f" ({plan.grid.conditions[self.place.condition].name})"
        if self.position is None:
            return f"{where}: the answer was ended by {self.found}, and plain decoding's by {self.expected}"
        told = ["missing" if one is None else str(one) for one in (self.found, self.expected)]
        return f"{where}: token {self.position} is {told[0]}, and {told[1]} in plain decoding"


class DifferenceFoundError(Exception):
    """An answer is not plain decoding's: a fault of specdec, not of the user."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference)
        self.difference = difference


class Comparison:
    """Compares every answer with plain decoding's to the same prompt under the same condition, whichever came first."""

    def __init__(self) -> None:
        self._plain: dict[tuple[int, int], Sample] = {}
        self._waiting: dict[tuple[int, int], list[Sample]] = {}
        self.compared = 0

    def add(self, sample: Sample) -> None:
        """Take an answer in.

        Raises:
            DifferenceFoundError: it, or one that waited for it, differs from plain decoding's.
        """
        key = sample.place.condition, sample.place.prompt
        if key not in self._plain and sample.place.contender != PLAIN:
            self._waiting.setdefault(key, []).append(sample)
            return
        plain = self._plain.setdefault(key, sample)
        for one in [sample, *self._waiting.pop(key, [])]:
            if (difference := _difference(one, plain)) is not None:
                raise DifferenceFoundError(difference)
            self.compared += 1


def _difference(sample: Sample, plain: Sample) -> Difference | None:
    if sample.tokens != plain.tokens:
        pairs = zip(sample.tokens, plain.tokens, strict=False)
        shorter = min(len(sample.tokens), len(plain.tokens))
        position = next((i for i, (left, right) in enumerate(pairs) if left != right), shorter)
        found, expected = (one.tokens[position] if position < len(one.tokens) else None for one in (sample, plain))
        return Difference(place=sample.place, position=position, found=found, expected=expected)
    if sample.stopped_by != plain.stopped_by:
        ends = {"found": sample.stopped_by, "expected": plain.stopped_by}
        return Difference(place=sample.place, position=None, **ends)
    return None

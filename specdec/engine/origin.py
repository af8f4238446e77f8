"""Who produced a token: `Origin`."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """The producer of a token of an answer.

    Attributes:
        drafter: name of the drafter that proposed it; None for the verifier's own.
        effort: effort of its draft step; None where effort means nothing.
        is_trusted: it was kept without a check.
    """

    drafter: str | None
    effort: float | None = None
    is_trusted: bool = False

    @property
    def label(self) -> str:
        """In one word: "bonus", "ngram", "effort@0.5", "effort@0.5!" when trusted."""
        if self.drafter is None:
            return "bonus"
        effort = "" if self.effort is None else f"@{self.effort:g}"
        return f"{self.drafter}{effort}{'!' * self.is_trusted}"


BONUS = Origin(None)

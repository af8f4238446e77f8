"""The part of a context that rows of drafts attend to: `Window`."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.errors import InvalidArgumentError

WINDOW_BLOCK = 128  # positions: the later part of a window begins at a multiple of it


@dataclass(frozen=True, slots=True)
class Window:
    """The part of the context that a row of a draft attends to: the first positions, which receive much attention
    whatever tokens they hold (Xiao et al. 2309.17453, section 3), and the latest ones.

    A row at position p sees position q <= p if q < `sinks` or q >= (p + 1 - `recent`) rounded down to a multiple of
    `WINDOW_BLOCK`, so that a part begins where attention kernels begin. Layers that have a window themselves see the
    positions that both allow. In a context of up to `recent` tokens a row sees everything.

    Attributes:
        recent: positions, itself included, that a row sees at least; 1 or more.
        sinks: first positions, 0 to `WINDOW_BLOCK`.

    Raises:
        InvalidArgumentError: a number is out of range.
    """

    recent: int
    sinks: int = 4

    def __post_init__(self) -> None:
        for name, least, most in (("recent", 1, 2**40), ("sinks", 0, WINDOW_BLOCK)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InvalidArgumentError(
                    f"{name} of a window must be a whole number from {least} to {most}, not {value!r}"
                )

    def first(self, position: int) -> int:
        """Where the later part begins for a row at that position; 0 where the row sees everything."""
        return max(0, position + 1 - self.recent) // WINDOW_BLOCK * WINDOW_BLOCK

    def narrows(self, context: int) -> bool:
        """Whether a row after that many tokens sees less than all of them."""
        return self.first(context) > self.sinks

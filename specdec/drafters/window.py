"""The part of a long context that a model's draft steps attend to: `DraftWindow`.

Verification attends to all of it, so a window changes only the speed of an answer. Sources: StreamingLLM (Xiao et al.
2309.17453) for the first positions and a window, MagicDec (Chen et al. 2408.11049, section 4) for drafts with it.
"""

from __future__ import annotations

from specdec.drafters.arguments import whole_number
from specdec.errors import InvalidArgumentError
from specdec.runtimes.base import Runtime, Window

ARGUMENT = {"window": "auto"}
SINKS = 4
LONG = 2048  # tokens of context from which on "auto" attends to a part: below, attention is a small share of a step
RECENT, SHARE = 1024, 8  # "auto" attends to RECENT latest positions, or to context / SHARE where that is more
_MOST = 1 << 30


class DraftWindow:
    """The positions that the draft steps of a model attend to.

    Args:
        drafter: name of the drafter, for messages.
        asked: "auto", "all", or the number of latest positions.
        runtime: the runtime that runs the drafts.

    Raises:
        InvalidArgumentError: `asked` is something else, or a number on a runtime that attends to everything.
    """

    def __init__(self, drafter: str, asked: str, runtime: Runtime) -> None:
        self._asked: Window | None = None
        self._narrows = runtime.info.narrows and asked != "all"
        if asked in ("auto", "all"):
            return
        recent = whole_number(drafter, "window (or auto, or all)", asked, low=1, high=_MOST)
        if not runtime.info.narrows:
            raise InvalidArgumentError(
                f"drafter {drafter!r} cannot take window={asked}: drafts of the {runtime.info.name} runtime attend to "
                "all of the context"
            )
        self._asked = Window(recent, SINKS)

    @property
    def chosen_from(self) -> int | None:
        """Tokens of context from which a plan may choose between a window and all of it; None where it may not."""
        return LONG if self._narrows and self._asked is None else None

    def after(self, length: int, *, windowed: bool | None = None) -> Window | None:
        """The window of a step after `length` tokens, of a plan's choice; None where it sees all of them."""
        if self._asked is not None or not self._narrows or length < LONG or windowed is False:
            return self._asked
        return Window(max(RECENT, length // SHARE), SINKS)

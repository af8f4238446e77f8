"""Showing an answer as it grows; with `--explain`, each token in the colour of who produced it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO

from specdec.engine.origin import Origin

if TYPE_CHECKING:
    from specdec.engine.result import Piece

_RESET = "\x1b[0m"
_TRUSTED = "\x1b[4m"  # underlined, whatever the colour
_WITHOUT_EFFORT = "\x1b[33m"  # yellow: lookups and other drafters that effort means nothing to
# Draft steps from the dearest to the cheapest: green, cyan, blue, magenta.
_BY_EFFORT = ((0.9, "\x1b[32m"), (0.6, "\x1b[36m"), (0.3, "\x1b[34m"), (0.0, "\x1b[35m"))


class Shown:
    """An answer on a stream.

    No colours if the stream is not a terminal, if NO_COLOR is set (no-color.org), or if TERM is "dumb".

    Args:
        stream: where the text goes; None, where standard output is closed, drops it.
        explain: colour it.
    """

    def __init__(self, stream: TextIO | None, *, explain: bool = False) -> None:
        self._stream = stream
        plain = (
            stream is None
            or not stream.isatty()
            or bool(os.environ.get("NO_COLOR"))
            or os.environ.get("TERM") == "dumb"
        )
        self._has_colours = explain and not plain
        self._counts: dict[str, tuple[Origin, int]] = {}
        self._last = ""

    def piece(self, piece: Piece) -> None:
        """Show what a round added."""
        for origin in piece.origins:
            self._counts[origin.label] = (origin, self._counts.get(origin.label, (origin, 0))[1] + 1)
        self._last = piece.text or self._last
        text = piece.text
        if self._has_colours:
            text = "".join(
                painted(part, origin) for part, origin in zip(piece.parts, piece.origins, strict=True) if part
            )
        print(text, end="", flush=True, file=self._stream)

    def end(self) -> None:
        """End the last line."""
        if not self._last.endswith("\n"):
            print(flush=True, file=self._stream)

    def legend(self, stream: TextIO) -> None:
        """Number of tokens of each producer, in its colour."""
        entries = []
        for label, (origin, count) in sorted(self._counts.items(), key=lambda item: -item[1][1]):
            text = f"{label} {count}"
            entries.append(painted(text, origin) if self._has_colours else text)
        print(f"tokens by  {', '.join(entries)}", file=stream)


def painted(text: str, origin: Origin) -> str:
    """`text` in the colour of `origin`; the verifier's own tokens have none. A line's end stays outside."""
    if origin.drafter is None:
        return text
    if origin.effort is None:
        colour = _WITHOUT_EFFORT
    else:
        colour = next(code for least, code in _BY_EFFORT if origin.effort >= least)
    begin = colour + _TRUSTED * origin.is_trusted
    return "\n".join(f"{begin}{line}{_RESET}" if line else "" for line in text.split("\n"))

"""One JSON line for every round, written as the round ends: `TraceWriter`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.whole_file import open_output

if TYPE_CHECKING:
    from specdec.engine.result import Piece
    from specdec.engine.round import Round


class TraceWriter:
    """Writes rounds to a file, a line each, flushed so that a killed run leaves whole lines.

    A line holds `round` (from 0), `position` (absolute, of the first token that the round emits), `drafted` (token
    ids), `entropies` (nats) and `efforts` (one per token of the drafter's own, so none for those that a grammar
    forced; both empty when it has no distribution to show), `accepted`, `bonus_token`, `emitted` (fewer than
    accepted + 1 when the answer ended inside the round), `drafter` and `view` that the policy chose (null in a
    plain round), `windowed` (whether it had draft steps attend to a window of the context; null where it left that to
    the drafter), `producers` (who produced each emitted token: "bonus", or a drafter with its effort, as
    "effort@0.5"; a "!" after it marks a trusted token), `parts` (the text that came out with each), `draft_s` and
    `verify_s`.

    Raises:
        InvalidArgumentError: the file cannot be opened for writing, or cannot be written to.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        try:
            self._file = open_output(path)
        except unless_signalled(OSError) as error:
            raise self._error(error) from None

    def write(self, index: int, done: Round, piece: Piece) -> None:
        """Append a round."""
        line = {
            "round": index,
            "position": done.position,
            "drafted": done.draft.tokens,
            "entropies": [round(signals.distribution.entropy, 6) for signals in done.draft.signals],
            "efforts": [round(signals.effort, 6) for signals in done.draft.signals],
            "accepted": done.accepted,
            "bonus_token": done.bonus_token,
            "emitted": len(piece.tokens),
            "drafter": None if done.plan is None else done.plan.drafter,
            "view": None if done.plan is None else done.plan.view,
            "windowed": None if done.plan is None else done.plan.windowed,
            "producers": [origin.label for origin in piece.origins],
            "parts": piece.parts,
            "draft_s": round(done.draft_s, 9),
            "verify_s": round(done.verify_s, 9),
        }
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except unless_signalled(OSError) as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        try:
            self._file.close()
        except unless_signalled(OSError) as error:
            raise self._error(error) from None

    def _error(self, error: OSError) -> InvalidArgumentError:
        return InvalidArgumentError(f"cannot write the trace {str(self._path)!r}: {error.strerror or error}")

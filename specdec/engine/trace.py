"""One JSON line for every round, written as the round ends: `TraceWriter`."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.whole_file import is_replaceable, open_output

if TYPE_CHECKING:
    from specdec.engine.result import Piece
    from specdec.engine.round import Round


class TraceWriter:
    """Writes rounds to a file, a line each and at once, so that a killed run leaves whole lines. On a full disk the
    whole lines stay, or no file at all.

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
        self._bytes = 0
        try:
            self._is_file = is_replaceable(Path(path))
            self._is_new = self._is_file and not Path(path).exists()
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
        data = json.dumps(line).encode() + b"\n"
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except unless_signalled(OSError) as error:
            self._take_back()
            raise self._error(error) from None
        self._bytes += len(data)

    def close(self) -> None:
        """Close the file; more than once does no harm."""
        try:
            self._file.close()
        except unless_signalled(OSError) as error:
            raise self._error(error) from None

    def _take_back(self) -> None:
        """Remove a part of a line, and a new file that has no line."""
        if not self._is_file:
            return
        with suppress(OSError):
            os.ftruncate(self._file.fileno(), self._bytes)
            if self._is_new and not self._bytes:
                Path(os.path.realpath(self._path)).unlink(missing_ok=True)

    def _error(self, error: OSError) -> InvalidArgumentError:
        return InvalidArgumentError(f"cannot write the trace {str(self._path)!r}: {error.strerror or error}")

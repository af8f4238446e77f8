"""A measurement that was cut short, kept so that it can go on: `PartialFile`, beside the profile to come."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from specdec.lab.tune.sensitivity import Sums
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.store.profile import PROFILE_FILE, write_json

_SAVE_EVERY_S = 5.0


class PartialFile:
    """Sums of one measurement on disk.

    Args:
        store_path: the store that is measured.
        settings: plain JSON values; sums that were measured with other settings are not taken up.
    """

    def __init__(self, store_path: Path, settings: dict[str, Any]) -> None:
        self.path = store_path / f"{PROFILE_FILE}.partial"
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._saved_s = time.monotonic()

    def load(self, units: int, levels: int) -> Sums:
        """What was measured so far; empty when there is nothing, or nothing that fits."""
        sums = Sums.empty(units, levels)
        try:
            values = parse_json(read_regular(self.path, most_bytes=MOST_TEXT_BYTES))
            if values["settings"] != self._settings:
                return sums
            found = Sums(int(values["done"]), np.array(values["kl"], float), np.array(values["distance"], float))
        except (OSError, ValueError, KeyError, TypeError):
            return sums  # lost work is done again; there is nothing else to lose
        fits = found.kl.shape == found.distance.shape == sums.kl.shape
        return found if fits and np.isfinite(found.kl).all() and found.done > 0 else sums

    def save(self, sums: Sums, *, now: bool = False) -> None:
        """Keep the sums, if `now` or some seconds after the last time.

        Raises:
            StoreError: the file cannot be written.
        """
        if not now and time.monotonic() - self._saved_s < _SAVE_EVERY_S:
            return
        values = {"settings": self._settings, "done": sums.done}
        write_json(self.path, values | {"kl": sums.kl.tolist(), "distance": sums.distance.tolist()})
        self._saved_s = time.monotonic()

    def remove(self) -> None:
        """Forget the sums."""
        self.path.unlink(missing_ok=True)

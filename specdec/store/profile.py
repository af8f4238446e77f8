"""Result of tuning, and its file: `DraftProfile`, one for each runtime and view, in the store's folder.

The file may be deleted at any time: drafts then are what the runtime does without it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.errors import StoreError
from specdec.interrupts import unless_signalled
from specdec.model.effort import EffortSchedule
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.store.staging import sync_folder, writing
from specdec.warn import warn
from specdec.whole_file import whole_file

if TYPE_CHECKING:
    from specdec.store import Store

PROFILE_FILE = "draft-profile.json"
FORMAT = "specdec draft profile"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A draft setting that was tried.

    Attributes:
        mean: mean effort.
        tuned: how far its efforts go from equal ones (0, for comparison) to what was allocated (1).
        efforts: by canonical matrix name; empty when they are equal.
        agreement: share of positions at which it chose what the model chose.
        kl: mean divergence from the model, nats.
        step_s: seconds of a draft step.
        speedup: expected speed over plain decoding at the best fixed draft length, 1 when drafting does not pay.
        draft_len: that length.
    """

    mean: float
    tuned: float
    efforts: dict[str, float]
    agreement: float
    kl: float
    step_s: float
    speedup: float
    draft_len: int

    @property
    def schedule(self) -> EffortSchedule:
        """The efforts as a schedule."""
        return EffortSchedule(self.mean, self.efforts)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftProfile:
    """Measured drafts of one model on one runtime of one machine.

    Attributes:
        runtime: its name.
        view: draft view.
        store: checksum of the store that was measured.
        settings: how it was measured.
        verify_s: seconds of an exact pass, by rows.
        kind_s: seconds of a draft step that a kind of matrix takes, by kind: what lowering it alone saves, scaled up.
        tolerance: for every unit the divergence (`kl`, nats) and the distance of the logits (`distance`), by level.
        candidates: what was tried.
        best: index of the one to use.
    """

    runtime: str
    view: str
    store: str
    settings: dict[str, Any]
    verify_s: dict[int, float]
    kind_s: dict[str, float]
    tolerance: dict[str, dict[str, list[float]]]
    candidates: tuple[Candidate, ...]
    best: int

    @property
    def key(self) -> str:
        """What there is one profile of: a view on a runtime."""
        return f"{self.runtime}/{self.view}"

    @property
    def choice(self) -> Candidate:
        """The candidate to use."""
        return self.candidates[self.best]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DraftProfile:
        """The profile that `asdict` described."""
        candidates = tuple(Candidate(**one) for one in values["candidates"])
        verify_s = {int(rows): float(seconds) for rows, seconds in values["verify_s"].items()}
        profile = cls(**(values | {"candidates": candidates, "verify_s": verify_s}))
        _ = [candidate.schedule for candidate in candidates], profile.choice  # refuses what cannot be used
        return profile


@dataclass(slots=True)
class ProfileFile:
    """The file of a store's profiles.

    Attributes:
        path: where it is or will be.
        profiles: by `DraftProfile.key`.
    """

    path: Path
    profiles: dict[str, DraftProfile] = field(default_factory=dict)

    @classmethod
    def read(cls, store_path: Path) -> ProfileFile:
        """The profiles of a store; none where the file is missing.

        Raises:
            StoreError: the file cannot be read, is not a profile, or is of a newer version.
        """
        path = store_path / PROFILE_FILE
        try:
            values = parse_json(read_regular(path, most_bytes=MOST_TEXT_BYTES))
        except FileNotFoundError:
            return cls(path)
        except unless_signalled(OSError) as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from None
        except unless_signalled(ValueError):
            values = None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise StoreError(f"{path} is not a draft profile: remove it, and tune the model again")
        if values.get("version") != VERSION:
            raise StoreError(
                f"{path} is of version {values.get('version')}, and this specdec reads version {VERSION}: tune again"
            )
        try:
            return cls(path, {name: DraftProfile.from_dict(one) for name, one in values["profiles"].items()})
        except unless_signalled(AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise StoreError(f"{path} is damaged: remove it, and tune the model again") from None

    def write(self) -> None:
        """Put the profiles on disk, all or nothing.

        Raises:
            StoreError: the file cannot be written.
        """
        profiles = {name: asdict(profile) for name, profile in sorted(self.profiles.items())}
        write_json(self.path, {"format": FORMAT, "version": VERSION, "profiles": profiles})


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file so that it appears whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    with writing(path):
        with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


def find_profile(store: Store, runtime: str) -> DraftProfile | None:
    """The profile of a store on a runtime, by its name: of several views the one that promises most. None when there is
    none that holds for these weights.

    Raises:
        StoreError: the file of the profiles is damaged or of a newer version.

    Warns:
        UserWarning: there is one, of other weights.
    """
    file = ProfileFile.read(store.path)
    profiles = [profile for profile in file.profiles.values() if profile.runtime == runtime]
    valid = [profile for profile in profiles if profile.store == store.checksum]
    if profiles and not valid:
        warn(f"{file.path} is not used: the model was converted again since; tune it again")
    return max(valid, key=lambda profile: profile.choice.speedup, default=None)


def profile_stamp(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the profiles in the file of a store do; None when there is no such file."""
    if not os.access(path, os.F_OK):  # every answer comes here, and an exception takes longer
        return None
    try:
        stat = path.stat()
    except unless_signalled(OSError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def check_place(store_path: Path) -> None:
    """Refuse a store beside which no profile could be written or would be understood, before the work.

    Raises:
        StoreError: the folder cannot be written, or holds a damaged profile.
    """
    if not os.access(store_path, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write a draft profile into {store_path}: it is read-only, or its permissions refuse")
    ProfileFile.read(store_path)

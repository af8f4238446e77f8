"""How many threads the native runtime takes by default: measured once for a model on a machine, and kept.

Where memory is the limit, more threads than it can feed make decoding slower, so single-row passes are timed with all
physical cores and with fewer. Results never depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec import paths
from specdec.errors import SpecdecError
from specdec.interrupts import unless_signalled
from specdec.parse import parse_json
from specdec.read_file import MOST_TEXT_BYTES, read_regular
from specdec.version import version
from specdec.whole_file import whole_file

if TYPE_CHECKING:
    from specdec.store import Store

_FORMAT = 1
ALL_OF = 2  # so few cores are all taken, unmeasured
_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)  # of the cores, that are tried
# More threads read prompts and verify drafts faster: fewer are taken only where a single row gains more than this.
_WORTH = 1.05
_ROUNDS, _PASSES, _CANDIDATE_S = 2, 5, 0.15
_MOST_KEPT = 1024  # files that `kept_choices` reads


@dataclass(frozen=True, slots=True)
class ThreadChoice:
    """What was measured for a model.

    Attributes:
        model: name of the store's folder.
        threads: taken.
        cores: physical cores that the process could use.
        step_s: seconds of a single-row pass, by threads.
    """

    model: str
    threads: int
    cores: int
    step_s: dict[int, float]


def candidates(cores: int) -> list[int]:
    """Numbers of threads to try, falling."""
    return sorted({max(1, round(cores * share)) for share in _SHARES}, reverse=True)


def choose(step_s: dict[int, float]) -> int:
    """The most threads with which a step takes hardly longer than with the best number."""
    best = min(step_s.values())
    return max(threads for threads, seconds in step_s.items() if seconds <= _WORTH * best)


def settle_threads(
    store: Store, build: str, cores: int, set_threads: Callable[[int], None], step: Callable[[], Any]
) -> None:
    """Set the number of threads: the one that is kept for this model and machine, or else measure and keep it.

    Args:
        store: the model's.
        build: of the runtime; another one is measured anew.
        cores: physical cores that may be used.
        set_threads: make a number of threads the one that is computed with.
        step: run a single-row pass.
    """
    if cores <= ALL_OF:
        return
    file = _file(store, build, cores)
    kept = _read(file)
    if kept is not None and kept.cores == cores and kept.threads <= cores:
        set_threads(kept.threads)
        return
    step_s = _measure(candidates(cores), set_threads, step)
    found = ThreadChoice(store.path.name, choose(step_s), cores, step_s)
    set_threads(found.threads)
    _write(file, found)


def kept_choices() -> list[ThreadChoice]:
    """What is kept for any model on this machine, by model."""
    files = sorted(paths.home().glob("costs/threads-*.json"))[:_MOST_KEPT]
    found = [choice for choice in map(_read, files) if choice is not None]
    return sorted(found, key=lambda choice: (choice.model, choice.cores))


def _measure(numbers: list[int], set_threads: Callable[[int], None], step: Callable[[], Any]) -> dict[int, float]:
    """Seconds of the quickest step with each number of threads, which take turns."""
    step_s: dict[int, float] = {}
    for _ in range(_ROUNDS):
        for threads in numbers:
            set_threads(threads)
            step()  # wakes the threads
            end_s, count = time.perf_counter() + _CANDIDATE_S, 0
            while count == 0 or (count < _PASSES and time.perf_counter() < end_s):
                start_s = time.perf_counter()
                step()
                taken = time.perf_counter() - start_s
                step_s[threads] = min(taken, step_s.get(threads, taken))
                count += 1
    return step_s


def _file(store: Store, build: str, cores: int) -> Path:
    machine = platform.node(), platform.processor()
    name = paths.name_of(store.checksum, store.loaded_share, build, cores, *machine, version())
    return paths.home() / "costs" / f"threads-{name}.json"


def _read(file: Path) -> ThreadChoice | None:
    """None where nothing is kept, or nothing that makes sense."""
    try:
        kept = parse_json(read_regular(file, most_bytes=MOST_TEXT_BYTES))
        step_s = {int(threads): float(seconds) for threads, seconds in kept["step_s"].items()}
        choice = ThreadChoice(str(kept["model"]), int(kept["threads"]), int(kept["cores"]), step_s)
        good = kept["format"] == _FORMAT and choice.threads in step_s
    except unless_signalled(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return choice if good and all(threads >= 1 and seconds > 0 for threads, seconds in step_s.items()) else None


def _write(file: Path, choice: ThreadChoice) -> None:
    """Keep a choice, whole or not at all."""
    kept = {
        "format": _FORMAT,
        "model": choice.model,
        "threads": choice.threads,
        "cores": choice.cores,
        "step_s": {str(threads): seconds for threads, seconds in choice.step_s.items()},
    }
    with contextlib.suppress(OSError, SpecdecError):
        paths.private_folder(file.parent)
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(kept), encoding="utf-8")

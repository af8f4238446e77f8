"""How much memory this process may still take, the refusal of what would not fit, and giving back what is free."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from specdec.errors import MemoryShortError
from specdec.interrupts import unless_signalled

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be taken without swapping: what the kernel estimates, or less under a control group's limit.

    None where the system does not say.
    """
    found = [amount for amount in (_from_meminfo(meminfo), _from_cgroup(cgroup)) if amount is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except unless_signalled(AttributeError, OSError, ValueError):  # not on this system
        return None


def check_room(what: str, needed: int, available: int | None) -> None:
    """Refuse to build `what`, which takes `needed` bytes.

    Raises:
        MemoryShortError: fewer bytes are available; nothing is refused where that is unknown.
    """
    if available is not None and needed > available:
        raise MemoryShortError(
            f"{what} needs {needed / 1e9:.2f} GB of memory and {available / 1e9:.2f} GB are free: "
            "free some, or choose another draft view"
        )


def release_free_memory() -> None:
    """Give the system back what this process has freed and the C library still holds, where the library can."""
    with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _from_meminfo(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except unless_signalled(OSError):
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _from_cgroup(folder: Path) -> int | None:
    """Room under the limit of the control group (version 2) that is mounted as this process's own."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        # Pages of files count as used, and go when memory is asked for.
        cached = sum(
            int(line.split()[1])
            for line in (folder / "memory.stat").read_text().splitlines()
            if line.split()[0] in ("active_file", "inactive_file")
        )
    except unless_signalled(OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used + cached)

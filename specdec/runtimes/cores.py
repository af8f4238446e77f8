"""How many threads are worth starting here: the physical cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from specdec.interrupts import unless_signalled

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Physical cores among the processors that this process may run on, and no more than its quota of time; at least 1.

    Where the system does not tell which processors share a core, every processor counts as one.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_siblings(processor) for processor in processors})
    quota = _quota()
    return max(1, cores if quota is None else min(cores, quota))


def _siblings(processor: int) -> str:
    """The processors that share a core with this one, as the system writes them; equal for all of one core."""
    try:
        return (_TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text().strip()
    except unless_signalled(OSError):
        return str(processor)


def _quota() -> int | None:
    """Whole processors of time that the control group allows, rounded up; None when it sets no limit."""
    try:
        limit, period = _CGROUP_QUOTA.read_text().split()
        return None if limit == "max" else max(1, -(-int(limit) // int(period)))
    except unless_signalled(OSError, ValueError):
        return None

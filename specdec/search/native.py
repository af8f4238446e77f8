"""The native kernels of search and of fast feedforward layers, and how many threads they use."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

from specdec.checks import check_count
from specdec.errors import InvalidArgumentError, RuntimeUnavailableError
from specdec.runtimes.cores import usable_cores

CPU_VARIABLE = "SPECDEC_CPU"
_MOST_THREADS = 1024


@cache
def kernels(user: str = "vector search") -> ModuleType:
    """The extension module.

    Args:
        user: what needs it, for the message.

    Raises:
        RuntimeUnavailableError: specdec was installed without it.
    """
    try:
        return import_module("specdec.kernels.cpu._native")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"{user} needs the native kernels, which this installation lacks ({error}): install specdec with a "
            "C++ compiler and without SPECDEC_NO_NATIVE"
        ) from None


def instruction_set() -> str:
    """The instruction set to use: SPECDEC_CPU, or the best one that this machine can run.

    Raises:
        InvalidArgumentError: this machine cannot run the one that was asked for.
    """
    known = list(kernels().supported_isas())
    wanted = os.environ.get(CPU_VARIABLE, "")
    if wanted and wanted not in known:
        raise InvalidArgumentError(
            f"{CPU_VARIABLE} is {wanted!r}, which this machine cannot run: choose from {', '.join(known)}"
        )
    return wanted or str(known[0])


def thread_count(threads: int | None) -> int:
    """`threads`, or one for each core that this process may use.

    Raises:
        InvalidArgumentError: it is not a whole number of at least 1, or too many.
    """
    if threads is None:
        return usable_cores()
    if (count := check_count("threads", threads)) > _MOST_THREADS:
        raise InvalidArgumentError(f"threads must be 1 to {_MOST_THREADS}, not {threads}")
    return count

"""Runtimes by name: which exist, which `auto` means here, and how one is made. Each imports its libraries when made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from specdec.errors import InvalidArgumentError, UnknownNameError

if TYPE_CHECKING:
    from specdec.runtimes.base import Runtime
    from specdec.store import Store


def _reference(store: Store, threads: int | None) -> Runtime:
    from specdec.runtimes.reference import ReferenceRuntime

    if threads is not None:
        warnings.warn(
            f"threads={threads} has no effect: the reference runtime uses the threads that MLX chooses", stacklevel=3
        )
    return ReferenceRuntime(store)


def _native(store: Store, threads: int | None) -> Runtime:
    from specdec.runtimes.native import NativeRuntime

    return NativeRuntime(store, threads=threads)


def _mlx(store: Store, threads: int | None) -> Runtime:
    from specdec.runtimes.mlx import MlxRuntime

    if threads is not None:
        warnings.warn(f"threads={threads} has no effect: the mlx runtime computes on the GPU", stacklevel=3)
    return MlxRuntime(store)


# Best first: "auto" takes the first one that is installed.
_RUNTIMES: dict[str, Callable[[Store, int | None], Runtime]] = {
    "mlx": _mlx,
    "native": _native,
    "reference": _reference,
}


def best_runtime() -> str:
    """The runtime that "auto" means: `native` where its extension module was built, else `reference`."""
    return "native" if find_spec("specdec.kernels.cpu._native") is not None else "reference"


def known_runtimes() -> list[str]:
    """Names that `create_runtime` accepts beside "auto", best first."""
    return list(_RUNTIMES)


def create_runtime(name: str, store: Store, *, threads: int | None = None) -> Runtime:
    """A runtime with the model of `store` loaded.

    Args:
        name: "auto", or one of `known_runtimes`.
        store: an open bucket store; must stay open as long as the runtime is used.
        threads: threads to compute with, at least 1; None leaves it to the runtime. The reference runtime cannot
            choose: it warns (UserWarning) and goes on.

    Raises:
        UnknownNameError: no runtime has this name.
        InvalidArgumentError: `threads` is no whole number of at least 1.
        RuntimeUnavailableError: the runtime cannot run here; the message says what to install.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InvalidArgumentError(f"threads must be a whole number of at least 1, not {threads!r}")
    if name == "auto":
        name = best_runtime()
    if name not in _RUNTIMES:
        raise UnknownNameError("runtime", name, ["auto", *_RUNTIMES])
    return _RUNTIMES[name](store, threads)

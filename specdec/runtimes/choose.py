"""Runtimes by name: which exist, which `auto` means here, and how one is made. Each imports its libraries when made."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.checks import is_integral
from specdec.errors import InvalidArgumentError, OptionError, RuntimeUnavailableError, UnknownNameError
from specdec.runtimes.features import lack
from specdec.warn import warn

if TYPE_CHECKING:
    from specdec.model.architecture import ModelConfig
    from specdec.runtimes.base import Runtime
    from specdec.runtimes.share import Part
    from specdec.store import Store


def _reference(store: Store, threads: int | None, share: Part | None) -> Runtime:
    from specdec.runtimes.reference.runtime import ReferenceRuntime

    if threads is not None:
        warn(f"threads={threads} has no effect: the reference runtime uses the threads that MLX chooses")
    return ReferenceRuntime(store, share=share)


def _native(store: Store, threads: int | None, share: Part | None) -> Runtime:
    from specdec.runtimes.native.runtime import NativeRuntime

    return NativeRuntime(store, threads=threads, share=share)


def _mlx(store: Store, threads: int | None, share: Part | None) -> Runtime:
    from specdec.runtimes.mlx.runtime import MlxRuntime
    from specdec.runtimes.share import Share

    if threads is not None:
        warn(f"threads={threads} has no effect: the mlx runtime computes on the GPU")
    if share is not None and not isinstance(share, Share):
        raise InvalidArgumentError("the mlx runtime does not run layers in stages: use --split outputs")
    return MlxRuntime(store, share=share)


# Best first: "auto" takes the first one that can run the model here.
_RUNTIMES: dict[str, Callable[[Store, int | None, Part | None], Runtime]] = {
    "mlx": _mlx,
    "native": _native,
    "reference": _reference,
}
STAGED = frozenset({"native", "reference"})  # runtimes that can hold consecutive layers


def best_runtime() -> str:
    """The runtime that "auto" means: `mlx` where MLX has a GPU (Metal, then CUDA), else `native` where its extension
    module was built, else `reference`."""
    return "mlx" if missing_gpu() is None else _best_on_processor()


def _best_on_processor(config: ModelConfig | None = None) -> str:
    """The processor's runtime, for a model if one is given."""
    if find_spec("specdec.kernels.cpu._native") is None:
        return "reference"
    if config is not None:
        from specdec.runtimes.native.runtime import NativeRuntime

        if NativeRuntime.missing(config):
            return "reference"
    return "native"


def missing_gpu() -> str | None:
    """Why the mlx runtime has no GPU here; None when it has one."""
    from specdec.runtimes.mlx.device import find_gpu

    try:
        find_gpu()
    except RuntimeUnavailableError as error:
        return str(error)
    return None


def _choose(store: Store) -> str:
    """The best runtime for a model. Says in one line when a GPU is here and not used."""
    reason = missing_gpu()
    if reason is None:
        from specdec.runtimes.mlx.runtime import MlxRuntime

        reason = lack("mlx", MlxRuntime.missing(store.config))
        if reason is None:
            return "mlx"
    elif not _gpu_is_here():
        return _best_on_processor(store.config)
    chosen = _best_on_processor(store.config)
    warn(f"the GPU is not used, runtime {chosen!r} is: {reason}")
    return chosen


def _gpu_is_here() -> bool:
    """Whether the machine has a GPU that MLX knows, whatever is installed: an Apple chip, or NVIDIA's driver."""
    return (platform.system(), platform.machine()) == ("Darwin", "arm64") or Path(
        "/proc/driver/nvidia/version"
    ).exists()


def known_runtimes() -> list[str]:
    """Names that `create_runtime` accepts besides "auto", best first."""
    return list(_RUNTIMES)


def chosen_runtime(name: str, store: Store) -> str:
    """The runtime that a name stands for with a model: "auto" is the best that runs it here.

    Raises:
        UnknownNameError: no runtime has this name.
    """
    if name == "auto":
        name = _choose(store)
    if name not in _RUNTIMES:
        raise UnknownNameError("runtime", name, ["auto", *_RUNTIMES])
    return name


def create_runtime(name: str, store: Store, *, threads: int | None = None, share: Part | None = None) -> Runtime:
    """A runtime with the model of `store` loaded.

    Args:
        name: "auto", or one of `known_runtimes`.
        store: an open bucket store; must stay open as long as the runtime is used.
        threads: threads to compute with, at least 1; None leaves it to the runtime. The reference runtime cannot
            choose: it warns (UserWarning) and goes on.
        share: what this device holds of a model that several devices divide; None for all.

    Raises:
        UnknownNameError: no runtime has this name.
        InvalidArgumentError: `threads` is not a whole number of at least 1, or the runtime does not execute a feature
            of the model.
        RuntimeUnavailableError: the runtime cannot run here; the message says what to install.
    """
    check_request(name, threads=threads)
    return _RUNTIMES[chosen_runtime(name, store)](store, threads, share)


def check_request(name: str, *, threads: int | None = None, context: int | None = None) -> None:
    """Refuse values that no model could be loaded with, before one is fetched and converted.

    Args:
        name: of a runtime, or "auto".
        threads: see `create_runtime`.
        context: tokens of prompt and answer to load a model for.

    Raises:
        UnknownNameError: no runtime has this name.
        OptionError: a number is not a whole one of at least 1.
    """
    if name not in ("auto", *_RUNTIMES):
        raise UnknownNameError("runtime", name, ["auto", *_RUNTIMES])
    for option, value in (("threads", threads), ("context", context)):
        if value is not None and (not is_integral(value) or value < 1):
            raise OptionError(option, f"must be a whole number of at least 1, not {value!r}")

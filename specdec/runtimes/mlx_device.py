"""Which GPU MLX can use here, and why not where it cannot. Nothing is allocated on it yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdec.errors import RuntimeUnavailableError

# The oldest MLX with `mx.fast.cuda_kernel`, `mx.fast.metal_kernel` and `mx.depends` as this runtime uses them.
_OLDEST = (0, 30)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and the MLX that drives it.

    Attributes:
        mx: MLX.
        backend: "metal" or "cuda".
        name: of the device.
        version: of MLX.
    """

    mx: Any
    backend: str
    name: str
    version: str


def find_gpu() -> Gpu:
    """The GPU, Metal before CUDA.

    Raises:
        RuntimeUnavailableError: there is none, or MLX has no backend for it or is too old.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        raise RuntimeUnavailableError(f"MLX cannot be loaded here ({error})") from None
    version = str(getattr(mx, "__version__", "0"))
    backend = _backend(mx)
    if backend is None:
        raise RuntimeUnavailableError(
            f"MLX {version} has no GPU here: on a Mac install mlx, on Linux with an NVIDIA GPU specdec-mlx[cuda13]"
        )
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST or not hasattr(mx.fast, f"{backend}_kernel"):
        raise RuntimeUnavailableError(f"MLX {version} is too old for the mlx runtime: install mlx>=0.31")
    return Gpu(mx, backend, _name(mx), version)


def _backend(mx: Any) -> str | None:
    for backend in ("metal", "cuda"):
        part = getattr(mx, backend, None)
        if part is not None and part.is_available():
            return backend
    return None


def _name(mx: Any) -> str:
    """Name of the device as MLX gives it."""
    for source in (getattr(mx, "device_info", None), getattr(getattr(mx, "metal", None), "device_info", None)):
        try:
            found = source() if source is not None else {}
        except (RuntimeError, TypeError, ValueError):
            continue
        if "device_name" in found:
            return str(found["device_name"])
    return "GPU"

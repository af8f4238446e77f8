"""The one place that imports MLX, and the word that a user gets where it cannot be imported."""

from __future__ import annotations

import platform
from typing import Any

from specdec.errors import RuntimeUnavailableError

try:
    import mlx.core as mx
except ImportError as error:  # the package without a backend fails here too: its shared library is missing
    _hint = "pip install 'specdec-mlx[cpu]'" if platform.system() == "Linux" else "pip install mlx"
    raise RuntimeUnavailableError(f"MLX cannot be loaded here: install it with {_hint} ({error})") from None

__all__ = ["compute_device", "mx"]


def compute_device() -> Any:
    """The `mx.Device` that the reference runtime computes on: the CPU on Linux, elsewhere MLX's default device."""
    return mx.Device(mx.cpu) if platform.system() == "Linux" else mx.default_device()

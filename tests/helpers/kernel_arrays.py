"""What single GPU kernels take and give, for their tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from specdec.runtimes.mlx.pack import padded

ROUNDING = 2e-6  # of float32 sums of up to 256 products, relative to the largest result


def activations(mx: Any, rows: int, width: int) -> tuple[Any, np.ndarray]:
    """Random rows as the kernels take them, (rows, 1, padded), and as they are."""
    values = np.random.default_rng(width).standard_normal((16, width)).astype(np.float32)[:rows]
    wide = np.zeros((rows, 1, padded(width)), np.float32)
    wide[:, 0, :width] = values
    return mx.array(wide), values


def close(found: Any, wanted: np.ndarray, tolerance: float = ROUNDING) -> None:
    """Require equal shapes, and errors of at most `tolerance` times the largest wanted number."""
    found = np.array(found)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()

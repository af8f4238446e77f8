"""mlx-lm's `convert`, which writes MLX checkpoints: not this project's work, and it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from specdec.errors import InvalidArgumentError


def convert(
    hf_path: str,
    mlx_path: str = "mlx_model",
    quantize: bool = False,
    q_group_size: int | None = None,
    q_bits: int | None = None,
    q_mode: str = "affine",
    dtype: str | None = None,
    upload_repo: str | None = None,
    revision: str | None = None,
    dequantize: bool = False,
    quant_predicate: Callable[..., Any] | str | None = None,
    trust_remote_code: bool = False,
) -> NoReturn:
    """Refuse: MLX checkpoints are written by mlx-lm, and read here.

    Raises:
        InvalidArgumentError: always.
    """
    raise InvalidArgumentError(
        f"convert writes MLX checkpoints, which specdec reads and does not write: call mlx_lm.convert, then load its "
        f"folder {mlx_path!r} here, or load {hf_path!r} as it is"
    )

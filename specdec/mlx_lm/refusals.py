"""Arguments of mlx-lm that cannot be honoured here, each refused in one sentence that says why."""

from __future__ import annotations

from specdec.checks import is_integral
from specdec.errors import InvalidArgumentError


def check_cache_arguments(*, kv_bits: object, input_embeddings: object = None) -> None:
    """Refuse what would change keys and values, or replace token ids.

    Raises:
        InvalidArgumentError: one of them is not None.
    """
    if kv_bits is not None:
        raise InvalidArgumentError(
            f"kv_bits={kv_bits!r} is refused: quantised keys and values would change the tokens, and specdec promises "
            "those of the model; leave it out"
        )
    if input_embeddings is not None:
        raise InvalidArgumentError("input_embeddings is refused: specdec reads token ids only; give a prompt instead")


def check_kv_size(max_kv_size: object, needed: int) -> None:
    """Refuse a rotating cache that would rotate: a cache that forgets tokens changes the answer.

    Args:
        max_kv_size: as in mlx-lm; None for no bound.
        needed: most tokens of prompt and answer together.

    Raises:
        InvalidArgumentError: it is not a whole number of at least 1, or not enough for the tokens.
    """
    if max_kv_size is None:
        return
    if not is_integral(max_kv_size) or max_kv_size < 1:
        raise InvalidArgumentError(f"max_kv_size must be a whole number of at least 1 or None, not {max_kv_size!r}")
    if needed > max_kv_size:
        raise InvalidArgumentError(
            f"max_kv_size={max_kv_size} is refused: prompt and answer may take {needed} tokens, and specdec keeps the "
            "keys and values of all; leave it out, or lower max_tokens"
        )

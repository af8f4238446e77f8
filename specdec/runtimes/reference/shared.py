"""Rows of the reference runtime where several devices divide a model: MLX arrays on their way through `Share`.

Every product is put together as soon as it is there, but for queries, keys and values, whose heads stay where they are.
So all that follows sees whole rows, in the shapes that one device has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specdec.kernels.reference.mlx_backend import mx
from specdec.runtimes.share import Part
from specdec.store.share import can_divide

_STAY = (".attn.q", ".attn.k", ".attn.v", ".attn.q.bias", ".attn.k.bias", ".attn.v.bias", ".attn.sinks")


class SharedRows:
    """Puts rows together.

    Args:
        share: what this device holds.
    """

    def __init__(self, share: Part) -> None:
        self._share = share
        layers = range(share.config.num_layers)
        self.kv_heads = [part.stop - part.start for part in map(share.kv_heads, layers)]

    def has_own(self, name: str) -> bool:
        """Whether a vector is to be this device's part of it: what is added to whole rows is whole."""
        return self._share.is_staged or self.stays(name)

    @staticmethod
    def stays(name: str) -> bool:
        """Whether a matrix or vector belongs to heads, of which this device has its own alone."""
        return name.endswith(_STAY)

    def can_divide(self, view: str) -> bool:
        """Whether there is such a draft view on every device."""
        return can_divide(view, self._share)

    def after(self, name: str, rows: list[Any]) -> list[Any]:
        """What follows a product with a matrix: its rows of all outputs, or of this device's heads."""
        return rows if self.stays(name) else self.join(name, rows)

    def join(self, name: str, rows: list[Any]) -> list[Any]:
        """Rows (1, all outputs of the matrix `name`) from this device's, (1, outputs here)."""
        mx.eval(rows)
        own = np.concatenate([np.array(row, dtype=np.float32).reshape(1, -1) for row in rows])
        return _rows_of(self._share.gather(name, own))

    def own(self, name: str, row: Any) -> Any:
        """This device's outputs of a row."""
        return mx.contiguous(row[:, self._share.outputs(name)])

    @property
    def begins(self) -> bool:
        """Whether rows begin as embeddings on this device."""
        return self._share.embeds

    def leave(self, rows: list[Any]) -> None:
        """Hand on rows (1, hidden) behind the last layer of this device."""
        mx.eval(rows)
        self._share.leave(np.concatenate([np.array(row, dtype=np.float32) for row in rows]))

    def embed(self, tokens: Sequence[int], find: Callable[[int], Any]) -> list[Any]:
        """Embeddings (1, hidden) of tokens, each from the device that holds it.

        Args:
            tokens: ids.
            find: the embedding of one of this device's tokens, counted from its first.
        """
        held = self._share.embedded
        own = np.zeros((len(tokens), self._share.config.hidden), np.float32)
        for row, token in enumerate(tokens):
            if held.start <= token < held.stop:
                own[row] = np.array(find(token - held.start))[0]
        return _rows_of(self._share.gather_embeddings(tokens, own))


def _rows_of(found: Any) -> list[Any]:
    return [mx.array(row[None]) for row in found]

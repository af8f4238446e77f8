"""The forms of 16-bit weights that the exact view reads: for effort 1, and for whole inputs at efforts below it.

Both are held where the GPU's memory has room for two. Otherwise the form that passes need replaces the other, matrix by
matrix. Where a step is one kernel, both are always held, because tables of addresses and prompts refer to the first.
"""

from __future__ import annotations

from typing import Any

from specdec.runtimes.mlx.model import Transformer
from specdec.runtimes.mlx.weights import Linear, Loader

_ROOM = 0.9  # share of the memory that weights may fill: caches and activations need the rest
_LIMITS = ("max_recommended_working_set_size", "total_memory", "memory_size")  # MLX's names of a GPU's memory size


class ExactForms:
    """The forms of one model's exact weights.

    Args:
        mx: MLX.
        loader: packs matrices.
        transformer: the model's transformer, which holds the form for effort 1.
    """

    def __init__(self, mx: Any, loader: Loader, transformer: Transformer) -> None:
        self._mx, self._loader, self._transformer = mx, loader, transformer
        self._has_inputs = self._lacks_dense = False

    def need_inputs(self, *, alone: bool) -> None:
        """Make the form for whole inputs.

        Args:
            alone: the form for effort 1 may be dropped.
        """
        if self._has_inputs:
            return
        whole = self._transformer.whole is not None
        self._lacks_dense = alone and not whole and not self._has_room()
        for linear in self._transformer.linears:
            self._loader.inputs(linear, whole=whole)
            if self._lacks_dense and not self._is_table(linear):
                linear.weights = None
        if self._lacks_dense:
            self._transformer.forget_graphs()
        self._has_inputs = True

    def need_dense(self) -> None:
        """Make the form for effort 1; drop the other where it had replaced this one."""
        if not self._lacks_dense:
            return
        for linear in self._transformer.linears:
            linear.plain = ()
            if linear.weights is None:
                self._loader.exact(linear)
        self._transformer.forget_graphs()
        self._has_inputs = self._lacks_dense = False

    def _is_table(self, linear: Linear) -> bool:
        """Whether a matrix is also the table of embeddings."""
        return linear is self._transformer.head and self._transformer.embeddings is None

    def _has_room(self) -> bool:
        """Whether the memory has room for another form; assumed where MLX does not report its size."""
        info: dict[str, Any] = getattr(self._mx, "device_info", dict)()
        limits = [int(info[name]) for name in _LIMITS if name in info]
        more = sum(linear.weights.nbytes for linear in self._transformer.linears)
        return not limits or self._mx.get_active_memory() + more < _ROOM * limits[0]

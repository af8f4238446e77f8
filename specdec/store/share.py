"""A store as one of several devices reads it: its outputs of every matrix, with the scores of the whole ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from specdec.errors import UnknownNameError
from specdec.store.store import Store
from specdec.weights.base import ViewMatrix
from specdec.weights.bucket8 import LAYOUT
from specdec.weights.dtypes import to_float32
from specdec.weights.quantised import QuantisedTable
from specdec.weights.registry import get_view

_DIVIDED_VIEWS = ("bucket", "own", "nested", "int4", "bucket8")


class Division(Protocol):
    """What a device holds; see `specdec.runtimes.share.Share`."""

    vectors: dict[str, slice]

    @property
    def tokens(self) -> slice:
        """Its tokens."""
        ...

    def outputs(self, matrix: str) -> slice:
        """Its outputs of a matrix."""
        ...

    def is_cut_in(self, size: int) -> bool:
        """Whether outputs are cut at multiples of `size` alone."""
        ...

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Its share of every matrix, (out, in)."""
        ...


def can_divide(view: str, division: Division) -> bool:
    """Whether a draft view can be divided like this: others' arrays are not known here, and `bucket8` has whole buckets
    of its own."""
    return view in _DIVIDED_VIEWS and (view != "bucket8" or division.is_cut_in(LAYOUT.bucket_size))


class StoreShare(Store):
    """The share of a store that one device holds. Matrices, the embedding and biases have its outputs alone, with the
    scores of whole matrices, since every device chooses inputs from the whole row. Arrays are read where they are
    mapped: of quantised matrices its rows alone, of those in buckets its part of every line.

    Args:
        whole: the open store.
        division: what the device holds.
    """

    def __init__(self, whole: Store, division: Division) -> None:
        self.__dict__.update(whole.__dict__)
        self._whole, self._division = whole, division
        self._shapes = division.shapes()

    @property
    def whole(self) -> Store:
        """The store of all devices."""
        return self._whole

    def bucket_arrays(self, name: str) -> dict[str, np.ndarray]:
        """See `Store.bucket_arrays`; a copy, since a device's part of an array is not in one piece."""
        outputs, size = self._division.outputs(name), self.layout.bucket_size
        buckets = slice(outputs.start // size, -(-outputs.stop // size))
        return {
            part: array if part == "scores" else np.ascontiguousarray(array[:, buckets])
            for part, array in self._whole.bucket_arrays(name).items()
        }

    def table(self, name: str) -> np.ndarray | QuantisedTable:
        """See `Store.table`; of the embedding the device's tokens."""
        table = self._whole.table(name)
        if name != "embed":
            return table
        rows = self._division.tokens
        if not isinstance(table, QuantisedTable):
            return table[rows]
        arrays = {part: array[rows] for part, array in table.arrays.items()}
        return QuantisedTable(table.type, (rows.stop - rows.start, table.shape[1]), arrays)

    def table_rows(self, name: str, rows: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """See `Store.table_rows`; rows of the embedding count from the device's first token."""
        if name != "embed":
            return self._whole.table_rows(name, rows)
        table = self.table(name)
        length = table.shape[0]
        index = np.arange(length)[rows]
        return table.rows(index) if isinstance(table, QuantisedTable) else to_float32(table[index], self.dtype)

    def vector(self, name: str) -> np.ndarray:
        """See `Store.vector`."""
        return self._whole.vector(name)[self._division.vectors[name]]

    def view(self, view: str, name: str) -> dict[str, np.ndarray]:
        """See `Store.view`."""
        return self._part_of_view(view, name, self._whole.view(view, name))

    def draft(self, view: str, name: str) -> ViewMatrix:
        """See `Store.draft`. A view with arrays of its own is built of the whole matrix, whose scores it needs."""
        kind = get_view(view)
        if kind.reads_exact or view == "nested" or view in self.views:
            return super().draft(view, name)
        arrays = kind.arrays(self._whole.draft(view, name))
        return kind.load(self._part_of_view(view, name, dict(arrays)), self.exact(name))

    def _part_of_view(self, view: str, name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A device's part of the arrays of a matrix in a draft view."""
        outputs = self._division.outputs(name)
        if view == "int4":
            packed = slice(outputs.start // 2, -(-outputs.stop // 2))
            parts = {"q": packed, "scale": outputs}
        elif view == "bucket8":
            size = LAYOUT.bucket_size
            buckets = slice(outputs.start // size, -(-outputs.stop // size))
            parts = {part: buckets for part in arrays if part.startswith("tier")}
        else:
            raise UnknownNameError("view", view, list(_DIVIDED_VIEWS), reason="cannot be divided among devices")
        return {part: np.ascontiguousarray(a[:, parts[part]]) if part in parts else a for part, a in arrays.items()}

    def _quantised(self, name: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:  # noqa: ARG002
        rows = self._division.outputs(name)
        whole = self._whole._quantised(name, self._whole._shape(name))
        return {part: array[rows] for part, array in whole.items()}

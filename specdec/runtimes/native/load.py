"""From a store to the native runtime's own layout: vectors, tables, and every matrix as the store keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import StoreError
from specdec.weights.dtypes import all_finite, from_float32
from specdec.weights.quantised import QuantisedMatrix, QuantisedTable, UpperMatrix

if TYPE_CHECKING:
    from specdec.store import Store

# Mapped bytes of the store that may be resident while it is packed, beyond what is being read.
_RELEASE_BYTES = 8 << 20
# Outputs that the kernels of quantised matrices keep together: a slice begins at a multiple of it.
_QUANTISED_OUTPUTS = 128
# Inputs that are packed together.
_PACKED_INPUTS = 64


def load_weights(model: Any, store: Store, index: dict[str, int], *, coded_inputs: int) -> None:
    """Pack every tensor of a store.

    Args:
        model: a new `_native.Model`.
        store: where the weights come from.
        index: number of every matrix by its canonical name.
        coded_inputs: inputs whose 16-bit weights are coded together, `_native.CODED_INPUTS`.

    Raises:
        StoreError: something holds NaN or infinity, or tier masks contradict the layout.
    """
    store.release_pages()
    for name, number in index.items():
        if not store.shape(name)[0]:
            continue  # all its outputs lie on other devices
        if name in store.types:
            model.set_quantised(number, store.types[name], upper=isinstance(store.exact(name), UpperMatrix))
        else:
            model.set_tiers(number, store.loaded_tiers(name))
    for name in model.vector_names:
        vector = np.ascontiguousarray(store.vector(name), dtype=np.float32)
        if name.endswith("_norm"):
            vector = vector + np.float32(store.config.norm_offset)
        if not np.isfinite(vector).all():
            raise StoreError(f"vector {name!r} holds an infinite number or a NaN: convert the model again")
        model.load_vector(name, vector)
    for name in store.config.tables():
        _load_table(model, store, name)
    store.release_pages()
    mapped = 0
    for name, number in index.items():
        if not store.shape(name)[0]:
            continue
        model.load_scores(number, np.ascontiguousarray(store.input_scores(name)[:, 0]))
        if name not in store.types:
            mapped += _load_bucketed(model, store, name, number, coded_inputs)
        else:
            matrix = store.exact(name)
            assert isinstance(matrix, QuantisedMatrix)
            mapped += _load_blocks(store, matrix, name, lambda *part, at=number: model.load_quantised(at, *part))
        if mapped > _RELEASE_BYTES:
            store.release_pages()
            mapped = 0
    store.release_pages()


def _load_table(model: Any, store: Store, name: str) -> None:
    table = store.table(name)
    if not table.shape[0]:
        return
    if name != "embed":
        # A router is a float32 product of a few rows; one in blocks is rounded to 16 bits.
        bits = from_float32(store.table_rows(name), store.dtype) if isinstance(table, QuantisedTable) else table
        _check_finite(bits, store.dtype, name)
        model.load_router(int(name.split(".")[1]), bits)
    elif isinstance(table, QuantisedTable):
        _load_blocks(store, table, name, lambda *part: model.load_embedding_blocks(table.type, *part))
    else:
        _check_finite(table, store.dtype, name)
        model.load_embedding(table)


def _load_blocks(store: Store, table: QuantisedTable, name: str, take: Any) -> int:
    """Hand over a quantised matrix or table in slices of outputs. Returns the mapped bytes read since pages were last
    released."""
    outputs = table.shape[0]
    step = max(1, _RELEASE_BYTES * outputs // table.block_bytes // _QUANTISED_OUTPUTS) * _QUANTISED_OUTPUTS
    for first in range(0, outputs, step):
        if first:
            store.release_pages()
        last = min(first + step, outputs)
        rows = {part: np.ascontiguousarray(array[first:last]) for part, array in table.arrays.items()}
        problem = take(rows, first, last)
        if problem:
            raise StoreError(f"matrix {name!r} {problem}: convert the model again")
    return table.block_bytes if step >= outputs else _RELEASE_BYTES


def _load_bucketed(model: Any, store: Store, name: str, number: int, coded_inputs: int) -> int:
    """Pack the tiers of a matrix that are loaded, a large one in slices. Returns the mapped bytes read since pages were
    last released."""
    arrays = store.bucket_arrays(name)
    values = [array for part, array in arrays.items() if part.endswith(".values")]
    masks = [array for part, array in arrays.items() if part.endswith(".mask")]
    inputs, nbytes = len(arrays["scores"]), sum(array.nbytes for array in arrays.values())
    last = 0
    while last < inputs:
        if last:
            store.release_pages()
        # The first slice shows whether the matrix takes the coded form.
        unit = coded_inputs if last == 0 or model.is_coded(number) else _PACKED_INPUTS
        first, last = last, min(last + max(unit, _RELEASE_BYTES * inputs // nbytes // unit * unit), inputs)
        problem = model.load_values(number, values, masks, first, last)
        if problem:
            raise StoreError(f"matrix {name!r} {problem}: convert the model again")
    return nbytes if first == 0 else _RELEASE_BYTES


def _check_finite(bits: NDArray[np.uint16], dtype: str, name: str) -> None:
    rows = max(1, (1 << 20) // bits.shape[1])
    if not all(all_finite(bits[first : first + rows], dtype) for first in range(0, len(bits), rows)):
        raise StoreError(f"table {name!r} holds an infinite number or a NaN: convert the model again")

"""What is in a store, in numbers: `inspect_store`. Printing them on request is the command line's part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specdec.model.bounds import MOST_CONTEXT
from specdec.store.plan import EXACT_FILE
from specdec.store.store import Store
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import to_float32
from specdec.weights.quantised import QuantisedMatrix, QuantisedTable

_CHUNK_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """One matrix.

    Attributes:
        shape: (out, in).
        type: its quantised type, or the store's dtype.
        nbytes: bytes in the exact view, scores included.
        energy: share of the sum of w^2 in each tier, 0 to 1; zeros for a matrix of zeros, empty for a quantised one.
    """

    shape: tuple[int, int]
    type: str
    nbytes: int
    energy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What `specdec inspect` shows.

    Attributes:
        path: folder of the store.
        version: store format.
        checksum: SHA-256 that stands for every byte of the store.
        verified: whether every byte was read and compared.
        architecture: of the model.
        context: tokens of the context that the model is loaded for by default.
        longest_context: tokens of the longest context that it can be loaded for.
        parameters: weights in matrices, tables and vectors.
        dtype: of matrices and tables that are not quantised.
        types: bytes of the matrices and tables of each type, without scores: quantised types, and `dtype`.
        layout: bucket and tier sizes.
        dithered: seed of the noise that was added, or None.
        source: where the weights came from.
        views: stored draft views.
        file_bytes: bytes of every file but `store.json`.
        part_bytes: bytes of `exact.safetensors` by part: vectors, tables, scores, tier by tier, padding, header.
        dense_bytes: bytes of the model without buckets: matrices and tables in 16 bits, vectors in 32.
        ratio: bytes of `exact.safetensors` over `dense_bytes`.
        view_ratios: bytes of each stored draft view over `dense_bytes`.
        energy: share of the energy (sum of w^2) of all weights in buckets in each tier.
        energy_by_kind: the same by kind of matrix (`q`, `down`, `head`, …).
        matrices: every matrix by canonical name.
    """

    path: str
    version: int
    checksum: str
    verified: bool
    architecture: str
    context: int
    longest_context: int
    parameters: int
    dtype: str
    types: dict[str, int]
    layout: dict[str, Any]
    dithered: int | None
    source: dict[str, str]
    views: tuple[str, ...]
    file_bytes: dict[str, int]
    part_bytes: dict[str, int]
    dense_bytes: int
    ratio: float
    view_ratios: dict[str, float]
    energy: tuple[float, ...]
    energy_by_kind: dict[str, tuple[float, ...]]
    matrices: dict[str, MatrixReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """Lines for a person; matrices are summed by kind."""
        sizes = self.layout["tier_sizes"]
        most = "any length" if self.longest_context == MOST_CONTEXT else f"up to {self.longest_context}"
        longest = f" ({most} with --context)" if self.longest_context > self.context else ""
        checked = "verified" if self.verified else "not verified"
        lines = [
            f"store       {self.path} (format {self.version})",
            f"checksum    {self.checksum} ({checked})",
            f"model       {self.architecture}, {self.parameters / 1e6:.1f} M parameters, {', '.join(self.types)}",
            f"context     {self.context} tokens{longest}",
            f"source      {', '.join(f'{key} {value}' for key, value in self.source.items())}",
            f"dithered    {'no' if self.dithered is None else f'yes, seed {self.dithered}: not the original weights'}",
            f"buckets     {self.layout['bucket_size']} outputs, tiers of {' + '.join(map(str, sizes))}"
            if self.energy_by_kind
            else "buckets     none: every matrix is quantised",
            f"views       exact{''.join(f', {view}' for view in self.views)}",
            f"exact       {_mb(self.file_bytes[EXACT_FILE])}, {self.ratio:.3f} of dense ({_mb(self.dense_bytes)})",
        ]
        lines += [f"view {name:<6} {ratio:.3f} of dense" for name, ratio in self.view_ratios.items()]
        lines += ["", "bytes by part"]
        lines += [f"  {part:<14} {_mb(nbytes):>12}" for part, nbytes in self.part_bytes.items()]
        lines += ["", "bytes by type"]
        lines += [f"  {kind:<14} {_mb(nbytes):>12}" for kind, nbytes in self.types.items()]
        if self.energy_by_kind:
            lines += ["", "share of weight energy by tier"]
            lines += [f"  {'':<8}" + "".join(f"{k:>8}" for k in range(len(sizes)))]
            rows = self.energy_by_kind | {"all": self.energy}
            lines += [f"  {kind:<8}" + "".join(f"{share:>8.3f}" for share in shares) for kind, shares in rows.items()]
        lines += ["", "matrices"]
        lines += [f"  {shape:<32} x {count}" for shape, count in self._shapes().items()]
        return "\n".join(lines)

    def _shapes(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name, matrix in self.matrices.items():
            label = f"{_kind(name):<6} {matrix.shape[0]} x {matrix.shape[1]} {matrix.type}"
            counts[label] = counts.get(label, 0) + 1
        return counts


def inspect_store(path: str | Path, *, verify: bool = True) -> StoreReport:
    """Measure a store. Reads every weight once, and every byte once more when verifying.

    Raises:
        StoreError: as `Store.open`.
    """
    store = Store.open(path, verify=verify)
    config = store.config
    matrices: dict[str, MatrixReport] = {}
    totals = np.zeros(store.layout.num_tiers)
    by_kind: dict[str, np.ndarray] = {}
    for name in config.matrices():
        matrix = store.exact(name)
        if isinstance(matrix, QuantisedMatrix):
            matrices[name] = MatrixReport(matrix.shape, matrix.type, matrix.nbytes, ())
            continue
        energy = tier_energy(matrix)
        matrices[name] = MatrixReport(matrix.shape, matrix.dtype, matrix.nbytes, _shares(energy))
        totals += energy
        by_kind[_kind(name)] = by_kind.get(_kind(name), np.zeros_like(energy)) + energy
    weights = sum(rows * columns for rows, columns in (config.matrices() | config.tables()).values())
    vectors = sum(config.vectors().values())
    dense = 2 * weights + 4 * vectors
    files = {name: record.nbytes for name, record in store.description.files.items()}
    return StoreReport(
        path=str(store.path),
        version=store.description.version,
        checksum=store.checksum,
        verified=verify,
        architecture=config.family,
        context=config.max_context,
        longest_context=config.longest_context or config.max_context,
        parameters=weights + vectors,
        dtype=store.dtype,
        types=type_bytes(store),
        layout=store.layout.to_dict(),
        dithered=store.dithered,
        source=store.source,
        views=store.views,
        file_bytes=files,
        part_bytes=store.part_bytes(),
        dense_bytes=dense,
        ratio=files[EXACT_FILE] / dense,
        view_ratios={view: store.view_bytes(view) / dense for view in store.views},
        energy=_shares(totals),
        energy_by_kind={kind: _shares(energy) for kind, energy in by_kind.items()},
        matrices=matrices,
    )


def type_bytes(store: Store) -> dict[str, int]:
    """Bytes of the matrices and tables of each type, without scores, the largest first."""
    sizes: dict[str, int] = {}
    for name in store.config.matrices():
        matrix = store.exact(name)
        kind = matrix.type if isinstance(matrix, QuantisedMatrix) else matrix.dtype
        sizes[kind] = sizes.get(kind, 0) + matrix.nbytes - matrix.scores.nbytes
    for name in store.config.tables():
        table = store.table(name)
        if isinstance(table, QuantisedTable):
            sizes[table.type] = sizes.get(table.type, 0) + table.block_bytes
        else:
            sizes[store.dtype] = sizes.get(store.dtype, 0) + table.nbytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def tier_energy(matrix: BucketedMatrix) -> np.ndarray:
    """Sum of w^2 in each tier, float64 (K,)."""
    energy = np.zeros(matrix.layout.num_tiers)
    for k, values in enumerate(matrix.values):
        flat = values.reshape(-1)
        for start in range(0, flat.size, _CHUNK_WEIGHTS):
            weights = to_float32(flat[start : start + _CHUNK_WEIGHTS], matrix.dtype).astype(np.float64)
            energy[k] += np.square(weights, out=weights).sum()  # no BLAS: its threads cost more than they save here
    return energy


def _shares(energy: np.ndarray) -> tuple[float, ...]:
    total = energy.sum()
    return tuple(float(part / total) if total else 0.0 for part in energy)


def _kind(name: str) -> str:
    """The last part of a canonical name: `q` of `layers.0.attn.q`."""
    return name.rsplit(".", 1)[-1]


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.2f} MB"

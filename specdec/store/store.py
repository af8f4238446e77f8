"""A bucket store opened for reading: checks it, and maps its tensors. Writing one is `conversion`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from specdec.errors import InvalidArgumentError, StoreError, UnknownNameError
from specdec.interrupts import unless_signalled
from specdec.model.architecture import ModelConfig
from specdec.parse import foreign
from specdec.read_file import open_regular
from specdec.store.description import FileRecord, StoreDescription
from specdec.store.partial import Parts, loaded_share, parts_to_load, plane_parts, rest_worth, tier_parts, without_tiers
from specdec.store.plan import EXACT_FILE, TOKENIZER_FOLDER, exact_tensors, view_file, view_tensors
from specdec.store.staging import MARKER
from specdec.store.tensorfile import FILLER, TensorFile, read_layout
from specdec.weights.base import TensorSpec, ViewMatrix
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import to_float32
from specdec.weights.inputs import input_scores
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import ExactMatrix, QuantisedMatrix, QuantisedTable, UpperMatrix, quantised_type
from specdec.weights.quantised_types import REST
from specdec.weights.registry import faults_of_view, get_view, known_views
from specdec.workers import Workers

_AGAIN = "the store is damaged, convert the model again"
_VERIFY_THREADS = 2


class Store:
    """A converted model on disk. Its arrays are memory-mapped: a tensor that is not used is never read.

    Attributes:
        path: its folder.
        config: the model, as it is loaded.
        layout: bucket and tier sizes.
        dtype: "float16" or "bfloat16", of matrices and tables that are not quantised.
        types: name of the quantised type of every matrix and table that has one, `views.quantised.quantised_type`.
        selection: what effort below 1 takes or leaves in the exact view: "inputs", or of 16-bit matrices "tiers".
        dithered: seed of the noise that was added to the weights, or None for the model as it came.
        source: where the weights came from.
        views: draft views that are stored; others are built when they are asked for.
        checksum: SHA-256 that stands for every byte of the store.
        loaded_share: share of the bits of all weights that are loaded; 1 unless `open` was asked for fewer.
    """

    def __init__(
        self,
        path: Path,
        description: StoreDescription,
        files: dict[str, TensorFile],
        *,
        load_share: float = 1.0,
        context: int | None = None,
    ) -> None:
        self.path = path
        self.description = description
        self.config: ModelConfig = description.config if context is None else description.config.for_context(context)
        self.layout: BucketLayout = description.layout
        self.dtype = description.dtype
        self.types = dict(description.types)
        all_quantised = all(name in self.types for name in self.config.matrices())
        self.selection = "inputs" if all_quantised else description.selection
        self.dithered = description.dither
        self.source = dict(description.source)
        self.views = description.views
        self.checksum = description.checksum
        self._files = files
        self._shapes = self.config.matrices()
        # Tiers that are loaded, and matrices that keep the upper bits of their codes alone.
        self._tiers = dict.fromkeys(self._shapes, self.layout.num_tiers)
        self._upper: frozenset[str] = frozenset()
        self.loaded_share = 1.0
        if load_share != 1:
            self._leave_out(load_share)

    @classmethod
    def open(
        cls, path: str | Path, *, verify: bool = True, load_share: float = 1.0, context: int | None = None
    ) -> Store:
        """Open a store.

        Sizes, shapes, the description's own checksum and the scores are always checked.

        Args:
            path: the store's folder.
            verify: also read every byte and compare checksums.
            load_share: share of the bits of all weights to load, at least. Below 1 the least important tiers are left
                out, and `exact` gives matrices with zeros in their place. Of quantised matrices the upper four bits of
                codes stay; `exact` gives those that are without the rest as `UpperMatrix`. What is left out is never
                read, but for codes in blocks (a store of version 2).
            context: tokens of the context that the model is loaded for, `ModelConfig.for_context`; None takes the
                model's own.

        Raises:
            StoreError: it is missing, unfinished, truncated, altered, of a newer version, or no store.
            InvalidArgumentError: `load_share` is out of range, or below 1 and all codes have four bits; or `context` is
                out of range.
        """
        path = Path(path)
        try:
            if not path.exists():
                raise StoreError(f"there is no store at {path}")
            if not path.is_dir():
                raise StoreError(f"{path} is a file, and a store is a folder with a store.json in it")
            if (path / MARKER).exists():
                raise StoreError(f"{path} is an unfinished conversion: convert the model again")
        except unless_signalled(OSError) as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from None
        with foreign(str(path)):
            return cls._open(path, verify=verify, load_share=load_share, context=context)

    @classmethod
    def _open(cls, path: Path, *, verify: bool, load_share: float, context: int | None) -> Store:
        description = StoreDescription.read(path)
        files = _open_files(path, description)
        with ExitStack() as stack:
            if load_share != 1:
                for file in files.values():
                    stack.enter_context(file.not_reading_ahead())
            store = cls(path, description, files, load_share=load_share, context=context)
            store._check_scores()
            if verify:
                store.verify()
        return store

    @property
    def tokenizer_path(self) -> Path:
        """The folder with the tokenizer's files."""
        return self.path / TOKENIZER_FOLDER

    @property
    def quantised(self) -> bool:
        """Whether any matrix or table is kept in quantised blocks."""
        return bool(self.types)

    @property
    def hides_bits(self) -> bool:
        """Whether quantised matrices are loaded without the lower bits of their codes."""
        return bool(self._upper)

    def exact(self, name: str) -> ExactMatrix:
        """A matrix in the exact view, memory-mapped.

        Args:
            name: canonical, one of `config.matrices()`.

        Raises:
            InvalidArgumentError: the model has no such matrix.
        """
        shape = self._shape(name)
        file = self._files[EXACT_FILE]
        if name in self.types:
            kind = UpperMatrix if name in self._upper else QuantisedMatrix
            return kind(self.types[name], shape, self._quantised(name, shape), file.array(f"{name}.scores"))
        return self.bucketed(name)

    def shape(self, name: str) -> tuple[int, int]:
        """(out, in) of a matrix that the model has."""
        return self._shape(name)

    def bucket_arrays(self, name: str) -> dict[str, np.ndarray]:
        """What is loaded of a matrix in buckets: the arrays of `BucketedMatrix.tensors` but for tiers left out. Mapped.

        Raises:
            InvalidArgumentError: the model has no such matrix, or it is quantised.
        """
        shape = self._shape(name)
        if name in self.types:
            raise InvalidArgumentError(f"matrix {name!r} is in {self.types[name]} blocks and not in buckets")
        parts, file = BucketedMatrix.tensors(shape, self.layout, dtype=self.dtype), self._files[EXACT_FILE]
        return {part: file.array(f"{name}.{part}") for part in parts if self._is_loaded(f"{name}.{part}")}

    def input_scores(self, name: str) -> np.ndarray:
        """Mean |w| of every input of a matrix, by which whole inputs are chosen: float32 (in, 1).

        Raises:
            InvalidArgumentError: the model has no such matrix.
        """
        self._shape(name)
        scores = self._files[EXACT_FILE].array(f"{name}.scores")
        if name in self.types:
            return scores
        return input_scores(scores, self.layout, loaded=self._tiers[name])

    def loaded_tiers(self, name: str) -> int:
        """How many tiers of a matrix in buckets are loaded; the last ones are left out first."""
        return self._tiers[name]

    def bucketed(self, name: str) -> BucketedMatrix:
        """A matrix that is known to be in buckets, memory-mapped.

        Raises:
            InvalidArgumentError: the model has no such matrix, or it is quantised.
        """
        arrays, shape = self.bucket_arrays(name), self._shapes[name]
        if self._tiers[name] < self.layout.num_tiers:
            return without_tiers(arrays, shape, self.dtype, self.layout)
        return BucketedMatrix.from_arrays(arrays, shape=shape, dtype=self.dtype, layout=self.layout)

    def table(self, name: str) -> np.ndarray | QuantisedTable:
        """A table of `config.tables()`, memory-mapped: uint16 (rows, columns), raw bits, or quantised blocks.

        Raises:
            InvalidArgumentError: the model has no such table.
        """
        if name not in self.config.tables():
            raise InvalidArgumentError(f"this model has no table {name!r}: it has {sorted(self.config.tables())}")
        if name in self.types:
            shape = self.config.tables()[name]
            return QuantisedTable(self.types[name], shape, self._quantised(name, shape))
        return self._files[EXACT_FILE].array(name)

    def table_rows(self, name: str, rows: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """Rows of a table, float32 (rows, columns).

        Raises:
            InvalidArgumentError: the model has no such table.
        """
        table = self.table(name)
        index = np.arange(self.config.tables()[name][0])[rows]
        return table.rows(index) if isinstance(table, QuantisedTable) else to_float32(table[index], self.dtype)

    def vector(self, name: str) -> np.ndarray:
        """A vector of `config.vectors()`: float32 (n,), memory-mapped.

        Raises:
            InvalidArgumentError: the model has no such vector.
        """
        if name not in self.config.vectors():
            raise InvalidArgumentError(f"this model has no vector {name!r}: names look like 'layers.0.attn_norm'")
        return self._files[EXACT_FILE].array(name)

    def view(self, view: str, name: str) -> dict[str, np.ndarray]:
        """The stored arrays of one matrix in a draft view, memory-mapped (F16 as float16, BF16 as raw bits).

        Raises:
            UnknownNameError: that view is not stored here.
            InvalidArgumentError: the model has no such matrix.
        """
        self._shape(name)
        if view not in self.views:
            raise UnknownNameError("stored view", view, list(self.views))
        file = self._files[view_file(view)]
        arrays = {full: file.array(full) for full in file.layout.tensors if full.startswith(f"{name}.")}
        return {
            full[len(name) + 1 :]: array.view(np.float16) if file.layout.tensors[full].spec.dtype == "F16" else array
            for full, array in arrays.items()
        }

    def draft(self, view: str, name: str) -> ViewMatrix:
        """A matrix in a draft view: from the store where it is stored, else built now from the exact one.

        Raises:
            UnknownNameError: there is no such view.
            InvalidArgumentError: the model has no such matrix.
        """
        kind, exact = get_view(view), self.exact(name)
        with faults_of_view(view, "load" if view in self.views else "build"):
            return kind.load(self.view(view, name), exact) if view in self.views else kind.build(exact)

    def part_bytes(self) -> dict[str, int]:
        """Bytes of the exact view's file by part: vectors, tables, scores, each quantised type but for the rest of its
        codes in planes, that rest, every tier's values and masks, all else."""
        layout = self._files[EXACT_FILE].layout
        parts = {"vectors": 0, "tables": 0}
        for name, placed in layout.tensors.items():
            if name.startswith(FILLER):
                continue
            if name in self.config.vectors():
                part = "vectors"
            elif name in self.config.tables() or name.rsplit(".", 1)[0] in self.config.tables():
                part = "tables"
            elif name.endswith((".values", ".mask")):
                part = ".".join(name.rsplit(".", 2)[-2:])
            else:
                matrix, part = name.rsplit(".", 1)
                kind = self.types.get(matrix, "")
                part = {"scores": part, REST: f"{kind}.{REST}"}.get(part, kind)
            parts[part] = parts.get(part, 0) + placed.spec.nbytes
        return parts | {"header, padding": layout.nbytes - sum(parts.values())}

    def view_bytes(self, view: str) -> int:
        """Bytes of a stored draft view's file."""
        return self._files[view_file(view)].layout.nbytes

    def check_files(self) -> None:
        """Refuse to continue with files that were changed since the store was opened; before arrays of it are read that
        were asked for earlier.

        Raises:
            StoreError: a file was overwritten or truncated.
        """
        for file in self._files.values():
            file.check()

    def release_pages(self) -> None:
        """Tell the system that the mapped pages are not needed now; they would count as this process's memory.

        Raises:
            StoreError: see `check_files`.
        """
        for file in self._files.values():
            file.release()

    def verify(self) -> None:
        """Read every byte that is loaded and compare with the checksums of the description.

        Raises:
            StoreError: something differs; the message names the tensor or file.
        """
        jobs: list[tuple[str, str, Callable[[], str]]] = []
        for name, record in self.description.files.items():
            if name in self._files:
                file = self._files[name]
                jobs += [
                    (f"tensor {tensor!r} in {file.path}", wanted, partial(file.checksum, tensor))
                    for tensor, wanted in record.tensors.items()
                    if name != EXACT_FILE or self._is_loaded(tensor)
                ]
            else:
                jobs.append((str(self.path / name), record.sha256, partial(_file_checksum, self.path / name)))
        with Workers(_VERIFY_THREADS) as workers:  # an interrupt does not wait for the rest of a large file
            found = [workers.submit(checksum) for _, _, checksum in jobs]
            for (what, wanted, _), job in zip(jobs, found, strict=True):
                if job.result() != wanted:
                    raise StoreError(f"{what} was altered: {_AGAIN}")

    def _leave_out(self, share: float) -> None:
        parts = {name: self._parts(name) for name in self._shapes}
        kept = parts_to_load(parts, share=share)
        self._tiers = {name: kept[name] for name in self._shapes if name not in self.types}
        self._upper = frozenset(name for name in kept if name in self.types and kept[name] < len(parts[name].bits))
        self.loaded_share = loaded_share(kept, parts)
        self.release_pages()

    def _parts(self, name: str) -> Parts:
        if name not in self.types:
            return tier_parts(self._files[EXACT_FILE].array(f"{name}.scores"), self._shapes[name], self.layout)
        worth = self.description.rests.get(name)
        if worth is None:
            matrix = self.exact(name)
            assert isinstance(matrix, QuantisedMatrix)
            worth = rest_worth(matrix)
        return plane_parts(self.types[name], self._shapes[name], worth)

    def _is_loaded(self, tensor: str) -> bool:
        """Whether a tensor of the exact view's file was not left out: as one of a tier, or as the rest of codes."""
        matrix, _, part = tensor.rpartition(".")
        if part == REST:
            return matrix not in self._upper
        matrix, _, part = tensor.rpartition(".tier")
        return not matrix or int(part.split(".")[0]) < self._tiers[matrix]

    def _shape(self, name: str) -> tuple[int, int]:
        if name not in self._shapes:
            raise InvalidArgumentError(
                f"this model has no matrix {name!r}: names look like 'layers.0.attn.q' or 'head'"
            )
        return self._shapes[name]

    def _quantised(self, name: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """The arrays of a quantised matrix or table that are loaded."""
        parts = quantised_type(self.types[name], planes=name in self.description.rests).tensors(shape)
        file = self._files[EXACT_FILE]
        return {part: file.array(f"{name}.{part}") for part in parts if self._is_loaded(f"{name}.{part}")}

    def _check_scores(self) -> None:
        """Scores that are not finite or increase would break effort selection, and mean that weights are not finite."""
        for file in self._files.values():
            for name in (name for name in file.layout.tensors if name.endswith(".scores")):
                scores = file.array(name)
                if not (np.isfinite(scores).all() and (scores >= 0).all() and (np.diff(scores, axis=1) <= 0).all()):
                    raise StoreError(f"tensor {name!r} in {file.path} is not a table of scores: {_AGAIN}")


def _open_files(folder: Path, description: StoreDescription) -> dict[str, TensorFile]:
    """Check that all files are there, and map those with tensors."""
    wanted = {EXACT_FILE, *(view_file(view) for view in description.views)}
    found = {name for name in description.files if not name.startswith(f"{TOKENIZER_FOLDER}/")}
    for name in description.files:
        _check_size(folder / name, description.files[name])
    if wanted != found:
        raise StoreError(f"{folder} lists the files {sorted(found)} where its views need {sorted(wanted)}: {_AGAIN}")
    return {name: _open_file(folder, name, description) for name in sorted(wanted)}


def _open_file(folder: Path, name: str, description: StoreDescription) -> TensorFile:
    """Map one safetensors file after checking its size, its header and the shapes in it."""
    path, record = folder / name, description.files[name]
    layout = read_layout(path)
    if hashlib.sha256(layout.header).hexdigest() != record.sha256 or set(record.tensors) != set(layout.tensors):
        raise StoreError(f"the header of {path} was altered, or the file belongs to another store: {_AGAIN}")
    found = {tensor: placed.spec for tensor, placed in layout.tensors.items() if not tensor.startswith(FILLER)}
    wanted = _expected(name, description) or found
    for tensor in sorted({*found, *wanted}):
        have, need = found.get(tensor), wanted.get(tensor)
        if have != need:
            raise StoreError(
                f"tensor {tensor!r} in {path} is {_say(have)} where the model needs {_say(need)}: {_AGAIN}"
            )
    return TensorFile(path, layout)


def _expected(name: str, description: StoreDescription) -> dict[str, TensorSpec] | None:
    """The tensors that a file must have, or None for a view that is not installed here."""
    if name == EXACT_FILE:
        return exact_tensors(
            description.config,
            description.layout,
            dtype=description.dtype,
            types=description.types,
            planes=description.rests,
        )
    view = next(view for view in description.views if view_file(view) == name)
    return view_tensors(get_view(view), description.config) if view in known_views() else None


def _say(spec: TensorSpec | None) -> str:
    return f"{spec.dtype} {spec.shape}" if spec else "missing"


def _file_checksum(path: Path) -> str:
    """SHA-256 of a whole file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_size(path: Path, record: FileRecord) -> None:
    """Refuse a file that is missing or has another size."""
    try:
        nbytes = path.stat().st_size
    except unless_signalled(OSError):
        raise StoreError(f"{path} is missing: {_AGAIN}") from None
    if nbytes != record.nbytes:
        raise StoreError(f"{path} has {nbytes} bytes instead of {record.nbytes}: {_AGAIN}")

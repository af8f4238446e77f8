"""From a source of weights to a bucket store: `convert`. Reading models is `sources`, reading stores is `store`.

One matrix at a time is read, cut into slices of inputs, and bucketed by a few threads; slices are written in order.
So the memory in use is about two dense matrices and a few slices, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specdec.errors import InvalidArgumentError, ModelFormatError, StoreError
from specdec.model.bounds import check_bounds
from specdec.store.description import (
    DESCRIPTION_FILE,
    KEEP_BY_DEFAULT,
    FileRecord,
    StoreDescription,
    check_file_name,
    check_selection,
)
from specdec.store.dither import check_seed, dithered
from specdec.store.partial import rest_worth
from specdec.store.plan import (
    EXACT_FILE,
    TOKENIZER_FOLDER,
    exact_tensors,
    plane_matrices,
    view_file,
    view_tensors,
)
from specdec.store.staging import check_target, staged_folder, sync_folder, writing
from specdec.store.tensorfile import FileLayout, TensorFileWriter, lay_out
from specdec.warn import warn
from specdec.weights.base import View
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import all_finite
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import (
    ExactMatrix,
    QuantisedMatrix,
    QuantisedTable,
    plane_type,
    quantised_type,
    quantised_types,
)
from specdec.weights.registry import faults_of_view, get_view
from specdec.workers import Job, Workers

if TYPE_CHECKING:
    from specdec.formats.base import Source

_SLICE_WEIGHTS = 1 << 22
_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some inputs of a matrix on their way to the files: arrays by file name and by part of the tensor's name."""

    matrix: str
    weights: int
    parts: dict[str, dict[str, np.ndarray]]


def convert(
    source: Source,
    target: str | Path,
    *,
    layout: BucketLayout | None = None,
    views: Sequence[str] = (),
    dither: int | None = None,
    quantised: str | None = None,
    selection: str = "inputs",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Path:
    """Write a bucket store. It appears whole under its name, or not at all.

    Args:
        source: the model; not closed.
        target: folder to make; its parent must exist.
        layout: bucket and tier sizes; default 16 in tiers of 4.
        views: draft views to store in addition to the exact one; those that need no arrays (`bucket`) are skipped.
        dither: seed of noise to add to every matrix (`dither.dithered`), or None for the model as it is.
        quantised: None writes every matrix and table in 16 bits; "keep" keeps the source's own blocks where it has
            any; "q8_0" has those of every matrix and table whose rows are whole blocks. Not with `dither`.
        selection: what effort below 1 takes or leaves of 16-bit matrices in the exact view: whole "inputs", which is
            fast, or "tiers", which keeps more of the result at an equal share and saves no time on a CPU.
        overwrite: replace a store at `target`. Anything else there is refused in any case.
        progress: called with (weights done, weights in all), first with nothing done.
        threads: worker threads; default one per processor, at most 4.

    Returns:
        The absolute path of the store.

    Raises:
        UnknownNameError: an unknown view.
        InvalidArgumentError: the seed or layout is out of range, or `quantised` is none of these or used with `dither`.
        ModelFormatError: a tensor has the wrong shape or holds an infinite weight or a NaN, or is to be kept and of a
            type that this version does not keep.
        StoreError: `target` is taken or cannot be written, or space runs out.
    """
    check_bounds(source.config)
    kinds = {name: get_view(name) for name in views}
    if dither is not None and quantised is not None:
        raise InvalidArgumentError("dither adds noise to 16-bit weights: convert to float16 or bfloat16 with it")
    types = kept_types(source, quantised)
    if check_selection(selection) == "inputs" and all(name in types for name in source.config.matrices()):
        selection = "tiers"  # said of 16-bit matrices alone, and there are none
    conversion = _Conversion(
        source, layout or BucketLayout(), kinds, types, check_seed(dither), selection, progress, threads
    )
    return conversion.run(Path(os.path.realpath(target)), overwrite=overwrite)


def default_quantised(source: Source) -> str | None:
    """What `convert` gets as `quantised` if the caller did not choose one.

    Warns:
        UserWarning: the source has a type that a store does not keep, so its weights become 16-bit.
    """
    if not KEEP_BY_DEFAULT or not source.types:
        return None
    foreign = sorted(set(source.types.values()) - set(quantised_types()))
    if foreign:
        warn(f"a store does not keep weights of type {', '.join(foreign)}: all become 16-bit")
        return None
    return "keep"


def kept_types(source: Source, quantised: str | None) -> dict[str, str]:
    """The quantised type that each matrix and table of a store would have; those that it would not have are 16-bit.

    Args:
        source: the model.
        quantised: as for `convert`.

    Raises:
        InvalidArgumentError: `quantised` is none that `convert` takes.
        ModelFormatError: a matrix has a type that this version does not keep.
    """
    if quantised not in (None, "keep", "q8_0"):
        raise InvalidArgumentError(f"quantised must be 'keep' or 'q8_0', or None for 16 bits, not {quantised!r}")
    if quantised is None:
        return {}
    shapes = source.config.matrices() | source.config.tables()
    if quantised == "q8_0":
        block = quantised_type(quantised).block
        return {name: quantised for name, (_, inputs) in shapes.items() if inputs % block == 0}
    for name, kind in source.types.items():
        if kind not in quantised_types():
            raise ModelFormatError(
                f"tensor {name!r} is {kind}, which a store does not keep (only {', '.join(quantised_types())}): "
                "convert the model to f16 or bf16"
            )
    return dict(source.types)


class _Conversion:
    """One run of `convert`."""

    def __init__(
        self,
        source: Source,
        layout: BucketLayout,
        views: dict[str, View],
        types: dict[str, str],
        dither: int | None,
        selection: str,
        progress: Callable[[int, int], None] | None,
        threads: int | None,
    ) -> None:
        self.source, self.layout, self.types, self.dither = source, layout, types, dither
        self.selection, self.progress = selection, progress
        self.threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)
        self.shapes = source.config.matrices()
        # What the rest of codes in planes is worth; known once the matrix is read.
        self.rests = dict.fromkeys(plane_matrices(source.config, types), 0.0)
        exact = exact_tensors(source.config, layout, dtype=source.dtype, types=types, planes=self.rests)
        self.files = {EXACT_FILE: lay_out(exact)}
        self.views: dict[str, View] = {}
        for name, view in views.items():
            if specs := view_tensors(view, source.config):
                self.views[name] = view
                self.files[view_file(name)] = lay_out(specs)

    def run(self, target: Path, *, overwrite: bool) -> Path:
        """Convert to `target`."""
        check_target(target, overwrite=overwrite)
        with staged_folder(target, overwrite=overwrite) as folder:
            _check_space(target, self.files)
            records = self._write_tokenizer(folder / TOKENIZER_FOLDER)
            with ExitStack() as stack:
                writers = {
                    name: stack.enter_context(TensorFileWriter(folder / name, file))
                    for name, file in self.files.items()
                }
                self.exact = writers[EXACT_FILE]
                self._write_outside_effort(self.exact)
                self._write_matrices(writers)
                for name, writer in writers.items():
                    header = hashlib.sha256(writer.layout.header).hexdigest()
                    records[name] = FileRecord(writer.layout.nbytes, header, writer.finish())
            description = StoreDescription(
                config=self.source.config,
                layout=self.layout,
                dtype=self.source.dtype,
                dither=self.dither,
                source=dict(self.source.description),
                views=tuple(self.views),
                files=dict(sorted(records.items())),
                types=self.types,
                rests=self.rests,
                selection=self.selection,
            )
            text = json.dumps(description.to_dict(), indent=1, ensure_ascii=True) + "\n"
            write_file(folder / DESCRIPTION_FILE, text.encode())
        return target

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, sum(outputs * inputs for outputs, inputs in self.shapes.values()))

    def _write_tokenizer(self, folder: Path) -> dict[str, FileRecord]:
        with writing(folder):
            folder.mkdir()
        records = {}
        for name, data in sorted(self.source.tokenizer_files.items()):
            check_file_name(f"{TOKENIZER_FOLDER}/{name}")
            write_file(folder / name, data)
            records[f"{TOKENIZER_FOLDER}/{name}"] = FileRecord(len(data), hashlib.sha256(data).hexdigest())
        with writing(folder):
            sync_folder(folder)
        return records

    def _write_outside_effort(self, writer: TensorFileWriter) -> None:
        """Vectors and tables, as the source has them."""
        for name, length in self.source.config.vectors().items():
            vector = self.source.vector(name)
            _check_tensor(name, vector, (length,), np.dtype(np.float32))
            if not np.isfinite(vector).all():
                raise ModelFormatError(f"tensor {name!r} holds an infinite number or a NaN: the model is damaged")
            writer.append(name, vector)
        for name, shape in self.source.config.tables().items():
            if name in self.types:
                self._append_quantised(name, self._read_blocks(name, shape))
            else:
                writer.append(name, self._read(name, shape))

    def _write_matrices(self, writers: dict[str, TensorFileWriter]) -> None:
        """Bucket every matrix and build its views, a few slices at a time, and write them in order."""
        done = 0
        self._report(done)
        waiting: deque[Job[_Slice]] = deque()
        with Workers(self.threads) as workers:
            jobs = self._slices()
            while True:
                while len(waiting) <= self.threads and (job := next(jobs, None)) is not None:
                    waiting.append(workers.submit(partial(self._convert_slice, *job)))
                    del job
                if not waiting:
                    return
                result = waiting.popleft().result()
                for file, parts in result.parts.items():
                    for part, array in parts.items():
                        writers[file].append(f"{result.matrix}.{part}", array)
                done += result.weights
                self._report(done)

    def _slices(self) -> Iterator[tuple[str, np.ndarray | QuantisedMatrix]]:
        """Every matrix in order, in slices of inputs: (name, uint16 (out, inputs of the slice) or quantised). A
        quantised one is whole when there is no view to build."""
        group = math.lcm(*(view.input_group for view in self.views.values()), 1)
        for name, (outputs, inputs) in self.shapes.items():
            if name in self.types:
                yield from ((name, part) for part in self._quantised_slices(name, (outputs, inputs), group))
                continue
            bits = self._read(name, (outputs, inputs))
            if self.dither is not None:
                bits = dithered(bits, dtype=self.source.dtype, name=name, seed=self.dither)
            step = max(1, _SLICE_WEIGHTS // (outputs * group)) * group
            for start in range(0, inputs, step):
                yield name, bits[:, start : start + step]

    def _quantised_slices(self, name: str, shape: tuple[int, int], group: int) -> Iterator[QuantisedMatrix]:
        """The blocks and scores are written here, at once: they do not go by inputs."""
        table = self._read_blocks(name, shape)
        try:
            matrix = QuantisedMatrix.from_table(table)
        except ModelFormatError as error:
            raise ModelFormatError(f"tensor {name!r} {error}") from None
        if name in self.rests:
            self.rests[name] = rest_worth(matrix)
        self._append_quantised(name, matrix)
        self.exact.append(f"{name}.scores", matrix.scores)
        unit = math.lcm(group, matrix.kind.block)
        step = max(1, _SLICE_WEIGHTS // (shape[0] * unit)) * unit if self.views else shape[1]
        for start in range(0, shape[1], step):
            yield matrix.inputs(start, min(start + step, shape[1]))

    def _append_quantised(self, name: str, table: QuantisedTable) -> None:
        """Write the arrays of a matrix or table, its codes in planes where the store has them so."""
        for part in table.chunks():
            arrays: Mapping[str, np.ndarray] = {key: array[part] for key, array in table.arrays.items()}
            if name in self.rests:
                arrays = plane_type(table.type).split(arrays)
            for key, array in arrays.items():
                self.exact.append(f"{name}.{key}", array)

    def _convert_slice(self, name: str, part: np.ndarray | QuantisedMatrix) -> _Slice:
        matrix: ExactMatrix
        parts: dict[str, dict[str, np.ndarray]] = {}
        if isinstance(part, QuantisedMatrix):
            matrix = part
        else:
            try:
                matrix = BucketedMatrix.from_dense(part, dtype=self.source.dtype, layout=self.layout)
            except ModelFormatError:
                raise _not_finite(name) from None
            parts[EXACT_FILE] = matrix.arrays()
        for view_name, view in self.views.items():
            with faults_of_view(view_name, "build"):
                parts[view_file(view_name)] = view.arrays(view.build(matrix))
        return _Slice(name, math.prod(matrix.shape), parts)

    def _read_blocks(self, name: str, shape: tuple[int, int]) -> QuantisedTable:
        table = self.source.quantised(name, self.types[name])
        if (table.type, table.shape) != (self.types[name], shape):
            raise ModelFormatError(
                f"tensor {name!r} must be {self.types[name]} {shape} for this model, not {table.type} {table.shape}"
            )
        return table

    def _read(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        bits = self.source.matrix(name)
        _check_tensor(name, bits, shape, np.dtype(np.uint16))
        if name not in self.shapes and not all_finite(bits, self.source.dtype):
            raise _not_finite(name)
        return bits


def write_file(path: Path, data: bytes) -> None:
    """Write a small file and push it to the disk.

    Raises:
        StoreError: it cannot be written.
    """
    with writing(path), path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _not_finite(name: str) -> ModelFormatError:
    return ModelFormatError(f"tensor {name!r} holds an infinite weight or a NaN: the model is damaged")


def _check_tensor(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """Refuse what a source must not hand out."""
    if array.shape != shape or array.dtype != dtype:
        raise ModelFormatError(
            f"tensor {name!r} must be {dtype} of shape {shape} for this model, not {array.dtype} {array.shape}"
        )


def _check_space(target: Path, files: dict[str, FileLayout]) -> None:
    """Refuse before the work rather than at its end."""
    needed = sum(file.nbytes for file in files.values())
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise StoreError(
            f"no space left for {target}: it needs {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; free some, "
            "or choose another place"
        )

"""From a file's tensors to the project's matrices and vectors: where each comes from, and the checks on its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from gguf import GGMLQuantizationType, quantize

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.families.base import Name, Places, Stored, find
from specdec.formats.tensor_file import TensorFile
from specdec.model.architecture import ModelConfig
from specdec.weights.dtypes import all_finite, check_dtype, from_float32
from specdec.weights.quantised import QuantisedTable, quantised_type, quantised_types

# Values decoded at a time: 8 MB of float32, so that a large matrix never exists in float32 as a whole.
BLOCK_VALUES = 1 << 21
# More experts a layer than any published model has; a damaged count must not make millions of names.
MAX_EXPERTS = 1024
_STORED_AS = {"F16": "float16", "BF16": "bfloat16"}
_PLAIN = ("F32", *_STORED_AS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a file stores one canonical matrix or vector.

    Attributes:
        tensor: the file's name for it.
        shape: shape that the whole tensor must have.
        slab: number of the expert's part of a tensor that holds those of all experts; 0 where it does not.
        first: first row (of a vector: first element) of the matrix within that part.
        step: from a row to the next.
        transposed: the part is (in, out), and rows are columns.
        heads: number of heads whose rows have to be brought from the interleaved rotary layout into the half-split
            one; 0 leaves the rows as they are.
        turned: rows of each head, its first ones, that are in that layout.
    """

    tensor: str
    shape: tuple[int, ...]
    slab: int = 0
    first: int = 0
    step: int = 1
    transposed: bool = False
    heads: int = 0
    turned: int = 0


def find_origins(config: ModelConfig, places: Places, present: Collection[str]) -> dict[str, Origin]:
    """Where a source of these places and tensors stores every matrix, table and vector of a model."""
    shapes: dict[str, tuple[int, ...]] = {**config.matrices(), **config.tables()}
    shapes |= {name: (length,) for name, length in config.vectors().items()}
    found = set(present)
    return {name: _origin(name, shapes, config, find(places, _stored_name(name, config), found)) for name in shapes}


def _stored_name(name: str, config: ModelConfig) -> str:
    return "embed" if name == "head" and config.tied else name


def _origin(name: str, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, found: tuple[Stored, str]) -> Origin:
    (place, tensor), parts, shape = found, Name.of(name), shapes[name]
    kinds = place.among or (parts.kind,)
    counts = [shapes[parts.sibling(kind)][0] if kind != parts.kind else shape[0] for kind in kinds]
    own = kinds.index(parts.kind)
    step = len(kinds) if place.alternating else 1
    whole = (*shape[1:], sum(counts)) if place.transposed else (sum(counts), *shape[1:])
    stacked = parts.expert is not None and "{expert}" not in place.tensor
    if stacked:
        whole = (config.layers[int(parts.layer)].mlp.experts, *whole)
    heads = turned = 0
    if place.interleaved:
        attention = config.layers[int(parts.layer)].attention
        heads = attention.heads if parts.kind.startswith("attn.q") else attention.kv_heads
        turned = round(attention.head_dim * attention.rope.share)
    return Origin(
        tensor=tensor,
        shape=whole,
        slab=parts.expert or 0 if stacked else 0,
        first=own if place.alternating else sum(counts[:own]),
        step=step,
        transposed=place.transposed,
        heads=heads,
        turned=turned,
    )


def check_counts(config: ModelConfig, file: TensorFile) -> None:
    """The layers and experts that a description claims can be in the file at all.

    Raises:
        ModelFormatError: there are more layers than tensors, or a senseless number of experts.
    """
    tensors = len(file.names())
    if config.num_layers > tensors:
        raise ModelFormatError(
            f"{file.label} is said to have {config.num_layers} layers, but has only {tensors} tensors"
        )
    experts = max(layer.mlp.experts for layer in config.kinds)
    if experts > MAX_EXPERTS:
        raise ModelFormatError(f"{file.label} is said to have {experts} experts; at most {MAX_EXPERTS} are read")


def check_tensors(file: TensorFile, origins: Mapping[str, Origin], *, ignored: Collection[str] = ()) -> None:
    """The file holds every tensor of `origins` in its shape, and nothing else but `ignored`.

    Raises:
        ModelFormatError: a tensor is missing, unexpected, or has another shape.
    """
    present = set(file.names())
    wanted = {origin.tensor: origin.shape for origin in origins.values()}
    if missing := [name for name in wanted if name not in present]:
        raise ModelFormatError(f"{file.label} lacks {_listed(missing)}")
    if extra := sorted(present - wanted.keys() - set(ignored)):
        raise ModelFormatError(f"{file.label} has {_listed(extra)}, which this architecture does not have")
    for name, shape in wanted.items():
        if file.shape(name) != shape:
            raise ModelFormatError(f"{file.label}: tensor {name!r} must have shape {shape}, not {file.shape(name)}")


def natural_dtype(file: TensorFile, origins: Mapping[str, Origin], config: ModelConfig) -> str:
    """bfloat16 when at least half of the weights are stored as BF16, with scales of it, or as MXFP4, whose range only
    bfloat16 has; else float16."""
    sizes: Counter[bool] = Counter()
    for name, shape in (config.matrices() | config.tables()).items():
        sizes[file.type_name(origins[name].tensor).lower().endswith(("bf16", "mxfp4"))] += prod(shape)
    return "bfloat16" if sizes[True] >= sizes[False] else "float16"


def stored_types(file: TensorFile) -> str:
    """How the tensors are stored, most frequent first: "Q4_1 x210, F32 x61"."""
    counts = Counter(file.type_name(name) for name in file.names())
    return ", ".join(f"{kind} x{count}" for kind, count in counts.most_common())


class FileSource:
    """A `Source` over one open container.

    Args:
        file: the container; closed with this source.
        config: shape of the model.
        origins: where `file` stores each of the model's matrices, tables and vectors.
        dtype: "float16" or "bfloat16", or None for the one that suits the file.
        description: where the weights come from.
        tokenizer_files: content of the tokenizer folder.
    """

    def __init__(
        self,
        file: TensorFile,
        config: ModelConfig,
        *,
        origins: Mapping[str, Origin],
        dtype: str | None,
        description: dict[str, str],
        tokenizer_files: dict[str, bytes],
    ) -> None:
        self.config = config
        self.dtype = natural_dtype(file, origins, config) if dtype is None else check_dtype(dtype)
        self.description = description
        self.tokenizer_files = tokenizer_files
        self._file, self._origins = file, origins
        self._shapes = config.matrices() | config.tables()
        stored = {name: file.type_name(origins[name].tensor) for name in self._shapes}
        self.types = {name: kind.lower() for name, kind in stored.items() if kind not in _PLAIN}
        self._lengths = config.vectors()

    def matrix(self, name: str) -> np.ndarray:
        """See `Source.matrix`."""
        origin, shape = self._place(name)
        read = self._transposed if origin.transposed else self._block
        out = np.empty(shape, dtype=np.uint16)
        for start, stop in [(0, shape[0])] if origin.transposed else _steps(shape):
            out[start:stop] = read(origin, start, stop)
        return _half_split(out, origin)

    def quantised(self, name: str, kind: str) -> QuantisedTable:
        """See `Source.quantised`."""
        origin, shape = self._place(name)
        own = self.types.get(name)
        if kind not in quantised_types() or kind not in (own, "q8_0"):
            raise InvalidArgumentError(f"{name!r} is {own or 'not quantised'} and cannot be made {kind}, only q8_0")
        arrays = {part: np.empty(spec.shape, spec.memory) for part, spec in quantised_type(kind).tensors(shape).items()}
        for start, stop in _steps(shape):
            found = self._blocks(origin, start, stop) if kind == own else self._q8(origin, start, stop)
            for part, array in found.items():
                arrays[part][start:stop] = array
        split = {part: _half_split(array, origin) for part, array in arrays.items()}
        table = QuantisedTable(kind, shape, split)
        try:
            table.check()
        except ModelFormatError as error:
            raise ModelFormatError(f"{self._file.label}: tensor {origin.tensor!r} {error}") from None
        return table

    def vector(self, name: str) -> np.ndarray:
        """See `Source.vector`."""
        if name not in self._lengths:
            raise InvalidArgumentError(f"this model has no vector {name!r}")
        origin = self._origins[name]
        values = self._file.float32(origin.tensor, origin.slab, origin.slab + 1)[0, origin.first :: origin.step]
        values = values[: self._lengths[name]]
        if not np.isfinite(values).all():
            raise self._not_finite(origin.tensor)
        return np.ascontiguousarray(_half_split(values[:, None], origin)[:, 0])

    def close(self) -> None:
        """See `Source.close`."""
        self._file.close()

    def _place(self, name: str) -> tuple[Origin, tuple[int, int]]:
        if name not in self._shapes:
            raise InvalidArgumentError(f"this model has no matrix or table {name!r}")
        return self._origins[name], self._shapes[name]

    def _rows(self, read: Callable[[str, int, int], np.ndarray], origin: Origin, start: int, stop: int) -> np.ndarray:
        """Rows of a matrix as `read` gives those of its tensor."""
        first = origin.slab * origin.shape[-2] + origin.first + start * origin.step
        last = first + (stop - start - 1) * origin.step + 1
        return read(origin.tensor, first, last)[:: origin.step]

    def _blocks(self, origin: Origin, start: int, stop: int) -> dict[str, np.ndarray]:
        first = origin.slab * origin.shape[-2] + origin.first + start * origin.step
        last = first + (stop - start - 1) * origin.step + 1
        found = self._file.blocks(origin.tensor, first, last)
        return {part: array[:: origin.step] for part, array in found.items()}

    def _q8(self, origin: Origin, start: int, stop: int) -> dict[str, np.ndarray]:
        """Those rows in q8_0, as the gguf package quantises."""
        if origin.transposed:
            values = self._slab(origin, self._file.float32)[start:stop]
        else:
            values = self._rows(self._file.float32, origin, start, stop)
        if not np.isfinite(values).all():
            raise self._not_finite(origin.tensor)
        return {"blocks": quantize(np.ascontiguousarray(values), GGMLQuantizationType.Q8_0)}

    def _slab(self, origin: Origin, read: Callable[[str, int, int], np.ndarray]) -> np.ndarray:
        """A matrix that is stored as (in, out)."""
        inputs = origin.shape[-2]
        part = read(origin.tensor, origin.slab * inputs, (origin.slab + 1) * inputs)
        return part[:, origin.first :: origin.step].T

    def _transposed(self, origin: Origin, start: int, stop: int) -> np.ndarray:
        """uint16 rows of a matrix that is stored as (in, out), all of them finite."""
        tensor = origin.tensor
        if _STORED_AS.get(self._file.type_name(tensor)) == self.dtype:
            return self._checked(self._slab(origin, self._file.raw16)[start:stop], tensor)
        return self._converted(self._slab(origin, self._file.float32)[start:stop], tensor)

    def _block(self, origin: Origin, start: int, stop: int) -> np.ndarray:
        """uint16 rows of a matrix in this source's dtype, all of them finite."""
        tensor = origin.tensor
        if _STORED_AS.get(self._file.type_name(tensor)) == self.dtype:
            return self._checked(self._rows(self._file.raw16, origin, start, stop), tensor)
        return self._converted(self._rows(self._file.float32, origin, start, stop), tensor)

    def _checked(self, bits: np.ndarray, tensor: str) -> np.ndarray:
        if not all_finite(bits, self.dtype):
            raise self._not_finite(tensor)
        return bits

    def _converted(self, values: np.ndarray, tensor: str) -> np.ndarray:
        """Bits of float32 values."""
        bits = from_float32(values, self.dtype)
        if not all_finite(bits, self.dtype):
            if not np.isfinite(values).all():
                raise self._not_finite(tensor)
            largest = float(np.abs(values).max())
            hint = "; read the model as bfloat16" if self.dtype == "float16" else ""
            raise ModelFormatError(
                f"{self._file.label}: tensor {tensor!r} holds {largest:.6g}, too large for {self.dtype}{hint}"
            )
        return bits

    def _not_finite(self, tensor: str) -> ModelFormatError:
        return ModelFormatError(f"{self._file.label}: tensor {tensor!r} holds NaN or infinity, so the model is damaged")


def _steps(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """First row and end of the parts of a matrix that are decoded together."""
    rows, step = shape[0], max(1, BLOCK_VALUES // shape[1])
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def _half_split(rows: np.ndarray, origin: Origin) -> np.ndarray:
    """Turned rows of every head from pairs (0, 1), (2, 3), … to pairs (0, R/2), (1, R/2 + 1), …; (rows, columns). With
    no heads the rows stay."""
    if not origin.heads:
        return rows
    heads = rows.reshape(origin.heads, -1, rows.shape[1])
    turned, rest = heads[:, : origin.turned], heads[:, origin.turned :]
    return np.concatenate([turned[:, 0::2], turned[:, 1::2], rest], axis=1).reshape(rows.shape)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor {shown}{more}" if len(names) == 1 else f"tensors {shown}{more}"

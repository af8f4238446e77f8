"""From a file's tensors to the project's matrices and vectors: where each comes from, and the checks on its values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from gguf import GGMLQuantizationType, quantize

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.families.base import Tensors
from specdec.formats.tensor_file import TensorFile
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Layer
from specdec.weights.dtypes import all_finite, check_dtype, from_float32
from specdec.weights.quantised import QuantisedTable, quantised_type, quantised_types

# Values decoded at a time: 8 MB of float32, so that a large matrix never exists in float32 as a whole.
BLOCK_VALUES = 1 << 21
# More experts a layer than any published model has; a damaged count must not make millions of names.
MAX_EXPERTS = 1024
_STORED_AS = {"F16": "float16", "BF16": "bfloat16"}
_PLAIN = ("F32", *_STORED_AS)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one canonical matrix or vector lies in a file.

    Attributes:
        tensor: the file's name for it.
        shape: shape that the whole tensor must have.
        first_row: first row of the matrix, when the tensor holds several.
        interleaved_heads: number of heads whose rows have to be brought from the interleaved rotary layout into the
            half-split one; 0 leaves the rows as they are.
    """

    tensor: str
    shape: tuple[int, ...]
    first_row: int = 0
    interleaved_heads: int = 0


def find_origins(config: ModelConfig, tensors: Tensors) -> dict[str, Origin]:
    """Where every matrix, table and vector of a model lies in a source that stores its tensors so."""
    shapes: dict[str, tuple[int, ...]] = {**config.matrices(), **config.tables()}
    shapes |= {name: (length,) for name, length in config.vectors().items()}
    return {name: _origin(name, shape, config, tensors) for name, shape in shapes.items()}


def _origin(name: str, shape: tuple[int, ...], config: ModelConfig, tensors: Tensors) -> Origin:
    place, tensor, expert = tensors.find("embed" if name == "head" and config.tied else name)
    rows, heads, whole = shape[0], 0, (place.parts * shape[0], *shape[1:])
    first = place.part * rows
    if expert is not None and "{expert}" not in place.tensor:  # the experts of a layer lie in one tensor
        first += expert * place.parts * rows
        whole = (_layer_of(name, config).mlp.experts, *whole)
    if place.interleaved:
        attention = _layer_of(name, config).attention
        heads = attention.heads if name.endswith(".q") else attention.kv_heads
    return Origin(tensor, whole, first_row=first, interleaved_heads=heads)


def _layer_of(name: str, config: ModelConfig) -> Layer:
    """The layer that a canonical name belongs to."""
    return config.layers[int(name.split(".")[1])]


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
    """bfloat16 when at least half of the weights are stored as BF16, or with scales of it, else float16."""
    sizes: Counter[bool] = Counter()
    for name, shape in (config.matrices() | config.tables()).items():
        sizes[file.type_name(origins[name].tensor).lower().endswith("bf16")] += prod(shape)
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
        origins: where each of the model's matrices, tables and vectors lies in `file`.
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
        out = np.empty(shape, dtype=np.uint16)
        for start, stop in _steps(shape):
            out[start:stop] = self._block(origin.tensor, origin.first_row + start, origin.first_row + stop)
        return _half_split(out, origin.interleaved_heads)

    def quantised(self, name: str, kind: str) -> QuantisedTable:
        """See `Source.quantised`."""
        origin, shape = self._place(name)
        own = self.types.get(name)
        if kind not in quantised_types() or kind not in (own, "q8_0"):
            raise InvalidArgumentError(f"{name!r} is {own or 'not quantised'} and cannot be made {kind}, only q8_0")
        arrays = {part: np.empty(spec.shape, spec.memory) for part, spec in quantised_type(kind).tensors(shape).items()}
        for start, stop in _steps(shape):
            first, last = origin.first_row + start, origin.first_row + stop
            found = (
                self._file.blocks(origin.tensor, first, last) if kind == own else self._q8(origin.tensor, first, last)
            )
            for part, array in found.items():
                arrays[part][start:stop] = array
        split = {part: _half_split(array, origin.interleaved_heads) for part, array in arrays.items()}
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
        tensor = self._origins[name].tensor
        values: np.ndarray = self._file.float32(tensor, 0, 1)[0]
        if not np.isfinite(values).all():
            raise self._not_finite(tensor)
        return values

    def close(self) -> None:
        """See `Source.close`."""
        self._file.close()

    def _place(self, name: str) -> tuple[Origin, tuple[int, int]]:
        if name not in self._shapes:
            raise InvalidArgumentError(f"this model has no matrix or table {name!r}")
        return self._origins[name], self._shapes[name]

    def _q8(self, tensor: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Those rows in q8_0, as the gguf package quantises."""
        values = self._file.float32(tensor, start, stop)
        if not np.isfinite(values).all():
            raise self._not_finite(tensor)
        return {"blocks": quantize(values, GGMLQuantizationType.Q8_0)}

    def _block(self, tensor: str, start: int, stop: int) -> np.ndarray:
        """uint16 rows of `tensor` in this source's dtype, all of them finite."""
        if _STORED_AS.get(self._file.type_name(tensor)) == self.dtype:
            bits = self._file.raw16(tensor, start, stop)
            if not all_finite(bits, self.dtype):
                raise self._not_finite(tensor)
            return bits
        values = self._file.float32(tensor, start, stop)
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


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of `heads` heads from pairs (0, 1), (2, 3), … to pairs (0, D/2), (1, D/2 + 1), …; (rows, columns). With no
    heads the rows stay."""
    if not heads:
        return rows
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor {shown}{more}" if len(names) == 1 else f"tensors {shown}{more}"

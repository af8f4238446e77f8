"""One multiplication of the GPU runtime: matrices that share their input, joined, with their views that are packed.

q, k and v are one multiplication, gate and up another; their outputs lie one after the other, gates and ups in turn by
16. Matrices of a quantised store stay apart, since their types may differ. The kernels are in `ops` and
`quant_ops`, the order of steps in `phases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.kernels.reference.selection import weights_to_take
from specdec.runtimes.mlx.build_int4 import DeviceInt4, build_int4
from specdec.runtimes.mlx.ops import Ops, Selection, packed_rows
from specdec.runtimes.mlx.pack import (
    BUCKET,
    LINE,
    PackedInt4,
    bucket_parts,
    int4_parts,
    pack_bucket,
    pack_dense,
    pack_int4,
    pack_lines,
    pack_stream_int4,
    pack_tiers,
    pad,
    padded,
    padded_int4,
    unpack_dense,
)
from specdec.runtimes.mlx.quant import PackedQuant, pack_plain, pack_quant
from specdec.runtimes.mlx.unbucket import dense_bits, tier_of_weight
from specdec.store.share import StoreShare
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.quantised import QuantisedMatrix, QuantisedTable

if TYPE_CHECKING:
    from specdec.store import Store


@dataclass(frozen=True, slots=True)
class PackedBucket:
    """A matrix for `bucket`.

    Attributes:
        records: uint8.
        scores: float32 (in, K), of the joined matrices together; of a mixture (experts, in, K).
    """

    records: Any
    scores: Any


@dataclass(frozen=True, slots=True)
class PackedTiers:
    """What the exact view needs below effort 1.

    Attributes:
        planes: tier of every weight.
        scores: float32 (joined, in, K); of a mixture (experts * joined, in, K).
    """

    planes: Any
    scores: Any


@dataclass(slots=True)
class Linear:
    """A multiplication by one or several joined matrices.

    Attributes:
        names: canonical names of the matrices.
        outputs: of each.
        inputs: in.
        paired: gate and up, in turn by 16 outputs.
        experts: of a mixture, whose matrices all arrays hold one expert after the other; 0 for none. `names` has all.
        used: experts of a row.
        weights: packed exact weights; None in a quantised store.
        quant: of a quantised store, the exact weights of each joined matrix; else empty.
        scores: scores that choose whole inputs, float32 (joined, in, 1); for a mixture (experts * joined, in, 1). For a
            store in 16 bits, once needed.
        tiers: for efforts below 1 by tiers, once needed.
        plain: for efforts below 1 by inputs, once needed: exact 16-bit weights of each joined matrix, in the layout of
            quantised ones; empty where a step is one kernel.
        lines: the same where a step is one kernel, see `lines_of`.
        int4: for that draft view, once needed.
        bucket: for that draft view, once needed.
        whole: outputs of each matrix on all devices together, which decide how a launch cuts the inputs; empty where
            `outputs` are all.
    """

    names: tuple[str, ...]
    outputs: tuple[int, ...]
    inputs: int
    paired: bool
    experts: int = 0
    used: int = 0
    weights: Any = None
    quant: tuple[PackedQuant, ...] = ()
    scores: Any = None
    tiers: PackedTiers | None = None
    plain: tuple[PackedQuant, ...] = ()
    lines: Any = None
    int4: PackedInt4 | None = None
    bucket: PackedBucket | None = None
    whole: tuple[int, ...] = ()

    @property
    def whole_columns(self) -> int:
        """`columns` of all devices together."""
        whole = self.whole or self.outputs
        return 2 * padded(whole[0]) if self.paired else sum(whole)

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Names of the matrices that are joined, for each expert; of no mixture one group."""
        each = len(self.outputs)
        return [self.names[first : first + each] for first in range(0, len(self.names), each)]

    @property
    def used_share(self) -> float:
        """Part of the matrices that a row multiplies by."""
        return self.used / self.experts if self.experts else 1.0

    @property
    def columns(self) -> int:
        """Outputs of all joined matrices, with the padding between gates and ups."""
        return 2 * padded(self.outputs[0]) if self.paired else sum(self.outputs)

    @property
    def rows(self) -> int:
        """Rows of the packed exact weights."""
        return packed_rows(self.columns, even=self.paired)

    @property
    def seams(self) -> tuple[int, int]:
        """Outputs at which the second and third of three joined matrices start."""
        return (0, 0) if len(self.outputs) < 3 else (self.outputs[0], self.outputs[0] + self.outputs[1])

    def join(self, mx: Any, parts: Sequence[Any]) -> Any:
        """Arrays (outputs, ...) of the matrices as one, (columns, ...)."""
        if not self.paired:
            return parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=0)
        wide = padded(self.outputs[0])
        blocks = [pad(mx, part, (wide, *part.shape[1:])).reshape(-1, 1, BUCKET, *part.shape[1:]) for part in parts]
        return mx.concatenate(blocks, axis=1).reshape(2 * wide, *parts[0].shape[1:])

    def takes(self, efforts: Sequence[float], bucket_size: int, *, together: bool) -> list[int]:
        """Weights to take of each matrix at its effort, or of a bucket size of the joined ones at their mean."""
        if not together:
            return [weights_to_take(effort, self.inputs * bucket_size) for effort in efforts]
        each = len(self.outputs)
        groups = [efforts[first : first + each] for first in range(0, len(efforts), each)]
        means = [
            sum(effort * size for effort, size in zip(group, self.outputs, strict=True)) / sum(self.outputs)
            for group in groups
        ]
        return [weights_to_take(mean, self.inputs * bucket_size) for mean in means]


class Loader:
    """Packs a store's matrices.

    Args:
        mx: MLX.
        ops: the kernels that will read them.
        store: where they are.
    """

    def __init__(self, mx: Any, ops: Ops, store: Store) -> None:
        self.mx, self.ops, self.store = mx, ops, store

    def exact(self, linear: Linear) -> None:
        """Pack the weights of the exact view."""
        if self.store.quantised:
            self._quantised(linear)
            return
        dtype = self.mx.float16 if self.store.dtype == "float16" else self.mx.bfloat16
        packed = []
        for names in linear.groups:
            parts = [dense_bits(self.mx, self.store.bucketed(name)).T for name in names]
            bits = linear.join(self.mx, parts)
            packed.append(pack_dense(self.mx, self.ops.backend, bits, linear.rows))
            self.mx.eval(packed[-1])
        linear.weights = self._one_after_the_other(packed).view(dtype)
        self.mx.eval(linear.weights)

    def _quantised(self, linear: Linear) -> None:
        """Pack each matrix by itself, in its own blocks; one in 16 bits as it is."""
        mx, packed = self.mx, [[self._quantised_matrix(name) for name in names] for names in linear.groups]
        together = []
        for same in zip(*packed, strict=True):
            if len({part.form for part in same}) > 1:
                raise InvalidArgumentError(
                    f"the mlx runtime multiplies by experts of one type, and {linear.names[0]} and its like are "
                    f"{', '.join(sorted({part.form.name for part in same}))}: use runtime 'native'"
                )
            together.append(replace(same[0], data=self._one_after_the_other([part.data for part in same])))
        linear.quant = tuple(together)
        linear.scores = mx.stack([part.scores for group in packed for part in group])
        mx.eval(linear.scores, [part.data for part in together])
        self.store.release_pages()

    def _quantised_matrix(self, name: str) -> PackedQuant:
        matrix = self.store.exact(name)
        if isinstance(matrix, QuantisedMatrix):
            return pack_quant(self.mx, matrix, self._on_device(self.mx.array(matrix.scores)))
        # Effort takes whole inputs of every matrix of a quantised store.
        mean = np.average(matrix.scores, axis=1, weights=matrix.layout.tier_sizes).astype(np.float32)
        scores = self._on_device(self.mx.array(mean[:, None]))
        return pack_plain(self.mx, self.mx.array(matrix.dense_bits()), matrix.dtype, scores)

    def _one_after_the_other(self, arrays: Sequence[Any]) -> Any:
        """Packed arrays of all experts as one."""
        return arrays[0] if len(arrays) == 1 else self.mx.concatenate(list(arrays), axis=0)

    def embeddings(self) -> Any:
        """The table of embeddings, whole: 16-bit (vocabulary, hidden), or a `PackedQuant`."""
        store = self.store.whole if isinstance(self.store, StoreShare) else self.store
        table = self._tied_table(store) if store.config.tied else store.table("embed")
        if isinstance(table, QuantisedTable):
            return pack_quant(self.mx, table, None)
        dtype = self.mx.float16 if self.store.dtype == "float16" else self.mx.bfloat16
        made = self.mx.array(np.array(table)).view(dtype)
        self.mx.eval(made)
        return made

    def _tied_table(self, store: Store) -> np.ndarray | QuantisedTable:
        """The logits layer as a table, for devices that have a part of it."""
        matrix = store.exact("head")
        return matrix if isinstance(matrix, QuantisedTable) else matrix.dense_bits()

    def tiers(self, linear: Linear) -> None:
        """Pack what the exact view needs below effort 1."""
        packed, scores = [], []
        for names in linear.groups:
            matrices = [self.store.bucketed(name) for name in names]
            parts = [tier_of_weight(self.mx, matrix).T for matrix in matrices]
            packed.append(pack_tiers(self.mx, self.ops.backend, linear.join(self.mx, parts), linear.rows))
            self.mx.eval(packed[-1])
            scores += [self._exact_scores(name, m) for name, m in zip(names, matrices, strict=True)]
        planes = self._one_after_the_other(packed)
        linear.tiers = PackedTiers(planes, self._on_device(self.mx.array(np.stack(scores))))
        self.mx.eval(planes, linear.tiers.scores)

    def inputs(self, linear: Linear, *, whole: bool) -> None:
        """Pack the weights of the exact view for efforts below 1 by whole inputs, for one-kernel steps or phases."""
        scores = np.stack([self.store.input_scores(name) for name in linear.names])
        linear.scores = self._on_device(self.mx.array(scores))
        if whole:
            linear.lines = lines_of(self.mx, linear)
            return
        packed = [[self._plain_matrix(name) for name in names] for names in linear.groups]
        linear.plain = tuple(
            replace(same[0], data=self._one_after_the_other([part.data for part in same]))
            for same in zip(*packed, strict=True)
        )
        self.mx.eval([part.data for part in linear.plain])

    def _plain_matrix(self, name: str) -> PackedQuant:
        matrix = self.store.bucketed(name)
        return pack_plain(self.mx, dense_bits(self.mx, matrix).T, matrix.dtype, None)

    def _exact_scores(self, name: str, matrix: BucketedMatrix) -> np.ndarray:
        """By which the exact view chooses, (in, K). Where whole inputs are chosen all tiers of one score alike."""
        if self.store.selection == "tiers":
            return matrix.scores
        return np.repeat(self.store.input_scores(name), matrix.layout.num_tiers, axis=1)

    def int4(self, linear: Linear, *, flows: bool = False) -> None:
        """Pack the int4 view: from the store where it is stored, else built now; of 16-bit weights on the device.

        Args:
            linear: which multiplication.
            flows: for steps that 4-bit weights flow through.
        """
        packed, scores = [], []
        for names in linear.groups:
            made = [self._int4(name) for name in names]
            levels = linear.join(self.mx, [part.levels.T for part in made]).T
            scales = linear.join(self.mx, [part.scales.T for part in made]).T
            scores.append(_mean(linear, [np.array(part.scores) for part in made]))
            if flows:  # no mixture: there is one group
                stream = pack_stream_int4(self.mx, *padded_int4(self.mx, levels, scales))
                linear.int4 = PackedInt4(None, None, self._scores(linear, scores), stream)
                self.mx.eval(stream)
                return
            packed.append(pack_int4(self.mx, self.ops.backend, levels, scales, None))
            self.mx.eval(packed[-1].levels, packed[-1].scales)
        levels = self._one_after_the_other([part.levels for part in packed])
        scales = self._one_after_the_other([part.scales for part in packed])
        linear.int4 = PackedInt4(levels, scales, self._scores(linear, scores))
        self.mx.eval(levels, scales)

    def _int4(self, name: str) -> DeviceInt4:
        """A matrix of the int4 view on the device."""
        exact = self.store.exact(name)
        if "int4" not in self.store.views and isinstance(exact, BucketedMatrix):
            return build_int4(self.mx, dense_bits(self.mx, exact), exact.dtype)
        matrix: Any = self.store.draft("int4", name)
        levels, scales = int4_parts(matrix)
        return DeviceInt4(self.mx.array(levels), self.mx.array(scales), self.mx.array(matrix.scores))

    def bucket(self, linear: Linear) -> None:
        """Pack the bucket view."""
        packed, scores = [], []
        for names in linear.groups:
            matrices = [self.store.bucketed(name) for name in names]
            made = [bucket_parts(matrix) for matrix in matrices]
            values = self._join_buckets(linear, [part for part, _ in made], 0)
            places = self._join_buckets(linear, [part for _, part in made], 0x3210)
            scores.append(_mean(linear, [matrix.scores for matrix in matrices]))
            packed.append(pack_bucket(self.mx, values, places))
            self.mx.eval(packed[-1])
        linear.bucket = PackedBucket(self._one_after_the_other(packed), self._scores(linear, scores))
        self.mx.eval(linear.bucket.records)

    def _scores(self, linear: Linear, scores: list[np.ndarray]) -> Any:
        """Scores (in, K) of the joined matrices, or (experts, in, K)."""
        return self._on_device(self.mx.array(np.stack(scores) if linear.experts else scores[0]))

    def _join_buckets(self, linear: Linear, parts: list[np.ndarray], filler: int) -> Any:
        """Arrays (runs, in, buckets, ...) of the matrices as one."""
        arrays = [self.mx.array(part) for part in parts]
        if not linear.paired:
            return arrays[0] if len(arrays) == 1 else self.mx.concatenate(arrays, axis=2)
        buckets = padded(linear.outputs[0]) // BUCKET
        wide = [pad(self.mx, a, (*a.shape[:2], buckets, *a.shape[3:]), filler) for a in arrays]
        joined = self.mx.stack(wide, axis=3)
        return joined.reshape(*joined.shape[:2], 2 * buckets, *joined.shape[4:])

    def _on_device(self, array: Any) -> Any:
        """A copy that the device made: kernels are slow on small arrays that came from the host."""
        copy = array + self.mx.zeros_like(array)
        self.mx.eval(copy)
        return copy


def lines_of(mx: Any, linear: Linear) -> Any:
    """The exact weights of a multiplication, the weights of an input next to each other: `pack_lines`.

    Gate and up alternate by `LINE` outputs; other joined matrices follow one another, each padded to whole lines.
    """
    bits = unpack_dense(mx, linear.weights, linear.rows)
    if linear.paired:
        wide = padded(linear.outputs[0])
        each = bits[: 2 * wide].reshape(wide // BUCKET, 2, BUCKET, -1).swapaxes(0, 1).reshape(2, wide // LINE, LINE, -1)
        parts = [mx.swapaxes(each, 0, 1).reshape(2 * wide, -1)]
    else:
        ends = np.cumsum(linear.outputs).tolist()
        parts = [bits[end - count : end] for end, count in zip(ends, linear.outputs, strict=True)]
    packed = [pack_lines(mx, part) for part in parts]
    made = packed[0] if len(packed) == 1 else mx.concatenate(packed)
    mx.eval(made)
    return made


def _mean(linear: Linear, scores: list[np.ndarray]) -> np.ndarray:
    """Scores of joined matrices: the mean over all their outputs; never rising along the tiers, as each is not."""
    weights = np.asarray(linear.outputs, dtype=np.float64) / sum(linear.outputs)
    mean = sum(part.astype(np.float64) * weight for part, weight in zip(scores, weights, strict=True))
    return np.asarray(mean, dtype=np.float32)


def int4_selection(linear: Linear, take: Any) -> Selection | None:
    """How an int4 draft chooses inputs; None for all."""
    if take is None or linear.int4 is None:
        return None
    return Selection(linear.int4.scores, take, (1,), counts=False)


def bucket_selection(linear: Linear, take: Any, tier_sizes: tuple[int, ...]) -> Selection | None:
    """How a bucket draft chooses runs."""
    return None if linear.bucket is None else Selection(linear.bucket.scores, take, tier_sizes, counts=True)

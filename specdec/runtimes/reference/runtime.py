"""The reference runtime: plain MLX operations, clarity first. Every other runtime is tested against it.

Here are loading, views, effort and accounting; the arithmetic is in `specdec.kernels.reference`. Importing this module
needs MLX; `specdec.runtimes.choose` imports it only when asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.kernels.reference.attention import first_visible
from specdec.kernels.reference.mlx_backend import compute_device, mx
from specdec.kernels.reference.mlx_matrix import FloatMatrix, GroupScaledMatrix, Multiplier
from specdec.kernels.reference.mlx_transformer import RowTransformer, Segment
from specdec.kernels.reference.selection import select_tiers
from specdec.model.architecture import ModelConfig
from specdec.progress import Count, reported
from specdec.runtimes.base import (
    EXACT,
    Cache,
    DraftHead,
    Pass,
    Rows,
    RuntimeInfo,
    ViewInfo,
    Window,
    check_view,
    is_chain,
    path_to,
)
from specdec.runtimes.checks import check_batch, checked_layers, checked_tokens
from specdec.runtimes.reference.cache import KeyValueCache
from specdec.runtimes.reference.heads import ReferenceHead
from specdec.runtimes.reference.shared import SharedRows
from specdec.weights.base import ViewMatrix
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.inputs import InputsMatrix
from specdec.weights.int4 import GROUP, Int4Matrix
from specdec.weights.quantised import QuantisedMatrix
from specdec.weights.registry import get_view, known_views

if TYPE_CHECKING:
    from specdec.runtimes.share import Part
    from specdec.store import Store


@runtime_checkable
class TieredMatrix(Protocol):
    """A view's matrix that can say which tier each weight is in; needed of views with more than one tier."""

    def tier_of_weight(self) -> NDArray[np.uint8]:
        """uint8 (in, at least out); anything past `out` is ignored."""
        ...


@dataclass
class _Operand:
    """One matrix in one view: its description, and the weights that multiply.

    Attributes:
        matrix: scores, tiers and byte counts.
        multiplier: the weights.
        fixed_order: multiply in the order that the shape fixes, whatever is selected (the exact view's contract).
    """

    matrix: ViewMatrix
    multiplier: Multiplier
    fixed_order: bool
    full_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        everything = np.full(self.matrix.shape[1], len(self.matrix.tier_sizes), np.uint8)
        self.full_bytes = self.matrix.bytes_read(everything)

    def multiply(self, rows: list[Any], efforts: Sequence[float]) -> tuple[list[Any], int]:
        """Each row (1, in) with its own selection; and the bytes that the rows read together, shared ones once."""
        if min(efforts) >= 1:
            return [self.multiplier.dense(row) for row in rows], self.full_bytes
        union = np.zeros(self.matrix.shape[1], np.uint8)
        results = []
        for row, effort in zip(rows, efforts, strict=True):
            if effort >= 1:
                union[:] = len(self.matrix.tier_sizes)
                results.append(self.multiplier.dense(row))
                continue
            prefix = select_tiers(np.array(row)[0], self.matrix.scores, self.matrix.tier_sizes, effort=effort)
            np.maximum(union, prefix, out=union)
            results.append(self._chosen(row, prefix))
        return results, self.matrix.bytes_read(union)

    def _chosen(self, row: Any, prefix: NDArray[np.uint8]) -> Any:
        if not isinstance(self.multiplier, FloatMatrix):
            return self.multiplier.selected(row, prefix)
        product = self.multiplier.masked if self.fixed_order else self.multiplier.selected
        return product(row, prefix, whole=isinstance(self.matrix, InputsMatrix))


class _Read:
    """Bytes that a pass reads for each of its sequences; those that rows share are split among them."""

    def __init__(self, sequences: int) -> None:
        self.bytes = [0] * sequences

    def add(self, count: int, parts: Sequence[int]) -> None:
        """Count bytes that the rows of the sequences `parts` (one number a row) read together."""
        rows = len(parts)
        for index, part in enumerate(parts):
            self.bytes[part] += count * (index + 1) // rows - count * index // rows


def check_available() -> None:
    """The runtime can run wherever this module can be imported."""


class ReferenceRuntime:
    """Runs one model from a bucket store.

    Weights are held as float32 (four bytes a weight); tiers (one byte) are read when the `bucket` view or an effort
    below 1 first needs them; the `int4` view adds 1.1 bytes a weight. All activations and the cache are float32.
    Logits are equal bits for equal token histories, efforts and views, whatever else shares the pass. Any thread may
    call it; one pass runs at a time.

    Args:
        store: an open store; must stay open as long as the runtime is used.
        share: what this device holds of a model that several devices divide; None for all.

    Raises:
        RuntimeUnavailableError: (on importing this module) MLX cannot be loaded.
    """

    def __init__(self, store: Store, *, share: Part | None = None) -> None:
        self.config: ModelConfig = store.config if share is None else share.config
        auto_draft = ("own", 0.5) if store.quantised else ("bucket", 0.25)
        build = "" if share is None else f"{share.ranks} devices"
        self.info = RuntimeInfo(
            name="reference", auto_draft=auto_draft, build=build, prunes_head=share is None, narrows=True
        )
        self._share = None if share is None else SharedRows(share)
        self._store = store if share is None else share.part_of(store)
        self._turn = threading.RLock()
        self._device = compute_device()
        with mx.stream(self._device):
            self._exact = {
                name: self._load_exact(name) for name in self.config.matrices() if self._store.shape(name)[0]
            }
            self._views: dict[str, dict[str, _Operand]] = {"exact": self._exact}
            self._transformer = RowTransformer(
                self.config, self._vector(store), self._embed, self._router, joins=self._share
            )

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:  # noqa: ARG003 (every runtime's signature)
        """Features of the model that this runtime does not execute: it executes all of them."""
        return frozenset()

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts in addition to "exact"."""
        names = [view for view in known_views() if get_view(view).suits(quantised=self._store.quantised)]
        if self._share is not None:
            names = [view for view in names if self._share.can_divide(view)]
        return {name: ViewInfo(name=name) for name in names}

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        """Make `view` ready: read it from the store, or build it from the exact weights where the store lacks it.

        Raises:
            UnknownNameError: no such view is registered.
            InvalidArgumentError: the view has tiers within a bucket that this runtime cannot see.
        """
        check_view(view, self.views())
        with self._turn, mx.stream(self._device):
            if view in self._views:
                return
            self._views[view] = {name: self._load_view(view, name) for name in reported(self._exact, progress)}

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens.

        Raises:
            InvalidArgumentError: `capacity` is not a positive whole number.
        """
        return KeyValueCache(self.config, capacity, self._device, None if self._share is None else self._share.kv_heads)

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes that a cache of that capacity takes."""
        attentions = [layer.attention for layer in self.config.layers]
        heads: list[int] = [one.kv_heads for one in attentions] if self._share is None else self._share.kv_heads
        return capacity * sum(8 * count * one.head_dim for count, one in zip(heads, attentions, strict=True))

    def draft_head(self, tokens: tuple[int, ...]) -> DraftHead:
        """A draft head of one sequence; see `Runtime.draft_head`."""
        if self._share is not None:
            raise InvalidArgumentError("a model that is divided among devices has no draft heads")
        weights = self._exact["head"].multiplier
        assert isinstance(weights, FloatMatrix)
        with self._turn:
            return ReferenceHead(weights, self.config.vocab_size, self._device, tokens)

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """Append every sequence's rows to its cache; see `Runtime.forward`."""
        check_batch(batch, self.config, KeyValueCache, narrows=True)
        check_view(view, self.views())
        hidden: list[list[NDArray[np.float32]]] = [[] for _ in batch]
        caches = [self._own(rows.cache) for rows in batch]
        segments = [
            self._segment(rows, cache, shown.append if states else None)
            for rows, cache, shown in zip(batch, caches, hidden, strict=True)
        ]
        with self._turn, mx.stream(self._device):
            held = [cache.length for cache in caches]
            try:
                logits, read = self._run(batch, segments, view)
            except BaseException:
                for cache, length in zip(caches, held, strict=True):
                    cache.trim(length)
                    cache.evaluate()
                raise
        return [
            Pass(one, count, np.stack(shown) if states else None, likely=_likeliest(one, rows.likely))
            for rows, one, count, shown in zip(batch, logits, read, hidden, strict=True)
        ]

    def _run(
        self, batch: Sequence[Rows], segments: Sequence[Segment], view: str
    ) -> tuple[list[NDArray[np.float32]], list[int]]:
        """Logits and bytes read of every sequence."""
        self._store.check_files()  # scores and tiers are read where they are mapped
        self.prepare(view)
        operands, efforts = self._views[view], [rows.efforts.by_name(self.config) for rows in batch]
        heads = [self._own_head(rows.head) for rows in batch]
        read = _Read(len(batch))
        self._count_tables(segments, read)

        def multiply(
            name: str, rows: list[Any], parts: list[int], *, growths: Sequence[float] | None = None
        ) -> list[Any]:
            wanted = [efforts[part][name] for part in parts]
            if growths is not None:
                wanted = [min(1.0, effort * growth) for effort, growth in zip(wanted, growths, strict=True)]
            results, count = self._multiply(operands, name, rows, wanted)
            read.add(count, parts)
            return results if self._share is None else self._share.after(name, results)

        def multiply_all(
            name: str, rows: list[Any], parts: list[int], *, growths: Sequence[float] | None = None
        ) -> list[Any]:
            if name != "head" or all(head is None for head in heads):
                return multiply(name, rows, parts, growths=growths)
            whole = [number for number, part in enumerate(parts) if heads[part] is None]
            found = iter(multiply(name, [rows[n] for n in whole], [parts[n] for n in whole]) if whole else ())
            results = []
            for row, part in zip(rows, parts, strict=True):
                if (head := heads[part]) is None:
                    results.append(next(found))
                else:
                    results.append(head.multiply(row))
                    read.add(operands[name].full_bytes * len(head) // self.config.vocab_size, [part])
            return results

        logits = self._transformer.forward(segments, multiply_all)
        for one, head in zip(logits, heads, strict=True):
            if head is not None:
                head.hide_others(one)
        return logits, read.bytes

    def _multiply(
        self, operands: Mapping[str, _Operand], name: str, rows: list[Any], efforts: list[float]
    ) -> tuple[list[Any], int]:
        """Rows times a matrix, and bytes read; without outputs where other devices hold them all."""
        if self._share is not None and name not in operands:
            return [mx.zeros((1, 0)) for _ in rows], 0
        operand = operands[name]
        if min(efforts) < 1:
            self._need_tiers(operand)
        return operand.multiply(rows, efforts)

    def _own_head(self, head: DraftHead | None) -> ReferenceHead | None:
        if head is not None and not isinstance(head, ReferenceHead):
            raise InvalidArgumentError("a draft head must come from draft_head of this runtime")
        return head

    def _own(self, cache: Cache) -> KeyValueCache:
        if not isinstance(cache, KeyValueCache) or not cache.fits(self.config):
            raise InvalidArgumentError("a cache must come from new_cache of this runtime")
        return cache

    def _segment(
        self, rows: Rows, cache: KeyValueCache, observe: Callable[[NDArray[np.float32]], None] | None
    ) -> Segment:
        """What the transformer needs of a sequence's rows, checked."""
        ids: list[int] = checked_tokens(rows.tokens, cache, self.config.vocab).tolist()
        wanted = {"all": range(len(ids)), "last": range(len(ids) - 1, len(ids)), "none": range(0)}
        slots = _slots(cache.length, len(ids), rows.parents)
        return Segment(
            cache=cache,
            tokens=ids,
            slots=slots,
            mixture_efforts=rows.efforts.of_mixtures(self.config),
            layers=checked_layers(rows.layers, self.config),
            logits=wanted[rows.logits],
            observe=observe,
            parts=None if rows.window is None else [_parts(rows.window, len(seen) - 1) for seen in slots],
        )

    def _load_exact(self, name: str) -> _Operand:
        matrix = self._as_chosen(self._store.exact(name))
        return _Operand(matrix, FloatMatrix(matrix.dequantise()), fixed_order=True)

    def _as_chosen(self, matrix: ViewMatrix) -> ViewMatrix:
        """A matrix of the exact view as effort chooses from it."""
        if isinstance(matrix, BucketedMatrix) and self._store.selection == "inputs":
            return InputsMatrix.of(matrix)
        return matrix

    def _load_view(self, view: str, name: str) -> _Operand:
        matrix = self._store.draft(view, name)
        if view == "own":
            matrix = self._as_chosen(matrix)
        if isinstance(matrix, BucketedMatrix | InputsMatrix | QuantisedMatrix):
            return _Operand(matrix, self._exact[name].multiplier, fixed_order=False)
        if isinstance(matrix, Int4Matrix):
            return _Operand(matrix, GroupScaledMatrix(matrix.levels(), matrix.scale, GROUP), fixed_order=False)
        if len(matrix.tier_sizes) > 1 and not isinstance(matrix, TieredMatrix):
            raise InvalidArgumentError(
                f"the reference runtime cannot tell tiers apart: view {view!r} has tiers but no tier_of_weight()"
            )
        return _Operand(matrix, FloatMatrix(matrix.dequantise()), fixed_order=False)

    def _need_tiers(self, operand: _Operand) -> None:
        """Load the tier of every weight, where the view has more than one and they are not there yet."""
        weights, matrix = operand.multiplier, operand.matrix
        if isinstance(weights, FloatMatrix) and not weights.has_tiers and isinstance(matrix, TieredMatrix):
            with mx.stream(self._device):
                weights.set_tiers(matrix.tier_of_weight())

    def _embed(self, tokens: Sequence[int]) -> list[Any]:
        return (
            [self._embedded(token) for token in tokens]
            if self._share is None
            else self._share.embed(tokens, self._embedded)
        )

    def _embedded(self, token: int) -> Any:
        if not self.config.tied:
            return mx.array(self._store.table_rows("embed", [token]))
        head = self._exact["head"].multiplier
        assert isinstance(head, FloatMatrix)
        return head.column(token)

    def _vector(self, whole: Store) -> Callable[[str], NDArray[np.float32]]:
        """Vectors by name; what is added to rows that are put together is whole."""
        own = self._store
        takes = SharedRows.stays if self._share is None else self._share.has_own
        return lambda name: (own if takes(name) else whole).vector(name)

    def _router(self, layer: int) -> NDArray[np.float32]:
        return self._store.table_rows(f"layers.{layer}.mlp.router")

    def _count_tables(self, segments: Sequence[Segment], read: _Read) -> None:
        """Count what a pass reads besides its matrices: embeddings, routers, vectors, and each history once."""
        config = self.config
        parts = [part for part, segment in enumerate(segments) for _ in segment.tokens]
        for part, segment in enumerate(segments):
            rows, length = len(segment.tokens), len(segment.slots[0]) - 1
            read.bytes[part] += 2 * rows * config.hidden
            for attention in (layer.attention for layer in config.layers[: segment.layers]):
                visible = first_visible(length, attention.window)
                sinks, first = (0, 0) if segment.parts is None else segment.parts[0]
                seen = length + rows - max(visible, first) + max(0, min(sinks, first) - visible)
                read.bytes[part] += seen * 2 * 4 * attention.kv_width
        layers = config.layers[: max(segment.layers for segment in segments)]
        routers = 2 * config.hidden * sum(layer.mlp.experts for layer in layers)
        read.add(4 * sum(config.vectors().values()) + routers, parts)


def _parts(window: Window, position: int) -> tuple[int, int]:
    """Number of first positions that a row attends to, and the position from which on it attends to all."""
    return window.sinks, window.first(position)


def _likeliest(logits: NDArray[np.float32], count: int) -> list[list[int]]:
    """The tokens of the `count` largest logits of every row; see `Pass.likely`."""
    if not count:
        return []
    first = max(0, logits.shape[1] - count)
    return [[] if np.isnan(row).any() else np.argpartition(row, first)[first:].tolist() for row in logits]


def _slots(length: int, count: int, parents: Sequence[int] | None) -> list[Sequence[int]]:
    """For each of `count` rows after `length` entries the entries that it sees, in order of positions."""
    if is_chain(parents):
        return [range(length + row + 1) for row in range(count)]
    assert parents is not None
    return [[*range(length), *(length + node for node in path_to(parents, row))] for row in range(count)]

"""The reference runtime: plain MLX operations, clarity first. Every other runtime is tested against it.

Here are loading, views, effort and accounting; the arithmetic is in `specdec.kernels.reference`. Importing this module
needs MLX; `specdec.runtimes.choose` imports it only when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.kernels.reference.attention import first_visible
from specdec.kernels.reference.mlx_backend import compute_device, mx
from specdec.kernels.reference.mlx_cache import KeyValueCache
from specdec.kernels.reference.mlx_matrix import FloatMatrix, GroupScaledMatrix, Multiplier
from specdec.kernels.reference.mlx_transformer import RowTransformer
from specdec.kernels.reference.selection import select_tiers
from specdec.model.architecture import ModelConfig
from specdec.runtimes.base import (
    EXACT,
    Cache,
    Pass,
    Rows,
    RuntimeInfo,
    ViewInfo,
    check_batch,
    check_view,
    checked_layers,
    checked_tokens,
)
from specdec.weights.base import ViewMatrix
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.int4 import GROUP, Int4Matrix
from specdec.weights.quantised import QuantisedMatrix
from specdec.weights.registry import get_view, known_views

if TYPE_CHECKING:
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

    def multiply(self, rows: list[Any], effort: float) -> tuple[list[Any], int]:
        """Each row (1, in) with its own selection; and the bytes that the rows read together, shared ones once."""
        if effort >= 1:
            return [self.multiplier.dense(row) for row in rows], self.full_bytes
        union = np.zeros(self.matrix.shape[1], np.uint8)
        results = []
        for row in rows:
            prefix = select_tiers(np.array(row)[0], self.matrix.scores, self.matrix.tier_sizes, effort=effort)
            np.maximum(union, prefix, out=union)
            if self.fixed_order and isinstance(self.multiplier, FloatMatrix):
                results.append(self.multiplier.masked(row, prefix))
            else:
                results.append(self.multiplier.selected(row, prefix))
        return results, self.matrix.bytes_read(union)


class ReferenceRuntime:
    """Runs one model from a bucket store.

    Weights are held as float32 (four bytes a weight); tiers (one byte) are read when the `bucket` view or an effort
    below 1 first needs them; the `int4` view adds 1.1 bytes a weight. All activations and the cache are float32.
    Logits are equal bits for equal token histories, efforts and views, whatever else shares the pass.

    Args:
        store: an open store; must stay open as long as the runtime is used.

    Raises:
        RuntimeUnavailableError: (on importing this module) MLX cannot be loaded.
    """

    def __init__(self, store: Store) -> None:
        self.config: ModelConfig = store.config
        self.info = RuntimeInfo(name="reference", auto_draft=("own", 0.5) if store.quantised else ("bucket", 0.25))
        self._store = store
        self._device = compute_device()
        with mx.stream(self._device):
            self._exact = {name: self._load_exact(name) for name in self.config.matrices()}
            self._views: dict[str, dict[str, _Operand]] = {"exact": self._exact}
            self._transformer = RowTransformer(self.config, store.vector, self._embed, self._router)

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:  # noqa: ARG003
        """Features of the model that this runtime does not execute: none."""
        return frozenset()

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts beside "exact"."""
        names = (view for view in known_views() if get_view(view).suits(quantised=self._store.quantised))
        return {name: ViewInfo(name=name) for name in names}

    def prepare(self, view: str) -> None:
        """Make `view` ready: read it from the store, or build it from the exact weights where the store lacks it.

        Raises:
            UnknownNameError: nobody registered such a view.
            InvalidArgumentError: the view has tiers within a bucket that this runtime cannot see.
        """
        if view in self._views:
            return
        check_view(view, self.views())
        with mx.stream(self._device):
            self._views[view] = {name: self._load_view(view, name) for name in self._exact}

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens.

        Raises:
            InvalidArgumentError: `capacity` is not a positive whole number.
        """
        with mx.stream(self._device):
            return KeyValueCache(self.config, capacity)

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """Append every sequence's rows to its cache; see `Runtime.forward`. Sequences run one after the other."""
        check_batch(batch, self.config, KeyValueCache)
        check_view(view, self.views())
        held = [rows.cache.length for rows in batch]
        try:
            return [self._forward(rows, view, states) for rows in batch]
        except BaseException:
            for rows, length in zip(batch, held, strict=True):
                rows.cache.trim(min(length, rows.cache.length))
            raise

    def _forward(self, rows: Rows, view: str, states: bool) -> Pass:
        ids, kv = self._checked(rows.tokens, rows.cache)
        depth = checked_layers(rows.layers, self.config)
        self.prepare(view)
        efforts = rows.efforts.by_name(self.config)
        operands = self._views[view]
        read = self._fixed_bytes(kv.length, len(ids), depth)
        hidden: list[NDArray[np.float32]] = []

        def multiply(name: str, activations: list[Any]) -> list[Any]:
            nonlocal read
            if efforts[name] < 1:
                self._need_tiers(operands[name])
            results, count = operands[name].multiply(activations, efforts[name])
            read += count
            return results

        last_only, observe = rows.logits != "all", hidden.append if states else None
        with mx.stream(self._device):
            out = self._transformer.forward(ids, kv, multiply, last_only=last_only, layers=depth, observe=observe)
            logits = np.array(out, dtype=np.float32)
        return Pass(logits[:0] if rows.logits == "none" else logits, read, np.stack(hidden) if states else None)

    def _checked(self, tokens: Sequence[int], cache: Cache) -> tuple[list[int], KeyValueCache]:
        shape = (self.config.num_layers, self.config.num_kv_heads, self.config.head_dim)
        if not isinstance(cache, KeyValueCache) or not cache.fits(shape):
            raise InvalidArgumentError("cache must come from new_cache of this runtime")
        ids: list[int] = checked_tokens(tokens, cache, self.config.vocab_size).tolist()
        return ids, cache

    def _load_exact(self, name: str) -> _Operand:
        matrix = self._store.exact(name)
        return _Operand(matrix, FloatMatrix(matrix.dequantise()), fixed_order=True)

    def _load_view(self, view: str, name: str) -> _Operand:
        matrix = self._store.draft(view, name)
        if isinstance(matrix, BucketedMatrix | QuantisedMatrix):
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

    def _embed(self, token: int) -> Any:
        if not self.config.tie_embeddings:
            return mx.array(self._store.table_rows("embed", [token]))
        head = self._exact["head"].multiplier
        assert isinstance(head, FloatMatrix)
        return head.column(token)

    def _router(self, layer: int) -> NDArray[np.float32]:
        return self._store.table_rows(f"layers.{layer}.mlp.router")

    def _fixed_bytes(self, length: int, rows: int, layers: int) -> int:
        """Bytes of a pass beside its matrices: embeddings, routers, vectors, and the history once for all rows."""
        config = self.config
        tables = 2 * rows * config.hidden_size + 2 * config.num_experts * config.hidden_size * layers
        vectors = 4 * sum(config.vectors().values())
        seen = sum(length + rows - first_visible(length, config.window(layer)) for layer in range(layers))
        return tables + vectors + seen * 2 * 4 * config.num_kv_heads * config.head_dim

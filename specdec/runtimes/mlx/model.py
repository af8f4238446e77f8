"""The transformer of the GPU runtime: which kernels make a step, compiled once for every kind of step.

A step is one graph from its state (`state`: rows, tokens, positions; one small array) to the logits. Weights are part
of the graph; the caches come in as arguments and their arrays are written in place by the attention kernel. On CUDA the
graph is one kernel (`step`), elsewhere one for each phase. Packing is in `weights`, the cutting of a pass into steps in
`batch`, checks and the interface in `runtime`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from threading import RLock
from typing import Any

import numpy as np

from specdec.kernels.reference.layers import rotary_frequencies, rotations
from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx import quant_ops
from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.ops import CACHE_STEPS, Ops, row_step
from specdec.runtimes.mlx.quant import PackedQuant
from specdec.runtimes.mlx.state import MAX_ROWS, WANTED, head_state
from specdec.runtimes.mlx.step import WholeStep
from specdec.runtimes.mlx.weights import Linear, bucket_selection, int4_selection

# Graphs that are kept; another one takes some tens of milliseconds, its kernels are there.
_MOST_GRAPHS = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides a step's graph.

    Attributes:
        mode: "dense", "verify" (exact view, effort below 1), "int4" or "bucket"; of quantised models also "quant"
            (views exact and `own`) and "nested".
        selects: effort below 1 somewhere (always for "verify" and "bucket").
        rows: of the kernels, one of `ops.ROW_STEPS`.
        splits: of attention; 0 when the step is one kernel, which finds out by itself.
        head: rows of the kernels of the logits layer; 0 for a piece of a prompt. When the step is one kernel this is
            `rows`: the state says which rows' logits are wanted.
        tree: some rows are of a tree.
        gathers: only some rows' logits are wanted.
        shared: the step is one kernel and has rows of several sequences.
    """

    mode: str
    selects: bool
    rows: int
    splits: int
    head: int
    tree: bool = False
    gathers: bool = False
    shared: bool = False


@dataclass(slots=True)
class Layer:
    """Weights of one block. Norms are float32 arrays; `bias` and `qk_norms` may be None."""

    attn_norm: Any
    qkv: Linear
    bias: Any
    qk_norms: Any
    o: Linear
    mlp_norm: Any
    gate_up: Linear
    down: Linear

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        """The multiplications in order of use."""
        return self.qkv, self.o, self.gate_up, self.down


class Transformer:
    """Steps of one model.

    Args:
        mx: MLX.
        ops: the kernels.
        config: shape of the model.
        layers: weights.
        final_norm: float32 (hidden,).
        head: the logits layer.
        embeddings: 16-bit (vocabulary, hidden) or packed, or None when the packed logits layer serves.
        tier_sizes: of the store's buckets.
        whole: runs every step as one kernel; None for a kernel for each phase.
    """

    def __init__(
        self,
        mx: Any,
        ops: Ops,
        config: ModelConfig,
        *,
        layers: list[Layer],
        final_norm: Any,
        head: Linear,
        embeddings: Any,
        tier_sizes: tuple[int, ...],
        whole: WholeStep | None = None,
    ) -> None:
        self.mx, self.ops, self.config, self.whole = mx, ops, config, whole
        self.layers, self.final_norm, self.head, self.embeddings = layers, final_norm, head, embeddings
        self.tier_sizes = tier_sizes
        self._steps: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._angles = mx.zeros((0, config.head_dim // 2, 2))

    @property
    def linears(self) -> list[Linear]:
        """Every multiplication, in order of use."""
        return [linear for layer in self.layers for linear in layer.linears] + [self.head]

    @property
    def most_rows(self) -> int:
        """Most rows of a step in the exact view."""
        return MAX_ROWS if self.whole is None else self.whole.most_rows

    def row_step(self, rows: int) -> int:
        """Rows of the kernels that run a step of `rows`: `Kind.rows`."""
        return row_step(rows) if self.whole is None else self.whole.row_step(rows)

    def run(self, kind: Kind, state: np.ndarray, caches: list[list[Any]], takes: list[Any], wanted: int = 0) -> Any:
        """Begin one step; the one before must have been waited for.

        Args:
            kind: which graph.
            state: int32 (STATE_SIZE,).
            caches: arrays of each piece's cache, in the state's order.
            takes: when `kind.selects`, int32 (lines, matrices) for every multiplication, in order of use; when the step
                is one kernel, one array of all of them.
            wanted: rows whose logits are wanted.

        Returns:
            An array to wait for, then to be given to `logits`.
        """
        if self.whole is not None:  # the state has the addresses of the others
            caches = [max(caches, key=lambda arrays: arrays[0].shape[-2])]
        padding = next(step for step in CACHE_STEPS if len(caches) <= step) - len(caches)
        caches = caches + caches[:1] * padding
        positions = tuple(arrays[0].shape[-2] for arrays in caches)
        angles = self.angles(max(positions))
        step = self._graph(kind, (kind, positions, angles.shape[0], takes[0].shape[0] if takes else 0))
        if self.whole is not None:
            self.whole.tell(state)
            return step(caches[0], takes, angles)
        both = [state, head_state(state, wanted)] if kind.gathers else [state]
        return step(self.mx.array(np.stack(both)), caches, takes, angles)

    def _graph(self, kind: Kind, key: tuple[Any, ...]) -> Callable[..., Any]:
        """The graph of a kind of step for arrays of these sizes; those used last are kept."""
        step = self._steps.pop(key, None)
        if step is None:
            if len(self._steps) >= _MOST_GRAPHS:
                del self._steps[next(iter(self._steps))]
            if self.whole is not None:
                self.whole.prepare(kind, self.layers, self.head, self.final_norm, self.embeddings)
                step = self.mx.compile(lambda *given: self._whole_step(kind, *given))
            else:
                step = self.mx.compile(lambda *given: self._step(kind, *given))
        self._steps[key] = step
        return step

    def logits(self, out: Any, rows: int) -> np.ndarray:
        """Logits float32 (rows, V), the first of what a step has made that was waited for."""
        if self.whole is not None:
            return self.whole.logits(rows)
        return np.array(out if rows == out.shape[0] else out[:rows], dtype=np.float32)

    def new_cache(self, capacity: int, lock: RLock) -> GpuCache:
        """An empty cache: an array for each layer, or one of all layers when a step is one kernel."""
        config = self.config
        shape: tuple[int, ...] = (2, config.num_kv_heads, 0, config.head_dim)
        count = config.num_layers
        if self.whole is not None:
            shape, count = (count, *shape), 1
        return GpuCache(self.mx, shape, count, capacity, lock)

    def _whole_step(self, kind: Kind, cache: list[Any], takes: list[Any], angles: Any) -> Any:
        assert self.whole is not None
        return self.whole.run(kind, cache[0], takes[0] if kind.selects else None, angles)

    def angles(self, positions: int) -> Any:
        """Cosine and sine, float32 (at least positions, D / 2, 2), rounded once from float64."""
        if self._angles.shape[0] < positions:
            count = -(-positions // 1024) * 1024
            factor = self.config.rope_attention_factor
            turns = rotations(np.arange(count), rotary_frequencies(self.config), factor=factor)
            table = np.stack(turns, axis=-1).astype(np.float32)
            self._angles = self.mx.array(table) + self.mx.zeros(())
            self.mx.eval(self._angles)
        return self._angles

    def _step(self, kind: Kind, states: Any, caches: list[list[Any]], takes: list[Any], angles: Any) -> Any:
        state = states[0] + self.mx.zeros_like(states[0])  # kernels are slow on small arrays that came from the host
        given = iter(takes if kind.selects else [None] * len(self.linears))
        x = self._embed(kind, state)
        forward = self._exact_layer if kind.mode in ("dense", "verify") else self._parts_layer
        pending = None
        for number, layer in enumerate(self.layers):
            layer_takes = [next(given) for _ in layer.linears]
            of_layer = [arrays[number] for arrays in caches]
            x, pending = forward(kind, number, layer, x, pending, state, of_layer, layer_takes, angles)
        if not kind.head:
            return x
        if kind.gathers:
            wanted = state[WANTED : WANTED + kind.head]
            x = self.mx.take(x, wanted, axis=0)
            pending = None if pending is None else self.mx.take(pending, wanted, axis=1)
            state = states[1] + self.mx.zeros_like(states[1])
        return self._logits(kind, x, pending, state, next(given))

    def _embed(self, kind: Kind, state: Any) -> Any:
        """Embeddings (rows, hidden) of the tokens in `state`."""
        table = self.embeddings
        if table is None:
            table = self.head.quant[0] if self.head.quant else self.head.weights
        if isinstance(table, PackedQuant):
            return quant_ops.embed(self.ops, table, state, rows=kind.rows)
        tied = self.embeddings is None
        return self.ops.embed(table, state, rows=kind.rows, width=self.config.hidden_size, tied=tied)

    def _exact_layer(
        self,
        kind: Kind,
        number: int,
        layer: Layer,
        x: Any,
        _: Any,
        state: Any,
        caches: list[Any],
        takes: list[Any],
        angles: Any,
    ) -> tuple[Any, None]:
        """One block in the exact view: x (rows, hidden) to x."""
        eps = self.config.norm_eps
        _, normed, _ = self.ops.norm(x, layer.attn_norm, state, eps=eps)
        qkv = self._exact(kind, layer.qkv, normed, state, takes[0])
        splits = self._attend(kind, number, layer, qkv[None], state, caches, angles)
        mixed, _ = self.ops.attention_sum(splits, state, size=self.config.head_dim)
        x = self._exact(kind, layer.o, mixed, state, takes[1], residual=x)
        _, normed, _ = self.ops.norm(x, layer.mlp_norm, state, eps=eps)
        width = self.config.intermediate_size
        if kind.mode == "dense":
            hidden = self.ops.dense(layer.gate_up.weights, normed, state, outputs=layer.gate_up.columns, gated=width)
        else:
            both = self._exact(kind, layer.gate_up, normed, state, takes[2])
            hidden, _ = self.ops.gate(both[None], state, width=width, draft=False)
        return self._exact(kind, layer.down, hidden, state, takes[3], residual=x), None

    def _exact(
        self, kind: Kind, linear: Linear, activation: Any, state: Any, take: Any, *, residual: Any = None
    ) -> Any:
        """A multiplication in the exact view."""
        if kind.mode == "dense" or linear.tiers is None:
            return self.ops.dense(linear.weights, activation, state, outputs=linear.columns, residual=residual)
        scores = linear.tiers.scores
        prefix = self.ops.select(activation, scores, take, state, self.tier_sizes)
        return self.ops.verify(
            linear.weights,
            linear.tiers.planes,
            activation,
            prefix,
            state,
            outputs=linear.columns,
            tiers=len(self.tier_sizes),
            seams=linear.seams,
            residual=residual,
        )

    def _parts_layer(
        self,
        kind: Kind,
        number: int,
        layer: Layer,
        x: Any,
        pending: Any,
        state: Any,
        caches: list[Any],
        takes: list[Any],
        angles: Any,
    ) -> tuple[Any, Any]:
        """One block whose multiplications leave partial products: x (rows, hidden) and those to add to it, to the same.

        Drafts of one row, and all views of quantised matrices.
        """
        eps, draft = self.config.norm_eps, kind.mode in ("int4", "bucket")
        chosen = [self._selection(kind, linear, take) for linear, take in zip(layer.linears, takes, strict=True)]
        x, normed, counts = self.ops.norm(
            x, layer.attn_norm, state, eps=eps, parts=pending, draft=draft, selection=chosen[0]
        )
        qkv = self._parts(kind, layer.qkv, normed, counts, state, takes[0])
        splits = self._attend(kind, number, layer, qkv, state, caches, angles)
        mixed, counts = self.ops.attention_sum(
            splits, state, size=self.config.head_dim, draft=draft, selection=chosen[1]
        )
        parts = self._parts(kind, layer.o, mixed, counts, state, takes[1])
        x, normed, counts = self.ops.norm(
            x, layer.mlp_norm, state, eps=eps, parts=parts, draft=draft, selection=chosen[2]
        )
        both = self._parts(kind, layer.gate_up, normed, counts, state, takes[2])
        width = self.config.intermediate_size
        apart = 0 if draft else width
        hidden, counts = self.ops.gate(both, state, width=width, draft=draft, selection=chosen[3], up_at=apart)
        return x, self._parts(kind, layer.down, hidden, counts, state, takes[3])

    def _selection(self, kind: Kind, linear: Linear, take: Any) -> Any:
        """How the kernel that makes a row of activations chooses for a draft."""
        if kind.mode in ("quant", "nested"):
            return None  # each of the joined matrices chooses by itself
        if kind.mode == "bucket":
            return bucket_selection(linear, take, self.tier_sizes)
        return int4_selection(linear, take)

    def _parts(self, kind: Kind, linear: Linear, activation: Any, counts: Any, state: Any, take: Any) -> Any:
        """A multiplication: (P, rows, columns), to be added up."""
        if kind.mode in ("quant", "nested"):
            chosen = kind.selects
            if chosen:
                activation = quant_ops.choose(self.ops, activation, linear.scores, take, state)
            nested = kind.mode == "nested"
            return quant_ops.multiply(self.ops, linear.quant, activation, state, nested=nested, chosen=chosen)
        if kind.mode == "bucket":
            assert linear.bucket is not None  # prepare_view has packed it
            return self.ops.bucket(linear.bucket.records, activation, counts, outputs=linear.columns)
        assert linear.int4 is not None
        return self.ops.int4(linear.int4.levels, linear.int4.scales, activation, outputs=linear.columns)

    def _attend(
        self, kind: Kind, number: int, layer: Layer, qkv: Any, state: Any, caches: list[Any], angles: Any
    ) -> Any:
        config = self.config
        return self.ops.attention(
            qkv,
            caches,
            angles,
            state,
            heads=config.num_heads,
            splits=kind.splits,
            window=config.window(number),
            eps=config.norm_eps,
            bias=layer.bias,
            norms=layer.qk_norms,
            tree=kind.tree,
        )

    def _logits(self, kind: Kind, x: Any, pending: Any, state: Any, take: Any) -> Any:
        eps = self.config.norm_eps
        if kind.mode in ("dense", "verify"):
            _, normed, _ = self.ops.norm(x, self.final_norm, state, eps=eps)
            return self._exact(kind, self.head, normed, state, take)
        chosen = self._selection(kind, self.head, take)
        draft = kind.mode in ("int4", "bucket")
        _, normed, counts = self.ops.norm(
            x, self.final_norm, state, eps=eps, parts=pending, draft=draft, selection=chosen
        )
        parts = self._parts(kind, self.head, normed, counts, state, take)
        # One after the other: the order of a sum over an axis may follow from the number of rows.
        return reduce(add, [parts[p] for p in range(parts.shape[0])])

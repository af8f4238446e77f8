"""The transformer of the GPU runtime: steps, compiled once for every kind of step.

A step is one graph from its state (`state`: rows, tokens, positions; one small array) to the logits. Weights are part
of the graph; the caches come in as arguments and their arrays are written in place. On CUDA the graph is one kernel
(`step`) for the models that it runs, elsewhere one for each phase (`phases`). Packing is in `weights` and `layers`, the
cutting of a pass into steps in `batch`, checks and the interface in `runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np

from specdec.kernels.reference.layers import rotary_frequencies, rotations
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Attention
from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.layers import Layer
from specdec.runtimes.mlx.ops import Ops, cache_step, row_step
from specdec.runtimes.mlx.phases import Phases
from specdec.runtimes.mlx.rank_step import RankStep
from specdec.runtimes.mlx.shared import SharedArrays
from specdec.runtimes.mlx.state import MAX_ROWS, head_state
from specdec.runtimes.mlx.step import WholeStep
from specdec.runtimes.mlx.weights import Linear

# Graphs that are kept; another one takes some tens of milliseconds, its kernels are there.
_MOST_GRAPHS = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides a step's graph.

    Attributes:
        mode: "dense"; "inputs" or "verify" (exact view, effort below 1 by whole inputs or by tiers); "int4" or
            "bucket"; of quantised models also "quant" (views exact and `own`) and "nested".
        selects: effort below 1 somewhere (always for "inputs", "verify" and "bucket").
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

    @property
    def recycles(self) -> bool:
        """Whether its kernel can draft for further turns of a launch: only trees of one sequence that take all
        weights."""
        return self.tree and not self.shared and not self.selects and self.mode in ("dense", "quant")


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
        shared: puts rows together where several devices divide the model, which takes a kernel for each phase.
        ranks: runs steps of one sequence as one kernel on each device, where that is possible; None for none.
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
        shared: SharedArrays | None = None,
        ranks: RankStep | None = None,
    ) -> None:
        self.mx, self.ops, self.config, self.whole, self.shared = mx, ops, config, whole, shared
        self.ranks = ranks
        self.layers, self.final_norm, self.head, self.embeddings = layers, final_norm, head, embeddings
        self.tier_sizes = tier_sizes
        self._steps: dict[tuple[Any, ...], Callable[..., Any]] = {}
        turns, growths = _kinds(config, _turning), _kinds(config, _growing)
        self._tables = turns.firsts, growths.firsts
        self._angles: tuple[list[Any], list[Any]] = ([], [])
        self._positions = 0
        self._phases = Phases(
            mx, ops, config, layers=layers, final_norm=final_norm, head=head, embeddings=embeddings,
            tier_sizes=tier_sizes, turns=turns.of_layer, growths=growths.of_layer, shared=shared,
        )  # fmt: skip

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
            takes: when `kind.selects`, int32 (lines, matrices) for every multiplication, in order of use, then
                what every mixture keeps, float32 (lines, 1); when the step is one kernel, one array of all.
            wanted: rows whose logits are wanted.

        Returns:
            An array to wait for, then to be given to `logits`.
        """
        if self.whole is not None:  # the state has the addresses of the others
            caches = [max(caches, key=lambda arrays: arrays[0].shape[-2])]
        padding = cache_step(len(caches)) - len(caches)
        caches = caches + caches[:1] * padding
        positions = tuple(arrays[0].shape[-2] for arrays in caches)
        angles = self.angles(max(positions))
        step = self._graph(kind, (kind, positions, self._positions, takes[0].shape[0] if takes else 0))
        if self.whole is not None:
            self.whole.tell(state)
            return step(caches[0], takes, angles[0][0])
        both = [state, head_state(state, wanted)] if kind.gathers else [state]
        return step(self.mx.array(np.stack(both)), caches, takes, angles)

    def launch(self, kind: Kind, state: np.ndarray, caches: list[GpuCache], takes: list[Any]) -> bool:
        """Begin one step as one kernel without a graph, where that can be done; see `WholeStep.launch` and `run`."""
        if self.ranks is not None:
            return self.ranks.launch(kind, state, caches, self.angles(max(one.positions for one in caches))[0][0])
        if self.whole is None:
            return False
        cache = max(caches, key=lambda one: one.positions)
        self.whole.prepare(kind, self.layers, self.head, self.final_norm, self.embeddings)
        turns = self.angles(cache.positions)[0][0]
        return self.whole.launch(kind, state, cache, takes[0] if kind.selects else None, turns)

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

    def forget_graphs(self) -> None:
        """Forget all graphs, because they hold the weights that they were made with."""
        self._steps.clear()

    def logits(self, out: Any, rows: int) -> np.ndarray:
        """Logits float32 (rows, V), the first output of a step that has ended; `out` is None where the step was
        launched."""
        if out is None and self.ranks is not None:
            return self.ranks.logits(rows)
        if self.whole is not None:
            return self.whole.logits(rows)
        return np.array(out if rows == out.shape[0] else out[:rows], dtype=np.float32)

    def choices(self, rows: int, ahead: int) -> np.ndarray:
        """Choices of the step that was waited for last, where a step is one kernel; see `WholeStep.choices`."""
        if self.ranks is not None:
            return self.ranks.choices(rows, ahead)
        assert self.whole is not None
        return self.whole.choices(rows, ahead)

    def new_cache(self, capacity: int, lock: RLock) -> GpuCache:
        """An empty cache: an array for each layer, or one of all layers when a step is one kernel."""
        if self.whole is not None:
            config = self.config
            shape = (config.num_layers, 2, config.num_kv_heads, 0, config.head_dim)
            return GpuCache(self.mx, [shape], capacity, lock)
        heads = [layer.config.attention for layer in self.layers]
        return GpuCache(self.mx, [(2, each.kv_heads, 0, each.head_dim) for each in heads], capacity, lock)

    def _whole_step(self, kind: Kind, cache: list[Any], takes: list[Any], angles: Any) -> Any:
        assert self.whole is not None
        return self.whole.run(kind, cache[0], takes[0] if kind.selects else None, angles)

    def _step(self, kind: Kind, states: Any, caches: list[list[Any]], takes: list[Any], angles: Any) -> Any:
        return self._phases.run(kind, states, caches, takes, self.linears, angles)

    def angles(self, positions: int) -> tuple[list[Any], list[Any]]:
        """Tables of at least this number of positions, rounded once from float64: one for each kind that layers are of.

        First of rotary positions, cosine and sine (positions, turned / 2, 2); then of the growth of queries
        (positions,).
        """
        if self._positions < positions:
            self._positions = -(-positions // 1024) * 1024
            turning, growing = self._tables
            self._angles = [self._turns(layer) for layer in turning], [self._growth(layer) for layer in growing]
            self.mx.eval(self._angles)
        return self._angles

    def _turns(self, layer: int) -> Any:
        factor = self.config.layers[layer].attention.rope.attention_factor
        places, frequencies = np.arange(self._positions), rotary_frequencies(self.config, layer)
        return self._table(np.stack(rotations(places, frequencies, factor=factor), axis=-1))

    def _growth(self, layer: int) -> Any:
        attention = self.config.layers[layer].attention
        return self._table(np.array([attention.query_growth(place) for place in range(self._positions)]))

    def _table(self, values: np.ndarray) -> Any:
        return self.mx.array(values.astype(np.float32)) + self.mx.zeros(())


@dataclass(frozen=True, slots=True)
class _Kinds:
    """Layers by what they share.

    Attributes:
        firsts: the first layer of each kind.
        of_layer: every layer's kind; None for those of none.
    """

    firsts: list[int]
    of_layer: list[int | None]


def _kinds(config: ModelConfig, key_of: Callable[[Attention], Hashable | None]) -> _Kinds:
    """Layers by a key of their attention; those whose key is None are of no kind."""
    numbers: dict[Hashable, int] = {}
    firsts: list[int] = []
    found: list[int | None] = []
    for number, layer in enumerate(config.layers):
        key = key_of(layer.attention)
        if key is not None and key not in numbers:
            numbers[key] = len(firsts)
            firsts.append(number)
        found.append(None if key is None else numbers[key])
    return _Kinds(firsts, found)


def _turning(attention: Attention) -> Hashable | None:
    """What decides a layer's rotary positions, None without them."""
    return (attention.rope, attention.turned) if attention.turned else None


def _growing(attention: Attention) -> Hashable | None:
    return (attention.growth, attention.growth_span) if attention.growth else None

"""A step of the model as one kernel for each phase: what Metal runs, and on CUDA every model that `step` does not.

Every multiplication leaves partial products, which the kernel after it adds up: a block hands on what its last one has
left (`Returned`). A row is computed by itself in every kernel, in an order that follows from the model alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx import attention_ops, mixture_ops, quant_ops
from specdec.runtimes.mlx.jobs import Jobs
from specdec.runtimes.mlx.layers import Layer, Mixture, Mlp
from specdec.runtimes.mlx.ops import Ops, Selection
from specdec.runtimes.mlx.quant import PackedQuant
from specdec.runtimes.mlx.shared import SharedArrays
from specdec.runtimes.mlx.state import WANTED
from specdec.runtimes.mlx.weights import Linear, bucket_selection, int4_selection

if TYPE_CHECKING:
    from specdec.runtimes.mlx.model import Kind

_APART = ("quant", "nested", "inputs")  # joined matrices lie apart, since each may have its own choice of inputs
_DRAFTS = ("int4", "bucket")


@dataclass(slots=True)
class Returned:
    """What a part of a layer has returned, to be added to the residual stream.

    Attributes:
        parts: float32 (P, rows, hidden), to be added up.
        bias: float32 (hidden,) or None.
        post: of a norm before it is added, float32 (hidden,) or None.
        scale: multiplies it.
    """

    parts: Any
    bias: Any = None
    post: Any = None
    scale: float = 1.0


@dataclass(slots=True)
class Activation:
    """What enters multiplications.

    Attributes:
        values: (rows or jobs, parts, padded width).
        counts: of a `bucket` draft: runs to take of each input.
        chosen: the kernel that made it has chosen inputs for the one multiplication that it enters.
        plain: the same in float32, (rows, width), where a router needs it.
    """

    values: Any
    counts: Any = None
    chosen: bool = False
    plain: Any = None


@dataclass(slots=True)
class Step:
    """What the kernels of a step share.

    Attributes:
        kind: of the step.
        state: int32, on the device.
        caches: arrays of each sequence.
        takes: int32 (lines, matrices) by `id` of the multiplication, and float32 (lines, 1) by that of the mixture: the
            share of its experts' squared weights that a row keeps; empty where nothing is chosen.
        angles: tables of rotary positions and of the growth of queries, for each kind that layers are of.
    """

    kind: Kind
    state: Any
    caches: list[list[Any]]
    takes: dict[int, Any]
    angles: tuple[list[Any], list[Any]]


class Phases:
    """Runs steps, kernel by kernel.

    Args:
        mx: MLX.
        ops: the kernels.
        config: shape of the model.
        layers: weights.
        final_norm: float32 (hidden,).
        head: the logits layer.
        embeddings: 16-bit (vocabulary, hidden) or packed, or None when the packed logits layer serves.
        tier_sizes: of the store's buckets.
        turns: for every layer, which table of rotary positions is its own; None where nothing turns.
        growths: for every layer, which table of the growth of queries is its own; None where they do not grow.
        shared: puts rows together where several devices divide the model; None on one.
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
        turns: list[int | None],
        growths: list[int | None],
        shared: SharedArrays | None = None,
    ) -> None:
        self.mx, self.ops, self.config = mx, ops, config
        self.layers, self.final_norm, self.head, self.embeddings = layers, final_norm, head, embeddings
        self.tier_sizes, self.turns, self.growths, self.shared = tier_sizes, turns, growths, shared

    def run(
        self, kind: Kind, states: Any, caches: list[list[Any]], takes: list[Any], linears: list[Linear],
        angles: tuple[list[Any], list[Any]],
    ) -> Any:  # fmt: skip
        """One step: logits float32 (rows, V), or for a piece of a prompt what there is to wait for."""
        state = states[0] + self.mx.zeros_like(states[0])  # kernels are slow on small arrays that came from the host
        choosing = [*linears, *(layer.mlp for layer in self.layers if layer.config.mlp.experts)]
        chosen = dict(zip(map(id, choosing), takes, strict=True)) if kind.selects else {}
        step = Step(kind, state, caches, chosen, angles)
        x, returned = self._embed(step), None
        for number, layer in enumerate(self.layers):
            x, returned = self._layer(step, number, layer, x, returned)
        if not kind.head:
            return x if returned is None else returned.parts
        if kind.gathers:
            wanted = state[WANTED : WANTED + kind.head]
            x = self.mx.take(x, wanted, axis=0)
            assert returned is not None  # a model has layers
            returned = replace(returned, parts=self.mx.take(returned.parts, wanted, axis=1))
            step.state = states[1] + self.mx.zeros_like(states[1])
        _, entering = self._enter(step, x, returned, self.final_norm, self.head)
        parts = self._multiply(step, self.head, entering)
        config = self.config
        logits = self.ops.logits(parts, step.state, scale=config.logit_scale, cap=config.logit_cap)
        return logits if self.shared is None else self.shared.columns("head", logits)

    def _embed(self, step: Step) -> Any:
        """Embeddings (rows, hidden) of the tokens in the state."""
        table, scale, rows = self.embeddings, self.config.embed_scale, step.kind.rows
        if table is None:
            table = self.head.quant[0] if self.head.quant else self.head.weights
        if isinstance(table, PackedQuant):
            return quant_ops.embed(self.ops, table, step.state, rows=rows, scale=scale)
        tied = self.embeddings is None
        return self.ops.embed(table, step.state, rows=rows, width=self.config.hidden_size, tied=tied, scale=scale)

    def _layer(self, step: Step, number: int, layer: Layer, x: Any, returned: Returned | None) -> tuple[Any, Returned]:
        """One block: the residual stream (rows, hidden) and what is to be added to it, to the same."""
        scale = layer.config.residual_scale
        alone = layer.qkv if layer.gate is None else None
        x, entering = self._enter(step, x, returned, layer.attn_norm, alone)
        parts = self._attention(step, number, layer, entering)
        returned = Returned(parts, layer.o_bias, layer.attn_post, scale)
        if isinstance(layer.mlp, Mixture):
            x, entering = self._enter(step, x, returned, layer.mlp_norm, None, plain=True)
            return x, Returned(self._mixture(step, layer, layer.mlp, entering), None, layer.mlp_post, scale)
        x, entering = self._enter(step, x, returned, layer.mlp_norm, layer.mlp.gate_up)
        parts = self._returned(layer.mlp.down, self._mlp(step, layer, layer.mlp, entering))
        return x, Returned(parts, layer.mlp.down_bias, layer.mlp_post, scale)

    def _enter(
        self,
        step: Step,
        x: Any,
        returned: Returned | None,
        weight: Any,
        linear: Linear | None,
        *,
        plain: bool = False,
    ) -> tuple[Any, Activation]:
        """Add what was returned to x, and norm: x, and what enters `linear` alone, or several multiplications."""
        selection = None if linear is None else self._selection(step, linear)
        given = Returned(None) if returned is None else returned
        x, values, counts, kept = self.ops.norm(
            x,
            weight,
            step.state,
            eps=self.config.norm_eps,
            parts=given.parts,
            bias=given.bias,
            post=given.post,
            scale=given.scale,
            plain=plain,
            draft=step.kind.mode in _DRAFTS,
            selection=selection,
        )
        return x, Activation(values, counts, selection is not None, kept)

    def _attention(self, step: Step, number: int, layer: Layer, entering: Activation) -> Any:
        """Attention with its output projection: (P, rows, hidden)."""
        ops, state, kind, attention = self.ops, step.state, step.kind, layer.config.attention
        qkv = self._multiply(step, layer.qkv, entering)
        gates = None if layer.gate is None else self._multiply(step, layer.gate, entering)
        caches, turn, grows = [arrays[number] for arrays in step.caches], self.turns[number], self.growths[number]
        angles = None if turn is None else step.angles[0][turn]
        growth = None if grows is None else step.angles[1][grows]
        eps = self.config.norm_eps
        queries = attention_ops.rotate(ops, attention, layer.attention, qkv, caches, angles, growth, state, eps=eps)
        splits = attention_ops.attend(ops, attention, queries, caches, state, splits=kind.splits, tree=kind.tree)
        selection = self._selection(step, layer.o) if self.shared is None else None
        mixed, counts = attention_ops.combine(
            ops, attention, layer.attention, splits, state, gates=gates, draft=kind.mode in _DRAFTS, selection=selection
        )
        if self.shared is not None:
            mixed = self.shared.values(layer.qkv.names[0], mixed)
        return self._returned(layer.o, self._multiply(step, layer.o, Activation(mixed, counts, selection is not None)))

    def _returned(self, linear: Linear, parts: Any) -> Any:
        """What a multiplication returns to the residual stream, (P, rows, hidden), from this device's outputs."""
        return parts if self.shared is None else self.shared.columns(linear.names[0], parts)

    def _inner(self, linear: Linear, values: Any) -> Any:
        """What enters the last multiplication of an MLP, from the device's outputs of `linear`, the one before."""
        return values if self.shared is None else self.shared.values(linear.names[0], values)

    def _mlp(self, step: Step, layer: Layer, mlp: Mlp, entering: Activation, jobs: Jobs | None = None) -> Any:
        """A gated MLP, or the chosen experts: (P, rows or jobs, hidden), without the bias of its last projection."""
        kind, activation = step.kind.mode, layer.config.mlp.activation
        down = None if jobs is None else replace(jobs, by_job=True)
        if kind == "dense" and mlp.bias is None:
            linear = mlp.gate_up
            values = self.ops.dense(
                linear.weights,
                entering.values,
                step.state,
                outputs=linear.columns,
                gated=mlp.width,
                kind=activation,
                jobs=jobs,
            )
            return self._multiply(step, mlp.down, Activation(self._inner(linear, values)), down)
        both = self._multiply(step, mlp.gate_up, entering, jobs)
        selection = self._selection(step, mlp.down) if jobs is None and self.shared is None else None
        values, counts = self.ops.gate(
            both,
            step.state,
            width=mlp.width,
            draft=kind in _DRAFTS,
            selection=selection,
            up_at=mlp.width if kind in _APART else 0,
            activation=activation,
            bias=mlp.bias,
            jobs=jobs,
        )
        values = self._inner(mlp.gate_up, values)
        return self._multiply(step, mlp.down, Activation(values, counts, selection is not None), down)

    def _mixture(self, step: Step, layer: Layer, mixture: Mixture, entering: Activation) -> Any:
        """The chosen experts of every row and the shared MLP, added up: (1, rows, hidden)."""
        mlp, state = layer.config.mlp, step.state
        keep, bias = step.takes.get(id(mixture)), mixture.router_bias
        jobs, shares = mixture_ops.route(self.ops, mlp, entering.plain, mixture.router, state, bias=bias, keep=keep)
        down = self._mlp(step, layer, mixture.experts, entering, jobs)
        shared = mixture.shared
        added = mixture_ops.add_up(
            self.ops,
            jobs,
            shares,
            down,
            state,
            bias=mixture.experts.down_bias,
            shared=None if shared is None else self._mlp(step, layer, shared, entering),
            shared_bias=None if shared is None else shared.down_bias,
        )
        return self._returned(mixture.experts.down, added)

    def _selection(self, step: Step, linear: Linear) -> Selection | None:
        """How the kernel that makes a row of activations chooses for a draft."""
        take = step.takes.get(id(linear))
        if step.kind.mode == "bucket":
            return bucket_selection(linear, take, self.tier_sizes)
        # In other views each of the joined matrices chooses by itself.
        return int4_selection(linear, take) if step.kind.mode == "int4" else None

    def _multiply(self, step: Step, linear: Linear, entering: Activation, jobs: Jobs | None = None) -> Any:
        """A multiplication, by the matrices of experts where there are `jobs`: (P, rows or jobs, columns)."""
        mode, take, joined = step.kind.mode, step.takes.get(id(linear)), len(linear.outputs)
        if mode in _APART:
            values, chooses = entering.values, step.kind.selects
            if chooses:
                wide = self.mx.float32
                values = self.ops.choose(values, linear.scores, take, step.state, joined=joined, jobs=jobs, dtype=wide)[
                    0
                ]
                jobs = None if jobs is None else replace(jobs, by_job=True)
            matrices, nested = linear.plain if mode == "inputs" else linear.quant, mode == "nested"
            return quant_ops.multiply(
                self.ops, matrices, values, step.state, nested=nested, chosen=chooses, jobs=jobs, whole=linear.whole
            )
        if mode in _DRAFTS:
            return self._draft(step, linear, entering, jobs)
        if mode == "dense" or linear.tiers is None:
            made = self.ops.dense(linear.weights, entering.values, step.state, outputs=linear.columns, jobs=jobs)
            return made[None]
        tiers, sizes = linear.tiers, self.tier_sizes
        prefix = self.ops.select(entering.values, tiers.scores, take, step.state, sizes, joined=joined, jobs=jobs)
        made = self.ops.verify(
            linear.weights,
            tiers.planes,
            entering.values,
            prefix,
            step.state,
            outputs=linear.columns,
            tiers=len(sizes),
            seams=linear.seams,
            jobs=jobs,
        )
        return made[None]

    def _draft(self, step: Step, linear: Linear, entering: Activation, jobs: Jobs | None) -> Any:
        """A multiplication in the views `int4` and `bucket`."""
        values, counts, outputs = entering.values, entering.counts, linear.columns
        selection = None if entering.chosen else self._selection(step, linear)
        if selection is not None:
            scores = selection.scores.reshape(-1, *selection.scores.shape[-2:])
            made = self.ops.choose(
                values, scores, selection.take, step.state, selection.tier_sizes, joined=1, counts=selection.counts,
                jobs=jobs,
            )  # fmt: skip
            values, counts = made[0].reshape(-1, 1, values.shape[-1]), made[-1]
            jobs = None if jobs is None else replace(jobs, by_job=True)
        if step.kind.mode == "bucket":
            assert linear.bucket is not None  # prepare_view has packed it
            return self.ops.bucket(
                linear.bucket.records, values, counts, outputs=outputs, whole=linear.whole_columns, jobs=jobs
            )
        assert linear.int4 is not None
        return self.ops.int4(
            linear.int4.levels, linear.int4.scales, values, outputs=outputs, whole=linear.whole_columns, jobs=jobs
        )

"""One pass of the model in MLX operations: rows of any number of sequences through every layer, each row by itself.

Rows share the pass and nothing else: every operation sees one row, in shapes that follow from the model and the row's
position. So a row's logits are the same bits whether it is alone, drafted, verified, in a tree or part of a prompt.
What a matrix multiplication is (view, effort, accounting) belongs to the runtime, which hands in `Multiply`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby, repeat
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from specdec.kernels.reference import mlx_layers
from specdec.kernels.reference.attention import first_visible
from specdec.kernels.reference.experts import kept_experts
from specdec.kernels.reference.layers import rotary_frequencies, rotations
from specdec.kernels.reference.mlx_backend import mx
from specdec.kernels.reference.mlx_matrix import FloatMatrix

from specdec.model.architecture import ModelConfig
from specdec.model.layers import Layer


class Joins(Protocol):
    """What is put together where several devices share a model's heads."""

    def join(self, name: str, rows: list[Any]) -> list[Any]:
        """Rows (1, all outputs of the matrix `name`) from this device's, (1, outputs here)."""
        ...

    def own(self, name: str, row: Any) -> Any:
        """This device's outputs of a row (1, all outputs)."""
        ...

    @property
    def begins(self) -> bool:
        """Whether rows begin as embeddings here, not as what another device has made of them."""
        ...

    def leave(self, rows: list[Any]) -> None:
        """Take rows (1, hidden) behind the last layer."""
        ...


class Multiply(Protocol):
    """A matrix times rows."""

    def __call__(
        self, name: str, rows: list[Any], parts: list[int], *, growths: Sequence[float] | None = None
    ) -> list[Any]:
        """Rows (1, out).

        Args:
            name: canonical name of the matrix.
            rows: (1, in) each.
            parts: number of the sequence of each row, ascending.
            growths: the effort of each row is multiplied by it, up to 1; None is 1 for all.
        """
        ...


class History(Protocol):
    """Keys and values of one sequence; entries are numbered by slots."""

    def write(self, layer: int, keys: Any, values: Any) -> None:
        """Put M new entries, (K, M, D) each, after those that are held."""
        ...

    def history(self, layer: int, slots: Sequence[int]) -> tuple[Any, Any]:
        """Keys and values of the entries `slots`, (K, len(slots), D) each, in that order."""
        ...

    def arrays(self, layer: int) -> tuple[Any, Any]:
        """The arrays of one layer, for evaluation."""
        ...

    def advance(self, count: int) -> None:
        """Count the `count` entries that `write` has put into every layer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One sequence's rows in a pass.

    Attributes:
        cache: grows by the rows.
        tokens: M token ids.
        slots: for each row the entries of the cache that hold its history, itself last, in order of positions: entry j
            is at position j.
        mixture_efforts: for every layer what decides how many experts a row keeps, see `Efforts.of_mixtures`.
        layers: run this number of first layers, then the final norm and the logits layer.
        logits: rows whose logits are wanted, ascending.
        observe: gets the hidden states (M, hidden) after each layer, or None.
        parts: for each row the number of first positions it attends to, and the position from which on it attends
            to all; None for all of its history.
    """

    cache: History
    tokens: Sequence[int]
    slots: Sequence[Sequence[int]]
    mixture_efforts: Sequence[float]
    layers: int
    logits: Sequence[int]
    observe: Callable[[NDArray[np.float32]], None] | None = None
    parts: Sequence[tuple[int, int]] | None = None


@dataclass(slots=True)
class _Row:
    """A row between layers: number and segment of its sequence, slots, first positions and the one from which on it
    attends to all, rotation by kind of layer, residual stream (1, hidden)."""

    part: int
    segment: Segment
    slots: Sequence[int]
    sinks: int
    first: int
    turns: dict[Hashable, tuple[Any, Any]]
    x: Any


class RowTransformer:
    """A decoder-only transformer without its matrices.

    Args:
        config: shape of the model.
        vector: canonical vector name to float32 values.
        embed: token ids to their embeddings, (1, hidden) float32 MLX arrays.
        joins: where this device has some of the heads alone; vectors and queries, keys and values are its share then,
            and all other products come whole.
        router: layer to the float32 (experts, hidden) routing table; called for mixture models only.
    """

    def __init__(
        self,
        config: ModelConfig,
        vector: Callable[[str], NDArray[np.float32]],
        embed: Callable[[Sequence[int]], list[Any]],
        router: Callable[[int], NDArray[np.float32]],
        joins: Joins | None = None,
    ) -> None:
        self._config, self._embed, self._joins = config, embed, joins
        self._vectors = {name: mx.array(self._stored(vector(name), name)) for name in config.vectors()}
        self._routers = {
            number: FloatMatrix(router(number)) for number, layer in enumerate(config.layers) if layer.mlp.experts
        }
        # Layers of one kind of rotary positions and head size share frequencies.
        self._frequencies = {
            _turning(layer): (rotary_frequencies(config, number), layer.attention.rope.attention_factor)
            for number, layer in enumerate(config.layers)
        }
        mx.eval(self._vectors)

    def _stored(self, values: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        """A vector as it multiplies or is added: norms with the model's offset."""
        return values + np.float32(self._config.norm_offset) if name.endswith("_norm") else values

    def forward(self, segments: Sequence[Segment], multiply: Multiply) -> list[NDArray[np.float32]]:
        """Append every segment's tokens to its cache; the logits that each asked for, float32 (rows, V)."""
        embedded = iter(self._embedded([token for segment in segments for token in segment.tokens]))
        rows = [
            _Row(part, segment, slots, *seen, self._rotations(len(slots) - 1), next(embedded))
            for part, segment in enumerate(segments)
            for slots, seen in zip(segment.slots, segment.parts or repeat((0, 0)), strict=False)
        ]
        for layer in range(max(segment.layers for segment in segments)):
            self._block(layer, [row for row in rows if layer < row.segment.layers], multiply)
        if self._joins is not None:
            self._joins.leave([row.x for row in rows])
        for segment in segments:
            segment.cache.advance(len(segment.tokens))
        wanted = [own[index] for segment, own in _by_segment(rows) for index in segment.logits]
        parts = [row.part for row in wanted]
        found = multiply("head", [self._norm(row.x, "final_norm") for row in wanted], parts) if wanted else []
        found = [self._as_logits(row) for row in found]
        mx.eval(found)
        none = np.empty((0, self._config.vocab), np.float32)
        by_part = [[none] for _ in segments]
        for part, logits in zip(parts, found, strict=True):
            by_part[part].append(np.array(logits, dtype=np.float32))
        return [np.concatenate(one) for one in by_part]

    def _block(self, layer: int, rows: list[_Row], multiply: Multiply) -> None:
        """Rows through one layer."""
        entering = self._entering(rows, layer, "attn")
        self._add(rows, self._attention(rows, entering, layer, multiply), layer, "attn")
        entering = self._entering(rows, layer, "mlp")
        mixed = self._experts if self._config.layers[layer].mlp.experts else self._only_mlp
        self._add(rows, mixed(rows, entering, layer, multiply), layer, "mlp")
        # Once a layer: a long prompt's graph would otherwise hold every intermediate array of the pass.
        mx.eval([row.x for row in rows], [segment.cache.arrays(layer) for segment, _ in _by_segment(rows)])
        for segment, own in _by_segment(rows):
            if segment.observe is not None:
                segment.observe(np.array(mx.concatenate([row.x for row in own], axis=0), dtype=np.float32))

    def _embedded(self, tokens: Sequence[int]) -> list[Any]:
        scale, found = self._config.embed_scale, self._embed(tokens)
        begins = self._joins is None or self._joins.begins
        return [one * scale for one in found] if begins and scale != 1 else found

    def _as_logits(self, row: Any) -> Any:
        scale = self._config.logit_scale
        return mlx_layers.softcap(row if scale == 1 else row * scale, self._config.logit_cap)

    def _entering(self, rows: list[_Row], layer: int, part: str) -> list[Any]:
        """What enters attention or MLP."""
        if self._config.layers[layer].norms == "post":
            return [row.x for row in rows]
        return [self._norm(row.x, f"layers.{layer}.{part}_norm") for row in rows]

    def _add(self, rows: list[_Row], mixed: list[Any], layer: int, part: str) -> None:
        """Add what attention or MLP returned, after the norm and the scale that the model has."""
        shape = self._config.layers[layer]
        for row, found in zip(rows, mixed, strict=True):
            if shape.norms != "pre":
                found = self._norm(found, f"layers.{layer}.{part}_post_norm")
            row.x = row.x + (found if shape.residual_scale == 1 else found * shape.residual_scale)

    def _norm(self, x: Any, name: str) -> Any:
        return mlx_layers.rms_norm(x, self._vectors[name], eps=self._config.eps)

    def _rotations(self, position: int) -> dict[Hashable, tuple[Any, Any]]:
        """Cosines and sines (R / 2,) of one position, rounded once from float64, by kind of layer."""
        found: dict[Hashable, tuple[Any, Any]] = {}
        for kind, (frequencies, factor) in self._frequencies.items():
            turns = rotations(np.array([position]), frequencies, factor=factor)
            cosines, sines = (mx.array(part[0].astype(np.float32)) for part in turns)
            found[kind] = cosines, sines
        return found

    def _attention(self, rows: list[_Row], normed: list[Any], layer: int, multiply: Multiply) -> list[Any]:
        parts, attention, base = (
            [row.part for row in rows],
            self._config.layers[layer].attention,
            f"layers.{layer}.attn",
        )
        key, kind = _turning(self._config.layers[layer]), attention.rope.kind
        queries, keys, values = (self._heads(normed, parts, layer, name, multiply) for name in ("q", "k", "v"))
        queries, keys = (
            [mlx_layers.rotate(one, *row.turns[key], kind=kind) for one, row in zip(ones, rows, strict=True)]
            for ones in (queries, keys)
        )
        start = 0
        for segment, own in _by_segment(rows):
            stop = start + len(own)
            segment.cache.write(layer, mx.stack(keys[start:stop], axis=1), mx.stack(values[start:stop], axis=1))
            start = stop
        mixed = [self._attend(row, query, layer) for row, query in zip(rows, queries, strict=True)]
        if self._joins is not None:
            mixed = self._joins.join(f"{base}.q", mixed)
        if attention.gate:
            gates = multiply(f"{base}.gate", normed, parts)
            mixed = [mx.sigmoid(gate) * one for gate, one in zip(gates, mixed, strict=True)]
        return self._biased(f"{base}.o", multiply(f"{base}.o", mixed, parts), attention.output_bias)

    def _attend(self, row: _Row, query: Any, layer: int) -> Any:
        """Attention of one row over what it sees."""
        attention, position = self._config.layers[layer].attention, len(row.slots) - 1
        if not query.shape[0]:  # all heads are on other devices
            return mx.zeros((1, 0))
        visible = first_visible(position, attention.window)
        seen = row.slots[max(visible, row.first) :]
        if visible < min(row.sinks, row.first):
            seen = [*row.slots[visible : row.sinks], *seen]
        keys, values = row.segment.cache.history(layer, seen)
        return mlx_layers.attend(
            query,
            keys,
            values,
            scale=attention.score_scale * attention.query_growth(position),
            cap=attention.softcap,
            sinks=self._vectors[f"layers.{layer}.attn.sinks"] if attention.sinks else None,
        )

    def _biased(self, name: str, rows: list[Any], bias: bool) -> list[Any]:
        return [row + self._vectors[f"{name}.bias"] for row in rows] if bias else rows

    def _heads(self, normed: list[Any], parts: list[int], layer: int, name: str, multiply: Multiply) -> list[Any]:
        """Queries, keys or values of every row, (heads, D) each, with bias and norm where the model has them."""
        full, attention = f"layers.{layer}.attn.{name}", self._config.layers[layer].attention
        rows = self._biased(full, multiply(full, normed, parts), attention.bias)
        if attention.qk_norm == "full" and name != "v":
            rows = self._normed_whole(full, rows)
        rows = [row.reshape(row.shape[1] // attention.head_dim, attention.head_dim) for row in rows]
        if attention.qk_norm == "head" and name != "v":
            rows = [self._norm(row, f"{full}_norm") for row in rows]
        return rows

    def _normed_whole(self, name: str, rows: list[Any]) -> list[Any]:
        """Rows of queries or keys, normed over all heads."""
        if self._joins is None:
            return [self._norm(row, f"{name}_norm") for row in rows]
        whole = [self._norm(row, f"{name}_norm") for row in self._joins.join(name, rows)]
        return [self._joins.own(name, row) for row in whole]

    def _only_mlp(self, rows: list[_Row], entering: list[Any], layer: int, multiply: Multiply) -> list[Any]:
        return self._mlp(entering, [row.part for row in rows], layer, self._config.mlp_names(layer)[0], multiply)

    def _mlp(
        self,
        entering: list[Any],
        parts: list[int],
        layer: int,
        name: str,
        multiply: Multiply,
        growths: Sequence[float] | None = None,
    ) -> list[Any]:
        mlp = self._config.layers[layer].mlp
        gates, ups = (
            self._biased(f"{name}.{part}", multiply(f"{name}.{part}", entering, parts, growths=growths), mlp.bias)
            for part in ("gate", "up")
        )
        hidden = [mlx_layers.gated(*pair, activation=mlp.activation) for pair in zip(gates, ups, strict=True)]
        return self._biased(f"{name}.down", multiply(f"{name}.down", hidden, parts, growths=growths), mlp.bias)

    def _experts(self, rows: list[_Row], entering: list[Any], layer: int, multiply: Multiply) -> list[Any]:
        """Each row's kept experts, added up by rising expert number, then the shared one. The router itself always
        runs in full."""
        names, mlp = self._config.mlp_names(layer), self._config.layers[layer].mlp
        routes = [self._routers[layer].dense(row) for row in entering]
        routes = self._biased(f"layers.{layer}.mlp.router", routes, mlp.router_bias)
        kept = [
            kept_experts(np.array(route)[0], mlp, effort=row.segment.mixture_efforts[layer])
            for row, route in zip(rows, routes, strict=True)
        ]
        parts: list[int] = [row.part for row in rows]
        mixed: list[Any] = [None] * len(rows)
        for expert in sorted({int(number) for one in kept for number in one.experts}):
            users = [m for m, one in enumerate(kept) if expert in one.experts]
            growths = [kept[m].growth for m in users]
            own = [entering[m] for m in users], [parts[m] for m in users]
            for m, output in zip(users, self._mlp(*own, layer, names[expert], multiply, growths), strict=True):
                part = output * float(kept[m].weights[kept[m].experts == expert][0])
                mixed[m] = part if mixed[m] is None else mixed[m] + part
        if not mlp.shared_width:
            return mixed
        shared = self._mlp(entering, parts, layer, names[-1], multiply)
        return [one + other for one, other in zip(mixed, shared, strict=True)]


def _turning(layer: Layer) -> Hashable:
    """Equal for layers that turn heads by equal angles."""
    return layer.attention.rope, layer.attention.head_dim


def _by_segment(rows: list[_Row]) -> list[tuple[Segment, list[_Row]]]:
    """The rows of each segment, in order."""
    return [(own[0].segment, own) for own in (list(group) for _, group in groupby(rows, key=lambda row: row.part))]

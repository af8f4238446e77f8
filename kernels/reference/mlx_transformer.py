"""One pass of the model in MLX operations: M rows through every layer, layer by layer, each row by itself.

Rows share the pass, the cache and nothing else: every operation sees one row, in shapes that follow from the model and
the row's position. So a row's logits are the same bits whether it is alone, drafted, verified or part of a prompt.
What a matrix multiplication is (view, effort, accounting) belongs to the runtime, which hands in `Multiply`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specdec.kernels.reference import mlx_layers
from specdec.kernels.reference.attention import first_visible
from specdec.kernels.reference.layers import choose_experts, rotary_frequencies
from specdec.kernels.reference.mlx_backend import mx
from specdec.kernels.reference.mlx_cache import KeyValueCache
from specdec.kernels.reference.mlx_matrix import FloatMatrix

from specdec.model.architecture import ModelConfig

# Canonical matrix name and rows (1, in) to rows (1, out).
Multiply = Callable[[str, list[Any]], list[Any]]


class RowTransformer:
    """A decoder-only transformer without its matrices.

    Args:
        config: shape of the model.
        vector: canonical vector name to float32 values.
        embed: token id to its embedding, (1, hidden) float32 MLX array.
        router: layer to the float32 (experts, hidden) routing table; called for mixture models only.
    """

    def __init__(
        self,
        config: ModelConfig,
        vector: Callable[[str], NDArray[np.float32]],
        embed: Callable[[int], Any],
        router: Callable[[int], NDArray[np.float32]],
    ) -> None:
        self._config, self._embed = config, embed
        self._vectors = {name: mx.array(vector(name)) for name in config.vectors()}
        self._routers = [FloatMatrix(router(layer)) for layer in range(config.num_layers)] if config.num_experts else []
        self._frequencies = rotary_frequencies(config)
        mx.eval(self._vectors)

    def forward(
        self,
        tokens: Sequence[int],
        cache: KeyValueCache,
        multiply: Multiply,
        *,
        last_only: bool,
        layers: int,
        observe: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> Any:
        """Append `tokens` to `cache`; logits (M, V), or (1, V) of the last row, evaluated, as an MLX array.

        They are those of the first `layers` layers, the final norm and the logits layer. `observe` gets the hidden
        states (M, hidden) behind each layer.
        """
        config = self._config
        positions = range(cache.length, cache.length + len(tokens))
        rows = [self._embed(token) for token in tokens]
        turns = [self._rotation(position) for position in positions]
        for layer in range(layers):
            normed = [self._norm(row, f"layers.{layer}.attn_norm") for row in rows]
            mixed = self._attention(normed, layer, positions, turns, cache, multiply)
            rows = [row + part for row, part in zip(rows, mixed, strict=True)]
            normed = [self._norm(row, f"layers.{layer}.mlp_norm") for row in rows]
            mixed = (
                self._experts(normed, layer, multiply)
                if config.num_experts
                else self._mlp(normed, config.mlp_names(layer)[0], multiply)
            )
            rows = [row + part for row, part in zip(rows, mixed, strict=True)]
            # Once a layer: a long prompt's graph would otherwise hold every intermediate array of the pass.
            mx.eval(rows, cache.arrays(layer))
            if observe is not None:
                observe(np.array(mx.concatenate(rows, axis=0), dtype=np.float32))
        cache.advance(len(tokens))
        normed = [self._norm(row, "final_norm") for row in (rows[-1:] if last_only else rows)]
        logits = mx.concatenate(multiply("head", normed), axis=0)
        mx.eval(logits)
        return logits

    def _norm(self, x: Any, name: str) -> Any:
        return mlx_layers.rms_norm(x, self._vectors[name], eps=self._config.norm_eps)

    def _rotation(self, position: int) -> tuple[Any, Any]:
        """Cosines and sines (D / 2,) of one position, rounded once from float64."""
        angles = position * self._frequencies
        return mx.array(np.cos(angles).astype(np.float32)), mx.array(np.sin(angles).astype(np.float32))

    def _attention(
        self,
        normed: list[Any],
        layer: int,
        positions: range,
        turns: list[tuple[Any, Any]],
        cache: KeyValueCache,
        multiply: Multiply,
    ) -> list[Any]:
        queries, keys, values = (self._heads(normed, layer, name, multiply) for name in ("q", "k", "v"))
        queries = [mlx_layers.rotate(row, *turn) for row, turn in zip(queries, turns, strict=True)]
        keys = [mlx_layers.rotate(row, *turn) for row, turn in zip(keys, turns, strict=True)]
        cache.write(layer, mx.stack(keys, axis=1), mx.stack(values, axis=1))
        window = self._config.window(layer)
        mixed = []
        for query, position in zip(queries, positions, strict=True):
            history = cache.history(layer, first_visible(position, window), position + 1)
            mixed.append(mlx_layers.attend(query, *history))
        return multiply(f"layers.{layer}.attn.o", mixed)

    def _heads(self, normed: list[Any], layer: int, name: str, multiply: Multiply) -> list[Any]:
        """Queries, keys or values of every row, (heads, D) each, with bias and norm where the model has them."""
        full = f"layers.{layer}.attn.{name}"
        rows = multiply(full, normed)
        if self._config.qkv_bias:
            rows = [row + self._vectors[f"{full}.bias"] for row in rows]
        rows = [row.reshape(-1, self._config.head_dim) for row in rows]
        if self._config.qk_norm and name != "v":
            rows = [self._norm(row, f"{full}_norm") for row in rows]
        return rows

    def _mlp(self, normed: list[Any], name: str, multiply: Multiply) -> list[Any]:
        gates, ups = multiply(f"{name}.gate", normed), multiply(f"{name}.up", normed)
        hidden = [mlx_layers.gated(gate, up) for gate, up in zip(gates, ups, strict=True)]
        return multiply(f"{name}.down", hidden)

    def _experts(self, normed: list[Any], layer: int, multiply: Multiply) -> list[Any]:
        """Each row's chosen experts, added up by rising expert number. The router itself always runs in full."""
        names = self._config.mlp_names(layer)
        routes = [np.array(self._routers[layer].dense(row))[0] for row in normed]
        choices = [choose_experts(route, self._config.experts_per_token) for route in routes]
        mixed: list[Any] = [None] * len(normed)
        for expert in sorted({int(number) for chosen, _ in choices for number in chosen}):
            users = [m for m, (chosen, _) in enumerate(choices) if expert in chosen]
            outputs = self._mlp([normed[m] for m in users], names[expert], multiply)
            for m, output in zip(users, outputs, strict=True):
                chosen, weights = choices[m]
                part = output * float(weights[chosen == expert][0])
                mixed[m] = part if mixed[m] is None else mixed[m] + part
        return mixed

"""The whole model, dense, in float64 NumPy: what a runtime's logits at effort 1.0 are compared with.

No cache and no effort live here; every position of a sequence is computed at once. Slow by design.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from specdec.kernels.reference.attention import attention_rows
from specdec.kernels.reference.experts import choose_experts
from specdec.kernels.reference.layers import (
    gated,
    rms_norm,
    rotary_frequencies,
    rotate,
    rotations,
    softcap,
)

from specdec.model.architecture import ModelConfig

Array = NDArray[np.floating]
Rows = NDArray[np.float64]


class DenseTransformer:
    """A decoder-only transformer over weights that the caller holds.

    Attributes:
        config: shape of the model.
        matrix: canonical matrix or table name to its weights, (out, in), any float dtype. Called once a use.
        vector: canonical vector name to its values.
        observe: called with the name of each matrix and the (rows, in) float64 activations that enter it, or None.
    """

    def __init__(
        self,
        config: ModelConfig,
        matrix: Callable[[str], Array],
        vector: Callable[[str], Array],
        *,
        observe: Callable[[str, Rows], None] | None = None,
    ) -> None:
        self.config, self.matrix, self.vector, self.observe = config, matrix, vector, observe

    def logits(self, tokens: Sequence[int]) -> Rows:
        """Teacher-forced logits, (T, V) float64, of T token ids at positions 0 to T - 1."""
        config = self.config
        embed = self.matrix("head" if config.tied else "embed")
        x = embed[np.asarray(tokens)].astype(np.float64) * config.embed_scale
        for layer in range(config.num_layers):
            x = self._added(x, layer, "attn", self._attention)
            x = self._added(x, layer, "mlp", self._mixed)
        logits = self._multiply("head", self._norm(x, "final_norm")) * config.logit_scale
        return softcap(logits, config.logit_cap)

    def _added(self, x: Rows, layer: int, part: str, run: Callable[[Rows, int], Rows]) -> Rows:
        """x plus what a part of the layer returns, with the norms before and after it that the model has."""
        shape, name = self.config.layers[layer], f"layers.{layer}.{part}"
        found = run(x if shape.norms == "post" else self._norm(x, f"{name}_norm"), layer)
        if shape.norms != "pre":
            found = self._norm(found, f"{name}_post_norm")
        return x + found * shape.residual_scale

    def _norm(self, x: Rows, name: str) -> Rows:
        return rms_norm(x, self.vector(name), eps=self.config.eps, offset=self.config.norm_offset)

    def _multiply(self, name: str, rows: Rows, *, bias: bool = False) -> Rows:
        if self.observe is not None:
            self.observe(name, rows)
        found = np.asarray(rows @ self.matrix(name).astype(np.float64).T)
        return found + self.vector(f"{name}.bias") if bias else found

    def _attention(self, entering: Rows, layer: int) -> Rows:
        prefix, attention, length = f"layers.{layer}.attn", self.config.layers[layer].attention, len(entering)
        q, k, v = (self._heads(entering, layer, name) for name in ("q", "k", "v"))
        positions, rope = np.arange(length), attention.rope
        turns = rotations(positions, rotary_frequencies(self.config, layer), factor=rope.attention_factor)
        cosines, sines = (part[:, None] for part in turns)
        q, k = (rotate(part, cosines, sines, kind=rope.kind) for part in (q, k))
        mixed = attention_rows(
            q,
            k.transpose(1, 0, 2),
            v.transpose(1, 0, 2),
            window=attention.window,
            scales=attention.score_scale * np.array([attention.query_growth(int(place)) for place in positions]),
            cap=attention.softcap,
            sinks=self.vector(f"{prefix}.sinks") if attention.sinks else None,
        ).reshape(length, -1)
        if attention.gate:
            mixed = mixed / (1 + np.exp(-self._multiply(f"{prefix}.gate", entering)))
        return self._multiply(f"{prefix}.o", mixed, bias=attention.output_bias)

    def _heads(self, entering: Rows, layer: int, name: str) -> Rows:
        """Queries, keys or values of every row, (rows, heads, D), with bias and norm where the model has them."""
        full, attention = f"layers.{layer}.attn.{name}", self.config.layers[layer].attention
        found = self._multiply(full, entering, bias=attention.bias)
        if attention.qk_norm == "full" and name != "v":
            found = self._norm(found, f"{full}_norm")
        found = found.reshape(len(entering), -1, attention.head_dim)
        return self._norm(found, f"{full}_norm") if attention.qk_norm == "head" and name != "v" else found

    def _mixed(self, entering: Rows, layer: int) -> Rows:
        if self.config.layers[layer].mlp.experts:
            return self._experts(entering, layer)
        return self._mlp(entering, layer, self.config.mlp_names(layer)[0])

    def _mlp(self, entering: Rows, layer: int, name: str) -> Rows:
        mlp = self.config.layers[layer].mlp
        gate, up = (self._multiply(f"{name}.{part}", entering, bias=mlp.bias) for part in ("gate", "up"))
        return self._multiply(f"{name}.down", gated(gate, up, activation=mlp.activation), bias=mlp.bias)

    def _experts(self, entering: Rows, layer: int) -> Rows:
        names, mlp = self.config.mlp_names(layer), self.config.layers[layer].mlp
        routes = entering @ self.matrix(f"layers.{layer}.mlp.router").astype(np.float64).T
        if mlp.router_bias:
            routes = routes + self.vector(f"layers.{layer}.mlp.router.bias")
        mixed = np.zeros_like(entering)
        for row in range(len(entering)):
            for expert, weight in zip(*choose_experts(routes[row], mlp), strict=True):
                mixed[row] += weight * self._mlp(entering[row : row + 1], layer, names[expert])[0]
        return mixed + self._mlp(entering, layer, names[-1]) if mlp.shared_width else mixed

"""The whole model, dense, in float64 NumPy: what a runtime's logits at effort 1.0 are compared with.

No cache and no effort live here; every position of a sequence is computed at once. Slow by design.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from specdec.kernels.reference.attention import attention_rows
from specdec.kernels.reference.layers import choose_experts, gated, rms_norm, rotary_frequencies, rotate, rotations

from specdec.model.architecture import ModelConfig

Array = NDArray[np.floating]


class DenseTransformer:
    """A decoder-only transformer over weights that somebody else holds.

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
        observe: Callable[[str, NDArray[np.float64]], None] | None = None,
    ) -> None:
        self.config, self.matrix, self.vector, self.observe = config, matrix, vector, observe

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Teacher-forced logits, (T, V) float64, of T token ids at positions 0 to T - 1."""
        config = self.config
        embed = self.matrix("head" if config.tied else "embed")
        x = embed[np.asarray(tokens)].astype(np.float64)
        for layer in range(config.num_layers):
            x = x + self._attention(x, layer)
            normed = rms_norm(x, self.vector(f"layers.{layer}.mlp_norm"), eps=config.eps)
            mixture = config.layers[layer].mlp.experts > 0
            x = x + (self._experts(normed, layer) if mixture else self._mlp(normed, config.mlp_names(layer)[0]))
        return self._multiply("head", rms_norm(x, self.vector("final_norm"), eps=config.eps))

    def _multiply(self, name: str, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.observe is not None:
            self.observe(name, rows)
        return np.asarray(rows @ self.matrix(name).astype(np.float64).T)

    def _attention(self, x: NDArray[np.float64], layer: int) -> NDArray[np.float64]:
        config, prefix, attention = self.config, f"layers.{layer}.attn", self.config.layers[layer].attention
        normed = rms_norm(x, self.vector(f"layers.{layer}.attn_norm"), eps=config.eps)
        q, k, v = (
            self._multiply(f"{prefix}.{name}", normed)
            + (self.vector(f"{prefix}.{name}.bias") if attention.bias else 0.0)
            for name in ("q", "k", "v")
        )
        length = len(x)
        q, k, v = (part.reshape(length, -1, attention.head_dim) for part in (q, k, v))
        if attention.qk_norm == "head":
            q = rms_norm(q, self.vector(f"{prefix}.q_norm"), eps=config.eps)
            k = rms_norm(k, self.vector(f"{prefix}.k_norm"), eps=config.eps)
        turns = rotations(np.arange(length), rotary_frequencies(config, layer), factor=attention.rope.attention_factor)
        cosines, sines = (part[:, None] for part in turns)
        keys, values = rotate(k, cosines, sines).transpose(1, 0, 2), v.transpose(1, 0, 2)
        mixed = attention_rows(rotate(q, cosines, sines), keys, values, window=attention.window)
        return self._multiply(f"{prefix}.o", mixed.reshape(length, -1))

    def _mlp(self, normed: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        hidden = gated(self._multiply(f"{name}.gate", normed), self._multiply(f"{name}.up", normed))
        return self._multiply(f"{name}.down", hidden)

    def _experts(self, normed: NDArray[np.float64], layer: int) -> NDArray[np.float64]:
        names, used = self.config.mlp_names(layer), self.config.layers[layer].mlp.experts_used
        routes = normed @ self.matrix(f"layers.{layer}.mlp.router").astype(np.float64).T
        mixed = np.zeros_like(normed)
        for row in range(len(normed)):
            for expert, weight in zip(*choose_experts(routes[row], used), strict=True):
                mixed[row] += weight * self._mlp(normed[row : row + 1], names[expert])[0]
        return mixed

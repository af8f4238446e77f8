"""Models made of random numbers, for tests that need a model and not a trained one. No tokenizer worth the name."""

from __future__ import annotations

from typing import Any

import numpy as np

from specdec.config import ModelConfig
from specdec.views.dtypes import from_float32


def tiny_config(**overrides: Any) -> ModelConfig:
    """A two-layer llama of odd enough sizes (47 tokens, width 32, MLP 56); keyword arguments replace its values."""
    values: dict[str, Any] = {
        "architecture": "llama",
        "vocab_size": 47,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_context": 128,
        "tie_embeddings": True,
    }
    return ModelConfig(**(values | overrides))


class SyntheticSource:
    """A `Source` of seeded Gaussian weights; the same name and seed give the same tensor, whatever was read before.

    Matrices have standard deviation 1 / sqrt(in), so that activations stay near 1 through the layers.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, dtype: str = "float16") -> None:
        self.config = config
        self.dtype = dtype
        self.seed = seed
        self.description = {"kind": "synthetic", "seed": str(seed)}
        self.tokenizer_files: dict[str, bytes] = {}
        self.reads: list[str] = []
        self._shapes = config.matrices() | config.tables()

    def _random(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])

    def matrix(self, name: str) -> np.ndarray:
        """uint16 (out, in) raw bits."""
        self.reads.append(name)
        outputs, inputs = self._shapes[name]
        values = self._random(name).standard_normal((outputs, inputs), dtype=np.float32)
        return from_float32(values / np.float32(inputs) ** 0.5, self.dtype)

    def vector(self, name: str) -> np.ndarray:
        """float32 (n,): norms near 1, biases near 0."""
        noise = self._random(name).standard_normal(self.config.vectors()[name], dtype=np.float32) / 10
        return noise if name.endswith(".bias") else 1 + noise

    def close(self) -> None:
        """Nothing to close."""


def synthetic_source(config: ModelConfig | None = None, seed: int = 0, *, dtype: str = "float16") -> SyntheticSource:
    """A source of random weights for `config` (default `tiny_config()`)."""
    return SyntheticSource(config or tiny_config(), seed=seed, dtype=dtype)

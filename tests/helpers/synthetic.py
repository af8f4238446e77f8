"""Models made of random numbers, for tests that need a model and not a trained one. No tokenizer worth the name."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quantize

from specdec.model.architecture import ModelConfig
from specdec.weights.affine import AffineType
from specdec.weights.dtypes import from_float32, to_float32
from specdec.weights.quantised import QuantisedTable, quantised_type


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
    return ModelConfig.from_flat_dict(values | overrides)


class SyntheticSource:
    """A `Source` of seeded Gaussian weights; the same name and seed give the same tensor, whatever was read before.

    Matrices have standard deviation 1 / sqrt(in), so that activations stay near 1 through the layers.
    """

    def __init__(
        self, config: ModelConfig, *, seed: int = 0, dtype: str = "float16", types: dict[str, str] | None = None
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.seed = seed
        self.types = types or {}
        self.description = {"kind": "synthetic", "seed": str(seed)}
        self.tokenizer_files: dict[str, bytes] = {}
        self.reads: list[str] = []
        self._shapes = config.matrices() | config.tables()

    def _random(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])

    def matrix(self, name: str) -> np.ndarray:
        """uint16 (out, in) raw bits."""
        self.reads.append(name)
        if name in self.types:
            return from_float32(self.quantised(name, self.types[name]).dequantise(), self.dtype)
        outputs, inputs = self._shapes[name]
        values = self._random(name).standard_normal((outputs, inputs), dtype=np.float32)
        return from_float32(values / np.float32(inputs) ** 0.5, self.dtype)

    def quantised(self, name: str, kind: str) -> QuantisedTable:
        """Random blocks of the matrix's type, or what `matrix` gives in q8_0."""
        if kind == self.types.get(name):
            return random_table(kind, self._shapes[name], self._random(name))
        rows = to_float32(self.matrix(name), self.dtype)
        return QuantisedTable(kind, self._shapes[name], {"blocks": quantize(rows, GGMLQuantizationType.Q8_0)})

    def vector(self, name: str) -> np.ndarray:
        """float32 (n,): norms near 1, biases near 0."""
        noise = self._random(name).standard_normal(self.config.vectors()[name], dtype=np.float32) / 10
        return noise if name.endswith(".bias") else 1 + noise

    def close(self) -> None:
        """Nothing to close."""


def synthetic_source(
    config: ModelConfig | None = None, seed: int = 0, *, dtype: str = "float16", types: dict[str, str] | None = None
) -> SyntheticSource:
    """A source of random weights for `config` (default `tiny_config()`), those of `types` in quantised blocks."""
    return SyntheticSource(config or tiny_config(), seed=seed, dtype=dtype, types=types)


def quantised_config(**overrides: Any) -> ModelConfig:
    """A small llama whose rows are whole blocks of every type: width 256, MLP 512."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_heads": 8, "head_dim": 32}
    return tiny_config(**(sizes | overrides))


def quantised_source(config: ModelConfig, *names: str, seed: int = 0, dtype: str = "float16") -> SyntheticSource:
    """A source whose matrices and tables have these types in turn; "16" stands for one that is not quantised."""
    shapes = [*config.matrices(), *config.tables()]
    types = {name: names[number % len(names)] for number, name in enumerate(shapes)}
    return synthetic_source(
        config, seed, dtype=dtype, types={name: kind for name, kind in types.items() if kind != "16"}
    )


def random_table(name: str, shape: tuple[int, int], random: np.random.Generator) -> QuantisedTable:
    """Random codes under scales and offsets that give weights of mean 0 and standard deviation 1 / sqrt(in), about."""
    kind, (outputs, inputs) = quantised_type(name), shape
    step = np.float32(inputs**-0.5 * 12**0.5 / (1 << kind.bits))
    middle = np.float32(((1 << kind.bits) - 1) / 2 - kind.zero)
    if isinstance(kind, AffineType):
        specs = kind.tensors(shape)
        scales = step * random.uniform(0.5, 1.5, specs["scales"].shape).astype(np.float32)
        factors = {"scales": from_float32(scales, kind.dtype), "biases": from_float32(-scales * middle, kind.dtype)}
        words = random.integers(0, 1 << 32, specs["weight"].shape, dtype=np.uint32)
        return QuantisedTable(name, shape, {"weight": words, **factors})
    size = kind.tensors((1, kind.block))["blocks"].shape[1]
    raw = random.integers(0, 256, (outputs, inputs // kind.block, size), dtype=np.uint8)

    def put(at: int, values: np.ndarray) -> None:
        raw[..., at : at + 2] = values.astype(np.float16)[..., None].view(np.uint8)

    scales = step * random.uniform(0.5, 1.5, raw.shape[:2]).astype(np.float32)
    if name == "q6_k":
        put(208, scales / 64)  # times scales of -128 to 127
    elif name.endswith("_k"):
        raw[..., 4:16] = np.tile(raw[..., 4:8] & 63 | 32, 3)  # every group's minimum equals its scale but for 4 bits
        put(0, scales / 48)
        put(2, scales * middle / 48)
    else:
        put(0, scales)
        if kind.extra == 4:
            put(2, -scales * middle)
    return QuantisedTable(name, shape, {"blocks": raw.reshape(outputs, -1)})

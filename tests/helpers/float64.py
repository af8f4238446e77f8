"""Logits of a model in float64, from its dequantised weights."""

from __future__ import annotations

import numpy as np
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource

from specdec.store import Store
from specdec.weights.dtypes import to_float32


def float64_logits(source: SyntheticSource, tokens: list[int]) -> np.ndarray:
    def weights(name: str) -> np.ndarray:
        if name in source.types:
            return source.quantised(name, source.types[name]).dequantise()
        return to_float32(source.matrix(name), source.dtype)

    names = source.config.matrices() | source.config.tables()
    return DenseTransformer(source.config, {name: weights(name) for name in names}.__getitem__, source.vector).logits(
        tokens
    )


def stored_logits(store: Store, tokens: list[int]) -> np.ndarray:
    """The same of a store whose weights have 16 bits."""

    def weights(name: str) -> np.ndarray:
        bits = store.table(name) if name in store.config.tables() else store.exact(name).dense_bits()
        return to_float32(bits, store.dtype)

    return DenseTransformer(store.config, weights, store.vector).logits(tokens)

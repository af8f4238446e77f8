"""Which tensors a store has and in which order: a pure function of the model and the layout. No file is touched.

Order of `exact.safetensors`: vectors, tables, scores, quantised matrices, then tier 0 of every other matrix, tier 1 of
every other matrix, and so on. So the model at its first tiers is a prefix of the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from specdec.config import ModelConfig
from specdec.views.base import TensorSpec, View
from specdec.views.bucket import BucketedMatrix
from specdec.views.layout import BucketLayout
from specdec.views.quantised import quantised_type

EXACT_FILE = "exact.safetensors"
TOKENIZER_FOLDER = "tokenizer"


def view_file(view: str) -> str:
    """Name of the file that holds a draft view."""
    return f"view-{view}.safetensors"


def exact_tensors(
    config: ModelConfig, layout: BucketLayout, *, dtype: str, types: Mapping[str, str]
) -> dict[str, TensorSpec]:
    """Every tensor of `exact.safetensors` in file order; `types` says which matrices and tables are quantised."""
    bits = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    specs = {name: TensorSpec("F32", (length,)) for name, length in config.vectors().items()}
    for name, shape in config.tables().items():
        specs |= _blocks(name, shape, types) if name in types else {name: TensorSpec(bits, shape)}
    matrices = config.matrices()
    arrays = {
        name: BucketedMatrix.tensors(shape, layout, dtype=dtype)
        for name, shape in matrices.items()
        if name not in types
    }
    for name, (_, inputs) in matrices.items():
        specs[f"{name}.scores"] = TensorSpec("F32", (inputs, 1)) if name in types else arrays[name]["scores"]
    for name in matrices:
        specs |= _blocks(name, matrices[name], types) if name in types else {}
    for group in (f"tier{k}" for k in range(layout.num_tiers)):
        for name, parts in arrays.items():
            specs |= {f"{name}.{part}": spec for part, spec in parts.items() if part.split(".")[0] == group}
    return specs


def _blocks(name: str, shape: tuple[int, int], types: Mapping[str, str]) -> dict[str, TensorSpec]:
    return {f"{name}.{part}": spec for part, spec in quantised_type(types[name]).tensors(shape).items()}


def view_tensors(view: View, config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a draft view's file in file order; empty when the view keeps nothing."""
    return {
        f"{name}.{part}": spec
        for name, shape in config.matrices().items()
        for part, spec in view.tensors(shape).items()
    }

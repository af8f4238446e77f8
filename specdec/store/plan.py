"""Which tensors a store has and in which order: a pure function of the model and the layout. No file is touched.

Order of `exact.safetensors`: vectors, tables, scores, then tier 0 of every matrix, tier 1 of every matrix, and so on.
So the model at its first tiers is a prefix of the file.
"""

from __future__ import annotations

from specdec.config import ModelConfig
from specdec.views.base import TensorSpec, View
from specdec.views.bucket import BucketedMatrix
from specdec.views.layout import BucketLayout

EXACT_FILE = "exact.safetensors"
TOKENIZER_FOLDER = "tokenizer"


def view_file(view: str) -> str:
    """Name of the file that holds a draft view."""
    return f"view-{view}.safetensors"


def exact_tensors(config: ModelConfig, layout: BucketLayout, *, dtype: str) -> dict[str, TensorSpec]:
    """Every tensor of `exact.safetensors` in file order."""
    bits = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    specs = {name: TensorSpec("F32", (length,)) for name, length in config.vectors().items()}
    specs |= {name: TensorSpec(bits, shape) for name, shape in config.tables().items()}
    arrays = {name: BucketedMatrix.tensors(shape, layout, dtype=dtype) for name, shape in config.matrices().items()}
    for group in ("scores", *(f"tier{k}" for k in range(layout.num_tiers))):
        for name, parts in arrays.items():
            specs |= {f"{name}.{part}": spec for part, spec in parts.items() if part.split(".")[0] == group}
    return specs


def view_tensors(view: View, config: ModelConfig, layout: BucketLayout) -> dict[str, TensorSpec]:
    """Every tensor of a draft view's file in file order; empty when the view keeps nothing."""
    return {
        f"{name}.{part}": spec
        for name, shape in config.matrices().items()
        for part, spec in view.tensors(shape, layout).items()
    }

"""Which tensors a store has and in which order: a pure function of the model and the layout. No file is touched.

Order of `exact.safetensors`: vectors, tables, scores, quantised matrices except the rest of codes in planes,
then tier 0 of every other matrix, tier 1 of every other matrix, and so on, and at the end the rests. So the model at
its first parts is a prefix of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from specdec.model.architecture import ModelConfig
from specdec.weights.base import TensorSpec, View
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.layout import BucketLayout
from specdec.weights.quantised import quantised_type
from specdec.weights.quantised_types import REST, UPPER_BITS

EXACT_FILE = "exact.safetensors"
TOKENIZER_FOLDER = "tokenizer"
_BLOCKS = "blocks"


def view_file(view: str) -> str:
    """Name of the file that holds a draft view."""
    return f"view-{view}.safetensors"


def plane_matrices(config: ModelConfig, types: Mapping[str, str]) -> list[str]:
    """The matrices whose codes a new store has in planes: those of more than four bits.

    Tables, which are always loaded whole, stay in their blocks.
    """
    return [name for name in config.matrices() if name in types and quantised_type(types[name]).bits > UPPER_BITS]


def exact_tensors(
    config: ModelConfig, layout: BucketLayout, *, dtype: str, types: Mapping[str, str], planes: Collection[str]
) -> dict[str, TensorSpec]:
    """Every tensor of `exact.safetensors` in file order.

    Args:
        config: the model.
        layout: bucket and tier sizes.
        dtype: "float16" or "bfloat16".
        types: which matrices and tables are quantised.
        planes: which quantised matrices have their codes in planes.
    """
    bits = {"float16": "F16", "bfloat16": "BF16"}[dtype]
    specs = {name: TensorSpec("F32", (length,)) for name, length in config.vectors().items()}
    for name, shape in config.tables().items():
        if name in types:
            specs |= {f"{name}.{part}": spec for part, spec in quantised_type(types[name]).tensors(shape).items()}
        else:
            specs[name] = TensorSpec(bits, shape)
    matrices = {name: BucketedMatrix.tensors(shape, layout, dtype=dtype) for name, shape in config.matrices().items()}
    for name in matrices.keys() & types.keys():
        kind, shape = quantised_type(types[name], planes=name in planes), config.matrices()[name]
        matrices[name] = {"scores": TensorSpec("F32", (shape[1], 1)), **kind.tensors(shape)}
    for group in ("scores", _BLOCKS, *(f"tier{k}" for k in range(layout.num_tiers)), REST):
        for name, parts in matrices.items():
            specs |= {f"{name}.{part}": spec for part, spec in parts.items() if _group(part) == group}
    return specs


def _group(part: str) -> str:
    """What lies together in the file: scores, a tier, the rest of codes, or everything else of quantised matrices."""
    first = part.split(".")[0]
    return first if first in ("scores", REST) or first.startswith("tier") else _BLOCKS


def view_tensors(view: View, config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a draft view's file in file order; empty when the view keeps nothing."""
    return {
        f"{name}.{part}": spec
        for name, shape in config.matrices().items()
        for part, spec in view.tensors(shape).items()
    }

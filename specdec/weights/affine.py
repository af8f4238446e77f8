"""The affine types of MLX checkpoints: 4- or 8-bit codes in 32-bit words, a 16-bit scale and bias a group of inputs.

A weight is `scale * code + bias` in float32, as MLX's quantised products have it and as `mx.dequantize` gives it for
the same scales and biases in float32, bit for bit. (Asked for 16-bit weights, `mx.dequantize` rounds both operations to
16 bits.) Source: MLX documentation, `mlx.core.quantize`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdec.weights.base import TensorSpec
from specdec.weights.dtypes import to_float32
from specdec.weights.quantised_types import Arrays, QuantisedType

BITS, GROUPS = (4, 8), (32, 64, 128)
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class AffineType(QuantisedType):
    """Arrays `weight`, uint32 (out, in * bits / 32) with the first code in the lowest bits; `scales` and `biases`, 16
    bits as raw bits, (out, in / group).

    Attributes:
        dtype: "float16" or "bfloat16", of scales and biases.
    """

    dtype: str

    def tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """See `QuantisedType.tensors`."""
        outputs, inputs = shape
        self.check_inputs(inputs)
        return {"weight": TensorSpec("U32", (outputs, inputs * self.bits // _WORD_BITS)), **self.head_tensors(shape)}

    def codes(self, arrays: Arrays) -> np.ndarray:
        """See `QuantisedType.codes`."""
        weight = arrays["weight"]
        found = np.ascontiguousarray(weight, dtype="<u4").view(np.uint8).reshape(len(weight), -1)
        if self.bits == 4:
            found = np.stack((found & np.uint8(15), found >> np.uint8(4)), axis=-1).reshape(len(weight), -1)
        return found

    def scale_and_offset(self, arrays: Arrays) -> tuple[np.ndarray, np.ndarray | None]:
        """See `QuantisedType.scale_and_offset`."""
        scales, biases = (np.ascontiguousarray(arrays[name]) for name in ("scales", "biases"))
        # x - (-b) is x + b in every bit.
        return to_float32(scales, self.dtype), -to_float32(biases, self.dtype)

    def heads(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """`scales` and `biases`."""
        return {name: arrays[name] for name in ("scales", "biases")}

    def head_tensors(self, shape: tuple[int, int]) -> dict[str, TensorSpec]:
        """See `QuantisedType.head_tensors`."""
        dtype = {"float16": "F16", "bfloat16": "BF16"}[self.dtype]
        return dict.fromkeys(("scales", "biases"), TensorSpec(dtype, (shape[0], shape[1] // self.group)))


def affine_name(bits: int, group: int, dtype: str) -> str:
    """What the type of these numbers is called: "affine4-g64", or "affine4-g64-bf16"."""
    return f"affine{bits}-g{group}" + ("-bf16" if dtype == "bfloat16" else "")


AFFINE_TYPES = tuple(
    AffineType(affine_name(bits, group, dtype), bits, 0, group, group, 4, dtype)
    for bits in BITS
    for group in GROUPS
    for dtype in ("float16", "bfloat16")
)

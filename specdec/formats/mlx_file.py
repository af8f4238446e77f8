"""Quantised tensors of an MLX checkpoint, as mlx-lm writes them: `X.weight` in words, beside it `X.scales`, `X.biases`.

`AffineFolder` shows them as tensors of the shape that the model means, under a type of their own. Other tensors of the
same folder (norms, layers that were left out) are as they are stored.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.formats.safetensors_file import SafetensorsFolder
from specdec.weights.affine import BITS, GROUPS, affine_name
from specdec.weights.quantised import quantised_type

_WEIGHT, _SCALES, _BIASES = ".weight", ".scales", ".biases"
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}
_WORD_BITS = 32


class AffineFolder:
    """A `TensorFile` over the weights of a quantised checkpoint.

    Args:
        file: its safetensors; closed with this.
        quantization: what config.json says under that name: `group_size`, `bits`, and the same for single layers by
            their name (or false for layers that are not quantised).

    Raises:
        ModelFormatError: the tensors of a layer do not fit together or what config.json says, or its type is none that
            this version reads. The message names the tensor.
    """

    def __init__(self, file: SafetensorsFolder, quantization: Fields) -> None:
        self.label = file.label
        self._file = file
        present = file.names()
        layers = [name.removesuffix(_SCALES) for name in present if name.endswith(_SCALES)]
        if not layers:
            raise ModelFormatError(f"{quantization.where}: the weights are quantised, says this, but none has scales")
        self._types = {layer + _WEIGHT: self._layer_type(layer, quantization) for layer in layers}
        hidden = {layer + part for layer in layers for part in (_SCALES, _BIASES)}
        self._names = [name for name in present if name not in hidden]

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.shape(name)
        if name not in self._types:
            return shape
        return (*shape[:-1], shape[-1] * _WORD_BITS // quantised_type(self._types[name]).bits)

    def type_name(self, name: str) -> str:
        return self._types.get(name) or self._file.type_name(name)

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._types:
            return self._file.float32(name, start, stop)
        return quantised_type(self._types[name]).dequantise(self.blocks(name, start, stop))

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._file.raw16(name, start, stop)

    def blocks(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        layer = name.removesuffix(_WEIGHT)
        return {
            "weight": self._file.raw32(name, start, stop),
            "scales": self._file.raw16(layer + _SCALES, start, stop),
            "biases": self._file.raw16(layer + _BIASES, start, stop),
        }

    def close(self) -> None:
        self._file.close()

    def _layer_type(self, layer: str, quantization: Fields) -> str:
        """Name of the type of a layer whose scales are there."""
        own = quantization.mapping(layer) if isinstance(quantization.values.get(layer), dict) else quantization
        if (mode := own.text("mode", "affine")) != "affine":
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} is quantised as {mode}: only affine is read"
            )
        bits, group = own.integer("bits"), own.integer("group_size")
        if bits not in BITS or group not in GROUPS:
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} has {bits} bits in groups of {group}: this version reads "
                f"{' or '.join(map(str, BITS))} bits in groups of {', '.join(map(str, GROUPS))}"
            )
        kinds, shapes = self._tensors_of(layer)
        if kinds[0] != "U32" or kinds[1] != kinds[2] or kinds[1] not in _DTYPES:
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} must be U32 with scales and biases of F16 or BF16, "
                f"not {kinds[0]} with {kinds[1]} and {kinds[2]}"
            )
        weight, scales, biases = shapes
        if scales != biases or weight[:-1] != scales[:-1] or weight[-1] * _WORD_BITS != scales[-1] * group * bits:
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} of shape {weight} does not fit scales {scales} and biases "
                f"{biases} at {bits} bits in groups of {group}"
            )
        return affine_name(bits, group, _DTYPES[kinds[1]])

    def _tensors_of(self, layer: str) -> tuple[list[str], list[tuple[int, ...]]]:
        """Types and shapes of the three tensors of a layer."""
        names = [layer + part for part in (_WEIGHT, _SCALES, _BIASES)]
        if missing := [name for name in names if name not in self._file.names()]:
            raise ModelFormatError(f"{self.label} lacks tensor {missing[0]!r} of a quantised layer")
        return [self._file.type_name(name) for name in names], [self._file.shape(name) for name in names]

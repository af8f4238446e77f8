"""Quantised tensors of an MLX checkpoint, as mlx-lm writes them: `X.weight` in words, beside it `X.scales`, `X.biases`.

`AffineFolder` shows them as tensors of the shape that the model means: under a type of their own, where a store keeps
their codes as they are, else as 16-bit weights of the type that their scales have. Other tensors of the same folder
(norms, layers that were left out) are as they are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.formats import mxfp4
from specdec.formats.safetensors_file import SafetensorsFolder
from specdec.warn import warn
from specdec.weights.affine import BITS, GROUPS, affine_name
from specdec.weights.dtypes import from_float32, to_float32
from specdec.weights.quantised import quantised_type

_WEIGHT, _SCALES, _BIASES = ".weight", ".scales", ".biases"
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}
_STORED_AS = {dtype: name for name, dtype in _DTYPES.items()} | {"float32": "F32"}
_WORD_BITS = 32
# Codes of these many bits lie across the words, in one stream of bits; no store keeps them.
_STREAM_BITS = (2, 3, 5, 6)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A layer that no store keeps, read as a stream of bits: for its width, or its scales in 32 bits.

    Attributes:
        bits: of a code.
        group: inputs that share a scale and a bias.
        dtype: "float16", "bfloat16" or "float32", of scales and biases.
    """

    bits: int
    group: int
    dtype: str

    def dequantise(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 (out, in): `scale * code + bias`, one rounding an operation."""
        words = np.ascontiguousarray(arrays["weight"], dtype="<u4")
        stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
        codes = stream.reshape(len(words), -1, self.bits) @ (1 << np.arange(self.bits, dtype=np.uint8))
        scales, biases = (self._float32(arrays[name])[..., None] for name in ("scales", "biases"))
        groups = codes.reshape(len(words), -1, self.group).astype(np.float32)
        weights: np.ndarray = (groups * scales + biases).reshape(len(words), -1)
        return weights

    def _float32(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype == "float32" else to_float32(values, self.dtype)


@dataclass(frozen=True, slots=True)
class _Mxfp4:
    """A layer in MXFP4, which no store keeps."""

    bits = 4

    def dequantise(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """float32 (out, in), exact."""
        words = np.ascontiguousarray(arrays["weight"], dtype="<u4")
        return mxfp4.dequantise(words.view(np.uint8).reshape(len(words), -1), arrays["scales"])


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
        types = {layer + _WEIGHT: self._layer_type(layer, quantization) for layer in layers}
        self._streams = {name: kind for name, kind in types.items() if not isinstance(kind, str)}
        self._types = {name: kind for name, kind in types.items() if isinstance(kind, str)}
        if streams := [kind for kind in self._streams.values() if isinstance(kind, _Stream)]:
            found = " and ".join(map(str, sorted({kind.bits for kind in streams})))
            scales = " with scales in 32 bits" if any(kind.dtype == "float32" for kind in streams) else ""
            warn(f"{self.label}: a store does not keep weights of {found} bits{scales}: they become 16-bit")
        hidden = {layer + part for layer in layers for part in (_SCALES, _BIASES)}
        self._names = [name for name in present if name not in hidden]

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.shape(name)
        if name in self._streams:
            bits = self._streams[name].bits
        elif name in self._types:
            bits = quantised_type(self._types[name]).bits
        else:
            return shape
        return (*shape[:-1], shape[-1] * _WORD_BITS // bits)

    def type_name(self, name: str) -> str:
        if (kind := self._streams.get(name)) is not None:
            return _STORED_AS[kind.dtype] if isinstance(kind, _Stream) else mxfp4.TYPE_NAME
        return self._types.get(name) or self._file.type_name(name)

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        if name in self._streams:
            return self._streams[name].dequantise(self.blocks(name, start, stop))
        if name not in self._types:
            return self._file.float32(name, start, stop)
        return quantised_type(self._types[name]).dequantise(self.blocks(name, start, stop))

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        if isinstance(kind := self._streams.get(name), _Stream):
            return from_float32(self.float32(name, start, stop), kind.dtype)
        return self._file.raw16(name, start, stop)

    def blocks(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        layer, kind = name.removesuffix(_WEIGHT), self._streams.get(name)
        if isinstance(kind, _Mxfp4):
            scales = self._file.raw8(layer + _SCALES, start, stop)
            return {"weight": self._file.raw32(name, start, stop), "scales": scales}
        read = self._file.float32 if kind is not None and kind.dtype == "float32" else self._file.raw16
        return {
            "weight": self._file.raw32(name, start, stop),
            "scales": read(layer + _SCALES, start, stop),
            "biases": read(layer + _BIASES, start, stop),
        }

    def close(self) -> None:
        self._file.close()

    def _layer_type(self, layer: str, quantization: Fields) -> str | _Stream | _Mxfp4:
        """The type of a layer whose scales are there: its name, where a store keeps it."""
        own = quantization.mapping(layer) if isinstance(quantization.values.get(layer), dict) else quantization
        if (mode := own.text("mode", "affine")) == "mxfp4":
            return self._mxfp4_type(layer)
        if mode != "affine":
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} is quantised as {mode}: only affine and mxfp4 are read"
            )
        bits, group = own.integer("bits"), own.integer("group_size")
        readable = sorted((*BITS, *_STREAM_BITS))
        if bits not in readable or group not in GROUPS:
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} has {bits} bits in groups of {group}: this version reads "
                f"{', '.join(map(str, readable))} bits in groups of {', '.join(map(str, GROUPS))}"
            )
        kinds, shapes = self._tensors_of(layer, _WEIGHT, _SCALES, _BIASES)
        if kinds[0] != "U32" or kinds[1] != kinds[2] or kinds[1] not in (*_DTYPES, "F32"):
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} must be U32 with scales and biases of F16, BF16 or F32, "
                f"not {kinds[0]} with {kinds[1]} and {kinds[2]}"
            )
        weight, scales, biases = shapes
        if scales != biases or weight[:-1] != scales[:-1] or weight[-1] * _WORD_BITS != scales[-1] * group * bits:
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} of shape {weight} does not fit scales {scales} and biases "
                f"{biases} at {bits} bits in groups of {group}"
            )
        if bits in _STREAM_BITS or kinds[1] == "F32":
            return _Stream(bits, group, _DTYPES.get(kinds[1], "float32"))
        return affine_name(bits, group, _DTYPES[kinds[1]])

    def _mxfp4_type(self, layer: str) -> _Mxfp4:
        """Words of eight codes, and an exponent for each group; no biases."""
        kinds, shapes = self._tensors_of(layer, _WEIGHT, _SCALES)
        (weight, scales), inputs = shapes, shapes[0][-1] * _WORD_BITS // _Mxfp4.bits
        if kinds != ["U32", "U8"] or weight[:-1] != scales[:-1] or inputs != scales[-1] * mxfp4.GROUP:
            raise ModelFormatError(
                f"{self.label}: tensor {layer + _WEIGHT!r} of shape {weight} and type {kinds[0]} does not fit scales "
                f"{scales} of type {kinds[1]} for MXFP4"
            )
        return _Mxfp4()

    def _tensors_of(self, layer: str, *parts: str) -> tuple[list[str], list[tuple[int, ...]]]:
        """Types and shapes of tensors of a layer."""
        names = [layer + part for part in parts]
        if missing := [name for name in names if name not in self._file.names()]:
            raise ModelFormatError(f"{self.label} lacks tensor {missing[0]!r} of a quantised layer")
        return [self._file.type_name(name) for name in names], [self._file.shape(name) for name in names]

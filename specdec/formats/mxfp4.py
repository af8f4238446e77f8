"""MXFP4: 4-bit floating-point codes in groups of 32 that share a power of two, as safetensors of gpt-oss hold them.

Every weight is a code of three bits and a sign times that power, which bfloat16 holds exactly. Source: OCP
Microscaling Formats (MX) Specification 1.0, sections 5.2 and 5.3.3.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from specdec.errors import ModelFormatError
from specdec.formats.safetensors_file import SafetensorsFolder

TYPE_NAME = "MXFP4"
GROUP = 32
_BLOCKS, _SCALES = "_blocks", "_scales"
_GROUP_BYTES = GROUP // 2
_CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_BIAS, _NOT_A_NUMBER = 127, 255


def dequantise(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Weights of rows of groups.

    Args:
        codes: uint8 (rows, columns / 2), the lower half of a byte first.
        scales: uint8 (rows, columns / 32), exponents of two; 255 is NaN.

    Returns:
        float32 (rows, columns), exact.
    """
    values = np.empty((codes.shape[0], codes.shape[1] * 2), np.float32)
    values[:, 0::2], values[:, 1::2] = _CODES[codes & 15], _CODES[codes >> 4]
    powers = np.ldexp(np.float32(1), scales.astype(np.int32) - _BIAS).astype(np.float32)
    powers[scales == _NOT_A_NUMBER] = np.nan
    grouped = values.reshape(*scales.shape, GROUP) * powers[..., None]
    return np.asarray(grouped.reshape(values.shape))


class Mxfp4Folder:
    """A `TensorFile` over a folder whose tensors `X_blocks` and `X_scales` are together one of weights, `X_blocks`.

    Args:
        file: its safetensors; closed with this.

    Raises:
        ModelFormatError: the two do not fit together.
    """

    def __init__(self, file: SafetensorsFolder) -> None:
        self.label, self._file = file.label, file
        present = file.names()
        self._packed = {name for name in present if name.endswith(_BLOCKS)}
        for name in self._packed:
            self._check(name)
        hidden = {self._scales_of(name) for name in self._packed}
        self._names = [name for name in present if name not in hidden]

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.shape(name)
        return (*shape[:-2], shape[-2] * GROUP) if name in self._packed else shape

    def type_name(self, name: str) -> str:
        return TYPE_NAME if name in self._packed else self._file.type_name(name)

    def float32(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._packed:
            return self._file.float32(name, start, stop)
        groups = self._file.shape(name)[-2]
        codes = self._file.raw8(name, start * groups, stop * groups).reshape(stop - start, -1)
        return dequantise(codes, self._file.raw8(self._scales_of(name), start, stop))

    def raw16(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._file.raw16(name, start, stop)

    def blocks(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        return self._file.blocks(name, start, stop)

    def close(self) -> None:
        self._file.close()

    @staticmethod
    def _scales_of(name: str) -> str:
        return name.removesuffix(_BLOCKS) + _SCALES

    def _check(self, name: str) -> None:
        scales = self._scales_of(name)
        if scales not in self._file.names():
            raise ModelFormatError(f"{self.label} lacks tensor {scales!r} of weights in MXFP4")
        kinds = self._file.type_name(name), self._file.type_name(scales)
        shape, other = self._file.shape(name), self._file.shape(scales)
        if kinds != ("U8", "U8") or len(shape) < 3 or shape[-1] != _GROUP_BYTES or shape[:-1] != other:
            raise ModelFormatError(
                f"{self.label}: tensors {name!r} of shape {shape} and {scales!r} of shape {other} must be U8, groups "
                f"of {_GROUP_BYTES} bytes and an exponent for each"
            )

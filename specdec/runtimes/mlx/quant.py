"""Quantised matrices in the order in which the GPU kernels read them: `quant.cu`, `quant.metal`, `step_quant*.cu`.

Blocks and planes are taken apart with MLX's operations, on the GPU where there is one, a slice of outputs at a time.
What they mean is in `specdec.weights.quantised_types` and `planes`; nothing here changes a code or rounds a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdec.runtimes.mlx.pack import pad, padded
from specdec.weights.affine import AffineType
from specdec.weights.quantised import quantised_type
from specdec.weights.quantised_types import UPPER_BITS, UpperBits

if TYPE_CHECKING:
    from specdec.weights.quantised import QuantisedTable

TILE = 128  # outputs that are kept together
GROUP = 32  # inputs of a step, and what inputs are padded to
PLAIN = 16  # bits of a weight that is not quantised
_OWN = {"q4_k": "six_bit", "q5_k": "six_bit", "q6_k": "int8"}
_SLICE_WEIGHTS = 1 << 25  # decoded at once


@dataclass(frozen=True, slots=True)
class QuantForm:
    """What kernels need to know of a quantised type.

    Attributes:
        name: of the type.
        bits: of a code: 4, 5, 6 or 8; 16 for weights that are not quantised.
        zero: code of weight 0, but for the offset.
        span: groups of 32 inputs that share a head.
        offset: heads have offsets, which are subtracted.
        bfloat: 16-bit factors are bfloat16, else float16.
        own: what each group of 32 inputs has beside its head: "" for nothing, "six_bit" for a scale and an offset of
            6 bits, "int8" for two signed scales, of inputs 0 to 15 and of 16 to 31.
        hidden: lower bits of every code that are not there and count as half their range: all but the upper four, of a
            matrix that is loaded in part, else none.
    """

    name: str
    bits: int
    zero: int
    span: int
    offset: bool
    bfloat: bool
    own: str
    hidden: int = 0

    @property
    def rest(self) -> int:
        """Bits of a code below the upper four that are there."""
        return self.bits - UPPER_BITS - self.hidden

    @property
    def head_bytes(self) -> int:
        """Bytes of a head of 128 outputs, with what its groups have of their own."""
        if self.bits == PLAIN:
            return 0
        return (4 if self.offset else 2) * TILE + (8 * 2 * TILE if self.own else 0)


def quant_form(name: str, *, hidden: int = 0) -> QuantForm:
    """The form of a quantised type, perhaps without the lower bits of its codes.

    Raises:
        InvalidArgumentError: there is no such type.
    """
    kind = quantised_type(name)
    own = _OWN.get(name, "")
    bfloat = isinstance(kind, AffineType) and kind.dtype == "bfloat16"
    offset = isinstance(kind, AffineType) or name in ("q4_1", "q5_1") or own == "six_bit"
    return QuantForm(name, kind.bits, int(kind.zero), kind.block // GROUP, offset, bfloat, own, hidden)


@dataclass(frozen=True, slots=True)
class PackedQuant:
    """One quantised matrix (out, in).

    Attributes:
        form: of its type.
        outputs: out.
        inputs: in.
        data: uint8: heads, upper bits, lower bits, flat, as `pack_quant` says; or what `pack_plain` makes.
        scores: float32 (in, 1).
    """

    form: QuantForm
    outputs: int
    inputs: int
    data: Any
    scores: Any

    @property
    def tiles(self) -> int:
        """Tiles of 128 outputs."""
        return -(-self.outputs // TILE)

    @property
    def groups(self) -> int:
        """Groups of 32 inputs."""
        return -(-self.inputs // GROUP)

    def bytes_read(self, share: float, *, nested: bool) -> float:
        """Bytes of a multiplication by a share of the inputs, padding left out."""
        form = self.form
        bits = UPPER_BITS if nested and form.bits != PLAIN else form.bits - form.hidden
        heads = -(-self.inputs // (GROUP * form.span)) * form.head_bytes / TILE
        return self.outputs * (share * self.inputs * bits / 8 + heads)


@dataclass(frozen=True, slots=True)
class _Parts:
    """A slice of outputs, taken apart.

    Attributes:
        codes: uint8 (out, in).
        heads: uint16 (out, in / 32 / span, 1 or 2): raw bits of the scale and, where there is one, the offset.
        own: uint8 (out, in / 32 / span, 8, 2), or None.
    """

    codes: Any
    heads: Any
    own: Any = None


def pack_quant(mx: Any, table: QuantisedTable, scores: Any) -> PackedQuant:
    """A quantised matrix for the kernels, in one order for Metal and CUDA.

    Tiles of 128 outputs, those past the last with scales of 0; blocks of every type are whole groups of 32 inputs.
    Output o of a tile is (t, half, g) = (o // 16, o % 16 // 8, o % 8); what a tile has for each output is in the order
    [g][t][half]. `data` is, one after the other,

    1. heads (tiles, spans, form.head_bytes): 16-bit scales, each followed by its offset where there is one; then, of
       forms with more, two bytes an output for each of eight groups of 32 inputs;
    2. upper bits (tiles, in, 64): the upper four bits of every code, two a byte, the first in the low bits;
    3. lower bits (tiles, in, 16 * form.rest): the rest of every code, as many as fit in a byte, alike; nothing of a
       matrix that is loaded without them.

    Args:
        mx: MLX.
        table: blocks or planes as the store has them; of an `UpperMatrix` the upper bits of codes are kept.
        scores: float32 (in, 1), an `mx.array`.
    """
    form = quant_form(table.type, hidden=table.kind.hidden if isinstance(table.kind, UpperBits) else 0)
    outputs, inputs = table.shape
    step = max(1, _SLICE_WEIGHTS // inputs // TILE) * TILE
    made: list[tuple[Any, ...]] = []
    for first in range(0, outputs, step):
        part = {name: mx.array(array[first : first + step]) for name, array in table.arrays.items()}
        made.append(_tiles(mx, form, _Parts(_codes(mx, form, part), *_heads(mx, form, part))))
        mx.eval(made[-1])
    data = mx.concatenate([piece for pieces in zip(*made, strict=True) for piece in pieces])
    mx.eval(data)
    return PackedQuant(form, outputs, inputs, data, scores)


def pack_plain(mx: Any, bits: Any, dtype: str, scores: Any) -> PackedQuant:
    """A matrix that a quantised store has in 16 bits, for the same kernels: (tiles, in padded to 32, 128), no heads.

    Its bytes are not flat: a large matrix has more than 2^31 of them, and MLX counts an axis in 32 bits.

    Args:
        mx: MLX.
        bits: raw bits, uint16 (out, in).
        dtype: "float16" or "bfloat16".
        scores: float32 (in, 1).
    """
    outputs, inputs = bits.shape
    wide = pad(mx, bits, (padded(outputs, TILE), padded(inputs, GROUP)))
    data = mx.contiguous(_in_lanes(wide)).reshape(-1, wide.shape[1], TILE).view(mx.uint8)
    mx.eval(data)
    form = QuantForm(dtype, PLAIN, 0, 1, False, dtype == "bfloat16", "")
    return PackedQuant(form, outputs, inputs, data, scores)


def _tiles(mx: Any, form: QuantForm, parts: _Parts) -> tuple[Any, ...]:
    """Heads, upper bits and, where there are more than four, lower bits; uint8, flat."""
    outputs, inputs = parts.codes.shape
    rows, spans = padded(outputs, TILE), inputs // (GROUP * form.span)
    head = _in_lanes(pad(mx, parts.heads, (rows, spans, parts.heads.shape[2])))
    head = mx.contiguous(head).reshape(rows // TILE, spans, -1).view(mx.uint8)
    if parts.own is not None:
        own = _in_lanes(pad(mx, parts.own, (rows, spans, 8, 2)).reshape(rows, spans * 8, 2))
        head = mx.concatenate([head, own.reshape(rows // TILE, spans, -1)], axis=2)
    codes = _in_lanes(pad(mx, parts.codes, (rows, inputs))).reshape(rows // TILE, inputs, TILE)
    made = [head, _in_bytes(codes >> form.bits - UPPER_BITS, UPPER_BITS)]
    if form.rest:
        made.append(_in_bytes(codes & ((1 << form.rest) - 1), form.rest))
    return tuple(mx.contiguous(part).reshape(-1) for part in made)


def _in_lanes(array: Any) -> Any:
    """(out, n, ...) to (tiles, n, g, t, half, ...)."""
    outputs, *rest = array.shape
    split = array.reshape(outputs // TILE, 8, 2, 8, *rest)
    return split.transpose(0, 4, 3, 1, 2, *range(5, split.ndim))


def _in_bytes(codes: Any, width: int) -> Any:
    """Codes of `width` bits (..., n) as bytes (..., n * width / 8), the first in the lowest bits."""
    each = 8 // width
    split = codes.reshape(*codes.shape[:-1], -1, each)
    made = split[..., 0]
    for place in range(1, each):
        made = made | (split[..., place] << (width * place))
    return made


def _codes(mx: Any, form: QuantForm, arrays: dict[str, Any]) -> Any:
    """Codes of some outputs, uint8 (out, in); of a rest that is left out, zeros."""
    if "upper" in arrays:
        rest = form.bits - UPPER_BITS
        codes = _from_bytes(mx, arrays["upper"], UPPER_BITS) << rest
        return codes | _from_bytes(mx, arrays["rest"], rest) if "rest" in arrays else codes
    if "weight" in arrays:
        return _from_bytes(mx, arrays["weight"].view(mx.uint8), form.bits)
    kind, blocks = quantised_type(form.name), arrays["blocks"]
    blocks = blocks.reshape(blocks.shape[0], -1, kind.block * kind.bits // 8 + kind.extra)
    return _BLOCK_CODES[form.name](mx, blocks).reshape(blocks.shape[0], -1)


def _heads(mx: Any, form: QuantForm, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """Heads of some outputs, and what their groups have of their own, as in `_Parts`."""
    kind = quantised_type(form.name)
    found = kind.heads(arrays)
    if "heads" not in found:
        # MLX's own types: biases are offsets that are added.
        return mx.stack((found["scales"], found["biases"] ^ 0x8000), axis=-1), None
    heads = found["heads"].reshape(found["heads"].shape[0], -1, kind.extra)
    if form.own == "int8":
        return _factors(mx, heads, 16, 1), heads[..., :16].reshape(*heads.shape[:2], 8, 2)
    if form.own == "six_bit":
        return _factors(mx, heads, 0, 2), _six_bit(mx, heads)
    return _factors(mx, heads, 0, kind.extra // 2, negate=form.offset), None


def _factors(mx: Any, heads: Any, at: int, count: int, *, negate: bool = False) -> Any:
    """`count` 16-bit numbers from byte `at` of every head, raw bits (out, blocks, count); the last one negated."""
    found = mx.contiguous(heads[..., at : at + 2 * count]).view(mx.uint16)
    return found ^ mx.array([0, 0x8000], mx.uint16) if negate else found


def _six_bit(mx: Any, heads: Any) -> Any:
    """Eight 6-bit scales and offsets in 12 bytes at 4: see `gguf_blocks`."""
    first, second, mixed = (heads[..., at : at + 4] for at in (4, 8, 12))
    scales = mx.concatenate((first & 63, (mixed & 15) | ((first >> 2) & 48)), axis=-1)
    offsets = mx.concatenate((second & 63, (mixed >> 4) | ((second >> 2) & 48)), axis=-1)
    return mx.stack((scales, offsets), axis=-1)


def _from_bytes(mx: Any, found: Any, width: int) -> Any:
    """Codes (out, n * 8 / width) from bytes (out, n), the first in the lowest bits: what `_in_bytes` undoes."""
    shifts = mx.arange(0, 8, width, dtype=mx.uint8)
    return ((found[..., None] >> shifts) & ((1 << width) - 1)).reshape(found.shape[0], -1)


def _halves(mx: Any, nibbles: Any) -> Any:
    """Low nibbles, then high ones: (..., n) bytes to (..., 2, n) codes."""
    return mx.stack((nibbles & 15, nibbles >> 4), axis=-2)


def _bits(mx: Any, blocks: Any, shifts: list[int], mask: int) -> Any:
    """What every byte holds at each shift: (..., n) to (..., shifts, n)."""
    return (mx.expand_dims(blocks, -2) >> mx.array(shifts, mx.uint8)[:, None]) & mask


def _q8(mx: Any, blocks: Any) -> Any:  # noqa: ARG001
    return blocks[..., 2:] ^ 128


def _small(at: int, *, fifth: bool = False) -> Callable[[Any, Any], Any]:
    """Blocks of 32: from byte `at` on four bytes of fifth bits where there are, then 16 bytes of nibbles."""

    def decode(mx: Any, blocks: Any) -> Any:
        codes = _halves(mx, blocks[..., at + 4 * fifth : at + 4 * fifth + 16])
        if not fifth:
            return codes
        bits = mx.swapaxes(_bits(mx, blocks[..., at : at + 4], list(range(8)), 1), -1, -2)
        return codes | (bits << 4).reshape(codes.shape)

    return decode


def _q4_k(mx: Any, blocks: Any) -> Any:
    return _halves(mx, blocks[..., 16:144].reshape(*blocks.shape[:2], 4, 32))


def _q5_k(mx: Any, blocks: Any) -> Any:
    codes = _halves(mx, blocks[..., 48:176].reshape(*blocks.shape[:2], 4, 32))
    fifth = _bits(mx, blocks[..., 16:48], list(range(8)), 1)
    return codes | (fifth << 4).reshape(codes.shape)


def _q6_k(mx: Any, blocks: Any) -> Any:
    codes = _halves(mx, blocks[..., :128].reshape(*blocks.shape[:2], 2, 64))
    high = _bits(mx, blocks[..., 128:192].reshape(*blocks.shape[:2], 2, 32), [0, 2, 4, 6], 3)
    return codes | (high << 4).reshape(codes.shape)


# Codes of blocks, uint8 (out, blocks, bytes), in order.
_BLOCK_CODES: dict[str, Callable[[Any, Any], Any]] = {
    "q8_0": _q8,
    "q4_0": _small(2),
    "q4_1": _small(4),
    "q5_0": _small(2, fifth=True),
    "q5_1": _small(4, fifth=True),
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}

"""A whole step of a quantised model as one CUDA kernel: constants and memory for `kernels/cuda/step/step_quant.cu`.

Matrices that take the same row have blocks of the grid of their own, so that each may be of another type and is chosen
from by itself. What quantised matrices look like on the GPU is in `quant`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.attention_ops import WINDOWLESS
from specdec.runtimes.mlx.kernels import Constant
from specdec.runtimes.mlx.ops import tier_constants
from specdec.runtimes.mlx.pack import padded
from specdec.runtimes.mlx.quant import PackedQuant, QuantForm
from specdec.runtimes.mlx.state import LOGITS_FROM
from specdec.runtimes.mlx.step import (
    BIN_BITS,
    CHOICE_WORDS,
    PARTS,
    SHARED_KB,
    STATE_WORDS,
    THREADS,
    TOP_WORDS,
    WholeStep,
)
from specdec.runtimes.mlx.step_sizes import attention_bytes

if TYPE_CHECKING:
    from specdec.runtimes.mlx.device import CudaDriver
    from specdec.runtimes.mlx.layers import Layer
    from specdec.runtimes.mlx.model import Kind
    from specdec.runtimes.mlx.weights import Linear

TILE = 128  # outputs of a unit; it has 32 inputs
ROW_STEPS = (1, 4, 5, 8, 16)  # multiples of four, and one more: four rows share a product, one more has one alone
_ENTRIES = 20
_WARPS = THREADS // 32
_UNITS_EACH = 8  # fewest of a block, but for the last units of a matrix: its warps take them side by side
_ARRIVALS = 64  # counters of the blocks that have added to a tile, after the barrier's
_COUNTS = 64  # numbers of a block beside its table
_PORTIONS_BYTES = 528  # shares of a block and its warps
MOST_STAGES = 2  # of a warp's ring
FILLS = (0, 1)  # stages asked for before attention, and at the grid barrier before a multiplication
# Multiplications by their input: q, k and v; output projection; gate and up; down; logits layer.
_SITES = ((0, 1, 2), (3,), (4, 5), (6,), (7,))


def suits(layers: list[Layer], head: Linear) -> bool:
    """Whether the kernel multiplies by all matrices: those in 16 bits it does not."""
    linears = [linear for layer in layers for linear in layer.linears] + [head]
    return all(packed.form.bits <= 8 for linear in linears for packed in linear.quant)


class QuantStep(WholeStep):
    """Steps of one quantised model, a kernel each: the modes "quant" (exact view) and "nested".

    Args:
        mx: MLX.
        config: shape of the model.
        dtype: "float16" or "bfloat16", of an embedding table that is not quantised.
        layers: all blocks; their types decide what the kernels are built for.
        head: the logits layer.
        embeddings: a `PackedQuant`, a 16-bit table, or None when the logits layer serves.
        driver: of the GPU.
    """

    def __init__(
        self, mx: Any, config: ModelConfig, *, dtype: str, layers: list[Layer], head: Linear, embeddings: Any,
        driver: CudaDriver,
    ) -> None:  # fmt: skip
        super().__init__(mx, config, dtype=dtype, tier_sizes=(1,), driver=driver)
        matrices = [packed for layer in layers for linear in layer.linears for packed in linear.quant]
        table = head.quant[0] if embeddings is None else embeddings
        self._plain_table = not isinstance(table, PackedQuant)
        used = [*matrices, *head.quant, *([] if self._plain_table else [table])]
        self.forms: list[QuantForm] = list(dict.fromkeys(packed.form for packed in used))
        self.segments = _segments(self.grid, matrices, head.quant[0])
        tiles = (padded(config.hidden_size) + padded(config.intermediate_size)) // TILE
        self._sync = self.own((_ARRIVALS + tiles,), mx.uint32)

    def row_step(self, rows: int) -> int:
        """Rows of the kernel that runs a pass of `rows`."""
        return next(step for step in ROW_STEPS if rows <= step)

    @cached_property
    def most_rows(self) -> int:
        """Most rows of a pass: those whose kernel's memory a block has; 0 where not even one row fits."""
        fitting = [rows for rows in ROW_STEPS if self._stages_of(rows, nested=False, selects=True)]
        return max(fitting, default=0)

    def _layer_entries(self, kind: Kind, number: int, layer: Layer) -> list[Any]:  # noqa: ARG002
        window = self.config.window(number)
        matrices = [packed for linear in layer.linears for packed in linear.quant]
        forms = sum(self.forms.index(packed.form) << (8 * which) for which, packed in enumerate(matrices))
        entries = [layer.attn_norm, layer.mlp_norm, layer.attention.bias, layer.attention.norms]
        entries += [packed.data for packed in matrices] + [packed.scores for packed in matrices]
        return [*entries, forms, WINDOWLESS if window is None else window]

    def _last_entries(self, kind: Kind, head: Linear, final_norm: Any, embeddings: Any) -> list[Any]:  # noqa: ARG002
        packed = head.quant[0]
        table, forms = embeddings, self.forms.index(packed.form)
        if not self._plain_table:
            source = packed if embeddings is None else embeddings
            table, forms = source.data, forms | self.forms.index(source.form) << 8
        return [packed.data, final_norm, table, packed.scores, forms]

    def kernel_constants(self, kind: Kind) -> dict[str, Constant]:
        """Sizes for the text of a kernel of this kind."""
        return self._constants(kind)

    def _files(self, kind: Kind) -> tuple[str, ...]:  # noqa: ARG002
        return "step_quant", *PARTS, "step_portions.cuh", "step_quant_units.cuh", "step_quant.cuh"

    def _constants(self, kind: Kind) -> dict[str, Constant]:
        rows, nested = kind.rows, kind.mode == "nested"
        sizes = self.sizes(rows) | {"SPLIT": 1, "SEGMENTED": 1, "NESTED": nested, "TILE": TILE}
        sizes |= {"ENTRIES": _ENTRIES, "ADDRESSES": padded(self.config.num_layers * _ENTRIES + 5, 2)}
        sizes |= {"STATE_LOGITS": LOGITS_FROM, "EMBED_PLAIN": self._plain_table, "BIN_BITS": BIN_BITS + 1}
        sizes |= tier_constants((1,) if kind.selects else ())
        sizes["FORM_LIST"] = ", ".join(_form_text(form) for form in self.forms)
        for name, which in (("TILES", 0), ("BEGIN", 2), ("BLOCKS", 3)):
            sizes[f"SEGMENT_{name}"] = ", ".join(str(segment[which]) for segment in self.segments)
        sizes["MOST_BLOCKS"] = max(blocks // tiles + 2 for tiles, _, _, blocks in self.segments)
        sizes |= {"ENDS": self._ends(), "SYNC_ARRIVALS": _ARRIVALS, "PORTIONS_BYTES": _PORTIONS_BYTES}
        sizes["STAGE_BYTES"] = self._stage_bytes_of(nested=nested)
        stages = self._stages_of(rows, nested=nested, selects=kind.selects)
        sizes |= {"STAGES": stages, "HEAD_SLOTS": self._head_slots(stages), "APART": _apart(rows)}
        sizes["RING_BYTES"] = self._ring_bytes(stages, nested=nested)
        # A block has room for the sums of this number of inputs' squares.
        sizes["ALONE"] = rows == 1 and not kind.selects and padded(self.config.hidden_size) <= 128 * _COUNTS
        sizes |= {"FILL_FIRST": FILLS[0], "FILL_SECOND": FILLS[1]}
        return sizes

    def _layout(self, kind: Kind, constants: dict[str, Constant]) -> int:
        c, rows = self.config, kind.rows
        slots = [sum(self.segments[which][0] + self.segments[which][3] for which in site) for site in _SITES]
        floats = [count * TILE * rows for count in slots]
        constants["OTHER_PARTS"] = padded(max(floats[1], floats[3]), 4)
        widest = max(padded(c.hidden_size), padded(c.num_heads * c.head_dim), padded(c.intermediate_size))
        bins = 9 * rows * (32 << int(constants["BIN_BITS"])) if kind.selects else 0
        joined = 1 if not kind.selects else 3 if rows > 1 else 0
        # Rows that are being made, and those that may still be read.
        constants["VALUES_EACH"], constants["WORDS_EACH"] = rows * widest, joined * rows * widest // 2
        place = 0
        for name, size in (
            ("AT_X", max(rows, 2) * c.hidden_size),
            ("AT_PARTS", int(constants["OTHER_PARTS"]) + max(floats[0], floats[2], floats[4])),
            ("AT_VALUES", 2 * int(constants["VALUES_EACH"])),
            ("AT_SQUARES", rows * padded(c.hidden_size) // 128),
            ("AT_BINS", bins),
            ("AT_WORDS", 2 * int(constants["WORDS_EACH"])),
            ("AT_GROUPS", 2 * int(constants["WORDS_EACH"]) // 4),
            ("AT_CHOICES", rows * self.grid * CHOICE_WORDS),
            ("AT_TOPS", rows * self.grid * TOP_WORDS * kind.recycles),
        ):
            constants[name] = place
            place += padded(size, 64)
        constants["AT_SPLITS"] = place
        return place

    def _shared_bytes(self, kind: Kind, constants: dict[str, Constant]) -> int:
        groups_at, ends_at, ring_at = self._room(kind.rows, selects=kind.selects)
        constants["GROUPS_AT"], constants["ENDS_AT"], constants["RING_AT"] = groups_at, ends_at, ring_at
        return self._fixed() + ring_at + _WARPS * int(constants["RING_BYTES"])

    def _room(self, rows: int, *, selects: bool) -> tuple[int, int, int]:
        """Offsets of a block's arrays besides its table: groups, ends of tiles, and the ring, in bytes."""
        steps = max(min(steps, -(-tiles * steps // blocks)) for tiles, steps, _, blocks in self.segments)
        words = padded(steps * rows * 64 + 256, 16)
        taken_in = words + (steps * rows + 4) * 16
        gathered, bins = _WARPS * rows * _apart(rows) * 4, 4 * (33 << (BIN_BITS + 1)) if selects else 0
        room = padded(max(taken_in, gathered, bins, attention_bytes(rows, self.config.head_dim)), 16)
        return words, room, room + self._ends() * rows * _apart(rows) * 4

    def _fixed(self) -> int:
        table = 8 * padded(self.config.num_layers * _ENTRIES + 5, 2)
        return table + 4 * STATE_WORDS + 4 * _COUNTS + 4 * 16 + _PORTIONS_BYTES

    def _ends(self) -> int:
        """Tiles of a block whose sums more than one warp may have, at most one for each warp."""
        touched = max((-(-tiles * steps // blocks) - 1) // steps + 2 for tiles, steps, _, blocks in self.segments)
        return min(_WARPS, touched)

    def _head_slots(self, stages: int) -> int:
        """Heads of several units that a warp's units under way may have, at most."""
        return max((stages - 2 + form.span) // form.span + 1 for form in self.forms)

    def _ring_bytes(self, stages: int, *, nested: bool) -> int:
        """Shared memory of a warp: stages, and heads of several units beside them."""
        heads = 512 * self._head_slots(stages) if any(form.span > 1 for form in self.forms) else 0
        return stages * self._stage_bytes_of(nested=nested) + heads

    def _stage_bytes_of(self, *, nested: bool) -> int:
        """The largest unit."""

        def unit(form: QuantForm) -> int:
            rest = 0 if nested else form.rest
            head = (512 if form.offset else 256) if form.span == 1 else 0
            return 2048 + 512 * rest + (256 if form.own else 0) + head

        return max(unit(form) for form in self.forms)

    def _stages_of(self, rows: int, *, nested: bool, selects: bool) -> int:
        """Stages of a warp's ring that fit beside the rest; 0 where none does."""
        free = (SHARED_KB * 1024 - self._fixed() - self._room(rows, selects=selects)[2]) // _WARPS
        fitting = [n for n in range(1, MOST_STAGES + 1) if self._ring_bytes(n, nested=nested) <= free]
        return max(fitting, default=0)


def _apart(rows: int) -> int:
    """Floats from row to row of sums in shared memory: more than a tile, so that rows are in different banks."""
    return TILE + 8 if rows <= 8 else TILE


def _form_text(form: QuantForm) -> str:
    own = {"": 0, "six_bit": 1, "int8": 2}[form.own]
    numbers = (form.rest, form.zero, form.span, int(form.offset), int(form.bfloat), own, form.hidden)
    return f"{{{', '.join(map(str, numbers))}}}"


def _segments(grid: int, matrices: list[PackedQuant], head: PackedQuant) -> list[tuple[int, int, int, int]]:
    """Tiles, steps, first block and blocks of the eight matrices of `_SITES`.

    Matrices of a site share the grid out by their bytes, taken over all blocks of the model. A small one leaves blocks
    idle: its sums would have more parts than they are worth.
    """
    sizes = [0.0] * 8
    for number, packed in enumerate(matrices):
        sizes[number % 7] += packed.data.nbytes
    sizes[7] = head.data.nbytes
    shapes = [matrices[which] for which in range(7)] + [head]
    found = []
    for site in _SITES:
        for which, (begin, blocks) in zip(site, _shared_out(grid, [sizes[which] for which in site]), strict=True):
            packed = shapes[which]
            busy = min(blocks, -(-packed.tiles * packed.groups // _UNITS_EACH))
            found.append((packed.tiles, packed.groups, begin, busy))
    return found


def _shared_out(grid: int, sizes: list[float]) -> Iterator[tuple[int, int]]:
    """First block and number of blocks of each: by size, at least one, all of the grid."""
    exact = [size * grid / sum(sizes) for size in sizes]
    blocks = [max(1, int(share)) for share in exact]
    while sum(blocks) != grid:
        step = 1 if sum(blocks) < grid else -1
        wanted = [
            step * (share - have) if have + step > 0 else -grid for share, have in zip(exact, blocks, strict=True)
        ]
        blocks[wanted.index(max(wanted))] += step
    begin = 0
    for count in blocks:
        yield begin, count
        begin += count

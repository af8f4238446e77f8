"""A whole step of the model as one CUDA kernel: one launch instead of about 290, with barriers over the grid inside.

The kernel stays on every multiprocessor for the whole step (`kernels/cuda/step`); weights reach it as a table of
addresses. Metal promises no barrier over a grid, so there a step is the kernels of `ops` one after the other; CUDA
can run it that way too, which is what the tests compare with. Shapes and order of steps are in `model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.kernels.reference.recycle import TOP
from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.addresses import addresses_of, table_of
from specdec.runtimes.mlx.attention_ops import WINDOWLESS
from specdec.runtimes.mlx.cache import SPAN, GpuCache
from specdec.runtimes.mlx.features import runs_as_one_kernel
from specdec.runtimes.mlx.kernels import Compiled, Constant, Typed, build, kernel_text
from specdec.runtimes.mlx.launch import Launch
from specdec.runtimes.mlx.ops import row_step, tier_constants
from specdec.runtimes.mlx.pack import LINE, padded
from specdec.runtimes.mlx.state import (
    CHOOSING_CONSTANTS,
    LOGITS_FROM,
    MAX_ROWS,
    MOST_AHEAD,
    STATE_CONSTANTS,
    STATE_SIZE,
)
from specdec.runtimes.mlx.step_flow import FLOW_PARTS, FLOW_THREADS, flow_exchange, flow_fits, flow_sizes, wants_flow
from specdec.runtimes.mlx.step_sizes import (
    ARRIVALS,
    arrivals,
    attention_bytes,
    lines_constants,
    model_sizes,
    own_places,
    verify_stage_bytes,
    widest_row,
)
from specdec.runtimes.mlx.step_sizes import THREADS as THREADS
from specdec.runtimes.mlx.step_weights import weights_of
from specdec.workers import run_together

if TYPE_CHECKING:
    from specdec.runtimes.mlx.device import CudaDriver
    from specdec.runtimes.mlx.layers import Layer
    from specdec.runtimes.mlx.model import Kind
    from specdec.runtimes.mlx.weights import Linear

_ENTRIES = 17  # addresses of a layer: norms, bias, q and k norms; weights, their companions, scores; its window
_MOST_ADDRESSED = 256  # arrays whose addresses are remembered
SPLIT_SIZE = 4  # floats of a split in addition to its values
# Of the ring through which weights reach a warp.
_STAGES = {"dense": 4, "inputs": 1, "verify": 2, "int4": 2, "bucket": 4}
PARTS = tuple(f"step_{part}.cuh" for part in ("grid", "rows", "choice", "attention", "choose", "recycle"))
# Of a row: the two largest logits, sums of weights and of their moments, the token; likeliest ranks and tokens.
CHOICE_WORDS, TOP_WORDS = 8, 2 * TOP
STATE_WORDS = padded(STATE_SIZE + 3 * MAX_ROWS + 1, 4)  # of a block's copy of the state, tokens chosen, and a tree
_MULTIPLY = {mode: f"step_{mode}.cuh" for mode in ("dense", "inputs", "verify", "int4", "bucket")}
# Outputs of a tile and inputs of a step of a share's units.
_UNITS = {"dense": (16, 32), "inputs": (LINE, 32), "verify": (32, 32), "int4": (128, 32), "bucket": (256, 32)}
SHARED_KB = 227  # of a block on Hopper
_RING_BYTES = {1: 184, 8: 184, 16: 144}  # KB for the ring of `verify`, by rows: the rest of 227 is for sums
BIN_BITS = 6  # an octave of keys in 64 parts for drafts, twice as many for the exact view
_LISTED = 128 * 32 * 4  # records that a block of bucketMul lists at a time


def fits(config: ModelConfig, driver: CudaDriver | None) -> bool:
    """Whether a step of this model can be one kernel here: with Ampere's instructions and Hopper's shared memory."""
    if driver is None or driver.generation < 8 or config.hidden_size % 4 or not runs_as_one_kernel(config):
        return False
    return driver.shared_bytes >= SHARED_KB * 1024


_EXACT = ("dense", "inputs", "verify")  # modes of the exact view of 16-bit weights


class WholeStep:
    """Steps of one model, a kernel each.

    Args:
        mx: MLX.
        config: shape of the model.
        dtype: "float16" or "bfloat16", of the exact weights.
        tier_sizes: of the store's buckets.
        driver: of the GPU; a block of the kernel stays on each of its multiprocessors.
    """

    def __init__(
        self, mx: Any, config: ModelConfig, *, dtype: str, tier_sizes: tuple[int, ...], driver: CudaDriver
    ) -> None:
        self.mx, self.config, self.tier_sizes, self.driver = mx, config, tier_sizes, driver
        self.grid = driver.multiprocessors
        self.weight_type = "half_t" if dtype == "float16" else "bfloat_t"
        self._kernels: dict[tuple[str, bool, int, bool, bool], tuple[Any, int]] = {}
        self._tables: dict[tuple[str, bool], Any] = {}
        self._nothing, self._sync = self.own((8,), mx.int32), self.own((ARRIVALS + arrivals(config),), mx.uint32)
        self._state = self.own((STATE_SIZE,), mx.int32)
        self._logits = self.own((MAX_ROWS, config.vocab_size), mx.float32)
        self._choices = self.own((1 + (1 + MOST_AHEAD) * MAX_ROWS, CHOICE_WORDS), mx.float32)
        self._places: list[int] = []
        self._done = self.own((2,), mx.uint32)
        self._scratch: Any = None
        self._addressed: dict[int, tuple[Any, int]] = {}
        self._launches: dict[tuple[str, bool, int, bool, bool], Launch] = {}
        self.flows, self._exchange = wants_flow() and flow_fits(config), None
        self._host: np.ndarray | None = None
        self._chosen: np.ndarray | None = None

    def prepare(self, kind: Kind, layers: list[Layer], head: Linear, final_norm: Any, embeddings: Any) -> None:
        """Build the kernel and the table of addresses of a kind of step, unless they are there."""
        if (kind.mode, kind.selects) not in self._tables:
            lines = self.entries(kind, layers, head, final_norm, embeddings)
            self._tables[kind.mode, kind.selects] = table_of(self.mx, [entry for line in lines for entry in line])
        self._kernel(kind)

    def compile(self, kinds: Iterable[Kind]) -> None:
        """Compile the kernels of these kinds at the same time, or read their machine code; MLX may compile them later
        instead."""
        mx, made = self.mx, [kernel for kernel, _ in map(self._kernel, dict.fromkeys(kinds))]
        compiled = [kernel for kernel in made if isinstance(kernel, Compiled) and not kernel.has_code]
        types = self._inputs, (mx.float32, mx.uint32)
        run_together([partial(kernel.code, *types) for kernel in compiled])

    @property
    def _inputs(self) -> list[Typed]:
        """Types of a kernel's inputs."""
        mx = self.mx
        inputs = [Typed(mx.int64, 1), Typed(mx.float16, 5), Typed(mx.float32, 3), Typed(mx.int32, 2)]
        return [*inputs, Typed(mx.int32, 1), Typed(mx.uint32, 1), Typed(mx.float32, 2), Typed(mx.float32, 2)]

    def has_code(self, kind: Kind) -> bool:
        """Whether a kind of step is launched without MLX, by machine code of its own."""
        return isinstance(self._kernel(kind)[0], Compiled)

    def row_step(self, rows: int) -> int:
        """Rows of the kernel that runs a pass of `rows`."""
        return row_step(rows)

    @property
    def most_rows(self) -> int:
        """Most rows of a pass."""
        return MAX_ROWS

    def _layer_entries(self, kind: Kind, number: int, layer: Layer) -> list[Any]:
        """What the table says of a block: arrays, whole numbers, and None for what there is not."""
        window = self.config.window(number)
        packed = [weights_of(self.mx, kind, linear, flows=self._flows(kind)) for linear in layer.linears]
        entries = [layer.attn_norm, layer.mlp_norm, layer.attention.bias, layer.attention.norms]
        entries += [part for which in range(3) for part in (arrays[which] for arrays in packed)]
        return [*entries, WINDOWLESS if window is None else window]

    def _last_entries(self, kind: Kind, head: Linear, final_norm: Any, embeddings: Any) -> list[Any]:
        """What the table says of the logits layer and the embeddings."""
        weights, companion, scores = weights_of(self.mx, kind, head, flows=self._flows(kind))
        if self._flows(kind):
            if self._exchange is None:
                self._exchange = self.own((flow_exchange(self.config, self.grid)[1],), self.mx.uint32)
            companion = self._exchange
        return [weights, final_norm, head.weights if embeddings is None else embeddings, companion, scores]

    def address(self, cache: GpuCache) -> int:
        """Address of a cache's array."""
        if cache.address is None:
            cache.address = addresses_of(self.mx, cache.arrays)[0]
        return cache.address

    def addresses(self, entries: list[Any]) -> list[int]:
        """Addresses of arrays, which must be kept alive; numbers stay, None is 0."""
        return [int(address) for address in table_of(self.mx, entries).tolist()]

    def entries(
        self, kind: Kind, layers: list[Layer], head: Linear, final_norm: Any, embeddings: Any
    ) -> list[list[Any]]:
        """What the table of a kind of step says: of every block, then of the logits layer and the embeddings."""
        blocks = [self._layer_entries(kind, number, layer) for number, layer in enumerate(layers)]
        return [*blocks, self._last_entries(kind, head, final_norm, embeddings)]

    def tell(self, state: np.ndarray) -> None:
        """Put the state of the pass, int32 (STATE_SIZE,), where the kernel reads it; no step may be running."""
        self.driver.write(self._own_places()[0], state)

    def _own_places(self) -> list[int]:
        """Addresses of the state, the logits, the choices, and the barrier's counters."""
        if not self._places:
            kept = [self._state, self._logits, self._choices, self._sync]
            self._places = addresses_of(self.mx, kept)
            self._told = self.driver.pinned(4 * STATE_SIZE).view(np.int32)
        return self._places

    def logits(self, rows: int) -> np.ndarray:
        """Logits float32 (rows, V) of the step that was waited for last."""
        vocabulary = self.config.vocab_size
        if self._host is None:
            self._host = self.driver.pinned(4 * MAX_ROWS * vocabulary).view(np.float32).reshape(MAX_ROWS, vocabulary)
        self.driver.read(self._places[1], self._host[:rows])
        return self._host[:rows].copy()

    def choices(self, rows: int, ahead: int) -> np.ndarray:
        """Choices of the step that was waited for last, float32 (turns, rows, CHOICE_WORDS): `step_choose.cuh`."""
        if self._chosen is None:
            self._chosen = self.driver.pinned(4 * self._choices.size).view(np.float32).reshape(-1, CHOICE_WORDS)
        read = self._chosen[: 1 + (1 + ahead) * rows]
        self.driver.read(self._places[2], read)
        turns = int(read[0].view(np.int32)[0])
        return read[1 : 1 + turns * rows].reshape(turns, rows, CHOICE_WORDS).copy()

    def launch(self, kind: Kind, told: np.ndarray, cache: GpuCache, take: Any, angles: Any) -> bool:
        """Begin one step without MLX: `driver.wait`, or the reading of what it shows, waits for it. False where there
        is not machine code: `tell` and `run` do it then.

        Args:
            kind: prepared.
            told: the state of the pass, int32 (STATE_SIZE,).
            cache: the largest of the step, evaluated.
            take: see `run`; evaluated.
            angles: see `run`; evaluated.
        """
        kernel, floats = self._kernel(kind)
        if not isinstance(kernel, Compiled):
            return False
        key = self._key(kind)
        if key not in self._launches:
            code = kernel.code(self._inputs, (self.mx.float32, self.mx.uint32))
            self._launches[key] = Launch(
                self.driver, code, kernel.name, grid=self.grid, threads=self._threads(kind),
                shared_bytes=kernel.shared_bytes, pointers=10, numbers=5,
            )  # fmt: skip
        shape = cache.arrays[0].shape
        scratch = self._scratch_of(floats + self._split_floats(kind, shape[3]))
        places = [self._place(array) for array in (self._tables[kind.mode, kind.selects], angles)]
        places.append(self._place(self._nothing if take is None else take))
        table, turns, takes = places
        state, logits, choices, sync = self._own_places()
        self._told[:] = told
        self.driver.send(state, self._told)
        given = (table, self.address(cache), turns, takes, state, sync, logits, choices, scratch)
        self._launches[key]((*given, self._place(self._done)), shape)
        return True

    def _place(self, array: Any) -> int:
        """Address of an array that is kept as long as this object, or as the array is."""
        held = self._addressed.get(id(array))
        if held is None or held[0] is not array:
            if len(self._addressed) >= _MOST_ADDRESSED:
                self._addressed.clear()
            held = self._addressed[id(array)] = array, addresses_of(self.mx, [array])[0]
        return held[1]

    def _scratch_of(self, floats: int) -> int:
        """Address of scratch memory of at least this number of floats, which steps share."""
        if self._scratch is None or self._scratch.size < floats:
            self._scratch = self.own((floats,), self.mx.float32)
        return self._place(self._scratch)

    def _split_floats(self, kind: Kind, positions: int) -> int:
        """Floats of attention's partial sums."""
        config = self.config
        return kind.rows * config.num_heads * (positions // SPAN) * (config.head_dim + SPLIT_SIZE)

    def run(self, kind: Kind, cache: Any, take: Any, angles: Any) -> Any:
        """One step of the state that was told last: an array to wait for. Two steps must not run at the same time.

        Args:
            kind: prepared.
            cache: float16 (layers, 2, KV heads, positions, D), the largest of the step; written, like the others.
            take: int32, weights to take of every matrix in order of use, or None.
            angles: float32 (positions, D / 2, 2).
        """
        kernel, floats = self._kernel(kind)
        given = [self._tables[kind.mode, kind.selects], cache, angles, self._nothing if take is None else take]
        made = kernel(
            inputs=[*given, self._state, self._sync, self._logits, self._choices],
            grid=(self.grid * self._threads(kind), 1, 1),
            threadgroup=(self._threads(kind), 1, 1),
            output_shapes=[(floats + self._split_floats(kind, cache.shape[3]),), (2,)],
            output_dtypes=[self.mx.float32, self.mx.uint32],
        )
        return made[1]

    def own(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Zeros in device memory of their own, to be written in place."""
        array = self.mx.zeros(shape, dtype=dtype) + self.mx.zeros((), dtype=dtype)
        self.mx.eval(array)
        return array

    @staticmethod
    def _key(kind: Kind) -> tuple[str, bool, int, bool, bool]:
        """What decides a kernel."""
        return kind.mode, kind.selects, kind.rows, kind.tree, kind.shared

    def _kernel(self, kind: Kind) -> tuple[Any, int]:
        """The kernel of a kind, and floats of scratch memory that it needs in addition to those for attention."""
        key = self._key(kind)
        if key not in self._kernels:
            constants = self._constants(kind) | STATE_CONSTANTS | CHOOSING_CONSTANTS | {"STATE_WORDS": STATE_WORDS}
            constants |= {"TREE": kind.tree or kind.shared, "SHARED_STEP": kind.shared, "RECYCLES": kind.recycles}
            constants |= {"CHOICE_WORDS": CHOICE_WORDS, "TAKES": 7 * self.config.num_layers + 1}  # numbers of a line
            constants["SUCCESSORS"] = TOP
            floats = self._layout(kind, constants)
            shared_bytes = self._shared_bytes(kind, constants)
            body, *parts = self._files(kind)
            text = kernel_text(
                "cuda",
                body,
                constants,
                inputs=("table", "cache", "angles", "take", "told", "sync", "logits_out", "choices_out"),
                outputs=("scratch", "done"),
                bounds=(self._threads(kind), 1),
                parts=parts,
            )
            built = build(self.mx, "cuda", text, shared_bytes=shared_bytes)
            self._kernels[key] = built, floats
        return self._kernels[key]

    def _flows(self, kind: Kind) -> bool:
        """Whether weights flow through the kernel: see `step_flow`."""
        return self.flows and kind.mode == "int4" and not kind.selects

    def _threads(self, kind: Kind) -> int:
        return FLOW_THREADS if self._flows(kind) else THREADS

    def _files(self, kind: Kind) -> tuple[str, ...]:
        """The file of a kind's step, and the files of its parts."""
        if self._flows(kind):
            return "step_flow", *FLOW_PARTS
        return "step_draft" if kind.mode in ("int4", "bucket") else "step_exact", *PARTS, _MULTIPLY[kind.mode]

    @property
    def _split(self) -> int:
        """Parts of an activation of the exact view."""
        return 2 if self.weight_type == "bfloat_t" else 1

    @property
    def _widest(self) -> int:
        """Inputs of the widest multiplication."""
        return widest_row(self.config)

    def _is_alone(self, kind: Kind) -> bool:
        """Whether a step has one row that takes all weights. Each block then makes its inputs by itself."""
        return kind.mode == "dense" and kind.rows == 1

    def sizes(self, rows: int) -> dict[str, Constant]:
        """Sizes of the model and the pass, which every kernel's text has."""
        sizes: dict[str, Constant] = {"THREADS": THREADS, "GRID": self.grid, "ROWS": rows, "SPAN": SPAN}
        return sizes | {"weight_t": self.weight_type} | model_sizes(self.config)

    def _constants(self, kind: Kind) -> dict[str, Constant]:
        """Sizes for the kernel's text."""
        c, rows = self.config, kind.rows
        exact = kind.mode in _EXACT
        narrow = self.weight_type == "bfloat_t" and exact
        sizes = self.sizes(rows) | {"SPLIT": 2 if narrow else 1}
        sizes |= {"ENTRIES": _ENTRIES, "ADDRESSES": padded(c.num_layers * _ENTRIES + 5, 2)}
        sizes["STAGES"] = self._stages(kind)
        selects = kind.selects and kind.mode != "dense"
        tiers = (1,) if kind.mode in ("int4", "inputs") else self.tier_sizes
        sizes |= tier_constants(tiers if selects else ())
        sizes["BIN_BITS"] = BIN_BITS + exact
        sizes["TILE"], _ = _UNITS[kind.mode]
        if exact:
            sizes["STEP_UNROLL"] = 2 if narrow or rows > 8 else 4
            sizes |= {"INPUTS": kind.mode == "inputs", "SYNC_ARRIVALS": ARRIVALS}
            seam = LINE if kind.mode == "inputs" else 16  # outputs of q, k and v begin at multiples of it
            if kind.mode == "inputs":
                sizes |= lines_constants(c) | own_places(c, split=self._split)
            sizes["SECOND_TILE"], sizes["THIRD_TILE"] = (int(sizes[name]) // seam for name in ("KEYS_AT", "VALUES_AT"))
            sizes["STATE_LOGITS"] = LOGITS_FROM
        else:
            sizes |= {"COUNTS": kind.mode == "bucket", "RUNS_AHEAD": 8}
            sizes["WIDEST"] = self._widest
        return sizes

    def _layout(self, kind: Kind, constants: dict[str, Constant]) -> int:
        """Puts the places of what the kernel keeps in scratch memory among the constants; floats in all."""
        c, rows = self.config, kind.rows
        tile, inner = _UNITS[kind.mode][0], padded(c.intermediate_size)
        qkv = int(constants["VALUES_AT"]) + c.num_kv_heads * c.head_dim
        outputs = {"qkv": qkv, "out": c.hidden_size, "both": 2 * inner, "head": c.vocab_size}
        slots = {name: (-(-count // tile) + self.grid) * tile * rows for name, count in outputs.items()}
        widest = self._widest
        alone = self._is_alone(kind)
        blocks: list[tuple[str, int]] = [("AT_X", (2 if alone else rows) * c.hidden_size)]
        other = padded(slots["out"], 4) if alone or kind.mode in ("int4", "bucket") else 0
        constants["OTHER_PARTS"] = other
        blocks.append(("AT_PARTS", other + max(slots.values())))
        joined = 3 if kind.mode in ("inputs", "verify") else 1
        if kind.mode in _EXACT:
            copies = joined if kind.mode == "inputs" else 1  # copies of a row: each matrix takes its own inputs
            blocks.append(("AT_ACTIVATION", copies * rows * int(constants["SPLIT"]) * widest // 2))
            blocks.append(("AT_PREFIX", 3 * rows * widest // 4))
        bins = 3 * joined * rows * (32 << int(constants["BIN_BITS"])) if constants["TIERS"] else 0
        squares, constants["VALUES_EACH"] = rows * padded(c.hidden_size) // 128, rows * widest
        looked = rows * self.grid
        blocks += [("AT_VALUES", 2 * rows * widest), ("AT_SQUARES", squares), ("AT_BINS", bins)]
        blocks += [("AT_LOGITS", padded(c.vocab_size, 16) * self._flows(kind))]
        blocks += [("AT_CHOICES", looked * CHOICE_WORDS), ("AT_TOPS", looked * TOP_WORDS * kind.recycles)]
        place = 0
        for name, size in blocks:
            constants[name] = place
            place += padded(size, 64)
        constants["AT_SPLITS"] = place
        return place

    def _stages(self, kind: Kind) -> int:
        """Stages of a warp's ring; fewer where many rows leave less shared memory."""
        if kind.mode != "verify":
            return _STAGES[kind.mode]
        fitting = _RING_BYTES[kind.rows] * 1024 // (THREADS // 32 * verify_stage_bytes(kind.rows, split=self._split))
        return max(1, min(_STAGES["verify"], fitting))

    def _shared_bytes(self, kind: Kind, constants: dict[str, Constant]) -> int:
        """Shared memory of a block; puts the place of the ring among the constants."""
        rows, size, warps = kind.rows, self.config.head_dim, THREADS // 32
        attention = attention_bytes(rows, size)
        fixed = 8 * int(constants["ADDRESSES"]) + 4 * STATE_WORDS + 4 * 64
        if self._flows(kind):
            made, shared = flow_sizes(self.config, fixed - 4 * 64, self.grid)
            constants |= made
            return shared
        tile, _ = _UNITS[kind.mode]
        exchange, ring, unit = 4 * 2 * warps * rows * tile, 0, 1  # bytes; places in the kernel count floats or bytes
        turned = 33 << int(constants["BIN_BITS"])  # numbers: the bins of a histogram, with room between them
        if kind.mode in _EXACT:
            unit = 4
            if kind.mode == "verify":
                ring = warps * int(constants["STAGES"]) * verify_stage_bytes(rows, split=self._split)
            elif kind.mode == "inputs" and rows == 1:  # what a block chooses
                ring = int(constants["OWN_BYTES"])
            elif self._is_alone(kind):  # the row itself
                ring = 2 * int(constants["SPLIT"]) * self._widest
        else:
            widest = int(constants["WIDEST"])
            fixed += widest * 3 if kind.mode == "bucket" else widest * 2 + widest // 2
            ring = warps * (int(constants["STAGES"]) + 1) * 2048 if kind.mode == "int4" else 0
            exchange = warps * (1024 + 1) * 4 + 2 * _LISTED if kind.mode == "bucket" else exchange
        rest = max(attention, exchange, 4 * turned if constants["TIERS"] else 0)
        constants["RING_AT"] = padded(rest, 16) // unit
        return fixed + padded(rest, 16) + ring

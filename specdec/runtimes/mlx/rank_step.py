"""Steps of one sequence at effort 1.0 as one CUDA kernel on each of several GPUs: `RankStep`.

The kernels (`kernels/cuda/peer`) write a GPU's columns of a row into the memory of all GPUs, so a step has no gathers.
In the exact view they give the same bits as the kernels for each phase, which run all other steps: steps of several
sequences, of trees, and at efforts below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.model.architecture import ModelConfig
from specdec.runtimes.mlx.addresses import addresses_of, table_of
from specdec.runtimes.mlx.attention_ops import WINDOWLESS
from specdec.runtimes.mlx.cache import SPAN, GpuCache
from specdec.runtimes.mlx.cuda_code import cuda_compiler
from specdec.runtimes.mlx.features import runs_as_one_kernel
from specdec.runtimes.mlx.kernels import Compiled, Constant, Typed, build, kernel_text
from specdec.runtimes.mlx.launch import Launch
from specdec.runtimes.mlx.layers import Layer, Mlp
from specdec.runtimes.mlx.ops import ROW_STEPS, Ops, row_step
from specdec.runtimes.mlx.pack import pack_stream_int4, padded, unpack_int4
from specdec.runtimes.mlx.peer import PeerMemory
from specdec.runtimes.mlx.shared import PATIENCE_S, SharedArrays
from specdec.runtimes.mlx.state import (
    CHOOSING_CONSTANTS,
    LOGITS_FROM,
    MAX_ROWS,
    MOST_AHEAD,
    STATE_CONSTANTS,
    STATE_SIZE,
)
from specdec.runtimes.mlx.step import CHOICE_WORDS
from specdec.runtimes.share import Share
from specdec.workers import run_together

if TYPE_CHECKING:
    from specdec.runtimes.mlx.device import CudaDriver
    from specdec.runtimes.mlx.model import Kind
    from specdec.runtimes.mlx.weights import Linear

THREADS = 512
_WARPS, _TEAM = THREADS // 32, 8
_ENTRIES = 9  # addresses of a layer: two norms, bias, norms of heads, four matrices, its window
_LAST = 3  # logits layer, its norm, embeddings; then every GPU's memory
_STAGES = range(1, 7)  # pieces of a warp under way
_INT4_INPUTS, _INT4_BYTES = 256, 2304  # of a step of a tile of 4-bit weights
_SHARED_BYTES = 227 << 10
_SYNC_BYTES = 1024
_CHOICES = 1 + (1 + MOST_AHEAD) * MAX_ROWS
_ATTENDED = 256  # threads of attention
_PARTS = ("peer.cuh", "grids.cuh", "stream.cuh", "step_choose.cuh")
_STATE_WORDS = padded(STATE_SIZE + MAX_ROWS, 4)  # of a block's copy of the state, and the tokens chosen


def suits(config: ModelConfig, layers: Sequence[Layer], driver: CudaDriver | None, dtype: str) -> bool:
    """Whether the kernels run this model here: layers of one shape, 16-bit weights, Hopper's instructions."""
    if driver is None or driver.generation < 9 or not runs_as_one_kernel(config):
        return False
    if driver.shared_bytes < _SHARED_BYTES or any(linear.quant for layer in layers for linear in layer.linears):
        return False
    kinds = {(layer.config.attention.heads, layer.config.attention.kv_heads) for layer in layers}
    return len(kinds) == 1 and all(isinstance(layer.mlp, Mlp) for layer in layers) and dtype in ("float16", "bfloat16")


def rank_step(
    mx: Any, config: ModelConfig, *, dtype: str, share: Share, shared: SharedArrays, driver: CudaDriver | None,
    layers: Sequence[Layer], head: Linear, final_norm: Any, embeddings: Any,
) -> RankStep | None:  # fmt: skip
    """Steps of a model as one kernel on each of its devices; None where that is not possible. See `RankStep`.

    To be called on all ranks, like `SharedArrays`.
    """
    if driver is None or not suits(config, layers, driver, dtype) or cuda_compiler(Path(mx.__file__).parent) is None:
        return None
    memory = shared.memory(RankStep.bytes_for(config, dtype))
    if memory is None:
        return None
    made = RankStep(
        mx, config, dtype=dtype, share=share, memory=memory, driver=driver, layers=layers, head=head,
        final_norm=final_norm, embeddings=embeddings, patience_s=PATIENCE_S,
    )  # fmt: skip
    return made if made.fits else None


class RankStep:
    """Steps of one model on this GPU, all of whose ranks run the same ones.

    Args:
        mx: MLX.
        config: shape of the whole model.
        dtype: "float16" or "bfloat16", dtype of the weights.
        share: this GPU's share of the model.
        memory: memory of all GPUs, `bytes_for` each.
        driver: driver of this GPU.
        layers: this GPU's part of them; see `suits`.
        head: its part of the logits layer.
        final_norm: float32 (hidden,).
        embeddings: 16-bit (vocabulary, hidden).
        patience_s: seconds after which a waiting barrier ends the process.
    """

    def __init__(
        self, mx: Any, config: ModelConfig, *, dtype: str, share: Share, memory: PeerMemory, driver: CudaDriver,
        layers: Sequence[Layer], head: Linear, final_norm: Any, embeddings: Any, patience_s: float,
    ) -> None:  # fmt: skip
        self._mx, self._config, self._share, self._memory, self._driver = mx, config, share, memory, driver
        self._attention = layers[0].config.attention
        self._dtype, self._patience_ns, self._grid = dtype, int(patience_s * 1e9), driver.multiprocessors
        self._split = 1 if dtype == "float16" else 2
        self._places, _ = _places(config, self._split)
        self._layers, self._head, self._last = layers, head, [final_norm, embeddings]
        self._tables: dict[str, tuple[Any, list[Any], int]] = {}
        self._launches: dict[tuple[str, int], tuple[Launch, int]] = {}
        self._told_bytes = padded(4 * STATE_SIZE, 16)
        self._told = driver.shared_memory(self._told_bytes + 8 * config.num_layers)
        self._telling = driver.pinned(self._told_bytes + 8 * config.num_layers)
        self._logits = driver.pinned(4 * MAX_ROWS * config.vocab_size).view(np.float32).reshape(MAX_ROWS, -1)
        self._chosen = driver.pinned(4 * CHOICE_WORDS * _CHOICES).view(np.float32).reshape(-1, CHOICE_WORDS)
        self._scratch, self._scratch_floats = 0, 0
        self._caches: dict[int, list[int]] = {}
        self._turns: tuple[Any, int] = (None, 0)

    @property
    def fits(self) -> bool:
        """Whether a block has memory for every kernel; the same on all GPUs. Rows of two parts may be too wide."""
        kinds = [("int4", 1), *(("dense", rows) for rows in ROW_STEPS)]
        return all(self._sizes(mode, rows)[1] <= _SHARED_BYTES for mode, rows in kinds)

    @staticmethod
    def bytes_for(config: ModelConfig, dtype: str) -> int:
        """Bytes of each GPU's memory that others write into."""
        return _places(config, 1 if dtype == "float16" else 2)[1]

    def launch(self, kind: Kind, told: np.ndarray, caches: Sequence[GpuCache], angles: Any) -> bool:
        """Begin a step; `logits`, or the driver's `wait`, waits for it. False where the kernels do not run such a step.

        Args:
            kind: kind of step.
            told: the state of the pass, int32 (STATE_SIZE,).
            caches: caches of the sequences, evaluated; written.
            angles: float32 (positions, D / 2, 2), evaluated.
        """
        if kind.mode not in ("dense", "int4") or kind.selects or kind.tree or len(caches) != 1:
            return False
        launch, floats = self._launch(kind.mode, row_step(kind.rows))
        attention, (cache,) = self._attention, caches
        floats += MAX_ROWS * attention.heads * (cache.positions // SPAN) * (attention.head_dim + 2)
        if self._scratch_floats < floats:
            self._scratch, self._scratch_floats = self._driver.shared_memory(4 * floats), floats
        self._telling[: 4 * STATE_SIZE].view(np.int32)[:] = told
        self._telling[self._told_bytes :].view(np.int64)[:] = self._addresses(cache)
        if self._turns[0] is not angles:
            self._turns = angles, addresses_of(self._mx, [angles])[0]
        self._driver.send(self._told, self._telling)
        launch((self._table(kind.mode), self._told + self._told_bytes, self._turns[1], self._told, self._scratch), ())
        return True

    def logits(self, rows: int) -> np.ndarray:
        """Logits float32 (rows, V) of the step that was begun last, once it has ended."""
        self._driver.read(self._memory.addresses[self._memory.rank] + self._places["AT_LOGITS"], self._logits[:rows])
        return self._logits[:rows].copy()

    def choices(self, rows: int, ahead: int) -> np.ndarray:
        """Choices of the step that was begun last, once it has ended; see `WholeStep.choices`."""
        read = self._chosen[: 1 + (1 + ahead) * rows]
        self._driver.read(self._memory.addresses[self._memory.rank] + self._places["AT_CHOICES"], read)
        turns = int(read[0].view(np.int32)[0])
        return read[1 : 1 + turns * rows].reshape(turns, rows, CHOICE_WORDS).copy()

    def _addresses(self, cache: GpuCache) -> list[int]:
        """Addresses of a cache's arrays, looked up again when the cache has moved."""
        found = self._caches.get(id(cache))
        if found is None or cache.address != found[0]:
            if len(self._caches) > 256:
                self._caches.clear()
            found = self._caches[id(cache)] = addresses_of(self._mx, cache.arrays)
            cache.address = found[0]
        return found

    def _table(self, mode: str) -> int:
        """Address of the table of addresses of a kind of step."""
        if mode not in self._tables:
            made: dict[int, Any] = {}

            def packed(linear: Linear) -> Any:
                if mode == "dense":
                    return linear.weights
                if id(linear) not in made:
                    made[id(linear)] = _int4_of(self._mx, linear)
                return made[id(linear)]

            entries: list[Any] = []
            for number, layer in enumerate(self._layers):
                assert isinstance(layer.mlp, Mlp)
                window = self._config.window(number)
                entries += [layer.attn_norm, layer.mlp_norm, layer.attention.bias, layer.attention.norms]
                entries += [packed(linear) for linear in layer.linears]
                entries.append(WINDOWLESS if window is None else window)
            entries += [packed(self._head), *self._last]
            table = table_of(self._mx, [*entries, *self._memory.addresses])
            self._tables[mode] = table, entries, addresses_of(self._mx, [table])[0]
        return self._tables[mode][2]

    def _launch(self, mode: str, rows: int) -> tuple[Launch, int]:
        """The kernel for steps of up to `rows`, and floats of scratch memory besides attention's splits."""
        if (mode, rows) not in self._launches:
            # Compile all kernels of a mode at the same time: each takes seconds.
            counts = ROW_STEPS if mode == "dense" else (1,)
            made = run_together([partial(self._compiled, mode, count) for count in counts])
            for count, (code, name, shared_bytes, floats) in zip(counts, made, strict=True):
                launch = Launch(
                    self._driver, code, name, grid=self._grid, threads=THREADS, shared_bytes=shared_bytes,
                    pointers=5, numbers=0,
                )  # fmt: skip
                self._launches[mode, count] = launch, floats
        return self._launches[mode, rows]

    def _compiled(self, mode: str, rows: int) -> tuple[bytes, str, int, int]:
        """Machine code, the kernel's name, its shared memory, and floats of scratch memory."""
        mx = self._mx
        constants, shared_bytes, floats = self._sizes(mode, rows)
        inputs = [Typed(mx.int64, 1), Typed(mx.int64, 1), Typed(mx.float32, 3), Typed(mx.int32, 1)]
        text = kernel_text(
            "cuda", "ranks_step", constants, inputs=("table", "caches", "angles", "told"), outputs=("scratch",),
            bounds=(THREADS, 1), parts=_PARTS,
        )  # fmt: skip
        kernel = build(mx, "cuda", text, shared_bytes=shared_bytes)
        assert isinstance(kernel, Compiled)  # see `rank_step`
        return kernel.code(inputs, (mx.float32,)), kernel.name, shared_bytes, floats

    def _sizes(self, mode: str, rows: int) -> tuple[dict[str, Constant], int, int]:
        """Constants of the kernel's text, its shared memory, and floats of scratch memory."""
        c, attention, share = self._config, self._attention, self._share
        split, step = (1, _INT4_INPUTS) if mode == "int4" else (self._split, 32)
        mixed = c.num_heads * c.head_dim
        sizes: dict[str, Constant] = {"THREADS": THREADS, "GRID": self._grid, "ROWS": rows, "SPLIT": split}
        sizes["INT4"] = mode == "int4"
        sizes |= {
            "weight_t": "half_t" if self._dtype == "float16" else "bfloat_t",
            "LAYERS": c.num_layers,
            "SPAN": SPAN,
        }
        sizes |= {"HIDDEN": c.hidden_size, "HIDDEN_PAD": padded(c.hidden_size), "MIXED_PAD": padded(mixed)}
        sizes |= {"MIXED": mixed, "INNER": c.intermediate_size}
        sizes |= {"INNER_PAD": padded(c.intermediate_size), "VOCAB": c.vocab_size, "EPSILON": float(c.norm_eps)}
        sizes |= {"HEADS": attention.heads, "KV_HEADS": attention.kv_heads, "SIZE": attention.head_dim}
        sizes |= {"SCALE": float(attention.score_scale), "BIAS": c.qkv_bias, "QK_NORM": c.qk_norm}
        sizes |= {
            "RANKS": share.ranks,
            "RANK": share.rank,
            "ENTRIES": _ENTRIES,
            "PATIENCE_NS": f"{self._patience_ns}ull",
        }
        sizes |= STATE_CONSTANTS | CHOOSING_CONSTANTS | {"STATE_LOGITS": LOGITS_FROM, "STATE_WORDS": _STATE_WORDS}
        sizes |= self._places | {"CHOICE_WORDS": CHOICE_WORDS}
        outputs = {name: share.outputs(f"layers.0.{path}") for name, path in _PATHS.items()} | {"HEAD": share.tokens}
        sizes |= {f"{name}_FROM": part.start for name, part in outputs.items()}
        own = {name: part.stop - part.start for name, part in outputs.items()}
        own["QKV"] = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
        sizes |= {f"OWN_{name}": own[name] for name in ("QKV", "HIDDEN", "INNER", "HEAD")}
        tiles = [own["QKV"], own["HIDDEN"], 2 * padded(own["INNER"], 16), own["HIDDEN"], own["HEAD"]]
        sizes["TILE_COUNTS"] = ", ".join(str(-(-count // 16)) for count in tiles)
        wide = [c.hidden_size, mixed, c.hidden_size, c.intermediate_size, c.hidden_size]
        sizes["STEP_COUNTS"] = ", ".join(str(-(-padded(count) // step)) for count in wide)
        normed = Ops(self._mx, "cuda", self._dtype).row_constants(rows, c.hidden_size)
        sizes |= {"NORM_OWN": normed["OWN"], "NORM_WARPS": normed["WARPS"]}
        floats = 0
        made = rows * split * padded(c.hidden_size) // 2
        # Counters are left at 0 for kernels of other numbers of rows: theirs are at the same place.
        places = {"AT_X": MAX_ROWS * attention.heads, "AT_QKV": MAX_ROWS * c.hidden_size}
        places |= {"AT_MADE": rows * own["QKV"], "AT_FOUND": made}
        places["AT_SPLITS"] = rows * self._grid * CHOICE_WORDS
        for name, size_before in places.items():
            floats += padded(size_before, 64)
            sizes[name] = floats
        return sizes, self._room(mode, rows, sizes, wide), floats

    def _room(self, mode: str, rows: int, sizes: dict[str, Constant], wide: list[int]) -> int:
        """Shared memory of a block; adds the offsets of its parts to the constants."""
        size, together = self._attention.head_dim, min(rows, 4)
        columns = 1 if rows == 1 else 8 * (1 + (rows > 8))
        sums = _WARPS * columns * (16 if columns == 1 else 20)
        attending = 4 * (_WARPS * size + together * (size + SPAN + _ATTENDED) + 32 + 4) + 4 * rows * size
        # A single row lies next to the sums. With several rows, attention reuses the memory of the sums after them.
        room = padded(max(attending, 2 * int(sizes["SPLIT"]) * max(map(padded, wide)) if rows == 1 else 0), 16)
        addresses = padded(self._config.num_layers * _ENTRIES + _LAST + self._share.ranks, 2)
        step_bytes = _INT4_BYTES if mode == "int4" else 1024

        def fixed(stages: int) -> int:
            both = 8 * sums + room if rows == 1 else max(8 * sums, room)
            return padded(8 * (addresses + _WARPS * stages) + 4 * (_STATE_WORDS + 64) + both, 128)

        def fitting(steps: int) -> int:
            return max((n for n in _STAGES if fixed(n) + n * _WARPS * steps * step_bytes <= _SHARED_BYTES), default=1)

        many_registers = int(sizes["SPLIT"]) == 2 and rows > 8
        pieces = (1,) if mode == "int4" else (2,) if many_registers else (4, 2)
        steps = max(pieces, key=lambda count: count * fitting(count))
        stages, piece = fitting(steps), _WARPS * steps * step_bytes
        sizes |= {"ADDRESSES": addresses, "ROOM_BYTES": room, "PIECE_STEPS": steps, "STAGES": stages}
        sizes["RINGS_AT"] = fixed(stages)
        return fixed(stages) + stages * piece


def _int4_of(mx: Any, linear: Linear) -> Any:
    """The 4-bit weights of a multiplication in the order of `stream.cuh`."""
    assert linear.int4 is not None  # the view is prepared
    made = pack_stream_int4(mx, *unpack_int4(mx, linear.int4, padded(linear.inputs)))
    mx.eval(made)
    return made


_PATHS = {"MIXED": "attn.q", "HIDDEN": "attn.o", "INNER": "mlp.gate"}


def _places(config: ModelConfig, split: int) -> tuple[dict[str, int], int]:
    """Offsets of rows in the memory that others write into, and its size, in bytes."""
    hidden, qkv = config.hidden_size, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    mixed, inner = padded(config.num_heads * config.head_dim), padded(config.intermediate_size)
    sizes = {"AT_MIXED": 2 * split * mixed, "AT_INNER": 2 * split * inner, "AT_OUT": 4 * hidden, "AT_DOWN": 4 * hidden}
    sizes = {name: MAX_ROWS * size for name, size in (sizes | {"AT_LOGITS": 4 * config.vocab_size}).items()}
    # Of a single row, two places in turn of words with their numbers, 8 bytes together.
    sizes |= {"AT_MIXED_WORDS": 8 * split * mixed, "AT_INNER_WORDS": 8 * split * inner, "AT_QKV_WORDS": 16 * qkv}
    sizes |= {"AT_OUT_WORDS": 16 * hidden, "AT_DOWN_WORDS": 16 * hidden, "AT_CHOICES": 4 * CHOICE_WORDS * _CHOICES}
    places: dict[str, int] = {}
    end = _SYNC_BYTES
    for name, size in sizes.items():
        places[name] = end
        end += padded(size, 256)
    return places, end

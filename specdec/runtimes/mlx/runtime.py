"""The GPU runtime: our kernels through MLX, on Apple GPUs (Metal) and NVIDIA's (CUDA). Loading, checks, the interface.

The steps are in `model`, the kernels' launch configurations in `ops`, their texts in `kernels/metal` and
`kernels/cuda`. Making a runtime needs MLX with a GPU; importing this module does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts
from specdec.runtimes.base import (
    EXACT,
    Cache,
    Pass,
    Rows,
    RuntimeInfo,
    ViewInfo,
    check_batch,
    check_capacity,
    check_fork,
    check_keep,
    check_trim,
    check_view,
    checked_layers,
    checked_tokens,
)
from specdec.runtimes.mlx.device import find_gpu
from specdec.runtimes.mlx.model import Kind, Layer, Transformer
from specdec.runtimes.mlx.ops import LOGITS_FROM, SPAN, STATE_SIZE, Ops
from specdec.runtimes.mlx.pack import BUCKET, RUN
from specdec.runtimes.mlx.step import WholeStep, fits
from specdec.runtimes.mlx.step_quant import QuantStep, suits
from specdec.runtimes.mlx.weights import Linear, Loader

if TYPE_CHECKING:
    from specdec.store import Store

_MOST_SCHEDULES = 64
_MOST_TIERS = 4  # two bits a weight


class GpuCache:
    """Keys and values of one sequence, float16, as `Transformer.new_cache` makes them.

    Made once at full size and written in place; trimming moves the length only.
    """

    __slots__ = ("_capacity", "_length", "arrays")

    def __init__(self, arrays: list[Any], capacity: int) -> None:
        self.arrays, self._capacity, self._length = arrays, capacity, 0

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._length

    @property
    def capacity(self) -> int:
        """Most tokens that fit."""
        return self._capacity

    def trim(self, length: int) -> None:
        """Keep the first `length` tokens.

        Raises:
            InvalidArgumentError: `length` is negative or larger than the current one.
        """
        check_trim(length, self._length)
        self._length = length

    @property
    def nbytes(self) -> int:
        """Bytes allocated now."""
        return sum(int(array.nbytes) for array in self.arrays)

    def keep(self, base: int, rows: Sequence[int]) -> None:
        """Keep one path of a tree; see `Cache.keep`."""
        check_keep(self._length, base, rows)
        raise NotImplementedError

    def fork(self, length: int, capacity: int) -> GpuCache:
        """A cache that begins with this one's first `length` tokens; see `Cache.fork`."""
        check_fork(self._length, length, capacity)
        raise NotImplementedError

    def advance(self, count: int) -> None:
        """Count `count` tokens more, which a pass has put there."""
        self._length += count


def refuse_unsupported(config: ModelConfig) -> str | None:
    """Why this runtime cannot run a model of this shape; None when it can."""
    if config.num_experts:
        return "the mlx runtime does not run mixture-of-experts models: use runtime 'native'"
    if config.head_dim > 128 or config.head_dim % 8:
        return f"the mlx runtime needs a head size of at most 128 that 8 divides, not {config.head_dim}: use 'native'"
    if config.num_heads * config.head_dim % BUCKET or config.num_kv_heads * config.head_dim % BUCKET:
        return "the mlx runtime needs projections whose width 16 divides: use runtime 'native'"
    return None


class MlxRuntime:
    """Runs one model from a bucket store on the GPU.

    Weights are held once, in 16 bits, in the kernels' order; tiers (0.125 times the weights) when an effort below 1 of
    the exact view first needs them; `bucket` adds 1.25 times, `int4` 0.28 times. Matrices of a quantised store are held
    in the bits of their blocks that were loaded, which `own` and `nested` drafts read too. The cache is float16, the
    residual stream float32; activations enter a multiplication in float16 (bfloat16 weights: as two bfloat16 parts;
    Metal and quantised matrices: float32). Logits are equal bits for equal token histories, efforts and views, whatever
    shares the pass.

    Args:
        store: an open store; must stay open as long as the runtime is used.

    Raises:
        RuntimeUnavailableError: there is no GPU that MLX can use.
        InvalidArgumentError: the model has a shape that the kernels do not run.
    """

    def __init__(self, store: Store) -> None:
        problem = refuse_unsupported(store.config)
        if problem:
            raise InvalidArgumentError(problem)
        gpu = find_gpu()
        self.config: ModelConfig = store.config
        self.info = RuntimeInfo(
            name="mlx",
            auto_draft=("nested", 1.0) if store.quantised else ("int4", 1.0),
            build=f"{gpu.backend} {gpu.name} {gpu.version}",
            device=gpu.name,
            shows_states=False,
            compiles=True,  # a kernel, when a number of rows, a view or an effort below 1 first needs it
        )
        self._store, self._mx, self._driver = store, gpu.mx, gpu.driver
        self._efforts: dict[tuple[Efforts, str], tuple[bool, list[Any]]] = {}
        self._prepared: set[str] = set()
        self._ops = Ops(self._mx, gpu.backend, store.dtype, quantised=store.quantised)
        self._loader = Loader(self._mx, self._ops, store)
        self._transformer = self._load()

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:
        """Features of the model that this runtime does not execute, by name."""
        problem = refuse_unsupported(config)
        return frozenset() if problem is None else frozenset({problem})

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts beside "exact"; `bucket` needs buckets of 16 in tiers of fours."""
        return {name: ViewInfo(name=name) for name in self._view_names()}

    def _view_names(self) -> tuple[str, ...]:
        if self._store.quantised:
            # The one kernel of a quantised step has no `int4`, which would read as much as `nested`.
            return ("own", "nested") if self._transformer.whole is not None else ("own", "nested", "int4")
        layout = self._store.layout
        fits = layout.bucket_size == BUCKET and all(size % RUN == 0 for size in layout.tier_sizes)
        return ("bucket", "int4") if fits else ("int4",)

    def prepare(self, view: str) -> None:
        """Make `view` ready: pack it from the store, or build it from the exact weights where the store lacks it.

        Raises:
            UnknownNameError: this runtime has no such view, or none for this store's layout.
        """
        if view == "exact" or view in self._prepared:
            return
        check_view(view, self.views())
        if view in ("bucket", "int4"):
            pack = self._loader.bucket if view == "bucket" else self._loader.int4
            for linear in self._transformer.linears:
                pack(linear)
        self._prepared.add(view)

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens.

        Raises:
            InvalidArgumentError: `capacity` is not a positive whole number.
        """
        check_capacity(capacity)
        return GpuCache(self._transformer.new_cache(capacity), capacity)

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """Append every sequence's rows to its cache; see `Runtime.forward`.

        The exact view runs up to 16 rows at a time, a draft view one.
        """
        check_batch(batch, self.config, GpuCache)
        check_view(view, self.views())
        if states:
            raise InvalidArgumentError("the mlx runtime does not show hidden states: use runtime 'native'")
        held = [rows.cache.length for rows in batch]
        try:
            return [self._forward(rows, view) for rows in batch]
        except BaseException:
            for rows, length in zip(batch, held, strict=True):
                rows.cache.trim(min(length, rows.cache.length))
            raise

    def _forward(self, rows: Rows, view: str) -> Pass:
        cache = rows.cache
        ids = self._checked(rows.tokens, cache)
        if checked_layers(rows.layers, self.config) < self.config.num_layers:
            raise InvalidArgumentError("the mlx runtime always runs all layers: early exit needs another runtime")
        assert isinstance(cache, GpuCache)
        self.prepare(view)
        selects, takes = self._takes(rows.efforts, view)
        mode = self._mode(view, selects)
        most = self._transformer.most_rows if view == EXACT else 1
        found, read = [np.empty((0, self.config.vocab_size), np.float32)], 0
        for first in range(0, len(ids), most):
            piece = ids[first : first + most]
            is_last = first + most >= len(ids)
            tail = rows.logits if rows.logits == "all" or is_last else "none"
            found.append(self._pass(mode, selects, piece, cache, takes, tail))
            read += self._bytes_read(mode, rows.efforts, cache.length)
        return Pass(np.concatenate(found), read)

    def _mode(self, view: str, selects: bool) -> str:
        """The `Kind.mode` of a view."""
        if view == "own" or (view == "exact" and self._store.quantised):
            return "quant"
        return ("verify" if selects else "dense") if view == "exact" else view

    def _pass(
        self, mode: str, selects: bool, piece: list[int], cache: GpuCache, takes: list[Any], tail: str
    ) -> np.ndarray:
        """Run one step and wait for it; logits (rows, V), (1, V), or anything for tail "none"."""
        rows, whole = len(piece), self._transformer.whole is not None
        needed = -(-(cache.length + rows) // SPAN)
        splits = 0 if whole else min(1 << (needed - 1).bit_length(), cache.arrays[0].shape[2] // SPAN)
        wanted = {"all": rows, "last": 1, "none": 0}[tail]
        kind = Kind(mode, selects, self._transformer.row_step(rows), splits, "all" if whole or wanted == rows else tail)
        state = np.zeros(STATE_SIZE, np.int32)
        state[0], state[1], state[LOGITS_FROM], state[2 : 2 + rows] = cache.length, rows, rows - wanted, piece
        out = self._transformer.run(kind, state, cache.arrays, takes)
        self._mx.eval(out)
        cache.advance(rows)
        return self._transformer.logits(out, wanted) if wanted else np.empty((0, self.config.vocab_size), np.float32)

    def _takes(self, effort: Efforts, view: str) -> tuple[bool, list[Any]]:
        """Whether anything is selected, and how many weights of every multiplication."""
        key = (effort, view)
        if key not in self._efforts:
            if len(self._efforts) >= _MOST_SCHEDULES:  # a policy may try any number of efforts
                self._efforts.clear()
            self._efforts[key] = self._counted(effort, view)
        return self._efforts[key]

    def _counted(self, effort: Efforts, view: str) -> tuple[bool, list[Any]]:
        efforts = effort.by_name(self.config)
        if view != "bucket" and all(value >= 1 for value in efforts.values()):
            return False, []
        quantised = self._store.quantised
        if view == "exact" and not quantised:
            self._need_tiers()
        size = 1 if view == "int4" or quantised else self._store.layout.bucket_size
        together = view in ("int4", "bucket")
        counts = [
            linear.takes([efforts[name] for name in linear.names], size, together=together)
            for linear in self._transformer.linears
        ]
        # One array from the host, taken apart on the device: see `weights` on small arrays.
        flat = self._mx.array([count for group in counts for count in group], dtype=self._mx.int32)
        ends = np.cumsum([len(group) for group in counts])[:-1].tolist()
        parts = [flat] if self._transformer.whole is not None else self._mx.split(flat, ends)
        takes = [part + self._mx.zeros_like(part) for part in parts]
        self._mx.eval(takes)
        return True, takes

    def _need_tiers(self) -> None:
        """Pack the tiers of the exact view, unless they are there."""
        if "tiers" in self._prepared:
            return
        tiers = self._store.layout.num_tiers
        if tiers > _MOST_TIERS:
            raise InvalidArgumentError(
                f"the mlx runtime runs the exact view below effort 1 for at most {_MOST_TIERS} tiers, and this store "
                f"has {tiers}: use runtime 'native'"
            )
        for linear in self._transformer.linears:
            self._loader.tiers(linear)
        self._prepared.add("tiers")

    def _checked(self, tokens: Sequence[int], cache: Cache) -> list[int]:
        if not isinstance(cache, GpuCache):
            raise InvalidArgumentError("cache must come from new_cache of this runtime")
        ids: list[int] = checked_tokens(tokens, cache, self.config.vocab_size).tolist()
        return ids

    def _bytes_read(self, mode: str, effort: Efforts, length: int) -> int:
        """Bytes of a step's weights in the layout of its view, and of the history once."""
        efforts = effort.by_name(self.config)
        total = 0.0
        if mode in ("quant", "nested"):
            for linear in self._transformer.linears:
                for name, matrix in zip(linear.names, linear.quant, strict=True):
                    total += matrix.bytes_read(min(efforts[name], 1.0), nested=mode == "nested")
        else:
            for name, (outputs, inputs) in self.config.matrices().items():
                share = min(efforts[name], 1.0)
                each = {"dense": 2.0, "verify": 2.25, "int4": 0.5 * share + 0.0625, "bucket": 2.5 * share}[mode]
                total += each * outputs * inputs
        history = 4 * length * self.config.num_layers * self.config.num_kv_heads * self.config.head_dim
        return int(total) + history

    def _load(self) -> Transformer:
        """Pack every tensor of the store."""
        config, store = self.config, self._store
        shapes = config.matrices()

        def linear(*names: str, paired: bool = False) -> Linear:
            made = Linear(names, tuple(shapes[name][0] for name in names), shapes[names[0]][1], paired)
            self._loader.exact(made)
            return made

        def vector(*names: str) -> Any:
            joined = np.concatenate([np.asarray(store.vector(name)) for name in names])
            array = self._mx.array(joined)
            return array + self._mx.zeros_like(array)

        layers = []
        for i in range(config.num_layers):
            attn, mlp = f"layers.{i}.attn", f"layers.{i}.mlp"
            bias = vector(*(f"{attn}.{name}.bias" for name in "qkv")) if config.qkv_bias else None
            norms = vector(f"{attn}.q_norm", f"{attn}.k_norm") if config.qk_norm else None
            layers.append(
                Layer(
                    attn_norm=vector(f"layers.{i}.attn_norm"),
                    qkv=linear(f"{attn}.q", f"{attn}.k", f"{attn}.v"),
                    bias=bias,
                    qk_norms=norms,
                    o=linear(f"{attn}.o"),
                    mlp_norm=vector(f"layers.{i}.mlp_norm"),
                    gate_up=linear(f"{mlp}.gate", f"{mlp}.up", paired=True),
                    down=linear(f"{mlp}.down"),
                )
            )
        embeddings = None if config.tie_embeddings else self._loader.embeddings()
        head = linear("head")
        transformer = Transformer(
            self._mx,
            self._ops,
            config,
            layers=layers,
            final_norm=vector("final_norm"),
            head=head,
            embeddings=embeddings,
            tier_sizes=store.layout.tier_sizes,
            whole=self._whole_step(layers, head, embeddings),
        )
        self._mx.eval([[x.attn_norm, x.mlp_norm] for x in layers], transformer.final_norm)
        self._mx.clear_cache()  # what packing has used
        return transformer

    def _whole_step(self, layers: list[Layer], head: Linear, embeddings: Any) -> WholeStep | None:
        """Steps as one kernel each, where this GPU and model allow it."""
        store, driver = self._store, self._driver
        if driver is None or not fits(self.config, driver):
            return None
        if not store.quantised:
            return WholeStep(
                self._mx, self.config, dtype=store.dtype, tier_sizes=store.layout.tier_sizes, driver=driver
            )
        if not suits(layers, head):
            return None
        step = QuantStep(
            self._mx, self.config, dtype=store.dtype, layers=layers, head=head, embeddings=embeddings, driver=driver
        )
        return step if step.most_rows else None

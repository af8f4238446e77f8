"""The GPU runtime: our kernels through MLX, on Apple GPUs (Metal) and NVIDIA's (CUDA). Loading, checks, the interface.

The steps are in `model`, the kernels' launch configurations in `ops`, their texts in `kernels/metal` and
`kernels/cuda`. Making a runtime needs MLX with a GPU; importing this module does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import Efforts, resolve_efforts
from specdec.progress import Count, reported
from specdec.runtimes.base import (
    EXACT,
    Cache,
    DraftHead,
    Late,
    Pass,
    Planned,
    Rows,
    RuntimeInfo,
    ViewInfo,
    check_view,
)
from specdec.runtimes.checks import check_batch, check_capacity, checked_layers, checked_tokens
from specdec.runtimes.features import check_missing
from specdec.runtimes.mlx.batch import Share, share_of, steps_of
from specdec.runtimes.mlx.cache import GpuCache
from specdec.runtimes.mlx.compiling import Compiling
from specdec.runtimes.mlx.device import find_gpu
from specdec.runtimes.mlx.exact_forms import ExactForms
from specdec.runtimes.mlx.features import missing_features
from specdec.runtimes.mlx.layers import Layer, LayerLoader
from specdec.runtimes.mlx.model import Transformer
from specdec.runtimes.mlx.ops import Ops
from specdec.runtimes.mlx.pack import BUCKET, RUN
from specdec.runtimes.mlx.rank_step import rank_step
from specdec.runtimes.mlx.recycle import Turning
from specdec.runtimes.mlx.shared import SharedArrays
from specdec.runtimes.mlx.state import MAX_ROWS, MOST_AHEAD
from specdec.runtimes.mlx.step import WholeStep, fits
from specdec.runtimes.mlx.step_quant import QuantStep, suits
from specdec.runtimes.mlx.step_sizes import MOST_CHOOSING
from specdec.runtimes.mlx.steps import Shown, Steps
from specdec.runtimes.mlx.takes import Takes, kept
from specdec.runtimes.mlx.weights import Linear, Loader
from specdec.runtimes.mlx.wide import WidePasses
from specdec.store.share import StoreShare
from specdec.warn import warn

if TYPE_CHECKING:
    from specdec.runtimes.share import Share as DeviceShare
    from specdec.store import Store

_MOST_TIERS = 4  # two bits a weight


def check_available() -> None:
    """Refuse where the runtime cannot run.

    Raises:
        RuntimeUnavailableError: MLX has no GPU here.
    """
    find_gpu()


class MlxRuntime:
    """Runs one model from a bucket store on the GPU.

    Weights are held once, in 16 bits, in the kernels' order. When an effort below 1 of the exact view first needs it,
    the weights of each input side by side are held as well, or, of a store that chooses by tiers, tiers (0.125 times
    the weights); `bucket` adds 1.25 times, `int4` 0.28 times. Matrices of a quantised store are held
    in the bits of their blocks that were loaded, which `own` and `nested` drafts read too. The cache is float16, the
    residual stream float32; activations enter a multiplication in float16 (bfloat16 weights: as two bfloat16 parts;
    Metal and quantised matrices: float32). Logits are equal bits for equal token histories, efforts and views, whatever
    shares the pass. One step runs at a time, on the thread that asks for it; others wait.

    Args:
        store: an open store; must stay open as long as the runtime is used.
        share: what this device holds of a model that several devices divide; None for all. A step is a kernel for each
            phase then, at any number of devices, so that one device gives the bits of several.

    Raises:
        RuntimeUnavailableError: there is no GPU that MLX can use.
        InvalidArgumentError: the model has a shape that the kernels do not run.
    """

    def __init__(self, store: Store, *, share: DeviceShare | None = None) -> None:
        check_missing("mlx", self.missing(store.config))
        gpu = find_gpu()
        self._share_of_model = share
        if share is not None:
            store = StoreShare(store, share)
        self.config: ModelConfig = store.config
        self.info = RuntimeInfo(
            name="mlx",
            auto_draft=("nested", 1.0) if store.quantised else ("int4", 1.0),
            build=f"{gpu.backend} {gpu.name} {gpu.version}" + ("" if share is None else f" {share.ranks} devices"),
            device=gpu.name,
            shows_states=False,
            compiles=True,  # a kernel, when a number of rows, a view or an effort below 1 first needs it
        )
        self._store, self._mx, self._driver = store, gpu.mx, gpu.driver
        self._lock = RLock()  # MLX does not allow work on several threads at a time
        self._prepared: set[str] = set()
        self._weights: dict[tuple[str, Efforts], int] = {}
        self._views: dict[int, dict[str, ViewInfo]] = {}  # by the number of views that are prepared
        self._ops = Ops(self._mx, gpu.backend, store.dtype, quantised=store.quantised)
        self._loader = Loader(self._mx, self._ops, store)
        self._transformer = self._load()
        self._forms = ExactForms(self._mx, self._loader, self._transformer)
        self._takes = Takes(
            self._mx, self.config, self._transformer.linears, bucket_size=store.layout.bucket_size,
            by_inputs=store.selection == "inputs", quantised=store.quantised,
            whole=self._transformer.whole is not None,
        )  # fmt: skip
        self._wide = WidePasses(self._mx, self._transformer, self._lock, weight_bytes=self._weight_bytes)
        self._steps = Steps(self._mx, self._transformer, self._takes, weight_bytes=self._weight_bytes, wait=self._wait)
        if self._transformer.whole is not None or self._transformer.ranks is not None:
            alone = MOST_AHEAD if self._transformer.whole is not None else 0
            self.info = replace(self.info, chooses=True, most_ahead=MOST_AHEAD, drafts_ahead=alone)
        self._turning = Turning(
            self._mx, self._transformer, self._mode(EXACT, selects=False), self._weight_bytes, self._wide.turns
        )
        self.info = replace(self.info, recycles=self._turning.most_rows)
        self._compiling = Compiling(
            self._transformer, self._turning, self._wide, self._takes,
            mode=self._mode, most_rows=self._most_rows,
        )  # fmt: skip

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:
        """Features of the model that this runtime does not execute, by name."""
        return missing_features(config)

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts besides "exact"; `bucket` needs buckets of 16 in tiers of fours."""
        # Every answer and every draft step looks; only a view that was prepared changes anything.
        return kept(self._views, len(self._prepared), self._view_infos)

    def _view_infos(self) -> dict[str, ViewInfo]:
        return {name: ViewInfo(name=name, late=self._late(name)) for name in self._view_names()}

    def _late(self, view: str) -> Late | None:
        """What is known of a view that has yet to be made, or whose kernels have; None where it is ready, or nothing is
        known of the memory."""
        if view in self._prepared or self._transformer.whole is None or self._driver is None:
            return None
        full, speed = resolve_efforts(1.0, self.config), self._driver.bytes_per_s
        exact, own = (self._weight_bytes(self._mode(name, selects=False), full) for name in (EXACT, view))
        return Late(exact / speed, own / speed) if speed > 0 else None

    def _view_names(self) -> tuple[str, ...]:
        if self._store.quantised:
            # The one kernel of a quantised step has no `int4`, which would read as much as `nested`.
            return ("own", "nested") if self._transformer.whole is not None else ("own", "nested", "int4")
        layout = self._store.layout
        fits = layout.bucket_size == BUCKET and all(size % RUN == 0 for size in layout.tier_sizes)
        return ("bucket", "int4") if fits else ("int4",)

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        """Make `view` ready: pack it from the store, or build it from the exact weights where the store lacks it.

        Raises:
            UnknownNameError: this runtime has no such view, or none for this store's layout.
        """
        if view == "exact" or view in self._prepared:
            return
        check_view(view, self.views())
        with self._lock:
            if view in self._prepared:  # meanwhile: tables of addresses may refer to it already
                return
            if view in ("bucket", "int4"):
                flows = self._transformer.whole is not None and self._transformer.whole.flows
                for linear in reported(self._transformer.linears, progress):
                    if view == "bucket":
                        self._loader.bucket(linear)
                    else:
                        self._loader.int4(linear, flows=flows)
            self._prepared.add(view)

    def compile(self, passes: Sequence[Planned]) -> None:
        """Compile what passes over one sequence need, and the pieces of its prompt; see `Compiler`."""
        for one in passes:
            check_view(one.view, self.views())
        with self._lock:
            self._compiling.compile(passes)

    @property
    def knows_successors(self) -> bool:
        """Whether `use_successors` was called; True where no turns would use them."""
        return not self._turning.most_rows or self._turning.recycler.knows

    def survey(self, prefix: Sequence[int], tokens: Sequence[int]) -> NDArray[np.int32]:
        """Find the likeliest tokens after a text and one further token; see `Surveyor`. Only where `info.recycles`."""
        held = self._transformer.new_cache(len(prefix) + MAX_ROWS, self._lock)
        self.forward([Rows(held, prefix[:-1], resolve_efforts(1.0, self.config), logits="none")])
        with self._launching():
            return self._turning.survey(held, prefix[-1], tokens)

    def use_successors(self, tokens: NDArray[np.int32], successors: NDArray[np.int32]) -> None:
        """Draft with these from the next text on; see `Surveyor`. Only where `info.recycles`."""
        with self._lock:
            self._turning.recycler.know(tokens, successors)

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens.

        Raises:
            InvalidArgumentError: `capacity` is not a positive whole number.
        """
        check_capacity(capacity)
        return self._transformer.new_cache(capacity, self._lock)

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes that a cache of that capacity takes."""
        return self._transformer.new_cache(capacity, self._lock).most_bytes

    def draft_head(self, tokens: tuple[int, ...]) -> DraftHead:  # noqa: ARG002 (every runtime's signature)
        """There are no draft heads on the GPU: drafts score all tokens.

        Raises:
            InvalidArgumentError: always.
        """
        raise InvalidArgumentError("the mlx runtime scores all tokens in drafts: it has no draft heads")

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """Append every sequence's rows to its cache; see `Runtime.forward`.

        A step runs up to 16 rows of all sequences; in the views `int4` and `bucket`, and in `nested` where a step is
        one kernel, it runs one row.
        """
        check_batch(batch, self.config, GpuCache, chooses=self.info.chooses)
        if view != EXACT:
            check_view(view, self.views())
        if states:
            raise InvalidArgumentError("the mlx runtime does not show hidden states: use runtime 'native'")
        with self._launching():
            return self._run(batch, view)

    @contextmanager
    def _launching(self) -> Iterator[None]:
        """The lock. Where the block fails, waits for what it launched: that may use memory that the caller frees."""
        with self._lock:
            try:
                yield
            except BaseException:
                with suppress(OSError):
                    self._wait()
                raise

    def _run(self, batch: Sequence[Rows], view: str) -> list[Pass]:
        """`forward` of checked rows, under the lock."""
        shares = [self._share(number, rows, view) for number, rows in enumerate(batch)]
        self._wide.finish(shares)
        if len(batch) == 1 and view == EXACT and self._turning.takes(batch[0], shares[0]):
            self._compiling.begin(batch[0].efforts, shared=False)
            return [self._turning.run(batch[0], shares[0])]
        self._turning.finish()
        self.prepare(view)
        if view == EXACT and not self._store.quantised:
            self._need_forms({share.mode for share in shares})
        self._compiling.begin(batch[0].efforts, shared=len(batch) > 1)
        ahead = self._ahead(batch, shares, view)
        further = self._further(batch, shares, ahead)
        for share in shares:
            share.cache.reserve(share.cache.length + len(share.ids) + ahead + further)
        shown = [Shown(rows) for rows in batch]
        self._wide.run(shares, shown, ahead, further)
        for step in steps_of(shares, min(self._most_rows(view, share.mode) for share in shares)):
            self._steps.run(step, view, shown, ahead)
        for share in shares:
            share.cache.advance(len(share.ids) + shown[share.number].ahead)
        return [one.result(self.config.vocab_size, alone=len(batch) == 1) for one in shown]

    def _ahead(self, batch: Sequence[Rows], shares: list[Share], view: str) -> int:
        """Tokens that all sequences of a pass go ahead for together: in one step, or not at all."""
        if not (asked := min(rows.ahead for rows in batch)) or (view != EXACT and len(batch) > 1):
            return 0
        kinds = {(share.mode, share.selects) for share in shares}
        room = min(share.cache.capacity - share.cache.length for share in shares) - 1
        fits = len(shares) <= self._most_rows(view, shares[0].mode) or self._wide.decodes(shares)
        if len(kinds) > 1 or not fits or any(len(share.ids) > 1 for share in shares):
            return 0
        return max(0, min(MOST_AHEAD, room, asked))

    def _further(self, batch: Sequence[Rows], shares: list[Share], ahead: int) -> int:
        """Tokens of the next pass that are begun in this one."""
        if not ahead or not self._wide.decodes(shares):
            return 0
        room = min(share.cache.capacity - share.cache.length for share in shares) - 1 - ahead
        return max(0, min(1 + ahead, room, *(rows.further for rows in batch)))

    def _share(self, number: int, rows: Rows, view: str) -> Share:
        """What a sequence brings to a pass, checked."""
        cache = rows.cache
        assert isinstance(cache, GpuCache)  # check_batch
        ids: list[int] = checked_tokens(rows.tokens, cache, self.config.vocab_size).tolist()
        if checked_layers(rows.layers, self.config) < self.config.num_layers:
            raise InvalidArgumentError("the mlx runtime always runs all layers: early exit needs another runtime")
        if rows.head is not None:
            raise InvalidArgumentError("the mlx runtime scores all tokens in drafts: it has no draft heads")
        selects = self._takes.selects(rows.efforts, view)
        return share_of(number, rows, cache, ids, self._mode(view, selects), selects=selects)

    def _mode(self, view: str, selects: bool) -> str:
        """The `Kind.mode` of a view."""
        if view == "own" or (view == "exact" and self._store.quantised):
            return "quant"
        below = "inputs" if self._store.selection == "inputs" else "verify"
        return (below if selects else "dense") if view == "exact" else view

    def _most_rows(self, view: str, mode: str = "") -> int:
        """Most rows of a step."""
        if mode == "inputs" and self._transformer.whole is not None:
            return MOST_CHOOSING
        if view in ("int4", "bucket") or (view == "nested" and self._transformer.whole is not None):
            return 1
        return self._transformer.most_rows

    def _wait(self) -> None:
        """Wait for what was launched without MLX."""
        if self._driver is not None:
            self._driver.wait()

    def _need_forms(self, modes: Collection[str]) -> None:
        """Pack the forms of 16-bit weights that steps of these modes read, unless they are there."""
        if "dense" in modes:
            self._forms.need_dense()
        if "inputs" in modes:
            self._forms.need_inputs(alone="dense" not in modes)
        if "verify" in modes:
            self._need_tiers()

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

    def _weight_bytes(self, mode: str, effort: Efforts) -> int:
        """Bytes of a step's weights in the layout of its view."""
        return kept(self._weights, (mode, effort), lambda: self._counted_bytes(mode, effort))

    def _counted_bytes(self, mode: str, effort: Efforts) -> int:
        efforts = effort.by_name(self.config)
        total = 0.0
        for linear in self._transformer.linears:
            for number, name in enumerate(linear.names):
                share, which = min(efforts[name], 1.0), number % len(linear.outputs)
                if mode in ("quant", "nested"):
                    read = linear.quant[which].bytes_read(share, nested=mode == "nested")
                else:
                    each = {"dense": 2.0, "inputs": 2.0 * share, "verify": 2.25}
                    each |= {"int4": 0.5 * share + 0.0625, "bucket": 2.5 * share}
                    read = each[mode] * linear.outputs[which] * linear.inputs
                total += read * linear.used_share
        return int(total)

    def _load(self) -> Transformer:
        """Pack every tensor of the store."""
        config, store = self.config, self._store
        share = self._share_of_model
        shared = None if share is None else SharedArrays(self._mx, share, self._driver)
        if shared is not None and shared.way:
            self.info = replace(self.info, build=f"{self.info.build} ({shared.way})")
        parts = LayerLoader(self._mx, store, self._loader, share)
        layers = list(parts.layers())
        embeddings = None if config.tie_embeddings and share is None else self._loader.embeddings()
        head, final_norm = parts.linear("head"), parts.final_norm()
        ranks = None
        if share is not None and shared is not None:
            ranks = rank_step(
                self._mx, config, dtype=store.dtype, share=share, shared=shared, driver=self._driver, layers=layers,
                head=head, final_norm=final_norm, embeddings=embeddings,
            )  # fmt: skip
            if ranks is None and share.ranks > 1 and share.rank == 0 and fits(config, self._driver):
                warn(
                    f"{share.ranks} GPUs run a step of this model as a kernel for each phase, which takes longer than "
                    f"the one kernel of a single GPU: divide it only if one GPU has no memory for it"
                )
        transformer = Transformer(
            self._mx, self._ops, config, layers=layers, final_norm=final_norm, head=head, embeddings=embeddings,
            tier_sizes=store.layout.tier_sizes, shared=shared, ranks=ranks,
            whole=self._whole_step(layers, head, embeddings) if share is None else None,
        )  # fmt: skip
        # All of it: what is not evaluated belongs to this thread, and passes may come from others.
        self._mx.eval([layer.vectors for layer in layers], transformer.final_norm)
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

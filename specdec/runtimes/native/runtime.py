"""The native CPU runtime: one C++ call per forward pass. Loading, checks and errors are here; the arithmetic is in
`kernels/cpu`, the draft views of this runtime other than `bucket` are in `drafts`.

Making a runtime needs the extension module; importing this module does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError, OptionError, RuntimeUnavailableError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import resolve_efforts
from specdec.progress import Count, reported
from specdec.runtimes.base import (
    EXACT,
    Cache,
    Choice,
    DraftHead,
    Logits,
    Pass,
    Rows,
    RuntimeInfo,
    ViewInfo,
    check_view,
)
from specdec.runtimes.checks import check_batch, check_capacity, checked_tokens
from specdec.runtimes.cores import usable_cores
from specdec.runtimes.features import check_missing
from specdec.runtimes.memory import available_bytes, check_room
from specdec.runtimes.native.cache import NativeCache, new_native_cache, with_memory
from specdec.runtimes.native.drafts import build_draft, draft_views
from specdec.runtimes.native.heads import Heads, NativeHead
from specdec.runtimes.native.load import load_weights
from specdec.runtimes.native.shape import shape_of
from specdec.runtimes.native.threads import settle_threads
from specdec.turns import Turns

if TYPE_CHECKING:
    from specdec.runtimes.share import Part
    from specdec.store import Store

CPU_VARIABLE = "SPECDEC_CPU"
# Tiers of 8-bit values lose less than whole inputs of int4 where little is taken (benchmarks/agreement.py).
_AGREEING = ((0.3, "bucket8"),)
_ALL, _CHOICES = 2, 3
_AHEAD = 15  # further draft steps in one call, which an interrupt waits for
_BELOW_ONE = "an effort below 1 on the exact weights"
_SHOWN = {"none": 0, "last": 1, "all": _ALL, "choices": _CHOICES}  # what rows show, as C++ takes it


def native_module() -> Any:
    """The extension module.

    Raises:
        RuntimeUnavailableError: it was not built, or does not load here.
    """
    try:
        return import_module("specdec.kernels.cpu._native")
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"the native runtime is not installed ({error}): install specdec-mlx where there is a C++ compiler and "
            "SPECDEC_NO_NATIVE is not set"
        ) from None


def check_available() -> None:
    """Refuse where the runtime cannot run.

    Raises:
        RuntimeUnavailableError: the extension module was not built, or does not load here.
        InvalidArgumentError: SPECDEC_CPU names an instruction set that this machine cannot run.
    """
    _isa(native_module(), None)


class NativeRuntime:
    """Runs one model from a bucket store on the processor.

    Weights are held once: in 16 bits, in 12 bits without loss if they are bfloat16 values, or in the bits of their
    quantised blocks. An effort below 1 that chooses whole inputs lays a matrix out anew, in 16 bits, when it first
    needs it. Tier masks (0.19 times 16-bit weights with four tiers) are packed when the `bucket` view needs them, or a
    verify effort below 1 in a store that chooses by tiers; they need 16 bits, too. The cache is float16, everything
    between is float32. Logits are equal bits for equal token histories, efforts and views,
    whatever shares the pass and however many threads run.

    Args:
        store: an open store; must stay open as long as the runtime is used.
        threads: threads to compute with, the caller's included; None takes the physical cores this process may use, or
            fewer where decoding is faster with fewer (`settle_threads`).
        isa: instruction set, one of `native_module().supported_isas()`; None takes the environment's SPECDEC_CPU, or
            else the best.

    Raises:
        RuntimeUnavailableError: the extension module is not installed.
        InvalidArgumentError: `threads` is out of range, this machine cannot run that instruction set, or the model has
            features that `missing` names.
        StoreError: the weights hold an infinite number or NaN, or tier masks contradict the layout.
    """

    def __init__(
        self, store: Store, *, threads: int | None = None, isa: str | None = None, share: Part | None = None
    ) -> None:
        module = native_module()
        check_missing("native", self.missing(store.config))
        self._share = share
        if share is not None:
            store = share.part_of(store)
        self.config: ModelConfig = store.config
        self._vocab, self._layers = store.config.vocab_size, store.config.num_layers
        self._store = store
        self._index = {name: number for number, name in enumerate(store.config.matrices())}
        self._drafts: dict[str, Any] = {}
        self._has_masks = False
        self._process = os.getpid()
        self._turn = Turns()  # weights are not packed while a pass reads them
        self._max_rows, self._cache_block = int(module.MAX_ROWS), int(module.CACHE_BLOCK)
        self._wide_below = float(module.WIDE_BELOW)
        self._model = _new_model(
            module, store, usable_cores() if threads is None else threads, _isa(module, isa), share
        )
        self._cache_block_bytes = int(self._model.new_cache(1).block_bytes)
        load_weights(self._model, store, self._index, coded_inputs=int(module.CODED_INPUTS))
        self._views = draft_views(self.config, quantised=store.quantised, share=share)
        build = f"{self.isa} {_module_stamp()}" + ("" if share is None else f" {share.ranks} devices")
        if threads is None and share is None:  # of several devices, each would measure the others
            settle_threads(store, build, self.threads, self._model.set_threads, self._step())
        drafts = "nested" if store.quantised else "int4" if "int4" in self._views else "bucket"
        self.info = RuntimeInfo(
            name="native",
            auto_draft=(drafts, 0.7),
            agreeing=_AGREEING if "bucket8" in self._views else (),
            build=build,
            threads=self.threads,
            prunes_head=share is None,
            narrows=True,
            chooses=share is None,
            drafts_ahead=_AHEAD if share is None else 0,
        )
        self._heads = Heads(module, self._model, self.config)

    def _step(self) -> Callable[[], Any]:
        """Runs a single row of the exact view."""
        cache = self.new_cache(1)
        rows = Rows(cache, [0], resolve_efforts(1.0, self.config), logits="last")

        def step() -> None:
            self.forward([rows])
            cache.trim(0)

        return step

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:  # noqa: ARG003 (every runtime's signature)
        """Features of the model that this runtime does not execute: it executes all of them."""
        return frozenset()

    @property
    def isa(self) -> str:
        """Name of the instruction set in use."""
        return str(self._model.isa)

    @property
    def threads(self) -> int:
        """Threads in use, the caller's included."""
        return int(self._model.threads)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes held: `exact` weights, tier `masks`, rows that draft `heads` share, each draft view that is loaded."""
        drafts = {view: int(draft.nbytes) for view, draft in self._drafts.items()}
        own = {"exact": int(self._model.nbytes), "masks": int(self._model.mask_bytes), "heads": self._heads.nbytes}
        return own | drafts

    def views(self) -> Mapping[str, ViewInfo]:
        """Draft views that `forward` accepts besides "exact"."""
        return self._views

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        """Make `view` ready: pack it from the store, or build it from the exact weights where the store lacks it.

        Raises:
            UnknownNameError: this runtime has no such view.
            MemoryShortError: there is no memory for it.
        """
        check_view(view, self._views)
        if view == EXACT or view in self._drafts:
            return
        if self._views[view].reads_exact:
            if not self._by_inputs(view):
                self._need_masks(progress)
            return
        with self._turn:
            if view not in self._drafts:
                check_room(f"draft view {view!r}", self._views[view].own_bytes, available_bytes())
                self._drafts[view] = build_draft(view, self._model, self._store, progress)
                self._store.release_pages()

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache of at most `capacity` tokens; its memory grows with what it holds.

        Raises:
            InvalidArgumentError: `capacity` is not a positive whole number.
        """
        check_capacity(capacity)
        return new_native_cache(self._model, capacity)

    def cache_bytes(self, capacity: int) -> int:
        """Most bytes that a cache of that capacity takes: whole blocks."""
        return -(-capacity // self._cache_block) * self._cache_block_bytes

    def draft_head(self, tokens: tuple[int, ...]) -> DraftHead:
        """A draft head of one sequence; see `Runtime.draft_head`."""
        if self._share is not None:
            raise InvalidArgumentError("a model that is divided among devices has no draft heads")
        with self._turn:
            return self._heads.new(tokens)

    def forward(self, batch: Sequence[Rows], *, view: str = EXACT, states: bool = False) -> list[Pass]:
        """Append every sequence's rows to its cache; see `Runtime.forward`.

        A single long sequence runs in pieces (the bits do not depend on it), so that an interrupt is noticed between
        them.
        """
        if os.getpid() != self._process:  # its threads stayed in the other one, perhaps with the turn
            raise RuntimeUnavailableError("the model was loaded before this process was forked: load it again here")
        check_batch(batch, self.config, NativeCache, chooses=self._share is None, narrows=True)
        check_view(view, self._views)
        draft, inputs = None, self._by_inputs(view)
        if view != EXACT and not self._views[view].reads_exact:
            self.prepare(view)
            draft = self._drafts[view]
        elif not all([rows.efforts.is_full for rows in batch]):  # noqa: C419  # quicker than a generator
            if inputs:
                self._need_lines(batch)
            else:
                self._need_masks()
        with self._turn:
            return self._run(batch, draft, states, inputs)

    def _by_inputs(self, view: str) -> bool:
        """Whether a view that reads the exact weights chooses whole inputs, not tiers."""
        return view != "bucket" and self._store.selection == "inputs"

    def _run(self, batch: Sequence[Rows], draft: Any, states: bool, inputs: bool) -> list[Pass]:
        """The pass, or passes, once its weights are ready."""
        if len(batch) > 1:
            ids = [checked_tokens(rows.tokens, rows.cache, self._vocab) for rows in batch]
            return self._pass(batch, ids, draft, states, inputs)
        (rows,) = batch
        tokens = checked_tokens(rows.tokens, rows.cache, self._vocab)
        if len(tokens) > self._max_rows:
            return [self._long_pass(rows, tokens, draft, states, inputs)]
        return [self._single_pass(rows, tokens, draft, states, inputs)]

    def _single_pass(self, rows: Rows, ids: NDArray[np.int64], draft: Any, states: bool, inputs: bool) -> Pass:
        """A pass of one sequence: what `_pass` does, with less work around the call, which every token waits for."""
        count, shown, layers = len(ids), _SHOWN[rows.logits], rows.layers or self._layers
        parents = [] if rows.parents is None else [[int(parent) for parent in rows.parents]]
        logits = np.empty((_logit_rows(shown, count), self._vocab), np.float32)
        hidden = [self._states(layers, count)] if states else []
        read, chosen, likely = with_memory(
            self._model.forward,
            [rows.cache.handle],  # type: ignore[attr-defined]
            ids.astype(np.int32),
            [count],
            [rows.efforts.values],
            parents,
            [layers],
            [shown],
            draft,
            logits,
            hidden,
            [] if rows.head is None else [NativeHead.handle_of(rows.head)],
            inputs,
            [] if rows.window is None else [_window(rows)],
            [rows.likely] if rows.likely else [],
            rows.ahead,
            list(rows.ends) if rows.ahead else [],
            rows.least_margin,
        )
        choices = [Choice(*one) for one in chosen[0]] if shown == _CHOICES else None
        return Pass(logits, read[0], hidden[0] if states else None, choices, likely=likely[0])

    def _pass(
        self, batch: Sequence[Rows], ids: list[NDArray[np.int64]], draft: Any, states: bool, inputs: bool
    ) -> list[Pass]:
        """One pass over all rows, in one call."""
        counts, shown = [len(tokens) for tokens in ids], [_SHOWN[rows.logits] for rows in batch]
        layers = [rows.layers or self._layers for rows in batch]
        parents: list[list[int]] = []
        if any(rows.parents is not None for rows in batch):
            parents = [[int(parent) for parent in rows.parents or ()] for rows in batch]
        ends = [0]
        for kind, count in zip(shown, counts, strict=True):
            ends.append(ends[-1] + _logit_rows(kind, count))
        logits = np.empty((ends[-1], self._vocab), np.float32)
        hidden = [self._states(depth, count) for depth, count in zip(layers, counts, strict=True)] if states else []
        read, chosen, likely = with_memory(
            self._model.forward,
            [rows.cache.handle for rows in batch],  # type: ignore[attr-defined]
            np.concatenate(ids).astype(np.int32),
            counts,
            [rows.efforts.values for rows in batch],
            parents,
            layers,
            shown,
            draft,
            logits,
            hidden,
            [NativeHead.handle_of(rows.head) for rows in batch],
            inputs,
            [_window(rows) for rows in batch] if any(rows.window is not None for rows in batch) else [],
            [rows.likely for rows in batch],
        )
        return [
            Pass(
                logits[ends[j] : ends[j + 1]],
                bytes_read,
                hidden[j] if states else None,
                [Choice(*one) for one in chosen[j]] if kind == _CHOICES else None,
                likely=likely[j],
            )
            for j, (bytes_read, kind) in enumerate(zip(read, shown, strict=True))
        ]

    def _states(self, layers: int, rows: int) -> NDArray[np.float32]:
        return np.empty((layers, rows, self.config.hidden_size), np.float32)

    def _long_pass(self, rows: Rows, ids: NDArray[np.int64], draft: Any, states: bool, inputs: bool) -> Pass:
        """One sequence's rows in pieces."""
        held, passes = rows.cache.length, []
        try:
            for first in range(0, len(ids), self._max_rows):
                piece = ids[first : first + self._max_rows]
                last = first + len(piece) == len(ids)
                logits: Logits = "none" if rows.logits == "last" and not last else rows.logits
                passes.append(self._single_pass(replace(rows, logits=logits), piece, draft, states, inputs))
        except BaseException:
            rows.cache.trim(held)
            raise
        hidden = np.concatenate([one.states for one in passes], axis=1) if states else None
        logits_of_all = np.concatenate([one.logits for one in passes])
        choices = None if passes[0].choices is None else [choice for one in passes for choice in one.choices or ()]
        likely = [tokens for one in passes for tokens in one.likely]
        return Pass(logits_of_all, sum(one.bytes_read for one in passes), hidden, choices, likely=likely)

    def _need_lines(self, batch: Sequence[Rows]) -> None:
        """See that there is room for plain lines, which choosing inputs needs, where weights are in 12 bits.

        Raises:
            MemoryShortError: there is not.
        """
        if self._model.coded_bytes and min(rows.efforts.values.min() for rows in batch) < self._wide_below:
            check_room(_BELOW_ONE, self._model.coded_bytes // 3, available_bytes())

    def _need_masks(self, progress: Count | None = None) -> None:
        """Pack the tier masks, unless they are there.

        Raises:
            MemoryShortError: there is no memory for them.
        """
        if self._has_masks:
            return
        with self._turn:
            self._load_masks(progress)

    def _load_masks(self, progress: Count | None) -> None:
        if self._has_masks:
            return
        tiers = len(self._store.layout.tier_sizes)
        names = [name for name in self._index if name not in self._store.types and self._store.shape(name)[0]]
        tiered = {name: self._store.shape(name) for name in names}
        weights = sum(outputs * inputs for outputs, inputs in tiered.values())
        # Weights in 12 bits go back to plain lines.
        check_room(_BELOW_ONE, weights * (tiers - 1) // 8 + self._model.coded_bytes // 3, available_bytes())
        for name in reported(tiered, progress):
            matrix = self._store.bucketed(name)
            self._model.load_masks(self._index[name], list(matrix.values), list(matrix.masks), matrix.scores)
        self._has_masks = True
        self._store.release_pages()


def _logit_rows(shown: int, count: int) -> int:
    """Rows of logits that `count` rows return."""
    return count if shown == _ALL else 0 if shown == _CHOICES else shown


def _window(rows: Rows) -> tuple[int, int]:
    """Recent positions and sinks that rows attend to, as C++ takes them: 0 for all of the context."""
    return (0, 0) if rows.window is None else (rows.window.recent, rows.window.sinks)


def _module_stamp() -> str:
    file = Path(native_module().__file__).stat()
    return f"{file.st_size} {file.st_mtime_ns}"


def _isa(module: Any, isa: str | None) -> str:
    """The instruction set to use, by name."""
    known = list(module.supported_isas())
    wanted = isa if isa is not None else os.environ.get(CPU_VARIABLE, "")
    if wanted and wanted not in known:
        raise InvalidArgumentError(
            f"{CPU_VARIABLE if isa is None else 'isa'} is {wanted!r}, which this machine cannot run: "
            f"choose from {', '.join(known)}"
        )
    return wanted or known[0]


def _new_model(module: Any, store: Store, threads: int, isa: str, share: Part | None) -> Any:
    if not 1 <= threads <= 1024:
        raise OptionError("threads", f"must be 1 to 1024, not {threads}")
    model = module.Model(shape_of(module, store, share), isa, threads)
    if share is not None:
        model.set_gather(share.put_together)
    return model

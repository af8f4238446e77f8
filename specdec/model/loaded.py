"""A loaded model: `load` finds and opens it, `Model` holds its parts. Generating text lives in `engine`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specdec import paths
from specdec.engine.memory import Memory
from specdec.engine.option_checks import effort_schedule
from specdec.engine.prompt import token_ids
from specdec.engine.prompt_cache import PromptCache
from specdec.errors import InvalidArgumentError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import EXACT, MAX_PASS_ROWS, forward_one
from specdec.store.profile import PROFILE_FILE, find_profile, profile_stamp
from specdec.turns import Turns
from specdec.workers import Workers

if TYPE_CHECKING:
    from specdec.drafters.base import LoadedModel
    from specdec.licence import Consent
    from specdec.model.architecture import ModelConfig
    from specdec.runtimes.base import Runtime
    from specdec.store import Store
    from specdec.tokenizers import Tokenizer


class Model:
    """A model that is ready to run. Answers of one model do not disturb each other, in one thread or in several.

    Attributes:
        runtime: multiplies the matrices.
        tokenizer: None when the model came without one; prompts are token ids then.
        store: where the weights lie; stays open as long as the model.
        memory: costs of passes, what drafters have read, and what policies have learnt. It changes how fast tokens
            come, never which.
        prompt_cache: keeps texts that were read, for answers whose prompts begin like them; None (the default) keeps
            nothing.
        lock: held while passes run for an answer, and while one is prepared; what answers of the model share (the
            memory) belongs to its holder.
        load_other: loads another model for a drafter; None where there is no way to.
        name: what the model was loaded as: a catalogue name, or its file's or folder's name without an ending.
    """

    def __init__(
        self, runtime: Runtime, tokenizer: Tokenizer | None = None, *, store: Store | None = None, name: str = ""
    ) -> None:
        self.runtime, self.tokenizer, self.store, self.name = runtime, tokenizer, store, name
        self.memory = Memory()
        self.prompt_cache: PromptCache | None = None
        self.lock = Turns()
        self.load_other: Callable[[str], LoadedModel] | None = None
        self._profile = None if store is None else store.path / PROFILE_FILE
        # What auto_draft found, and the stamp of the profile it was found in: reading one takes milliseconds.
        self._auto_draft: tuple[tuple[int, ...] | None, tuple[str, EffortSchedule]] | None = None

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""
        return self.runtime.config

    @property
    def parameters(self) -> int:
        """Weights in matrices, tables and vectors; tied embeddings count once."""
        config = self.config
        shapes = (config.matrices() | config.tables()).values()
        return sum(rows * columns for rows, columns in shapes) + sum(config.vectors().values())

    def __repr__(self) -> str:
        """On one line: name, family, size, types of the weights, context, runtime."""
        info, store = self.runtime.info, self.store
        parts = [self.config.family, f"{readable_count(self.parameters)} parameters"]
        if store is not None:
            parts.append("/".join(sorted(set(store.types.values())) or [store.dtype]))
            if store.loaded_share < 1:
                parts.append(f"{store.loaded_share:.3f} of the weights loaded")
        parts.append(f"context of {self.config.max_context} tokens")
        where = info.device or (f"{info.threads} threads" if info.threads is not None else "")
        parts.append(f"runtime {info.name}" + f" ({where})" * bool(where))
        parts += ["no tokenizer"] * (self.tokenizer is None)
        return f"<specdec.Model {self.name or 'without a name'}: {', '.join(parts)}>"

    @property
    def auto_draft(self) -> tuple[str, EffortSchedule]:
        """Draft view and efforts that "auto" stands for: those of the model's draft profile for this runtime
        (`specdec tune`), or else what has measured fastest on the runtime.

        Raises:
            StoreError: the profile is damaged or of a newer version.

        Warns:
            UserWarning: the profile is of other weights than the store holds now.
        """
        stamp = None if self._profile is None else profile_stamp(self._profile)
        if self._auto_draft is None or self._auto_draft[0] != stamp:
            profile = None if self.store is None else find_profile(self.store, self.runtime.info.name)
            if profile is None:
                view, effort = self.runtime.info.auto_draft
                draft = view, EffortSchedule(effort)
            else:
                draft = profile.view, profile.choice.schedule
            self._auto_draft = stamp, draft
        return self._auto_draft[1]

    def logits(self, ids: Sequence[int], *, effort: float | EffortSchedule = 1.0, view: str = EXACT) -> np.ndarray:
        """Next-token logits after every token of a text.

        Args:
            ids: T token ids, at least one and at most the model's context.
            effort: share of each matrix's multiplications to perform, in (0, 1], or a schedule by matrix.
            view: "exact", or a draft view.

        Returns:
            float32 (T, V); row t has seen ids[0] to ids[t].

        Raises:
            InvalidArgumentError: no ids, too many, one outside the vocabulary, or an effort out of range.
            UnknownNameError: the runtime has no such view.
        """
        tokens = token_ids(ids, self.config)
        if not 0 < len(tokens) <= self.config.max_context:
            raise InvalidArgumentError(f"ids must hold 1 to {self.config.max_context} tokens, not {len(tokens)}")
        schedule = effort_schedule("effort", effort)
        cache = self.runtime.new_cache(len(tokens))
        logits = np.empty((len(tokens), self.config.vocab_size), np.float32)
        for start in range(0, len(tokens), MAX_PASS_ROWS):
            chunk = tokens[start : start + MAX_PASS_ROWS]
            logits[start : start + len(chunk)] = forward_one(
                self.runtime, chunk, cache, effort=schedule, view=view
            ).logits
        return logits


def load(
    model: str | Path,
    *,
    runtime: str = "auto",
    threads: int | None = None,
    load_share: float = 1.0,
    context: int | None = None,
    remeasure: bool = False,
    accept_licence: bool | Consent = False,
) -> Model:
    """Load a model, fetching and converting it first when need be (into the cache folder `SPECDEC_HOME`).

    Args:
        model: a catalogue name ("smollm2-135m"), a model of the Hugging Face hub as "ORG/NAME" or "ORG/NAME:FILE.gguf"
            (with `@REVISION` after NAME for another than the main one), a bucket store, a Hugging Face folder, or a
            .gguf file. A path that exists wins over a hub. A model of a hub is fetched once, and its store stays at
            that revision until `specdec pull --force` fetches it again.
        runtime: "auto" takes the fastest that runs here.
        threads: threads to compute with; None leaves it to the runtime.
        load_share: share of the bits of all weights to load, at least. Below 1 the least important tiers of 16-bit
            matrices are never read and count as zeros, and quantised ones lose all but the upper four bits of their
            codes, which changes the model: results say so in `identical_to`. If nothing is left out, a warning says so.
        context: tokens of prompt and answer together that the model is loaded for; None takes the model's own context.
            It becomes the model's `max_context`. Models with dynamic or LongRoPE scaling get the rotary factors of this
            length, and keep them for shorter texts.
        remeasure: measure again what passes cost on this machine, and discard what earlier processes saved.
        accept_licence: True accepts the licence of a model of the catalogue that asks for it, such as Gemma's; a
            function `(model, terms) -> bool` is asked when it is needed. What was accepted is remembered.

    Raises:
        LicenceError: the model's licence has to be accepted first.
        DownloadError: the model could not be fetched.
        UnknownNameError: no such model in the catalogue and no such path, or no such runtime.
        ModelFormatError: the model is damaged or of a kind that this version does not read.
        InvalidArgumentError: `model` is not a name or a path, `accept_licence` is not of its kinds, `threads` or
            `context` is out of range, or `load_share` is, or is below 1 for a store whose codes have four bits.
        RuntimeUnavailableError: the runtime cannot run here.
    """
    from specdec.catalogue import resolve_model
    from specdec.distributed.follower import follow_if_told
    from specdec.distributed.opening import open_runtime
    from specdec.licence import accepted, refused
    from specdec.runtimes.choose import check_request
    from specdec.runtimes.memory import release_free_memory
    from specdec.store import Store
    from specdec.tokenizers import has_tokenizer, load_tokenizer

    follow_if_told()
    if not isinstance(model, str | os.PathLike) or isinstance(os.fspath(model), bytes):
        raise InvalidArgumentError(f"model must be a name or a path, not {model!r}")
    if not isinstance(accept_licence, bool) and not callable(accept_licence):
        raise InvalidArgumentError(f"accept_licence must be True, False or a function, not {accept_licence!r}")
    check_request(runtime, threads=threads, context=context)
    threads, context = (None if number is None else int(number) for number in (threads, context))  # NumPy's, perhaps
    consent = accept_licence if callable(accept_licence) else (accepted if accept_licence else refused)
    store = Store.open(resolve_model(model, consent=consent), load_share=load_share, context=context)
    with Workers(1) as beside:  # weights are packed meanwhile
        found = has_tokenizer(store.tokenizer_path)
        reading = beside.submit(partial(load_tokenizer, store.tokenizer_path)) if found else None
        multiplies = open_runtime(
            store, name=str(model), runtime=runtime, threads=threads, load_share=load_share, context=context
        )
        tokenizer = None if reading is None else reading.result()
    release_free_memory()  # reading a large vocabulary takes twice what it leaves
    loaded = Model(multiplies, tokenizer, store=store, name=_name(model))
    loaded.memory.costs.is_measured_anew = remeasure
    loaded.load_other = lambda name: _other(name, runtime, threads, context, consent)
    return loaded


def _name(model: str | Path) -> str:
    """What to call a model that was loaded by a catalogue name, a name on a hub or a path."""
    from specdec.hub_name import parse_hub_name

    if isinstance(model, str) and not Path(model).exists() and (on_hub := parse_hub_name(model)) is not None:
        return on_hub.short
    name = paths.named(model).absolute().name
    return name.removesuffix(".gguf").removesuffix(".store")


def readable_count(count: int) -> str:
    """A number of weights, three figures or so: "135 M", "1.54 B"."""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _other(name: str, runtime: str, threads: int | None, context: int | None, consent: Consent) -> LoadedModel:
    """The model called `name` on the runtime of the one that asks, for its context as far as it can be."""
    from specdec.catalogue import resolve_model
    from specdec.drafters.base import LoadedModel
    from specdec.store.description import StoreDescription

    path = resolve_model(name, consent=consent)
    if context is not None:
        config = StoreDescription.read(path).config
        context = min(context, config.longest_context or config.max_context)
    other = load(path, runtime=runtime, threads=threads, context=context)
    return LoadedModel(other.runtime, other.tokenizer)

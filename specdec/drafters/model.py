"""Drafting with another, smaller model of the same vocabulary, as in Leviathan et al. 2211.17192."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from specdec.checks import check_effort
from specdec.drafters.base import Ask, Draft, DraftContext, DrafterSetup, Drafting, LoadedModel, Reply
from specdec.drafters.effort import draft_views
from specdec.drafters.head import Head
from specdec.drafters.steps import ModelSteps, Wish
from specdec.drafters.window import DraftWindow
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import EXACT, Cache, Rows

_OPTIONS = ("view", "effort", "head", "window")
_CHUNK = 512  # tokens a pass when catching up: bounds its memory, and how long an interrupt waits
_FEW = 4  # tokens to catch up with that are read like draft steps; more are read in one exact pass, which batches


class ModelDrafter:
    """Runs another model on a cache of its own, one token at a time.

    Before it drafts, its cache is cut to what the text still has in common with it and caught up with the rest, so
    tokens that other drafters proposed, or that were rejected, need no care elsewhere.

    Args:
        argument: `NAME[,view=V][,effort=E][,head=N][,window=N]`: a catalogue name or a path of a model; draft view
            (default: the one that is fastest on the runtime); effort of every draft step (default 1, whatever the
            policy says); tokens to score and positions to attend to, as for `effort`.

    Raises:
        InvalidArgumentError: no name, an unknown option, or a model whose token ids mean something else.
        UnknownNameError: no such model, or no such draft view.
    """

    name = "model"
    takes_effort = False

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        name, options = _split(argument)
        model = _loaded(name, setup)
        _check_vocabulary(name, model, setup)
        self.runtime = model.runtime
        self.views = draft_views(self.runtime, options.get("view", "auto"), setup.progress, waits=setup.waits)
        self._effort = _effort(options.get("effort", "1"))
        self._efforts = resolve_efforts(self._effort, self.runtime.config)
        self._full = resolve_efforts(1.0, self.runtime.config)
        # Logits layers are padded to round sizes: ids that only one of the two models has mean nothing.
        self._vocab_size = min(self.runtime.config.vocab_size, setup.runtime.config.vocab_size)
        self._knows_all = self.runtime.config.vocab_size == setup.runtime.config.vocab_size
        self._head = Head(self.name, options.get("head", "auto"), setup, self.runtime, model.tokenizer)
        self._window = DraftWindow(self.name, options.get("window", "auto"), self.runtime)
        self._cache: Cache | None = None
        self._read: list[int] = []  # tokens that the cache holds

    def cache_bytes(self, capacity: int) -> int:
        """Bytes of the other model's keys and values, of a sequence of at most `capacity` tokens."""
        return self.runtime.cache_bytes(min(capacity, self.runtime.config.max_context))

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Drafting:
        """Propose tokens until the plan is full, the policy stops, an end token comes up, or the model's own context is
        full."""
        plan = self._within_context(plan, context)
        if plan.num_draft_tokens == 0:
            return Draft()
        self._head.follow(context.history, self._vocab_size)
        draft = Draft(bytes_read=(yield from self._catch_up(context)))
        return (yield from self._steps(plan).go_on(draft, self._effort, plan, context, policy))

    @property
    def windowed_from(self) -> int | None:
        """Tokens of context from which a plan may choose whether steps attend to a window or to all of it."""
        return self._window.chosen_from

    @property
    def likely(self) -> int:
        """Likely tokens of a row that the head learns from, where the two models know equally many tokens."""
        return self._head.likely if self._knows_all else 0

    def ranked(self, likely: Sequence[Sequence[int]], kept: Sequence[int]) -> None:
        """Note what the verifier thought likely."""
        self._head.ranked(likely, kept)

    def _within_context(self, plan: DraftPlan, context: DraftContext) -> DraftPlan:
        """The plan, its length cut to what fits into this model's own context."""
        room = max(0, self.runtime.config.max_context - len(context.history))
        return replace(plan, num_draft_tokens=min(plan.num_draft_tokens, room))

    def _catch_up(self, context: DraftContext) -> Generator[Ask, Reply, int]:
        """Bring the cache to the history without its last token; returns the bytes read."""
        if self._cache is None:
            capacity = min(context.cache.capacity, self.runtime.config.max_context)
            self._cache = self.runtime.new_cache(capacity)
        cache, history = self._cache, context.history
        del self._read[cache.length :]  # an interrupted pass may have left the cache shorter
        common = _common_length(self._read, history)
        cache.trim(common)
        del self._read[common:]
        bytes_read = 0
        while missing := history[cache.length : len(history) - 1]:
            if len(missing) > _FEW:
                reply = yield Ask(self.runtime, Rows(cache, missing[:_CHUNK], self._full, logits="none"), EXACT)
            else:
                reply = yield Ask(self.runtime, Rows(cache, missing, self._efforts, logits="none"), self.views[0])
            bytes_read += reply.result.bytes_read
            self._read = list(history[: cache.length])
        return bytes_read

    def _steps(self, plan: DraftPlan) -> ModelSteps:
        cache = self._cache
        assert cache is not None  # _catch_up comes first

        def ask(wish: Wish) -> Ask:
            # What the pass appends is compared with the history before the next draft, whether or not it ran.
            self._read[cache.length :] = wish.tokens
            rows = wish.rows(cache, self._efforts, window=self._window.after(cache.length, windowed=plan.windowed))
            return Ask(self.runtime, rows, self.views[0])

        return ModelSteps(
            name=self.name,
            view=self.views[0],
            runtime=self.runtime,
            cache=cache,
            ask=ask,
            note=self._read.extend,
            fixed_effort=self._effort,
            vocab_size=self._vocab_size,
            head=self._head.rows,
        )


def _loaded(name: str, setup: DrafterSetup) -> LoadedModel:
    """The other model, loaded once for all generations of the model that it drafts for."""
    model = setup.memory.models.get(name)
    if model is None:
        if setup.load_model is None:
            raise InvalidArgumentError(
                "drafter 'model' needs a model that specdec.load has loaded, to load another one"
            )
        model = setup.memory.models[name] = setup.load_model(name)
    return model


def _common_length(read: Sequence[int], history: Sequence[int]) -> int:
    """Leading tokens that the two share, the pending one apart. A text changes at its end, so it is compared whole at
    once where nothing was rejected."""
    most = min(len(read), len(history) - 1)
    if list(read[:most]) == list(history[:most]):
        return most
    return next(index for index in range(most) if read[index] != history[index])


def _split(argument: str) -> tuple[str, dict[str, str]]:
    """Model name and options; a path may hold commas and colons of its own."""
    parts, options = argument.split(","), {}
    while len(parts) > 1 and parts[-1].partition("=")[0] in _OPTIONS and "=" in parts[-1]:
        key, _, value = parts.pop().partition("=")
        if key in options:
            raise InvalidArgumentError(f"drafter 'model' was given {key}= twice: keep one")
        options[key] = value
    name = ",".join(parts)
    if not name:
        raise InvalidArgumentError("drafter 'model' needs a model, as in model:qwen2.5-coder-0.5b")
    return name, options


def _effort(text: str) -> float:
    try:
        return check_effort(float(text), "the effort of drafter 'model'")
    except ValueError as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise InvalidArgumentError(f"the effort of drafter 'model' must be a number, not {text!r}") from None


def _check_vocabulary(name: str, model: LoadedModel, setup: DrafterSetup) -> None:
    """Refuse a model whose ids mean other tokens.

    Raises:
        InvalidArgumentError: the vocabularies differ, or one of the two models has no tokenizer to tell by.
    """
    own = None if model.tokenizer is None else model.tokenizer.fingerprint
    if own is None or setup.vocabulary is None:
        raise InvalidArgumentError(
            f"drafter 'model' cannot tell whether {name} shares the vocabulary: one of the two models has no tokenizer"
        )
    if own != setup.vocabulary:
        raise InvalidArgumentError(
            f"drafter 'model' cannot use {name}: its vocabulary differs, and a draft model must have the same tokens"
        )

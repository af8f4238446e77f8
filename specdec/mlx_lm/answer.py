"""One answer, begun with mlx-lm's arguments and read token by token. What callers see of it is in `generate`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec.checks import check_count, is_integral
from specdec.drafters.base import DrafterSetup, LoadedModel
from specdec.drafters.model import ModelDrafter
from specdec.engine import decode
from specdec.engine.answer import Answer
from specdec.engine.begin import ask
from specdec.engine.prompt import EncodedPrompt, token_ids
from specdec.errors import InvalidArgumentError
from specdec.mlx_lm.chooser import CalledInOrder, RandomStream
from specdec.mlx_lm.models.cache import Continued, KVCache

if TYPE_CHECKING:
    from specdec.engine.options import OptionArguments
    from specdec.model.loaded import Model

DEFAULT_DRAFT_TOKENS = 2  # of mlx-lm, with a draft model


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What mlx-lm's functions ask of an answer.

    Attributes:
        prompt: token ids of this call; those of the prompt cache come before them.
        max_tokens: most tokens; -1 for as many as the context holds.
        sampler: `(logprobs (1, V)) -> token`; None takes the likeliest.
        processors: each `(tokens, logits (1, V)) -> logits`.
        cache: that the answer continues from and adds to.
        max_kv_size: most tokens of prompt and answer; None for no bound.
        end_tokens: tokens that end the answer.
        draft_model: drafts in place of the model itself.
        num_draft_tokens: of a round; None leaves the number to the policy, 0 decodes plainly.
        stream: MLX stream for the caller's functions.
        random: where draws come from; None for MLX's global state.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampler: Any = None
    processors: Sequence[Any] = ()
    cache: list[KVCache] | None = None
    max_kv_size: int | None = None
    end_tokens: Collection[int] = ()
    draft_model: Model | None = None
    num_draft_tokens: int | None = None
    stream: Any = None
    random: RandomStream | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer.

    Attributes:
        token: id.
        logits: float32 (V,), what it was drawn from.
        from_draft: it was drafted.
        is_last: nothing follows.
    """

    token: int
    logits: np.ndarray
    from_draft: bool
    is_last: bool = False


class Begun:
    """An answer before its first pass.

    Args:
        model: from `load`.
        request: what is asked.

    Attributes:
        answer: the engine's.
        start: tokens of the prompt cache, which come before the prompt.

    Raises:
        InvalidArgumentError: an argument is out of range, or refused.
        ContextLengthError: the prompt leaves no room in the model's context.
    """

    def __init__(self, model: Model, request: Request) -> None:
        self._model, self._request = model, request
        layers, cache = model.config.num_layers, request.cache
        if request.draft_model is not None and isinstance(cache, list):
            cache = cache[:layers]  # mlx-lm puts the layers of a draft model after them; drafts keep their own here
        self._kept = Continued(cache, model)
        prompt = token_ids(request.prompt, model.config)
        if not prompt:
            raise InvalidArgumentError("the prompt is empty: give at least one token")
        self.start = len(self._kept.tokens)
        ids = self._kept.tokens + prompt
        most = _most_tokens(request.max_tokens, model)
        self._kept.check_size(request.max_kv_size, min(len(ids) + most, model.config.max_context))
        self._chooser: CalledInOrder | None = None
        self.answer: Answer = ask(
            model,
            EncodedPrompt(ids, True),
            _drafting(model, request) | {"max_tokens": most},
            caller="generate",
            prompt_cache=self._kept,
            chooser=self._choose_with,
            end_tokens=request.end_tokens,
        )
        self._position = len(ids)

    def begin(self) -> None:
        """Get ready for the first pass; the caller holds the model's lock."""
        sequence = self.answer.sequence
        assert sequence is not None
        cache = self._kept.take(self._model.runtime, sequence.tokens, efforts=sequence.efforts, capacity=sequence.limit)
        self.answer.start(cache)

    def tokens_of(self, piece: Any) -> Iterator[Token]:
        """The tokens that a round has brought; each counts as seen once it was taken."""
        assert self._chooser is not None
        left, has_ended = len(piece.tokens), self.answer.stopped_by is not None
        for token, origin in zip(piece.tokens, piece.origins, strict=True):
            row = self._chooser.take_row(self._position)
            self._position += 1
            self._kept.emitted = self._position
            left -= 1
            yield Token(token, row, origin.drafter is not None, has_ended and not left)

    def close(self) -> None:
        """End the answer; the prompt cache gets what was seen of it."""
        self.answer.close()
        if self._chooser is not None:
            self._chooser.forget()

    def _choose_with(self, tokens: Sequence[int]) -> CalledInOrder:
        asked = self._request
        self._chooser = CalledInOrder(
            tokens,
            asked.sampler,
            asked.processors,
            start=self.start,
            end_tokens=asked.end_tokens,
            stream=asked.stream,
            random=asked.random,
        )
        return self._chooser


def tokens_of(
    model: Model, request: Request, *, step_size: int, progress: Callable[[int, int], object] | None = None
) -> Iterator[Token]:
    """The tokens of an answer, as they come. Closing the iterator ends the answer there.

    Args:
        model: from `load`.
        request: what is asked.
        step_size: most tokens of the prompt in a pass; more than the engine reads at once make no difference.
        progress: called as `progress(tokens read, tokens of the prompt)`.
    """
    begun = Begun(model, request)
    total, answer = len(request.prompt), begun.answer
    tell = progress or (lambda _done, _total: None)
    try:
        with model.lock:
            begun.begin()
        sequence = answer.sequence
        assert sequence is not None
        tell(0, total)

        def passed(bytes_read: int, seconds: float) -> None:
            answer.read_prompt(bytes_read, seconds)
            tell(max(0, sequence.cache.length - begun.start), total)

        with model.lock:
            decode.read_prompt(sequence, passed=passed, most=step_size)
        is_first = True
        while answer.stopped_by is None:
            with model.lock:
                piece = answer.take(decode.step(sequence))
            if is_first:
                tell(total, total)
                is_first = False
            yield from begun.tokens_of(piece)
    finally:
        begun.close()


def _most_tokens(asked: int, model: Model) -> int:
    """Tokens of an answer, as the engine wants them.

    Raises:
        InvalidArgumentError: it is not a whole number of at least 1, and not -1.
    """
    if asked == -1:
        return model.config.max_context
    return check_count("max_tokens", asked)


def _drafting(model: Model, request: Request) -> OptionArguments:
    """Options of drafting.

    Raises:
        InvalidArgumentError: `num_draft_tokens` is out of range, or the draft model has another vocabulary.
    """
    count = request.num_draft_tokens
    if count is not None and (not is_integral(count) or count < 0):
        raise InvalidArgumentError(f"num_draft_tokens must be a whole number of at least 0, not {count!r}")
    if count == 0:
        return {"speculate": False}
    options: OptionArguments = {}
    if request.draft_model is not None:
        options["drafter"] = _drafter(model, request.draft_model)
        count = DEFAULT_DRAFT_TOKENS if count is None else count
    if count is not None:
        options["policy"], options["draft_len"] = "fixed", count
    return options


def _drafter(model: Model, draft_model: object) -> ModelDrafter:
    from specdec.model.loaded import Model as Loaded

    if not isinstance(draft_model, Loaded):
        raise InvalidArgumentError(
            f"draft_model must be a model that specdec.mlx_lm.load returned, not {type(draft_model).__name__}"
        )
    other = LoadedModel(draft_model.runtime, draft_model.tokenizer)
    tokenizer = model.tokenizer
    setup = DrafterSetup(
        model.runtime,
        model.auto_draft[0],
        vocabulary=None if tokenizer is None else tokenizer.fingerprint,
        tokenizer=tokenizer,
        load_model=lambda _name: other,
    )
    return ModelDrafter("draft_model", setup)

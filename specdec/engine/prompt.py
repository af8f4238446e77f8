"""From what a caller calls a prompt (text, token ids, or chat messages) to token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from specdec.checks import is_integral
from specdec.errors import ContextLengthError, InvalidArgumentError

if TYPE_CHECKING:
    from specdec.model.architecture import ModelConfig
    from specdec.tokenizers import Tokenizer


class EncodedPrompt(NamedTuple):
    """A prompt in tokens.

    Attributes:
        ids: token ids, at least one.
        continues: the answer's text goes on where the prompt's ends, rather than being a message of its own.
    """

    ids: list[int]
    continues: bool


_NOT_ITEMS = (bytes, bytearray, memoryview, Mapping, Set)

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, Any]] | EncodedPrompt


def encode_prompt(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    config: ModelConfig,
    *,
    chat: bool = True,
    literal: bool = True,
    variables: Mapping[str, Any] | None = None,
    max_tokens: int | None = None,
    is_bounded: bool = True,
) -> EncodedPrompt:
    """A prompt in tokens. A text that is far too long is refused before it is encoded.

    Args:
        prompt: text, token ids (a sequence or an array of whole numbers), or messages with "role" and "content". When
            the last message is the assistant's, the answer continues with its text. A prompt that is encoded already
            is checked, and the rest of the arguments does nothing.
        tokenizer: the model's, or None when it has none; then only ids will do.
        config: the model.
        chat: put text into the chat template as a user's message, when the model has a template.
        literal: names of control tokens in messages, and in text that becomes one, are text; False makes them tokens.
        variables: for the chat template.
        max_tokens: that the answer is to have at most, for the error.
        is_bounded: the prompt must leave room in the model's context; False to count its tokens.

    Raises:
        ContextLengthError: the prompt leaves no room in the model's context.
        InvalidArgumentError: the prompt is empty, of no such kind, holds an id outside the vocabulary, or needs a
            tokenizer or a chat template that the model does not have.
    """

    def fit(tokens: int, *, is_least: bool = True) -> None:
        if is_bounded and tokens >= config.max_context:
            can_grow = config.longest_context is not None
            raise ContextLengthError(tokens, max_tokens, config.max_context, can_grow=can_grow, is_least=is_least)

    continues = True
    if isinstance(prompt, EncodedPrompt):
        prompt, continues = prompt
    if isinstance(prompt, str):
        if chat and prompt and tokenizer is not None and tokenizer.has_chat_template:
            prompt = [{"role": "user", "content": prompt}]
        else:
            ids = _text_ids(prompt, tokenizer, fit)
    if not isinstance(prompt, str):
        items = _items(prompt)
        if _are_messages(items):
            if not chat:
                raise InvalidArgumentError("chat messages need the chat template: leave out chat=False, or give text")
            ids, continues = _message_ids(items, tokenizer, literal, variables, fit)
        else:
            ids = token_ids(items, config)
    if not ids:
        raise InvalidArgumentError("the prompt is empty: give at least one character or token")
    if max(ids) >= config.vocab_size:
        raise InvalidArgumentError(
            f"the prompt holds token {max(ids)}, and the model has rows for {config.vocab_size} tokens only"
        )
    fit(len(ids), is_least=False)
    return EncodedPrompt(ids, continues)


def token_ids(ids: Iterable[object], config: ModelConfig) -> list[int]:
    """`ids`, a sequence or an array, as plain integers.

    Raises:
        InvalidArgumentError: it is neither, or one of them is not a whole number or outside the vocabulary.
    """
    try:
        items = _listed(ids)
    except TypeError:
        raise InvalidArgumentError(f"token ids must be a sequence of whole numbers, not {ids!r}") from None
    checked: list[int] = []
    for item in items:
        if not is_integral(item):
            raise InvalidArgumentError(f"a token id must be a whole number, not {item!r}")
        checked.append(int(item))
        if not 0 <= checked[-1] < config.vocab_size:
            raise InvalidArgumentError(f"token id {item} is outside the vocabulary of {config.vocab_size}")
    return checked


def _listed(values: Any) -> list[object]:
    """A list of what a sequence or an array holds.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(values, _NOT_ITEMS):
        raise TypeError
    return list(values.tolist() if hasattr(values, "tolist") else values)  # an array's own items may be arrays


def _items(prompt: Sequence[object]) -> list[object]:
    try:
        return _listed(prompt)
    except TypeError:
        hint = ": put a message into a list" if isinstance(prompt, Mapping) else ""
        raise InvalidArgumentError(
            f"a prompt must be text, token ids, or chat messages, not {prompt!r}{hint}"
        ) from None


def _are_messages(items: Sequence[object]) -> bool:
    """Whether these are messages: mappings, or objects with the same fields."""
    return any(isinstance(item, Mapping) or hasattr(item, "role") for item in items)


def _text_ids(text: str, tokenizer: Tokenizer | None, fit: Callable[[int], None]) -> list[int]:
    if tokenizer is None:
        raise InvalidArgumentError("this model has no tokenizer: give the prompt as token ids")
    return tokenizer.encode(text, fit=fit) if text else []


def _message_ids(
    messages: Sequence[object],
    tokenizer: Tokenizer | None,
    literal: bool,
    variables: Mapping[str, Any] | None,
    fit: Callable[[int], None],
) -> tuple[list[int], bool]:
    """Ids, and whether the answer continues with the last message's text."""
    from specdec.tokenizers.messages import last_text

    if tokenizer is None or not tokenizer.has_chat_template:
        raise InvalidArgumentError("this model has no chat template: give the prompt as text or token ids")
    given = dict(variables or {})
    switches = ("add_generation_prompt", "continue_final_message")
    if not any(name in given for name in switches) and last_text(messages):
        given["continue_final_message"] = True
    ids = tokenizer.encode_chat(messages, literal=literal, variables=given, fit=fit)
    return ids, bool(given.get("continue_final_message"))

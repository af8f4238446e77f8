"""From what a caller calls a prompt (text, token ids, or chat messages) to token ids."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from specdec.errors import InvalidArgumentError

if TYPE_CHECKING:
    from specdec.model.architecture import ModelConfig
    from specdec.tokenizers import Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]


class EncodedPrompt(NamedTuple):
    """A prompt in tokens.

    Attributes:
        ids: token ids, at least one.
        continues: the answer's text goes on where the prompt's ends, rather than being a message of its own.
    """

    ids: list[int]
    continues: bool


def encode_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, config: ModelConfig, *, chat: bool = True
) -> EncodedPrompt:
    """A prompt in tokens.

    Args:
        prompt: text, token ids (a sequence or an array of whole numbers), or messages with "role" and "content".
        tokenizer: the model's, or None when it has none; then only ids will do.
        config: the model.
        chat: put text into the chat template as a user's message, when the model has a template.

    Raises:
        InvalidArgumentError: the prompt is empty, of no such kind, too long for the context, holds an id outside the
            vocabulary, or needs a tokenizer or a chat template that the model does not have.
    """
    if isinstance(prompt, str):
        is_chat = chat and tokenizer is not None and tokenizer.has_chat_template
        ids = _text_ids(prompt, tokenizer, is_chat=is_chat)
    else:
        items = _items(prompt)
        is_chat = any(isinstance(item, Mapping) for item in items)
        if is_chat and not chat:
            raise InvalidArgumentError("chat messages need the chat template: leave out chat=False, or give text")
        ids = _message_ids(items, tokenizer) if is_chat else token_ids(items, config)
    if not ids:
        raise InvalidArgumentError("the prompt is empty: give at least one character or token")
    if len(ids) >= config.max_context:
        raise InvalidArgumentError(
            f"the prompt has {len(ids)} tokens and the model's context holds {config.max_context}, answer included: "
            "shorten the prompt"
        )
    return EncodedPrompt(ids, continues=not is_chat)


def token_ids(ids: Iterable[object], config: ModelConfig) -> list[int]:
    """`ids` as plain integers.

    Raises:
        InvalidArgumentError: one of them is no whole number or outside the vocabulary.
    """
    checked: list[int] = []
    for item in ids:
        if not isinstance(item, numbers.Integral) or isinstance(item, bool):
            raise InvalidArgumentError(f"a token id must be a whole number, not {item!r}")
        checked.append(int(item))
        if not 0 <= checked[-1] < config.vocab_size:
            raise InvalidArgumentError(f"token id {item} is outside the vocabulary of {config.vocab_size}")
    return checked


def _items(prompt: Sequence[object]) -> list[object]:
    try:
        return list(prompt)
    except TypeError:
        raise InvalidArgumentError(f"a prompt must be text, token ids, or chat messages, not {prompt!r}") from None


def _text_ids(text: str, tokenizer: Tokenizer | None, *, is_chat: bool) -> list[int]:
    if tokenizer is None:
        raise InvalidArgumentError("this model has no tokenizer: give the prompt as token ids")
    if not text:
        return []
    return _message_ids([{"role": "user", "content": text}], tokenizer) if is_chat else tokenizer.encode(text)


def _message_ids(messages: Sequence[object], tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None or not tokenizer.has_chat_template:
        raise InvalidArgumentError("this model has no chat template: give the prompt as text or token ids")
    checked: list[Mapping[str, str]] = []
    for message in messages:
        fields = [message.get("role"), message.get("content")] if isinstance(message, Mapping) else [None]
        if not isinstance(message, Mapping) or not all(isinstance(value, str) for value in fields):
            raise InvalidArgumentError(
                f"a chat message must be a mapping with the texts 'role' and 'content', not {message!r}"
            )
        checked.append(message)
    # The template writes the special tokens itself, the one that begins a text included.
    return tokenizer.encode(tokenizer.apply_chat_template(checked), add_bos=False)

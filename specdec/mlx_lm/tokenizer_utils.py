"""What mlx-lm's `load` returns for a tokenizer: `TokenizerWrapper`, with the names that Hugging Face's have."""

from __future__ import annotations

import codecs
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.mlx_lm.detokenizer import NaiveStreamingDetokenizer, StreamingDetokenizer, TokenDetokenizer
from specdec.mlx_lm.tool_calls import ToolCalls
from specdec.mlx_lm.tool_schema import function_tool
from specdec.tokenizers.base import Tokenizer
from specdec.tokenizers.chat_template import ChatTemplate

__all__ = ["NaiveStreamingDetokenizer", "StreamingDetokenizer", "TokenizerWrapper"]

_THOUGHTS = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TokenizerWrapper:
    """A model's tokenizer with the names that mlx-lm's and Hugging Face's tokenizers have.

    Args:
        tokenizer: of a model that `specdec.load` loaded.
        named: texts of tokens by what they are for, in place of the model's own: `eos_token`, `bos_token` and so on.
        chat_template: Jinja source in place of the model's own.

    Raises:
        InvalidArgumentError: a named token is not in the vocabulary.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, named: Mapping[str, str] | None = None, chat_template: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template if chat_template is None else chat_template
        self._named = dict(tokenizer.named_tokens) | dict(named or {})
        self._eos_token_ids = set(tokenizer.eos_ids)
        for name, text in (named or {}).items():
            if self.convert_tokens_to_ids(text) is None:
                raise InvalidArgumentError(f"{name} {text!r} is not in the model's vocabulary")
        if self.eos_token_id is not None:
            self._eos_token_ids.add(self.eos_token_id)

    # Text and tokens

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; with `add_special_tokens` the model's first token comes before them, if it wants one."""
        return self._tokenizer.encode(text, add_bos=None if add_special_tokens else False)

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Text of one token id or several."""
        return self._tokenizer.decode(_ids(token_ids), skip_special=skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """Texts of several sequences of token ids."""
        return [self.decode(one, skip_special_tokens) for one in sequences]

    def __call__(self, text: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of a text, or of a list of texts."""
        if isinstance(text, str):
            ids: Any = self.encode(text, add_special_tokens)
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        many = [self.encode(one, add_special_tokens) for one in text]
        return {"input_ids": many, "attention_mask": [[1] * len(ids) for ids in many]}

    @property
    def detokenizer(self) -> StreamingDetokenizer:
        """A fresh decoder of tokens that come one by one."""
        return TokenDetokenizer(self._tokenizer)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token's text, None where there is no such token; a list for a list."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(one) for one in tokens]
        return self._vocabulary.get(tokens)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The text of a token id; a list for a list."""
        if isinstance(ids, numbers.Integral):
            return _text(self._tokenizer.token_bytes(int(ids)))
        return [_text(self._tokenizer.token_bytes(one)) for one in _ids(ids)]

    def get_vocab(self) -> dict[str, int]:
        """Every token's text and its id; of equal texts the lowest id."""
        return dict(self._vocabulary)

    def __len__(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def vocab_size(self) -> int:
        """Token ids that mean something."""
        return self._tokenizer.vocab_size

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for token, piece in enumerate(self._tokenizer.pieces):
            found.setdefault(_text(piece), token)
        return found

    # Special tokens

    @property
    def eos_token_ids(self) -> set[int]:
        """Tokens that end an answer. The set may be changed, or replaced."""
        return self._eos_token_ids

    @eos_token_ids.setter
    def eos_token_ids(self, value: Iterable[int] | int | None) -> None:
        one = isinstance(value, numbers.Integral)
        self._eos_token_ids = {int(value)} if one else set(value or ())  # type: ignore[arg-type]

    def add_eos_token(self, token: str) -> None:
        """Let a token end answers, given by its text or its id.

        Raises:
            InvalidArgumentError: there is no such token.
        """
        number = int(token) if str(token).isdigit() else self.convert_tokens_to_ids(token)
        if number is None or not 0 <= number < len(self):
            raise InvalidArgumentError(f"{token!r} is not a token of this model")
        self._eos_token_ids.add(number)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""
        named = self._named.get("bos_token")
        return self._tokenizer.bos_id if named is None else self.convert_tokens_to_ids(named)

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text; the first of `eos_token_ids` where the model names none."""
        named = self._named.get("eos_token")
        if named is not None and (found := self.convert_tokens_to_ids(named)) is not None:
            return int(found)
        return min(self._eos_token_ids, default=None)

    @property
    def bos_token(self) -> str | None:
        """Text of the token that begins a text."""
        return self._text_of(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """Text of the token that ends a text."""
        return self._text_of(self.eos_token_id)

    @property
    def pad_token(self) -> str | None:
        """Text of the token that fills up batches, which nothing here needs."""
        return self._named.get("pad_token")

    @property
    def pad_token_id(self) -> int | None:
        """Its id."""
        return None if self.pad_token is None else self.convert_tokens_to_ids(self.pad_token)

    @property
    def unk_token(self) -> str | None:
        """Text of the token for what the vocabulary does not have."""
        return self._named.get("unk_token")

    @property
    def unk_token_id(self) -> int | None:
        """Its id."""
        return None if self.unk_token is None else self.convert_tokens_to_ids(self.unk_token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Texts of special tokens by what they are for."""
        found = {"bos_token": self.bos_token, "eos_token": self.eos_token} | self._named
        return {name: found[name] for name in _NAMED if found.get(name) is not None}  # type: ignore[misc]

    @property
    def all_special_ids(self) -> list[int]:
        """Tokens that steer the model and are not text."""
        return sorted(token for token in self._tokenizer.special_ids if token < len(self))

    @property
    def all_special_tokens(self) -> list[str]:
        """Their texts."""
        return [str(self._text_of(token)) for token in self.all_special_ids]

    def _text_of(self, token: int | None) -> str | None:
        return None if token is None else _text(self._tokenizer.token_bytes(token))

    # Chats

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work."""
        return self.chat_template is not None

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The prompt for a chat, in tokens or, with `tokenize=False`, as text. Names of control tokens that messages
        spell become those tokens, as with Hugging Face's tokenizers.

        Args:
            conversation: messages with "role" and "content", oldest first.
            tools: functions that the model may call: JSON schemas, or Python functions with type hints and docstrings.
            documents: for templates that read them.
            chat_template: Jinja source in place of the model's own.
            add_generation_prompt: end with what begins the assistant's answer.
            continue_final_message: end with the last message's text, so that the answer continues with it.
            tokenize: return token ids.
            return_dict: return {"input_ids": ..., "attention_mask": ...}.
            kwargs: other variables of the template.

        Raises:
            InvalidArgumentError: there is no template, or it refuses the messages.
        """
        source = chat_template if chat_template is not None else self.chat_template
        if source is None:
            raise InvalidArgumentError("this model has no chat template: give chat_template, or a raw prompt")
        kwargs.setdefault("enable_thinking", self.has_thinking)
        if tools is not None:
            kwargs["tools"] = [function_tool(one) if callable(one) else one for one in tools]
        if documents is not None:
            kwargs["documents"] = list(documents)
        for name in ("padding", "truncation", "max_length", "return_tensors"):
            if kwargs.pop(name, None):
                raise InvalidArgumentError(f"{name} is refused: prompts are lists of token ids of their own length")
        text = self._template(source).render(
            [_message(one) for one in conversation],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )
        if not tokenize:
            return text
        ids = self.encode(text, add_special_tokens=False)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)} if return_dict else ids

    def _template(self, source: str) -> ChatTemplate:
        kept: dict[str, ChatTemplate] = self.__dict__.setdefault("_templates", {})
        if source not in kept:
            kept[source] = ChatTemplate(source, self._named)
        return kept[source]

    # Thoughts and tool calls

    @cached_property
    def _thoughts(self) -> tuple[str, str] | None:
        known = self._vocabulary
        return next((pair for pair in _THOUGHTS if pair[0] in known and pair[1] in known), None)

    @property
    def has_thinking(self) -> bool:
        """Whether the vocabulary has marks of thoughts."""
        return self._thoughts is not None

    @property
    def think_start(self) -> str | None:
        """What begins thoughts."""
        return None if self._thoughts is None else self._thoughts[0]

    @property
    def think_end(self) -> str | None:
        """What ends them."""
        return None if self._thoughts is None else self._thoughts[1]

    @property
    def think_start_id(self) -> int | None:
        """The token of `think_start`."""
        return None if self.think_start is None else self.convert_tokens_to_ids(self.think_start)

    @property
    def think_end_id(self) -> int | None:
        """The token of `think_end`."""
        return None if self.think_end is None else self.convert_tokens_to_ids(self.think_end)

    @cached_property
    def _tool_calls(self) -> ToolCalls:
        return ToolCalls(self.chat_template)

    @property
    def has_tool_calling(self) -> bool:
        """Whether the chat template shows how tool calls are marked."""
        return self._tool_calls.start is not None

    @property
    def tool_call_start(self) -> str | None:
        """What begins tool calls."""
        return self._tool_calls.start

    @property
    def tool_call_end(self) -> str | None:
        """What ends them."""
        return self._tool_calls.end

    @property
    def tool_parser(self) -> Callable[..., Any] | None:
        """Reads the text between the two: `tool_parser(text)` gives {"name": ..., "arguments": {...}}."""
        return self._tool_calls.parse if self.has_tool_calling else None


def _message(message: Any) -> Any:
    """A message whose content is text: numbers, such as a tool's result, become text."""
    if isinstance(message, Mapping) and isinstance(message.get("content"), (int, float)):
        return {**message, "content": str(message["content"])}
    return message


def _ids(ids: Any) -> list[int]:
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    return [int(values)] if isinstance(values, int) else [int(one) for one in values]


def _text(piece: bytes) -> str:
    return codecs.decode(piece, "utf-8", "replace")

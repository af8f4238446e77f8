"""What every tokenizer does. The two kinds live in `bpe` and `sentencepiece`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from specdec.errors import InvalidArgumentError
from specdec.interrupts import unless_signalled
from specdec.tokenizers.chat_template import ChatTemplate
from specdec.tokenizers.detokenizer import IncrementalDetokenizer
from specdec.tokenizers.markup import Part, joined
from specdec.tokenizers.meta import TokenizerMeta
from specdec.tokenizers.pieces import PieceTable
from specdec.tokenizers.tokenizer_limits import MOST_TEXT_BYTES


class Tokenizer(ABC):
    """Text to ids and back, for one model.

    Attributes:
        bos_id: token that begins a text, or None.
        eos_ids: tokens that end one; generation stops at any of them.
        add_bos: whether the model wants `bos_id` first.
        vocab_size: number of ids that mean something; the model's logits may have more rows.

    Args:
        meta: what the tokenizer's own file does not say.
        table: the vocabulary.
        found_in_text: tokens that are found in text before anything else and are not control tokens.
    """

    def __init__(self, meta: TokenizerMeta, table: PieceTable, found_in_text: Collection[str] = ()) -> None:
        self._meta = meta
        self._found_in_text = frozenset(found_in_text)
        # Whatever ends a turn is not text, even when the file lists it as an ordinary token.
        self._table = PieceTable(table.pieces, table.special | set(meta.eos_ids), table.strip_leading_space)
        self.bos_id = meta.bos_id
        self.eos_ids = frozenset(meta.eos_ids)
        self.add_bos = meta.add_bos
        self.vocab_size = len(table.pieces)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the vocabulary: equal when, and only when, the same ids mean the same tokens."""
        return self._table.fingerprint()

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """Bytes of every id; empty for ids that mean nothing."""
        return self._table.pieces

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that steer the model and are not text."""
        return self._table.special

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """Texts of tokens by what they are for: `bos_token`, `eos_token` and so on."""
        return self._meta.special_tokens

    @property
    def strips_first_space(self) -> bool:
        """Whether a space that a text's first token begins with is left out when the text is decoded."""
        return self._table.strip_leading_space

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can work."""
        return self._meta.chat_template is not None

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the model's chat template."""
        return self._meta.chat_template

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        literal: bool = False,
        fit: Callable[[int], None] | None = None,
    ) -> list[int]:
        """Token ids of `text`. The names of special tokens inside it become those tokens, unless it is literal.

        Args:
            text: any text.
            literal: names of special tokens are text like any other.
            add_bos: put `bos_id` first; None does what the model wants, and not twice when the text begins with it
                (as rendered chat templates may).
            fit: called before the work, with a number of tokens that the text takes at least; it may raise.

        Raises:
            InvalidArgumentError: it is not text, or holds half a surrogate pair or more than 8 MiB, or there is no
                `bos_id` to add.
        """
        self._check_text(text, fit)
        ids = self._encode_parts([Part(text, True)]) if literal else self._encode(text)
        wanted = self.add_bos and ids[:1] != [self.bos_id] if add_bos is None else add_bos
        if not wanted:
            return ids
        if self.bos_id is None:
            raise InvalidArgumentError("this model has no token that begins a text: leave add_bos out")
        return [self.bos_id, *ids]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, continues: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: token ids; those beyond the vocabulary stand for nothing.
            skip_special: leave out special tokens.
            continues: text comes before these tokens, so that a leading space stays (only sentencepiece drops it).

        Raises:
            InvalidArgumentError: an id is negative or not a whole number.
        """
        try:
            joined = self._table.join(ids, skip_special=skip_special, continues=continues)
        except unless_signalled(TypeError):
            raise InvalidArgumentError(f"a tokenizer decodes a list of whole numbers, not {str(ids)[:60]}") from None
        return joined.decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Bytes that a token stands for; a token may be a part of a character. Empty for an id beyond the vocabulary.

        Raises:
            InvalidArgumentError: the id is negative.
        """
        return self._table.piece(token)

    def detokenizer(self, *, continues: bool = False) -> IncrementalDetokenizer:
        """A fresh incremental decoder; `continues` as in `decode`."""
        return IncrementalDetokenizer(self._table, continues=continues)

    @cached_property
    def control_names(self) -> frozenset[str]:
        """Texts of the control tokens: what steers the model and is never shown."""
        texts = (self._table.pieces[token] for token in self._table.special if token < self.vocab_size)
        return frozenset(text.decode("utf-8", errors="replace") for text in texts if text)

    def control_id(self, text: str) -> int | None:
        """The id of the control token that `text` is the name of, or None."""
        ids = self._encode(text) if text in self.control_names else []
        return ids[0] if len(ids) == 1 and ids[0] in self._table.special else None

    def apply_chat_template(
        self,
        messages: Sequence[Any],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for `messages` as text. `encode_chat` gives its tokens.

        Args:
            messages: mappings with "role" and "content", oldest first. Content is text or a list of parts of text, or
                None for an assistant's message with `tool_calls`.
            add_generation_prompt: end with what begins the assistant's answer.
            continue_final_message: end with the last message's text, so that the answer continues with it.
            variables: what else the template asks for, such as `tools` or `enable_thinking`.

        Raises:
            InvalidArgumentError: the model has no template, or the template refuses these messages.
            ModelFormatError: the template cannot be read, or fails.
        """
        return self._chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )

    def encode_chat(
        self,
        messages: Sequence[Any],
        *,
        literal: bool = True,
        variables: Mapping[str, Any] | None = None,
        fit: Callable[[int], None] | None = None,
    ) -> list[int]:
        """Token ids of the prompt for `messages`.

        Args:
            messages: see `apply_chat_template`, as for errors.
            literal: names of control tokens in messages and variables are text; False makes them those tokens.
            variables: for the template, and the switches of `apply_chat_template`.
            fit: see `encode`.
        """
        template = self._chat_template
        if literal:
            # An assistant's message may hold what the model wrote as tokens of its own, such as <think>.
            structure = {name for name in self._found_in_text if name in template.source and not name.isspace()}
            names: frozenset[str] = self.control_names | structure
            parts = template.parts(messages, variables or {}, names=names, assistant_names=self.control_names)
        else:
            parts = template.parts(messages, variables or {})
        self._check_text(joined(parts), fit)
        # Parts stay apart even where none is literal: a mark that the template tore apart stood between them.
        ids = self._encode_parts(parts) if len(parts) > 1 else self._encode(joined(parts))
        wants_bos = self._meta.chat_bos and self.bos_id is not None and ids[:1] != [self.bos_id]
        return [self.bos_id, *ids] if wants_bos and self.bos_id is not None else ids

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        if self._meta.chat_template is None:
            raise InvalidArgumentError("this model has no chat template: give a raw prompt instead")
        return ChatTemplate(self._meta.chat_template, self._meta.special_tokens)

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of valid text, without anything added."""

    @abstractmethod
    def _encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Ids of the text of `parts`; names of tokens in literal ones are text."""

    @abstractmethod
    def _covered(self, text: str) -> bytes:
        """Bytes that the tokens of `text` have at least among them; none where that is not known."""

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._table.pieces), default=0) or 1

    def _check_text(self, text: str, fit: Callable[[int], None] | None) -> None:
        if not isinstance(text, str):
            raise InvalidArgumentError(f"a tokenizer encodes text, not {text!r}")
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"the text is not valid Unicode: half a surrogate pair at position {error.start}"
            ) from None
        if size > MOST_TEXT_BYTES:
            raise InvalidArgumentError(f"the text has {size} bytes: at most {MOST_TEXT_BYTES} are encoded, shorten it")
        if fit is not None:
            fit(-(-len(self._covered(text)) // self._longest))

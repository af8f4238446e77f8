"""The tokenizer of a Hugging Face folder, as the files of a tokenizer folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdec.errors import ModelFormatError
from specdec.formats.fields import Fields
from specdec.formats.files import read_bytes, read_json
from specdec.tokenizers.bpe import BPETokenizer, read_backend
from specdec.tokenizers.meta import (
    BPE_NAME,
    END_MARKERS,
    META_NAME,
    MOST_TOKENS,
    SENTENCEPIECE_NAME,
    AddedToken,
    TokenizerMeta,
)
from specdec.tokenizers.sentencepiece import SentencePieceTokenizer, read_model

_UNREAD = ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tekken.json", "tiktoken.model")
_TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_CONFIG, _SPECIAL_MAP, _GENERATION = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"


def tokenizer_files(folder: Path, model_config: dict[str, Any]) -> dict[str, bytes]:
    """Files of the tokenizer folder; none when the checkpoint has no tokenizer.

    Args:
        folder: the checkpoint.
        model_config: content of its config.json.

    Raises:
        ModelFormatError: the tokenizer is damaged or of a kind that is not read.
    """
    config = _optional_json(folder / _CONFIG)
    if (folder / BPE_NAME).exists():
        name, content = BPE_NAME, read_bytes(folder / BPE_NAME)
        meta = _bpe_meta(content, _Settings(folder, config, model_config))
        BPETokenizer(meta, content)
    elif (folder / SENTENCEPIECE_NAME).exists():
        name, content = SENTENCEPIECE_NAME, read_bytes(folder / SENTENCEPIECE_NAME)
        meta = _sentencepiece_meta(content, _Settings(folder, config, model_config))
        SentencePieceTokenizer(meta, content)
    else:
        if found := [name for name in _UNREAD if (folder / name).exists()]:
            raise ModelFormatError(f"{found[0]} is not read: save the tokenizer as {BPE_NAME} or {SENTENCEPIECE_NAME}")
        return {}
    return {name: content, META_NAME: meta.to_bytes()}


class _Settings:
    """What the small JSON files beside a tokenizer say."""

    def __init__(self, folder: Path, config: Fields, model_config: dict[str, Any]) -> None:
        self.config = config
        self.chat_template = _chat_template(folder, config)
        self.generation = _optional_json(folder / _GENERATION).values
        self.model_config = model_config
        named = {**_optional_json(folder / _SPECIAL_MAP).values, **config.values}
        texts = {name: _token_text(named.get(name)) for name in _TEMPLATE_TOKENS}
        self.special_tokens = {name: text for name, text in texts.items() if text is not None}

    def bos_id(self, find: Callable[[str], int | None]) -> int | None:
        """Id of the first token: the named one, or config.json's when no tokenizer settings exist."""
        if "bos_token" in self.special_tokens:
            return find(self.special_tokens["bos_token"])
        stated = self.model_config.get("bos_token_id")
        return stated if not self.config.values and type(stated) is int and stated >= 0 else None

    def eos_ids(self, find: Callable[[str], int | None], marked: set[int]) -> tuple[int, ...]:
        """Every id that one of the files names as an end, and the well-known end markers among `marked`."""
        ids = set(marked)
        for values in (self.generation, self.model_config):
            stated = values.get("eos_token_id")
            ids |= {x for x in (stated if isinstance(stated, list) else [stated]) if type(x) is int and x >= 0}
        if "eos_token" in self.special_tokens:
            ids |= {index for index in [find(self.special_tokens["eos_token"])] if index is not None}
        return tuple(sorted(ids))


def _bpe_meta(content: bytes, settings: _Settings) -> TokenizerMeta:
    backend = read_backend(content)
    added = backend.get_added_tokens_decoder()
    bos_id = settings.bos_id(backend.token_to_id)
    if "add_bos_token" in settings.config:
        add_bos = settings.config.flag("add_bos_token", False)
    else:
        # The file's own post-processor knows: see whether it puts the token first.
        bare, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
        add_bos = whole[:1] == [bos_id] and bare[:1] != [bos_id]
    return TokenizerMeta(
        kind="bpe",
        bos_id=bos_id,
        eos_ids=settings.eos_ids(
            backend.token_to_id, {index for index, token in added.items() if token.content in END_MARKERS}
        ),
        add_bos=add_bos and bos_id is not None,
        chat_template=settings.chat_template,
        special_tokens=settings.special_tokens,
    )


def _sentencepiece_meta(content: bytes, settings: _Settings) -> TokenizerMeta:
    model = read_model(content)
    size = model.vocab_size()
    # A token beyond the model's own vocabulary can neither be read nor written by it.
    vocabulary = settings.model_config.get("vocab_size")
    most = vocabulary if type(vocabulary) is int else MOST_TOKENS
    added = tuple(token for token in _added_tokens(settings.config) if size <= token.id < most)
    ids = {model.id_to_piece(index): index for index in range(size)} | {token.text: token.id for token in added}
    bos_id = settings.bos_id(ids.get)
    if bos_id is None and model.bos_id() >= 0:
        bos_id = model.bos_id()
    own_end = {model.eos_id()} if model.eos_id() >= 0 else set()
    marked = {ids[text] for text in END_MARKERS if text in ids and (ids[text] >= size or model.is_control(ids[text]))}
    special = dict(settings.special_tokens)
    if bos_id is not None and bos_id < size:
        special.setdefault("bos_token", model.id_to_piece(bos_id))
    if own_end:
        special.setdefault("eos_token", model.id_to_piece(model.eos_id()))
    return TokenizerMeta(
        kind="sentencepiece",
        bos_id=bos_id,
        eos_ids=settings.eos_ids(ids.get, own_end | marked),
        add_bos=settings.config.flag("add_bos_token", True) and bos_id is not None,
        chat_template=settings.chat_template,
        special_tokens=special,
        added_tokens=added,
    )


def _added_tokens(config: Fields) -> list[AddedToken]:
    """`added_tokens_decoder`: id, as text, to what the token is."""
    tokens = []
    for index, value in config.mapping("added_tokens_decoder").values.items():
        text = _token_text(value)
        if not index.isdecimal() or text is None:
            raise config.wrong("added_tokens_decoder", "a mapping of ids to tokens")
        special = isinstance(value, dict) and value.get("special") is True
        tokens.append(AddedToken(int(index), text, special))
    return tokens


def _chat_template(folder: Path, config: Fields) -> str | None:
    """The template: its own file first, then tokenizer_config.json, where it may be a list of named ones."""
    if (folder / "chat_template.jinja").exists():
        try:
            return read_bytes(folder / "chat_template.jinja").decode("utf-8")
        except UnicodeDecodeError:
            raise ModelFormatError("chat_template.jinja is not valid UTF-8") from None
    value = config.values.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    pairs = (
        [(x.get("name"), x.get("template")) for x in value if isinstance(x, dict)] if isinstance(value, list) else []
    )
    named = {name: template for name, template in pairs if isinstance(name, str) and isinstance(template, str)}
    if not named or len(named) != len(value):
        raise config.wrong("chat_template", "a text or a list of named templates")
    if "default" not in named and len(named) > 1:
        raise ModelFormatError(f"{_CONFIG}: of the chat templates {', '.join(sorted(named))} none is named 'default'")
    return named.get("default", next(iter(named.values())))


def _token_text(value: Any) -> str | None:
    """A token's text, given plainly or as an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _optional_json(path: Path) -> Fields:
    return Fields(read_json(path) if path.exists() else {}, path.name)

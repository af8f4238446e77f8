"""The tokenizer of a Hugging Face folder, as the files of a tokenizer folder.

What the files leave out or say twice is resolved as transformers resolves it; what they say wrongly and nothing needs
is left out with a warning. The small files beside the tokenizer are read by `huggingface_settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as BackendToken
from tokenizers import Tokenizer as Backend

from specdec.errors import ModelFormatError
from specdec.formats.files import read_bytes, read_json
from specdec.formats.huggingface_settings import Settings
from specdec.tokenizers.bpe import BPETokenizer, read_backend
from specdec.tokenizers.markers import END_MARKERS, MARKER, end_tokens
from specdec.tokenizers.meta import (
    BPE_NAME,
    META_NAME,
    MOST_TOKENS,
    SENTENCEPIECE_NAME,
    AddedToken,
    TokenizerMeta,
)
from specdec.tokenizers.pieces import WORD_START
from specdec.tokenizers.pretokenizers import build_byte_level, rule
from specdec.tokenizers.sentencepiece import SentencePieceTokenizer, read_model
from specdec.tokenizers.sentencepiece_model import USER_DEFINED, piece_types, without_normalizer
from specdec.tokenizers.tokenizer_limits import MOST_MERGES, check_added

_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_CLASS_SPECIAL = "<|endoftext|>"  # what the tokenizer classes of such files have where no file names another
_UNREAD = (_VOCABULARY, "vocab.txt", _MERGES, "spiece.model", "tekken.json", "tiktoken.model")


def tokenizer_files(folder: Path, model_config: dict[str, Any]) -> dict[str, bytes]:
    """Files of the tokenizer folder; none when the checkpoint has no tokenizer.

    Args:
        folder: the checkpoint.
        model_config: content of its config.json.

    Raises:
        ModelFormatError: the tokenizer is damaged or of a kind that is not read.

    Warns:
        UserWarning: a file beside the tokenizer is senseless and is not used.
    """
    settings = Settings(folder, model_config)
    if (folder / BPE_NAME).exists():
        name, backend = BPE_NAME, read_backend(read_bytes(folder / BPE_NAME))
    elif (folder / SENTENCEPIECE_NAME).exists():
        name, content = SENTENCEPIECE_NAME, read_bytes(folder / SENTENCEPIECE_NAME)
        meta = _sentencepiece_meta(content, settings)
        content = without_normalizer(content) if _is_llama(settings) else content
        SentencePieceTokenizer(meta, content)
        return {name: content, META_NAME: meta.to_bytes()}
    elif (folder / _VOCABULARY).exists() and (folder / _MERGES).exists():
        name, backend = BPE_NAME, _from_vocabulary(folder, settings)
    else:
        if found := [name for name in _UNREAD if (folder / name).exists()]:
            raise ModelFormatError(f"{found[0]} is not read: save the tokenizer as {BPE_NAME} or {SENTENCEPIECE_NAME}")
        return {}
    content = read_bytes(folder / BPE_NAME) if name == BPE_NAME and (folder / BPE_NAME).exists() else b""
    if _add_missing(backend, settings) or not content:
        content = backend.to_str().encode("utf-8")
    meta = _bpe_meta(backend, settings)
    BPETokenizer(meta, content)
    return {name: content, META_NAME: meta.to_bytes()}


def _from_vocabulary(folder: Path, settings: Settings) -> Backend:
    """Byte-level BPE of an older checkpoint, cut by the rule of its family."""
    vocabulary = read_json(folder / _VOCABULARY)
    if not all(type(index) is int and index >= 0 for index in vocabulary.values()):
        raise ModelFormatError(f"{_VOCABULARY} must hold an id for each token")
    try:
        text = read_bytes(folder / _MERGES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ModelFormatError(f"{_MERGES} is not valid UTF-8") from None
    if text.count("\n") > MOST_MERGES:
        raise ModelFormatError(f"{_MERGES} has more than {MOST_MERGES} lines")
    # Not splitlines: in this alphabet characters that Unicode takes for the end of a line are bytes.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    pairs = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise ModelFormatError(f"{_MERGES} has {' '.join(wrong[0])!r}, which is not a pair")
    family = "qwen2" if settings.model_type.startswith("qwen") else "gpt2"
    special = dict.fromkeys([_CLASS_SPECIAL, *settings.special_texts])
    return build_byte_level(
        vocabulary,
        [(left, right) for left, right in pairs],
        rule=rule(family),
        special=[text for text in special if text in vocabulary],
    )


def _add_missing(backend: Backend, settings: Settings) -> bool:
    """Add the tokens that only the settings name, as transformers does: in the order of their ids, after all others.

    Those of the vocabulary itself, which the tokenizer takes for text, keep their ids.

    Returns:
        Whether there were any. Tokens that the model has no row for stay out.
    """
    known = backend.get_vocab(with_added_tokens=True)
    found = {token.content for token in backend.get_added_tokens_decoder().values()}
    size = max(known.values(), default=-1) + 1
    named = {token.text: token for token in settings.added_tokens if token.text not in found}
    for text in settings.special_texts:
        # A mark that pads, such as "!", may also be text.
        if text not in found and (text not in known or MARKER.fullmatch(text)):
            named.setdefault(text, AddedToken(0, text, True))
    new = [token for token in named.values() if token.text not in known][: max(0, settings.vocab_size - size)]
    tokens = [*new, *(token for token in named.values() if token.text in known)]
    check_added([*found, *(token.text for token in new)], "the tokenizer with what its settings add")
    backend.add_tokens(
        [
            BackendToken(
                token.text, special=token.special, normalized=False, lstrip=token.strip_left, rstrip=token.strip_right
            )
            for token in tokens
        ]
    )
    return bool(tokens)


def _bpe_meta(backend: Backend, settings: Settings) -> TokenizerMeta:
    bos_id = settings.bos_id(backend.token_to_id)
    # The file's own post-processor knows, whatever the settings say: see whether it puts the token first.
    bare, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    add_bos = bos_id is not None and whole[:1] == [bos_id] and bare[:1] != [bos_id]
    ids = {text: index for text in END_MARKERS if (index := backend.token_to_id(text)) is not None}
    return TokenizerMeta(
        kind="bpe",
        bos_id=bos_id,
        eos_ids=settings.eos_ids(backend.token_to_id, end_tokens(ids)),
        add_bos=add_bos,
        chat_template=settings.chat_template,
        special_tokens=settings.special_tokens,
    )


def _sentencepiece_meta(content: bytes, settings: Settings) -> TokenizerMeta:
    model = read_model(content)
    size = model.vocab_size()
    ids = {model.id_to_piece(index): index for index in range(size)}
    added = tuple(
        token
        for token in settings.added_tokens
        if size <= token.id < MOST_TOKENS
        or (ids.get(token.text) == token.id and _says_more(token, model.is_control(token.id)))
    )
    prefix = _prefix(settings, content)
    if prefix != "model":  # transformers finds these before it prepares the text between
        found = {token.id for token in added}
        kinds = enumerate(piece_types(content)[:size])
        added += tuple(
            AddedToken(index, model.id_to_piece(index), False)
            for index, kind in kinds
            if kind == USER_DEFINED and index not in found
        )
    ids |= {token.text: token.id for token in added}
    added += _missing(settings, ids)
    ids |= {token.text: token.id for token in added}
    bos_id = settings.bos_id(ids.get)
    if bos_id is None and model.bos_id() >= 0:
        bos_id = model.bos_id()
    own_end = {model.eos_id()} if model.eos_id() >= 0 else set()
    special = dict(settings.special_tokens)
    if bos_id is not None and bos_id < size:
        special.setdefault("bos_token", model.id_to_piece(bos_id))
    if own_end:
        special.setdefault("eos_token", model.id_to_piece(model.eos_id()))
    return TokenizerMeta(
        kind="sentencepiece",
        bos_id=bos_id,
        eos_ids=settings.eos_ids(ids.get, own_end | end_tokens(ids)),
        add_bos=settings.config.flag("add_bos_token", True) and bos_id is not None,
        chat_template=settings.chat_template,
        special_tokens=special,
        added_tokens=added,
        prefix=prefix,
    )


def _missing(settings: Settings, ids: Mapping[str, int]) -> tuple[AddedToken, ...]:
    """Special tokens that are named and nowhere numbered: they follow the others, as far as the model has rows."""
    named = [text for text in settings.special_texts if text not in ids]
    first = max(ids.values(), default=-1) + 1
    return tuple(
        AddedToken(first + n, text, True) for n, text in enumerate(named[: max(0, settings.vocab_size - first)])
    )


def _says_more(token: AddedToken, is_control: bool) -> bool:
    """Whether the settings say something of a piece that the model itself does not."""
    return token.strip_left or token.strip_right or (token.special and not is_control)


def _prefix(settings: Settings, content: bytes) -> str:
    """Where transformers puts a space: Llama's own class has its rule, the others have sentencepiece's. Of the two
    behaviours that `legacy` chooses between, that class has the newer one by default and the others the older one."""
    is_llama = _is_llama(settings)
    is_legacy = settings.config.flag("legacy", not is_llama)
    if not is_llama:
        puts_space = read_model(content).normalize("a").startswith(WORD_START)
        return "first" if puts_space and not is_legacy else "model"
    if not settings.config.flag("add_prefix_space", True):
        return "never"
    return "always" if is_legacy else "first"


def _is_llama(settings: Settings) -> bool:
    """Whether transformers takes its class for Llama's tokenizer, which knows no normalizer of the model's."""
    kind = settings.config.values.get("tokenizer_class")
    return kind in ("LlamaTokenizer", "LlamaTokenizerFast") and settings.model_type not in ("mistral", "mixtral")

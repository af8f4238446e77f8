"""What the small JSON files beside a Hugging Face tokenizer say: names of special tokens, ends, the chat template.

Older checkpoints have files of their own for what newer ones keep in tokenizer_config.json; both are read. A file that
makes no sense is left out with a warning, since a model works without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.formats.files import read_bytes, read_json
from specdec.tokenizers.meta import AddedToken
from specdec.warn import warn

_CONFIG, _GENERATION = "tokenizer_config.json", "generation_config.json"
_SPECIAL_MAP, _ADDED = "special_tokens_map.json", "added_tokens.json"
_TEMPLATE, _TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
_DECODER = "added_tokens_decoder"
_LISTS = ("additional_special_tokens", "extra_special_tokens")


class Settings:
    """The files of one folder.

    Attributes:
        config: tokenizer_config.json.
        model_type: of config.json.
        vocab_size: of config.json; 0 where it says none.
        special_tokens: `bos_token` and so on to their text, for the chat template.
        special_texts: every text that is named as a special token.
        added_tokens: tokens that are added to the tokenizer's own, by id.
        chat_template: Jinja source, or None.

    Raises:
        ModelFormatError: tokenizer_config.json makes no sense.
    """

    def __init__(self, folder: Path, model_config: dict[str, Any]) -> None:
        self.config = Fields(read_json(folder / _CONFIG) if (folder / _CONFIG).exists() else {}, _CONFIG)
        self._model_config = model_config
        self._generation = _optional_json(folder / _GENERATION)
        self.model_type = str(model_config.get("model_type") or "")
        size = model_config.get("vocab_size")
        self.vocab_size = size if type(size) is int else 0
        named = self._named(_optional_json(folder / _SPECIAL_MAP))
        found = ((name, _token_text(value)) for name, value in named.items() if name.endswith("_token"))
        self.special_tokens = {name: text for name, text in found if text is not None}
        self.special_texts = list(dict.fromkeys([*self.special_tokens.values(), *_listed(named)]))
        self.added_tokens = self._added(_optional_json(folder / _ADDED))
        self.chat_template = _chat_template(folder, self.config)

    def bos_id(self, find: Callable[[str], int | None]) -> int | None:
        """Id of the first token: the named one, or config.json's when no tokenizer settings exist."""
        if "bos_token" in self.special_tokens:
            return find(self.special_tokens["bos_token"])
        stated = self._model_config.get("bos_token_id")
        return stated if not self.config.values and type(stated) is int and stated >= 0 else None

    def eos_ids(self, find: Callable[[str], int | None], marked: set[int]) -> tuple[int, ...]:
        """Every id that one of the files names as an end, and `marked`."""
        ids = set(marked)
        for values in (self._generation, self._model_config):
            stated = values.get("eos_token_id")
            ids |= {x for x in (stated if isinstance(stated, list) else [stated]) if type(x) is int and x >= 0}
        if "eos_token" in self.special_tokens:
            ids |= {index for index in [find(self.special_tokens["eos_token"])] if index is not None}
        return tuple(sorted(ids))

    def _named(self, special_map: dict[str, Any]) -> dict[str, Any]:
        """Both files' names: the older one counts where tokenizer_config.json is not of the newer kind."""
        if _DECODER in self.config:
            return {**special_map, **self.config.values}
        return {**self.config.values, **special_map}

    def _added(self, older: dict[str, Any]) -> list[AddedToken]:
        special = set(self.special_texts)
        tokens = {
            index: AddedToken(index, text, text in special)
            for text, index in older.items()
            if type(index) is int and index >= 0 and text
        }
        for key, value in self.config.mapping(_DECODER).values.items():
            text = _token_text(value)
            if not key.isdecimal() or text is None:
                raise self.config.wrong(_DECODER, "a mapping of ids to tokens")
            flags = value if isinstance(value, dict) else {}
            is_special = flags.get("special") is True or text in special
            left, right = flags.get("lstrip") is True, flags.get("rstrip") is True
            tokens[int(key)] = AddedToken(int(key), text, is_special, left, right)
        return [token for _, token in sorted(tokens.items())]


def _listed(named: dict[str, Any]) -> Iterator[str]:
    for name in _LISTS:
        value = named.get(name)
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        yield from (text for text in map(_token_text, items) if text is not None)


def _chat_template(folder: Path, config: Fields) -> str | None:
    """The template: its own file first, then tokenizer_config.json, where it may be a list of named ones, then the
    file that processors have."""
    if (folder / _TEMPLATE).exists():
        try:
            return read_bytes(folder / _TEMPLATE).decode("utf-8")
        except UnicodeDecodeError:
            _warn(f"{_TEMPLATE} is not valid UTF-8: it is not used")
    for values, where in ((config.values, _CONFIG), (_optional_json(folder / _TEMPLATE_JSON), _TEMPLATE_JSON)):
        if (template := _template_of(values.get("chat_template"), where)) is not None:
            return template
    return None


def _template_of(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    pairs = (
        [(x.get("name"), x.get("template")) for x in value if isinstance(x, dict)]
        if isinstance(value, list)
        else list(value.items())
        if isinstance(value, dict)
        else []
    )
    named = {name: template for name, template in pairs if isinstance(name, str) and isinstance(template, str)}
    if not named or len(named) != len(value):
        _warn(f"{where}: chat_template is neither a text nor a list of named templates: it is not used")
        return None
    if "default" not in named and len(named) > 1:
        _warn(f"{where}: of the chat templates {', '.join(sorted(named))} none is named 'default': none is used")
        return None
    return named.get("default", next(iter(named.values())))


def _token_text(value: Any) -> str | None:
    """A token's text, given plainly or as an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _optional_json(path: Path) -> dict[str, Any]:
    """The content of a file that a model works without; empty where it is missing, or senseless, with a warning."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except ModelFormatError as error:
        _warn(f"{error}: it is not used")
        return {}


def _warn(what: str) -> None:
    warn(what)

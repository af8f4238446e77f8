"""mlx-lm's `load`: a model and its tokenizer from a path, a name of the catalogue, or a hub."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import specdec
from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.mlx_lm.tokenizer_utils import TokenizerWrapper
from specdec.model.loaded import Model

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
_NO_EFFECT = ("trust_remote_code", "use_fast")  # no code of a model is ever run, and there is one implementation


def load(
    path_or_hf_repo: str,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    adapter_path: str | None = None,
    lazy: bool = False,
    return_config: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A model and its tokenizer.

    Args:
        path_or_hf_repo: a path, ORG/NAME of the Hugging Face hub, or a catalogue name; see `specdec.load`.
        tokenizer_config: `eos_token`, `bos_token`, `unk_token`, `pad_token` or `chat_template` in place of the model's
            own.
        model_config: refused unless every value is empty: a model is what its files say.
        adapter_path: refused: adapters are not read. Fuse them with mlx_lm.fuse first.
        lazy: makes no difference: weights are mapped into memory, and read when they are first needed.
        return_config: return the model's configuration, too.
        revision: branch, tag or commit of the hub.
        trust_remote_code: makes no difference: no code of a model is ever run.

    Returns:
        `(model, tokenizer)`, or `(model, tokenizer, config)`.

    Raises:
        InvalidArgumentError: an argument is refused.
        SpecdecError: the model cannot be loaded; see `specdec.load`.
    """
    if adapter_path is not None:
        raise InvalidArgumentError(
            f"adapter_path={adapter_path!r} is refused: specdec reads no adapters; fuse it with mlx_lm.fuse and load "
            "the fused folder"
        )
    if changed := sorted(name for name, value in (model_config or {}).items() if value):
        raise InvalidArgumentError(
            f"model_config is refused for {', '.join(changed)}: a model is what its own files say; change config.json"
        )
    named, template = _tokenizer_values(tokenizer_config or {})
    source = _at_revision(str(path_or_hf_repo), revision)
    model = specdec.load(source)
    if model.tokenizer is None:
        raise ModelFormatError(f"{path_or_hf_repo} has no tokenizer: load it with specdec.load, which takes token ids")
    tokenizer = TokenizerWrapper(model.tokenizer, named=named, chat_template=template)
    return (model, tokenizer, _config(model, tokenizer)) if return_config else (model, tokenizer)


def load_tokenizer(
    model_path: Any, tokenizer_config_extra: dict[str, Any] | None = None, eos_token_ids: Any = None
) -> TokenizerWrapper:
    """A model's tokenizer alone. Arguments are those of `load`; `eos_token_ids` are tokens that end answers, too."""
    from specdec.catalogue import resolve_model
    from specdec.store import Store
    from specdec.tokenizers import load_tokenizer as load_from

    named, template = _tokenizer_values(tokenizer_config_extra or {})
    folder = Store.open(resolve_model(str(model_path)), verify=False).tokenizer_path
    tokenizer = TokenizerWrapper(load_from(folder), named=named, chat_template=template)
    more = [int(eos_token_ids)] if isinstance(eos_token_ids, numbers.Integral) else list(eos_token_ids or ())
    tokenizer.eos_token_ids = {*tokenizer.eos_token_ids, *more}
    return tokenizer


def _at_revision(name: str, revision: str | None) -> str:
    """The name at a revision of the hub.

    Raises:
        InvalidArgumentError: it is not a name on a hub.
    """
    if revision is None:
        return name
    if Path(name).exists() or "/" not in name:
        raise InvalidArgumentError(f"revision={revision!r} is for models of a hub, and {name} is none")
    repo, colon, file = name.partition(":")
    return f"{repo}@{revision}{colon}{file}"


def _tokenizer_values(config: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """Named tokens and chat template of a tokenizer's configuration.

    Raises:
        InvalidArgumentError: another value, or one that is not text.
    """
    named: dict[str, str] = {}
    for name, value in config.items():
        if name in _NO_EFFECT or value is None:
            continue
        if name not in (*_TOKEN_NAMES, "chat_template"):
            known = ", ".join((*_TOKEN_NAMES, "chat_template"))
            raise InvalidArgumentError(f"tokenizer_config is refused for {name!r}: only {known} can be set")
        if not isinstance(value, str):
            raise InvalidArgumentError(f"tokenizer_config: {name} must be text, not {value!r}")
        named[name] = value
    template = named.pop("chat_template", None)
    return named, template


def _config(model: Model, tokenizer: TokenizerWrapper) -> dict[str, Any]:
    """The model's shape under the names of Hugging Face's config.json."""
    shape, first = model.config, model.config.layers[0]
    return {
        "model_type": shape.family,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": first.attention.heads,
        "num_key_value_heads": first.attention.kv_heads,
        "head_dim": first.attention.head_dim,
        "intermediate_size": first.mlp.width,
        "max_position_embeddings": shape.max_context,
        "eos_token_id": sorted(tokenizer.eos_token_ids),
        "bos_token_id": tokenizer.bos_token_id,
    }

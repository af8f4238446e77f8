"""mlx-lm's prompt caches: one object a layer, all of one text, continued by the calls that they are given to.

The engine keeps keys and values of all layers together, so the layers' objects share one `_Text`: its tokens, and the
engine's cache of them. A text is used as far as the layers' offsets say.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import save

from specdec.checks import check_count
from specdec.engine.prompt_cache import PromptCache
from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.mlx_lm.refusals import check_kv_size
from specdec.whole_file import write_output

if TYPE_CHECKING:
    from specdec.model.effort import Efforts
    from specdec.model.loaded import Model
    from specdec.runtimes.base import Cache, Runtime

_FORMAT = "specdec.prompt_cache"
_VERSION = "1"
_ENDING = ".safetensors"


class _Text:
    """Tokens that were read, and the engine's keys and values of them.

    Attributes:
        tokens: of the text.
        runtime: whose keys and values those are; None while there are none.
        cache: keys and values of a beginning of the text; None where they have yet to be computed. It is never written
            to again: what continues from here forks it.
        max_kv_size: most tokens, as the caller said.
    """

    def __init__(self, tokens: Sequence[int] = (), max_kv_size: int | None = None) -> None:
        self.tokens = list(tokens)
        self.runtime: Runtime | None = None
        self.cache: Cache | None = None
        self.max_kv_size = max_kv_size

    def __deepcopy__(self, memo: dict[int, Any]) -> _Text:
        other = memo[id(self)] = _Text(self.tokens, self.max_kv_size)
        other.runtime, other.cache = self.runtime, self.cache
        return other


class KVCache:
    """Keys and values of one layer. From `make_prompt_cache`, in a list of as many as the model has layers.

    Attributes:
        offset: tokens that it holds.
    """

    def __init__(self, text: _Text) -> None:
        self._text = text
        self.offset = len(text.tokens)

    def __repr__(self) -> str:
        return f"<specdec.mlx_lm KVCache of {self.offset} tokens>"

    @property
    def state(self) -> list[Any]:
        """Arrays that wait to be computed: none, ever."""
        return []

    def is_trimmable(self) -> bool:
        """Whether the last tokens can be taken back: always."""
        return True

    def trim(self, n: int) -> int:
        """Take back the last `n` tokens, or as many as there are; returns how many.

        Raises:
            InvalidArgumentError: `n` is not a whole number of at least 0.
        """
        taken = min(self.offset, check_count("the number of tokens to trim", n, least=0))
        self.offset -= taken
        return taken

    def size(self) -> int:
        """Tokens that it holds."""
        return self.offset

    def empty(self) -> bool:
        """Whether it holds nothing."""
        return self.offset == 0

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values; 0 while they have yet to be computed."""
        cache, config = self._text.cache, None if self._text.runtime is None else self._text.runtime.config
        return 0 if cache is None or config is None else cache.nbytes // config.num_layers


def make_prompt_cache(model: Model, max_kv_size: int | None = None) -> list[KVCache]:
    """An empty cache for a conversation: what is generated with it goes on where the last call ended.

    Args:
        model: from `load`.
        max_kv_size: most tokens of the conversation; a call that might need more is refused, since nothing is
            forgotten.
    """
    check_kv_size(max_kv_size, 0)
    text = _Text(max_kv_size=max_kv_size)
    return [KVCache(text) for _ in range(model.config.num_layers)]


def save_prompt_cache(file_name: str, cache: list[KVCache], metadata: dict[str, str] | None = None) -> None:
    """Write a cache to a `.safetensors` file.

    The file holds the tokens. Their keys and values are computed again when the loaded cache is first used, bit for bit
    as they were, on whatever runtime that is.

    Args:
        file_name: of the file, which appears whole or not at all; `.safetensors` is added if it is missing.
        cache: from `make_prompt_cache`.
        metadata: texts to keep with it.

    Raises:
        InvalidArgumentError: this is not a prompt cache, the metadata are not text, or the file cannot be written.
    """
    text, length = _text_of(cache)
    noted = metadata or {}
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in noted.items()):
        raise InvalidArgumentError("metadata must be a mapping of texts to texts")
    described = {"format": _FORMAT, "version": _VERSION, "layers": str(len(cache)), "metadata": json.dumps(noted)}
    if text.max_kv_size is not None:
        described["max_kv_size"] = str(text.max_kv_size)
    path = Path(f"{str(file_name).removesuffix(_ENDING)}{_ENDING}")  # as MLX names it
    try:
        write_output(path, save({"tokens": np.array(text.tokens[:length], np.int32)}, described))
    except unless_signalled(OSError) as error:
        raise InvalidArgumentError(f"cannot write the prompt cache {path}: {error.strerror or error}") from None


def load_prompt_cache(file_name: str, return_metadata: bool = False) -> Any:
    """Read a cache that `save_prompt_cache` wrote.

    Args:
        file_name: of the file.
        return_metadata: return its metadata, too.

    Returns:
        The cache, or the cache and the metadata.

    Raises:
        ModelFormatError: the file cannot be read, or is not of this kind.
    """
    arrays: Any
    described: Any
    try:
        arrays, described = mx.load(str(file_name), return_metadata=True)
    except unless_signalled(RuntimeError, ValueError, OSError) as error:
        raise ModelFormatError(f"cannot read the prompt cache {file_name}: {_first_line(error)}") from None
    if described.get("format") != _FORMAT or described.get("version") != _VERSION or "tokens" not in arrays:
        raise ModelFormatError(
            f"{file_name} is not a prompt cache of specdec: read the prompt again and save it with specdec.mlx_lm"
        )
    try:
        layers, noted = int(described["layers"]), json.loads(described["metadata"])
        bound = int(described["max_kv_size"]) if "max_kv_size" in described else None
        text = _Text([int(token) for token in arrays["tokens"].tolist()], bound)
    except unless_signalled(KeyError, ValueError, TypeError):
        raise ModelFormatError(f"{file_name} is damaged: read the prompt again and save it") from None
    cache = [KVCache(text) for _ in range(layers)]
    return (cache, noted) if return_metadata else cache


def can_trim_prompt_cache(cache: list[KVCache]) -> bool:
    """Whether the last tokens of a cache can be taken back."""
    return all(one.is_trimmable() for one in cache)


def trim_prompt_cache(cache: list[KVCache], num_tokens: int) -> int:
    """Take back the last tokens of a cache, in place.

    Returns:
        How many there were to take back, at most `num_tokens`.
    """
    if not cache or not can_trim_prompt_cache(cache):
        return 0
    taken = [one.trim(num_tokens) for one in cache]
    return taken[0]


class Continued(PromptCache):
    """A caller's cache for the time of one answer: gives the engine what it holds, and takes over what the answer adds.

    Args:
        cache: from `make_prompt_cache`; None holds nothing and takes nothing.
        model: that answers.

    Attributes:
        tokens: that the cache holds.
        emitted: tokens of the prompt and the answer that the caller has seen; what was computed beyond is left out.

    Raises:
        InvalidArgumentError: the cache is of another model, or of none.
    """

    def __init__(self, cache: list[KVCache] | None, model: Model) -> None:
        super().__init__()
        self._layers = cache
        self._text, length = (_Text(), 0) if cache is None else _text_of(cache)
        config = model.config
        if cache is not None and (len(cache) != config.num_layers or not self._is_of(model)):
            raise InvalidArgumentError(
                "prompt_cache is of another model: make one with make_prompt_cache(model) for this one"
            )
        self.tokens = self._text.tokens[:length]
        self.emitted = 0

    def check_size(self, max_kv_size: int | None, needed: int) -> None:
        """Refuse a bound that may not do; see `check_kv_size`."""
        check_kv_size(max_kv_size, needed)
        check_kv_size(self._text.max_kv_size, needed)

    def take(
        self,
        runtime: Runtime,  # noqa: ARG002  # the model's
        prompt: Sequence[int],
        *,
        efforts: Efforts,  # noqa: ARG002  # always those of effort 1
        capacity: int,
    ) -> Cache | None:
        """Keys and values of the tokens that the cache holds, all but the prompt's last one."""
        cache = self._text.cache
        if cache is None:
            return None
        return cache.fork(min(cache.length, len(self.tokens), len(prompt) - 1), capacity)

    def keep(
        self,
        runtime: Runtime,
        tokens: Sequence[int],
        cache: Cache,
        *,
        efforts: Efforts,  # noqa: ARG002
    ) -> None:
        """Take over the answer's keys and values."""
        if self._layers is None or not self.emitted:
            return
        text = self._text
        text.tokens, text.runtime, text.cache = list(tokens[: self.emitted]), runtime, cache
        for layer in self._layers:
            layer.offset = len(text.tokens)

    def _is_of(self, model: Model) -> bool:
        text = self._text
        known = text.runtime is None or text.runtime is model.runtime
        return known and all(0 <= token < model.config.vocab_size for token in text.tokens)


def copied(cache: list[KVCache]) -> list[KVCache]:
    """A cache of its own with the same content, which later calls do not change."""
    return copy.deepcopy(cache)


def _text_of(cache: object) -> tuple[_Text, int]:
    """What the layers share, and how much of it they hold.

    Raises:
        InvalidArgumentError: it is not a cache of this package, or the layers differ.
    """
    if not isinstance(cache, (list, tuple)) or not cache or not all(isinstance(one, KVCache) for one in cache):
        raise InvalidArgumentError(
            "prompt_cache must come from specdec.mlx_lm.models.cache.make_prompt_cache or load_prompt_cache"
        )
    if len({id(one._text) for one in cache}) > 1 or len({one.offset for one in cache}) > 1:
        raise InvalidArgumentError("the layers of prompt_cache differ: use trim_prompt_cache, which trims all of them")
    return cache[0]._text, cache[0].offset


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

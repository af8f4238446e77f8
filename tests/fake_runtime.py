"""A runtime, a tokenizer and a model without weights, so that engine tests are quick and need no download.

Logits are pseudo-random numbers made from the token history. A draft view sees them through noise that grows as effort
falls, so drafts are accepted now and then. The fake is strict where a real runtime is: what the cache holds matters. An
exact pass over a history that was not written by exact passes at the same effort gives other logits, so a loop that
forgets to clear its drafts is found out.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.model.architecture import ModelConfig
from specdec.model.effort import EffortSchedule
from specdec.model.loaded import Model
from specdec.runtimes.base import ForwardResult

BOS, EOS = 256, 257


def fake_config(*, vocab_size: int = 258, max_context: int = 512) -> ModelConfig:
    """A small model description; only vocabulary and context mean anything to the fake runtime."""
    return ModelConfig(
        architecture="llama",
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        norm_eps=1e-5,
        rope_theta=10000.0,
        max_context=max_context,
        tie_embeddings=True,
    )


class FakeCache:
    """For every token the digest of the token history up to it, and by what kind of pass it was written."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: list[tuple[bytes, tuple[object, ...]]] = []

    @property
    def length(self) -> int:
        return len(self.entries)

    def trim(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise InvalidArgumentError(f"cannot trim a cache of {self.length} tokens to {length}")
        del self.entries[length:]


class FakeRuntime:
    """See the module.

    Args:
        config: vocabulary and context.
        seed: of the "weights".
        sharpness: standard deviation of the logits.
        draft_noise: standard deviation of what a draft view adds at effort 0, by view. Leaving out all layers adds as
            much again.
        batched_views: what the runtime says of itself.
    """

    name = "fake"
    auto_draft = ("int4", 0.5)

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        seed: int = 0,
        sharpness: float = 3.0,
        draft_noise: Mapping[str, float] | None = None,
        batched_views: tuple[str, ...] = (),
    ) -> None:
        self.config = config or fake_config()
        self.seed, self.sharpness = seed, sharpness
        self.draft_noise = dict(draft_noise or {"bucket": 2.0, "int4": 1.0})
        self.batched_views = batched_views
        self.passes: list[tuple[str, float, int, int]] = []  # view, effort, cache length before, rows
        self.prepared: list[str] = []
        self.fail_at_pass: int | None = None
        self.failure: BaseException = KeyboardInterrupt()

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.draft_noise)

    def prepare_view(self, view: str) -> None:
        self.prepared.append(view)

    def new_cache(self, capacity: int) -> FakeCache:
        return FakeCache(capacity)

    def forward(
        self,
        tokens: Sequence[int],
        cache: FakeCache,
        *,
        effort: EffortSchedule,
        view: str = "exact",
        last_only: bool = False,
        layers: int | None = None,
    ) -> ForwardResult:
        if view != "exact" and view not in self.draft_noise:
            raise UnknownNameError("view", view, ["exact", *self.views])
        if not tokens or cache.length + len(tokens) > cache.capacity:
            raise InvalidArgumentError("no tokens, or no room for them")
        self.passes.append((view, effort.default, cache.length, len(tokens)))
        missing = 0.0 if layers is None else 1 - layers / self.config.num_layers
        kind = (view, effort.default, *effort.rules.items(), *([layers] if missing else []))
        rows = []
        for index, token in enumerate(tokens):
            if not 0 <= token < self.config.vocab_size:
                raise InvalidArgumentError(f"token id {token} is outside the vocabulary")
            before = cache.entries[-1][0] if cache.entries else b""
            cache.entries.append((hashlib.blake2b(before + token.to_bytes(4, "little"), digest_size=8).digest(), kind))
            if index == len(tokens) // 2 and len(self.passes) == self.fail_at_pass:
                raise self.failure
            if not last_only or index + 1 == len(tokens):
                rows.append(self._row(cache, kind, view, effort.default - missing))
        return ForwardResult(np.stack(rows), bytes_read=1000 * len(tokens) + (7 if view == "exact" else 3))

    def _row(self, cache: FakeCache, kind: tuple[object, ...], view: str, effort: float) -> np.ndarray:
        history = cache.entries[-1][0]
        logits = self.sharpness * self._random(history, b"weights")
        if view == "exact":
            if effort < 1:
                logits += (1 - effort) * self._random(history, repr(effort).encode())
            foreign = repr([entry[1] for entry in cache.entries if entry[1] != kind])
            if foreign != "[]":
                logits += self._random(history, foreign.encode())
        else:
            logits += (1 - effort) * self.draft_noise[view] * self._random(history, view.encode())
        return logits.astype(np.float32)

    def _random(self, *parts: bytes) -> np.ndarray:
        key = hashlib.blake2b(b"|".join([*parts, str(self.seed).encode()]), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        return generator.standard_normal(self.config.vocab_size)


class ByteDetokenizer:
    """UTF-8 bytes to text, never half a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < BOS else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """Tokens 0 to 255 are bytes; 256 begins a text and 257 ends it."""

    bos_id = BOS
    vocab_size = 258
    fingerprint = "bytes"

    def __init__(
        self, *, add_bos: bool = False, has_chat_template: bool = False, eos: frozenset[int] | None = None
    ) -> None:
        self.add_bos, self.has_chat_template = add_bos, has_chat_template
        self.eos_ids = frozenset({EOS}) if eos is None else eos

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        if text == "<end>":
            return [EOS]
        return [BOS] * (self.add_bos if add_bos is None else add_bos) + list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, continues: bool = False) -> str:  # noqa: ARG002
        names = {BOS: b"", EOS: b"" if skip_special else b"<end>"}
        return b"".join(names.get(token, bytes([token % 256])) for token in ids).decode(errors="replace")

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        text = "".join(f"<{message['role']}>{message['content']}\n" for message in messages)
        return text + "<assistant>" * add_generation_prompt

    def detokenizer(self, *, continues: bool = False) -> ByteDetokenizer:  # noqa: ARG002
        return ByteDetokenizer()


def fake_model(*, tokenizer: ByteTokenizer | None = None, **options: object) -> Model:
    """A model on the fake runtime, with the byte tokenizer unless another one is given."""
    return Model(FakeRuntime(**options), tokenizer or ByteTokenizer())  # type: ignore[arg-type]

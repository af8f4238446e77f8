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
from dataclasses import replace

import numpy as np

from specdec.drafters.signals import LogitDistribution
from specdec.errors import InvalidArgumentError
from specdec.model.architecture import ModelConfig
from specdec.model.loaded import Model
from specdec.progress import Count, reported
from specdec.runtimes.base import Choice, DraftHead, Pass, Recycling, Rows, RuntimeInfo, Turn, ViewInfo, check_view
from specdec.runtimes.checks import check_batch, check_capacity, check_fork, check_keep, check_trim, checked_tokens
from specdec.tokenizers.messages import checked_messages

BOS, EOS = 256, 257


def fake_config(*, vocab_size: int = 258, max_context: int = 512) -> ModelConfig:
    """A small model description; only vocabulary and context mean anything to the fake runtime."""
    return ModelConfig.uniform(
        family="llama",
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
        check_capacity(capacity)
        self.capacity = capacity
        self.entries: list[tuple[bytes, tuple[object, ...]]] = []

    @property
    def length(self) -> int:
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        return 64 * (-(-self.length // 16) * 16)

    def blocks(self) -> dict[int, int]:
        return {id(self): self.nbytes}

    def trim(self, length: int) -> None:
        check_trim(length, self.length)
        del self.entries[length:]

    def keep(self, base: int, rows: Sequence[int]) -> None:
        check_keep(self.length, base, rows)
        self.entries[base:] = [self.entries[base + row] for row in rows]

    def fork(self, length: int, capacity: int) -> FakeCache:
        check_fork(self.length, length, capacity)
        other = FakeCache(capacity)
        other.entries = self.entries[:length]
        return other


class FakeRuntime:
    """See the module.

    Args:
        config: vocabulary and context.
        seed: of the "weights".
        sharpness: standard deviation of the logits.
        draft_noise: standard deviation of what a draft view adds at effort 0, by view. Leaving out all layers adds as
            much again.
        most_ahead: the runtime chooses, and goes ahead for at most so many tokens; None has it show logits alone.
        recycles: rows of the turns that it drafts itself: what followed the last token last time, and wrong siblings.
        drafts_ahead: as `most_ahead`, in draft views.
    """

    info = RuntimeInfo(name="fake", auto_draft=("int4", 0.5))

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        seed: int = 0,
        sharpness: float = 3.0,
        draft_noise: Mapping[str, float] | None = None,
        most_ahead: int | None = None,
        recycles: int = 0,
        drafts_ahead: int = 0,
    ) -> None:
        if most_ahead is not None:
            self.info = replace(
                self.info, chooses=True, most_ahead=most_ahead, recycles=recycles, drafts_ahead=drafts_ahead
            )
        self.config = config or fake_config()
        self.seed, self.sharpness = seed, sharpness
        self.draft_noise = dict(draft_noise or {"bucket": 2.0, "int4": 1.0})
        self.passes: list[tuple[str, float, int, int]] = []  # view, effort, cache length before, rows
        self.prepared: list[str] = []
        self.fail_at_pass: int | None = None
        self.failure: BaseException = KeyboardInterrupt()

    @classmethod
    def missing(cls, config: ModelConfig) -> frozenset[str]:
        return frozenset()

    def views(self) -> Mapping[str, ViewInfo]:
        return {name: ViewInfo(name=name) for name in self.draft_noise}

    def prepare(self, view: str, *, progress: Count | None = None) -> None:
        for _ in reported(range(4 if view not in self.prepared else 0), progress):
            pass
        self.prepared.append(view)

    def new_cache(self, capacity: int) -> FakeCache:
        return FakeCache(capacity)

    def cache_bytes(self, capacity: int) -> int:
        return 64 * (-(-capacity // 16) * 16)

    def draft_head(self, tokens: tuple[int, ...]) -> DraftHead:
        raise InvalidArgumentError("the fake runtime has no draft heads")

    def forward(self, batch: Sequence[Rows], *, view: str = "exact", states: bool = False) -> list[Pass]:
        check_batch(batch, self.config, FakeCache, chooses=self.info.chooses)
        check_view(view, self.views())
        held = [(rows.cache, list(rows.cache.entries)) for rows in batch]  # type: ignore[attr-defined]
        try:
            return [self._shown(rows, view, states, alone=len(batch) == 1) for rows in batch]
        except BaseException:
            for cache, entries in held:
                cache.entries[:] = entries
            raise

    def _recycled(self, rows: Rows, wanted: Recycling) -> Pass:
        """Turns: a chain of what followed the last token, and a token after each that hardly comes."""
        text, turns, read = list(wanted.text), list[Turn](), 0
        for _ in range(1 + rows.ahead):
            tokens, parents, base = (
                drafted_of(text, min(wanted.rows, wanted.limit - len(text))),
                list[int](),
                rows.cache.length,
            )
            parents = [-1 if number < 2 else number - 2 for number in range(len(tokens))]
            tree = [-1, *(parent + 1 for parent in parents)]
            rows_of = replace(rows, tokens=[text[-1], *tokens], parents=tree, logits="all", ahead=0, recycling=None)
            result = self._forward(rows_of, "exact", states=False)
            choices, kept, last = [choice_of(result.logits[0])], list[int](), -1
            for number, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
                if parent == last and token == choices[-1].token:
                    kept.append(number)
                    choices.append(choice_of(result.logits[number + 1]))
                    last = number
            rows.cache.keep(base, [0, *(number + 1 for number in kept)])
            turns.append(Turn(tokens, parents, kept, choices))
            new, read = [choice.token for choice in choices], read + result.bytes_read
            text += new
            if rows.ends & set(new) or len(text) >= wanted.limit:
                break
        return Pass(np.empty((0, self.config.vocab_size), np.float32), read, turns=turns)

    def _shown(self, rows: Rows, view: str, states: bool, *, alone: bool) -> Pass:
        """A sequence's part of a pass, and the steps that it goes ahead for."""
        if rows.logits != "choices":
            return self._forward(rows, view, states)
        if rows.recycling is not None and self.info.recycles and alone:
            return self._recycled(rows, rows.recycling)
        result = self._forward(replace(rows, logits="all", ahead=0), view, states)
        logits, read = [*result.logits], result.bytes_read
        most = self.info.most_ahead if view == "exact" else self.info.drafts_ahead * alone
        for _ in range(min(most, rows.ahead, rows.cache.capacity - rows.cache.length)):
            token = int(logits[-1].argmax())
            if token in rows.ends or choice_of(logits[-1]).margin < rows.least_margin:
                break
            further = self._forward(replace(rows, tokens=[token], logits="all", ahead=0), view, states)
            logits, read = [*logits, *further.logits], read + further.bytes_read
        choices = [choice_of(row) for row in logits]
        return Pass(np.empty((0, self.config.vocab_size), np.float32), read, None, choices)

    def _forward(self, rows: Rows, view: str, states: bool) -> Pass:
        cache, tokens = rows.cache, rows.tokens
        assert isinstance(cache, FakeCache)
        checked_tokens(tokens, cache, self.config.vocab_size)
        schedule = rows.efforts.values.tolist()
        effort = schedule[0]
        self.passes.append((view, effort, cache.length, len(tokens)))
        missing = 0.0 if rows.layers is None else 1 - rows.layers / self.config.num_layers
        kind = (view, *dict.fromkeys(schedule), *([rows.layers] if missing else []))
        parents = range(-1, len(tokens) - 1) if rows.parents is None else rows.parents
        history, new, logits = list(cache.entries), [], []
        for index, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            path: list[tuple[bytes, tuple[object, ...]]] = []
            ancestor = parent
            while ancestor >= 0:
                path.append(new[ancestor])
                ancestor = parents[ancestor]
            seen = history + path[::-1]
            before = seen[-1][0] if seen else b""
            digest = hashlib.blake2b(before + token.to_bytes(4, "little"), digest_size=8).digest()
            new.append((digest, kind))
            cache.entries.append(new[-1])
            if index == len(tokens) // 2 and len(self.passes) == self.fail_at_pass:
                raise self.failure
            if rows.logits == "all" or (rows.logits == "last" and index + 1 == len(tokens)):
                logits.append(self._row([*seen, new[-1]], kind, view, effort - missing))
        found = np.stack(logits) if logits else np.empty((0, self.config.vocab_size), np.float32)
        read = 1000 * len(tokens) + (7 if view == "exact" else 3)
        shape = (self.config.num_layers if rows.layers is None else rows.layers, len(tokens), self.config.hidden_size)
        return Pass(found, read, np.zeros(shape, np.float32) if states else None)

    def _row(
        self, seen: list[tuple[bytes, tuple[object, ...]]], kind: tuple[object, ...], view: str, effort: float
    ) -> np.ndarray:
        history = seen[-1][0]
        logits = self.sharpness * self._random(history, b"weights")
        if view == "exact":
            if effort < 1:
                logits += (1 - effort) * self._random(history, repr(effort).encode())
            foreign = repr([entry[1] for entry in seen if entry[1] != kind])
            if foreign != "[]":
                logits += self._random(history, foreign.encode())
        else:
            logits += (1 - effort) * self.draft_noise[view] * self._random(history, view.encode())
        return logits.astype(np.float32)

    def _random(self, *parts: bytes) -> np.ndarray:
        key = hashlib.blake2b(b"|".join([*parts, str(self.seed).encode()]), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        return generator.standard_normal(self.config.vocab_size)


def drafted_of(text: Sequence[int], rows: int) -> list[int]:
    """A chain of what followed the last token, each with a sibling that hardly comes."""
    tokens: list[int] = []
    last = text[-1]
    while len(tokens) + 2 < rows and last in text[:-1]:
        place = len(text) - 2 - text[-2::-1].index(last)
        last = text[place + 1]
        tokens += [last, (last + 1) % 200]
    return tokens


def choice_of(logits: np.ndarray) -> Choice:
    """What a runtime chooses of a row of logits."""
    token = int(logits.argmax())
    shape = LogitDistribution(logits, token)
    return Choice(token, float(logits[token]), shape.entropy, shape.top_probability, shape.margin)


class ByteDetokenizer:
    """UTF-8 bytes to text, never half a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < BOS else ""

    def control(self, token: int) -> str:
        return "<end>" if token == EOS else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """Tokens 0 to 255 are bytes; 256 begins a text and 257 ends it."""

    bos_id = BOS
    vocab_size = 258
    fingerprint = "bytes"
    control_names = frozenset({"<end>"})
    chat_template = None
    pieces = (*(bytes([byte]) for byte in range(256)), b"<begin>", b"<end>")
    special_ids = frozenset({BOS, EOS})
    strips_first_space = False

    def __init__(
        self, *, add_bos: bool = False, has_chat_template: bool = False, eos: frozenset[int] | None = None
    ) -> None:
        self.add_bos, self.has_chat_template = add_bos, has_chat_template
        self.eos_ids = frozenset({EOS}) if eos is None else eos

    def encode(self, text: str, *, add_bos: bool | None = None, literal: bool = False, fit: object = None) -> list[int]:
        if text == "<end>":
            return [EOS]
        return [BOS] * (self.add_bos if add_bos is None else add_bos) + list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special: bool = False, continues: bool = False) -> str:
        names = {BOS: b"", EOS: b"" if skip_special else b"<end>"}
        return b"".join(names.get(token, bytes([token % 256])) for token in ids).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BOS else {EOS: b"<end>"}.get(token, b"")

    def control_id(self, text: str) -> int | None:
        return EOS if text == "<end>" else None

    def apply_chat_template(self, messages: Sequence[object], **variables: object) -> str:
        return bytes(self.encode_chat(messages, variables=variables)).decode()

    def encode_chat(
        self,
        messages: Sequence[object],
        *,
        literal: bool = True,
        variables: Mapping[str, object],
        fit: object = None,
    ) -> list[int]:
        text = "".join(f"<{message['role']}>{message['content']}\n" for message in checked_messages(messages))
        return list((text[:-1] if variables.get("continue_final_message") else text + "<assistant>").encode())

    def detokenizer(self, *, continues: bool = False) -> ByteDetokenizer:
        return ByteDetokenizer()


def fake_model(*, tokenizer: ByteTokenizer | None = None, **options: object) -> Model:
    """A model on the fake runtime, with the byte tokenizer unless another one is given."""
    return Model(FakeRuntime(**options), tokenizer or ByteTokenizer())  # type: ignore[arg-type]

"""Which requests of a batch run: `Admission`. It bounds sequences and bytes of keys and values, kept texts included.

A request runs when its worst case fits: the keys and values of its prompt and of as many tokens as it may generate.
Until then it waits, first come, first served; texts of earlier answers go to make room, those used longest ago first.
A prompt takes over what a kept text or a running sequence of the same owner has read already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from specdec.engine.texts import Text, Texts, as_tokens, shared_length
from specdec.engine.ticket import Ticket
from specdec.errors import InvalidArgumentError
from specdec.runtimes.base import Cache

_MOST_TEXTS = 1024  # kept: each prompt is compared with all
_WORTH_WAITING = 16  # tokens that another sequence is about to read, for a prompt to wait for them


class Start(NamedTuple):
    """A request whose prompt may be read now.

    Attributes:
        ticket: of the request.
        cache: holds a beginning of its prompt; None when nothing of it is known.
    """

    ticket: Ticket
    cache: Cache | None


class Admission:
    """The requests of a batch that wait and run, and the texts that it keeps. It belongs to the batch's thread.

    Args:
        max_sequences: most that run.
        cache_bytes: bound of all keys and values.

    Attributes:
        running: admitted requests in the order of their arrival.
        waiting: others, in the same order.
        texts: of answers that ended.
        prompt_tokens: of all requests that were started.
        cached_prompt_tokens: how many of them were not read.
        has_changed: a request came, was started, or left; the reader's to take back.
    """

    def __init__(self, *, max_sequences: int, cache_bytes: int) -> None:
        self._most, self.cache_bytes = max_sequences, cache_bytes
        self.running: list[Ticket] = []
        self.waiting: deque[Ticket] = deque()
        self.texts = Texts()
        self.prompt_tokens = self.cached_prompt_tokens = 0
        self.has_changed = True
        self._is_stuck = False  # the first of those who wait does not fit, and nothing has changed since

    def worst_bytes(self, ticket: Ticket) -> int:
        """Most bytes of keys and values that a request may take.

        Raises:
            InvalidArgumentError: they are more than all requests together may take.
        """
        sequence = ticket.sequence
        worst = ticket.answer.worst_bytes()
        if worst > self.cache_bytes:
            raise InvalidArgumentError(
                f"{len(sequence.tokens)} tokens of prompt and {sequence.limit - len(sequence.tokens)} of an answer may "
                f"take {worst / 1e6:.1f} MB of keys and values, and cache_bytes allows {self.cache_bytes / 1e6:.1f} MB "
                "for all requests: ask for fewer max_tokens, shorten the prompt, or allow more"
            )
        return worst

    def join(self, ticket: Ticket) -> None:
        """Let a request wait for its turn."""
        self.waiting.append(ticket)
        self.has_changed = True

    def next(self) -> Start | None:
        """A request whose prompt is to be read from now on; to be called until there is none."""
        for ticket in self.running:
            if not ticket.is_started and not self._is_worth_waiting(ticket):
                return self._start(ticket, self._fork(ticket))
        while self.waiting and len(self.running) < self._most and not self._is_stuck:
            ticket = self.waiting[0]
            waits = self._is_worth_waiting(ticket)
            cache = None if waits else self._fork(ticket)
            if not self._make_room(cache, ticket.worst_bytes):
                self._is_stuck = True
                return None
            self.running.append(self.waiting.popleft())
            if not waits:
                return self._start(ticket, cache)
        return None

    def leave(self, ticket: Ticket) -> None:
        """Forget a request that has ended, but for the text that it has read."""
        self.has_changed = True
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        if ticket not in self.running:
            return
        self.running.remove(ticket)
        self._is_stuck = False
        cache = ticket.sequence.cache
        if ticket.is_started and cache.length:
            self.texts.add(Text(ticket.key, as_tokens(ticket.sequence.tokens[: cache.length]), cache))
            if len(self.texts) > _MOST_TEXTS:
                self.texts.drop_oldest()

    def used_bytes(self) -> int:
        """Bytes of keys and values allocated now; what caches share counts once."""
        caches = [ticket.sequence.cache for ticket in self.running] + [text.cache for text in self.texts]
        return sum(_union(caches).values())

    def reserved_bytes(self) -> int:
        """Most bytes that the requests that run may come to, and no kept text."""
        return sum(_union(ticket.sequence.cache for ticket in self.running).values()) + self._spare()

    def _start(self, ticket: Ticket, cache: Cache | None) -> Start:
        ticket.is_started = self.has_changed = True
        self.prompt_tokens += len(ticket.sequence.tokens)
        self.cached_prompt_tokens += 0 if cache is None else cache.length
        return Start(ticket, cache)

    def _is_worth_waiting(self, ticket: Ticket) -> bool:
        """Whether one that came earlier is about to read much of this prompt, which need not be read twice."""
        known = -1
        if ticket.sequence.prompt_logprobs is not None:
            return False
        for other in self.running:
            if other is ticket:
                return False
            if other.key != ticket.key or not other.sequence.unread:
                continue
            shared = shared_length(other.prompt, ticket.prompt)
            if shared - other.sequence.cache.length >= _WORTH_WAITING:
                if known < 0:
                    known = self._source(ticket)[1]
                if shared - known >= _WORTH_WAITING:
                    return True
        return False

    def _source(self, ticket: Ticket) -> tuple[Text | Ticket | None, int]:
        """The sequence that has read the longest part of the prompt, and the length of that part in tokens."""
        if ticket.sequence.prompt_logprobs is not None:  # what was read before has left no logits
            return None, 0
        source: Text | Ticket | None
        source, length = self.texts.find(ticket.key, ticket.prompt)
        for other in self.running:
            if other is ticket or not other.is_started or other.key != ticket.key:
                continue
            held = other.sequence.cache.length
            shared = min(shared_length(other.prompt, ticket.prompt), held)
            if shared == len(other.prompt) < held:  # and the beginning of its answer, perhaps
                shared = shared_length(as_tokens(other.sequence.tokens[:held]), ticket.prompt)
            if shared > length:
                source, length = other, shared
        return source, length

    def _fork(self, ticket: Ticket) -> Cache | None:
        """A cache with as much of the prompt as is known; None for none of it."""
        source, length = self._source(ticket)
        if source is None:
            return None
        if isinstance(source, Text):
            self.texts.use(source)
            return source.cache.fork(length, ticket.sequence.limit)
        return source.sequence.cache.fork(length, ticket.sequence.limit)

    def _make_room(self, cache: Cache | None, worst_bytes: int) -> bool:
        """Drop texts until another sequence fits, which has `cache` and may come to `worst_bytes`; False, and no text
        dropped, when it does not."""
        caches = [ticket.sequence.cache for ticket in self.running] + ([] if cache is None else [cache])
        pinned = _union(caches)
        needed = sum(pinned.values()) + self._spare() + worst_bytes - (0 if cache is None else cache.nbytes)
        if needed > self.cache_bytes:
            return False
        owners: dict[int, int] = {}
        for text in self.texts:
            for block, size in text.cache.blocks().items():
                if block not in pinned:
                    needed += 0 if block in owners else size
                    owners[block] = owners.get(block, 0) + 1
        while needed > self.cache_bytes:
            for block, size in self.texts.drop_oldest().cache.blocks().items():
                if block not in pinned:
                    owners[block] -= 1
                    needed -= 0 if owners[block] else size
        return True

    def _spare(self) -> int:
        """Bytes that the caches of the requests that run may still grow by."""
        return sum(ticket.worst_bytes - ticket.sequence.cache.nbytes for ticket in self.running)


def _union(caches: Iterable[Cache]) -> dict[int, int]:
    """The blocks of several caches, each once."""
    found: dict[int, int] = {}
    for cache in caches:
        found.update(cache.blocks())
    return found

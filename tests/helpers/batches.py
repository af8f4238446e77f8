"""Random passes over several sequences, chains and trees, whose bits are compared with each sequence's alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.runtimes.base import Rows, forward_one, is_chain, path_to


def random_parents(rng: np.random.Generator, count: int) -> list[int] | None:
    """A tree of `count` rows; now and then a chain."""
    if rng.random() < 0.4:
        return None
    return [int(rng.integers(-1, row)) if rng.random() < 0.5 else row - 1 for row in range(count)]


class Company:
    """Sequences that share passes, each with a cache of its own beside that of the same sequence alone.

    Args:
        runtime: what runs them.
        seed: of everything random.
        efforts: that sequences have in turn.
        view: of all passes.
        lengths: of prompts.
        most: rows of a sequence in a pass.
    """

    def __init__(
        self, runtime: Any, seed: int, *, efforts: tuple[float, ...] = (1.0,), view: str = "exact",
        lengths: tuple[int, ...], most: int, capacity: int = 400,
    ) -> None:  # fmt: skip
        self.runtime, self.view, self.most = runtime, view, most
        self.rng = np.random.default_rng(seed)
        self.caches = [runtime.new_cache(capacity) for _ in lengths]
        self.alone = [runtime.new_cache(capacity) for _ in lengths]
        self.efforts = [EffortSchedule(efforts[number % len(efforts)]) for number in range(len(lengths))]
        prompts = [self.tokens(length) for length in lengths]
        batch = [self.rows(number, prompt, None, logits="last") for number, prompt in enumerate(prompts)]
        for number, (prompt, made) in enumerate(zip(prompts, runtime.forward(batch, view=view), strict=True)):
            assert np.array_equal(made.logits, self.chain(number, prompt)[-1:])

    def tokens(self, count: int) -> list[int]:
        """Random ones."""
        return [int(token) for token in self.rng.integers(0, self.runtime.config.vocab_size, count)]

    def rows(self, number: int, tokens: list[int], parents: list[int] | None, logits: Any = "all") -> Rows:
        """What sequence `number` brings."""
        efforts = resolve_efforts(self.efforts[number], self.runtime.config)
        return Rows(self.caches[number], tokens, efforts, parents, None, logits)

    def chain(self, number: int, tokens: list[int]) -> np.ndarray:
        """Logits of a chain of sequence `number` alone."""
        return forward_one(self.runtime, tokens, self.alone[number], effort=self.efforts[number], view=self.view).logits

    def round(self) -> None:
        """A pass over some of the sequences, compared; then each keeps a path of what it has brought."""
        chosen = [n for n in range(len(self.caches)) if self.rng.random() < 0.8] or [0]
        batch, counts = [], [int(self.rng.integers(1, self.most + 1)) for _ in chosen]
        for number, count in zip(chosen, counts, strict=True):
            parents = random_parents(self.rng, count)
            logits = "all" if parents is not None and not is_chain(parents) else str(self.rng.choice(["all", "last"]))
            batch.append(self.rows(number, self.tokens(count), parents, logits))
        made = self.runtime.forward(batch, view=self.view)
        for number, rows, share in zip(chosen, batch, made, strict=True):
            self.compare(number, rows, share.logits)

    def compare(self, number: int, rows: Rows, found: np.ndarray) -> None:
        """Every path of the rows as a chain of its own; then one is kept, in part."""
        parents = list(range(-1, len(rows.tokens) - 1)) if rows.parents is None else list(rows.parents)
        alone, held, leaves = self.alone[number], self.alone[number].length, set(range(len(parents))) - set(parents)
        paths = [path_to(parents, leaf) for leaf in sorted(leaves)]
        for path in paths:
            logits = self.chain(number, [rows.tokens[row] for row in path])
            if rows.logits == "all":
                assert np.array_equal(found[path], logits)
            else:
                assert np.array_equal(found, logits[-1:])
            alone.trim(held)
        path = paths[int(self.rng.integers(len(paths)))]
        path = path[: int(self.rng.integers(0, len(path) + 1))]
        self.caches[number].keep(held, path)
        assert self.caches[number].length == held + len(path)
        if path:
            self.chain(number, [rows.tokens[row] for row in path])

    def fork(self, number: int) -> None:
        """A further sequence that begins as sequence `number` does."""
        cache, alone = self.caches[number], self.alone[number]
        length = int(self.rng.integers(1, cache.length + 1))
        self.caches.append(cache.fork(length, cache.capacity))
        self.alone.append(alone.fork(length, alone.capacity))
        self.efforts.append(self.efforts[number])

"""Runs a schedule on a runtime and compares every row with the same row computed alone, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from alone import Alone, Entry, Row
from schedules import Join, Schedule, Share, Step, text

from specdec.errors import InvalidArgumentError
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Cache, Pass, Rows


@dataclass
class _Live:
    """A sequence of a run: its cache, and the rows that it should hold."""

    cache: Cache
    rows: list[Row] = field(default_factory=list)


class ScheduleRun:
    """Runs one schedule.

    Args:
        alone: the runtime, and its rows alone.
        schedule: what to run.

    Attributes:
        checked: rows whose logits were compared.
    """

    def __init__(self, alone: Alone, schedule: Schedule) -> None:
        self.alone, self.schedule, self.runtime = alone, schedule, alone.runtime
        self.root, self.live, self.checked = alone.begin(), dict[int, _Live](), 0
        # Logits are the caller's own: no later pass may write them.
        self._returned: list[tuple[np.ndarray, np.ndarray]] = []

    def run(self) -> ScheduleRun:
        """Run it all; an `AssertionError` names the pass, the sequence and the row, and shows the schedule."""
        for number, step in enumerate(self.schedule.steps):
            try:
                self._step(step)
            except Exception as error:
                raise AssertionError(f"pass {number}: {error or type(error).__name__}\n\n{self.schedule}") from error
        for logits, copy in self._returned:
            assert np.array_equal(logits, copy), f"a later pass has changed logits\n\n{self.schedule}"
        row = next(iter(self.live.values())).rows[-1]
        fresh = self.alone.compute_afresh(row)
        assert np.array_equal(fresh, self.alone.compute(row).logits), "a trimmed cache and a fresh one differ, alone"
        return self

    def _step(self, step: Step) -> None:
        for join in step.joins:
            self._join(join)
        for name in step.leaves:
            del self.live[name]
        for share in step.shares:
            if share.trim is not None:
                self._trim(share.name, share.trim)
        if step.refused:
            self._refused(step)
        batch = [self._rows(share) for share in step.shares]
        passes = self.runtime.forward(batch, view=step.view, states=step.states)
        assert len(passes) == len(step.shares), f"{len(passes)} results for {len(step.shares)} sequences"
        for share, result in zip(step.shares, passes, strict=True):
            self._check(share, step, result)
        for share in step.shares:
            self._keep(share)
        for name, live in self.live.items():
            assert live.cache.length == len(live.rows), f"s{name} holds {live.cache.length}, not {len(live.rows)}"

    def _join(self, join: Join) -> None:
        if join.source is not None:
            origin = self.live[join.source[0]]
            cache = origin.cache.fork(join.source[1], join.capacity)
            self.live[join.name] = _Live(cache, origin.rows[: join.source[1]])
        else:
            self.live[join.name] = _Live(self.runtime.new_cache(join.capacity))
        assert self.live[join.name].cache.capacity == join.capacity, f"s{join.name} has another capacity"
        if join.prompt:
            share = Share(join.name, None, text(*join.prompt), join.effort, logits="last")
            result = self.runtime.forward([self._rows(share)])[0]
            self._check(share, Step((), (), "exact", (share,)), result)

    def _rows(self, share: Share) -> Rows:
        efforts = resolve_efforts(share.effort, self.runtime.config)
        return Rows(self.live[share.name].cache, share.tokens, efforts, share.parents, share.layers, share.logits)

    def _trim(self, name: int, length: int) -> None:
        live = self.live[name]
        live.cache.trim(length)
        del live.rows[length:]

    def _refused(self, step: Step) -> None:
        """The pass with a bad token at its end must raise and leave every cache as it is."""
        last = step.shares[-1]
        bad = replace(last, tokens=(*last.tokens[:-1], self.runtime.config.vocab_size))
        batch = [self._rows(share) for share in (*step.shares[:-1], bad)]
        try:
            self.runtime.forward(batch, view=step.view)
        except InvalidArgumentError:
            pass
        else:
            raise AssertionError("a token outside the vocabulary was taken")
        for share in step.shares:
            live = self.live[share.name]
            assert live.cache.length == len(live.rows), f"a refused pass has changed the cache of s{share.name}"

    def _check(self, share: Share, step: Step, result: Pass) -> None:
        """Compare a result with the rows alone, and note the new rows."""
        live, new = self.live[share.name], list[Row]()
        efforts = resolve_efforts(share.effort, self.runtime.config)
        before = live.rows[-1] if live.rows else self.root
        parents = range(-1, len(share.tokens) - 1) if share.parents is None else share.parents
        for token, parent in zip(share.tokens, parents, strict=True):
            entry = Entry(token, step.view, efforts, share.layers)
            new.append((before if parent < 0 else new[parent]).after(entry))
        base = len(live.rows)
        live.rows.extend(new)
        assert live.cache.length == base + len(new), (
            f"s{share.name} holds {live.cache.length} after {base} + {len(new)}"
        )
        shown = {"all": list(range(len(new))), "last": [len(new) - 1], "none": []}[share.logits]
        shape = (len(shown), self.runtime.config.vocab_size)
        assert (result.logits.shape, result.logits.dtype) == (shape, np.float32), f"logits {result.logits.shape}"
        assert result.bytes_read > 0, f"s{share.name} read nothing"
        for logits, row in zip(result.logits, shown, strict=True):
            self._equal(f"s{share.name}, row {row}: logits", logits, self.alone.compute(new[row]).logits)
        if step.states:
            self._check_states(share, new, result)
        self._returned.append((result.logits, result.logits.copy()))
        self.checked += len(shown)

    def _check_states(self, share: Share, new: list[Row], result: Pass) -> None:
        states, config = result.states, self.runtime.config
        shape = (share.layers or config.num_layers, len(new), config.hidden_size)
        assert states is not None, f"s{share.name} has no states"
        assert states.shape == shape, f"s{share.name}: states are {states.shape}, not {shape}"
        for number, row in enumerate(new):
            wanted = self.alone.compute(row).states
            self._equal(f"s{share.name}, row {number}: states", states[:, number], wanted)

    def _equal(self, what: str, found: np.ndarray, wanted: np.ndarray | None) -> None:
        assert wanted is not None
        if not np.array_equal(found, wanted):
            differ = int((found != wanted).sum())
            most = float(np.abs(found - wanted).max())
            raise AssertionError(f"{what} differ from those alone in {differ} of {wanted.size}, by up to {most:.3g}")

    def _keep(self, share: Share) -> None:
        if share.keep is None:
            return
        live = self.live[share.name]
        base = len(live.rows) - len(share.tokens)
        if share.by_trim:
            self._trim(share.name, base + len(share.keep))
        else:
            live.cache.keep(base, share.keep)
            live.rows[base:] = [live.rows[base + row] for row in share.keep]

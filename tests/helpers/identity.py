"""Compare an answer with speculation to plain decoding: tokens, text, and the logits of every verify pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fake_runtime import choice_of

import specdec
from specdec.model.loaded import Model
from specdec.runtimes.base import Pass, Rows, Runtime

POLICIES = (
    "fixed",
    "auto",
    "goodput:effort=0.5,explore=0.5",
    "heuristic:longest=6",
    "confidence:threshold=0.05",
    "entropy:threshold=0.1",
    "effort-entropy:stop=9",
    "bandit:block=1,arms=fixed:length=2+goodput+entropy",
)


DRAFTERS = (
    "effort",
    "auto",
    "ngram:min=1",
    "ngram:min=1;effort",
    "recycle",
    "chain:ngram:min=1,recycle;recycle;effort",
    "early-exit:1",
    "chain:ngram:min=1,max=2,effort",
    "chain:effort,ngram:min=1;early-exit:1",
)


class RecordingRuntime:
    """Passes everything on, and remembers the last exact logits of every position. Choices are made of the logits."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.config, self.info = runtime, runtime.config, runtime.info
        self.views, self.prepare, self.new_cache = runtime.views, runtime.prepare, runtime.new_cache
        self.missing = runtime.missing
        self.rows: dict[int, np.ndarray] = {}

    def forward(self, batch: Sequence[Rows], *, view: str = "exact", states: bool = False) -> list[Pass]:
        starts = [rows.cache.length for rows in batch]
        chosen = [view == "exact" and rows.logits == "choices" and rows.recycling is None for rows in batch]
        shown = [
            replace(rows, logits="all", ahead=0) if hides else rows for rows, hides in zip(batch, chosen, strict=True)
        ]
        results = self.runtime.forward(shown, view=view, states=states)
        for number, (rows, start, result) in enumerate(zip(shown, starts, results, strict=True)):
            if view == "exact" and rows.logits == "all":
                self.rows |= {start + 1 + index: row.copy() for index, row in enumerate(result.logits)}
            if chosen[number]:
                choices = [choice_of(row) for row in result.logits]
                results[number] = replace(result, logits=result.logits[:0], choices=choices)
        return results


def recorded(model: Model, prompt: list[int], **options: Any) -> tuple[specdec.Result, dict[int, np.ndarray]]:
    """The answer, and the logits behind each of its tokens. What policies have learnt goes from one to the next."""
    runtime = RecordingRuntime(model.runtime)
    recording = Model(runtime, model.tokenizer)
    recording.memory = model.memory
    result = specdec.generate(recording, prompt, **options)
    positions = range(len(prompt), len(prompt) + len(result.tokens))
    return result, {position: runtime.rows[position] for position in positions}


def assert_identical(model: Model, prompt: list[int], drafting: dict[str, Any], **options: Any) -> specdec.Result:
    # Drafts read through the exact view would end up among the recorded rows, but those of the verify pass come after.
    plain, plain_rows = recorded(model, prompt, speculate=False, **options)
    fast, fast_rows = recorded(model, prompt, **drafting, **options)
    assert fast.tokens == plain.tokens
    assert (fast.text, fast.finish_reason, fast.stopped_by) == (plain.text, plain.finish_reason, plain.stopped_by)
    assert fast.identical_to == plain.identical_to
    for position, row in plain_rows.items():
        assert np.array_equal(fast_rows[position].view(np.uint32), row.view(np.uint32))
    stats = fast.stats
    assert stats.emitted == len(fast.tokens)
    assert stats.emitted + stats.cut == stats.accepted + stats.rounds
    return fast

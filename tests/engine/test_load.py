"""A batch under load: many clients, mixed requests, broken-off answers; and what is left of them afterwards."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_admission import ENDLESS, TOKEN_BYTES, CountedRuntime, until
from text_model import text_store

import specdec
from specdec.engine.answer import Answer
from specdec.engine.sequence import Sequence
from specdec.engine.ticket import Ticket
from specdec.errors import QueueFullError
from specdec.model.loaded import Model

BEGINNINGS = ("the cat sat on the mat and ", "hello world hello world hello ", "one two three one two three one ", "")
WORDS = ("cat", "mat", "hello", "two", "three", "sat", "the", "world")


def request(random: np.random.Generator) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A prompt, options that decide the answer, and others that must not."""
    prompt = random.choice(BEGINNINGS) + " ".join(random.choice(WORDS, int(random.integers(1, 30))))
    options: dict[str, Any] = {"max_tokens": int(random.integers(1, 40)), "seed": int(random.integers(9))}
    if random.random() < 0.6:
        options |= {"temperature": float(random.choice([0.5, 1.0, 1.5])), "top_p": float(random.choice([1.0, 0.9]))}
    if random.random() < 0.2:
        options["verify_effort"] = 0.5
    if random.random() < 0.2:
        options["stop"] = str(random.choice(WORDS))
    other: dict[str, Any] = {"owner": str(random.integers(3))}
    ways = (
        {},
        {"policy": "fixed", "draft_len": int(random.integers(1, 6)), "drafter": "effort", "draft_effort": 0.3},
        {"drafter": "ngram:min=1", "policy": "fixed"},
        {"drafter": "chain:ngram,effort", "policy": "heuristic"},
        {"drafter": "early-exit:1", "policy": "fixed"},
        {"speculate": False},
    )
    return prompt, options, other | ways[int(random.integers(len(ways)))]


class Client(threading.Thread):
    """Asks one thing after another, and breaks some answers off."""

    def __init__(self, batch: specdec.Batch, number: int, requests: int) -> None:
        super().__init__()
        self.batch, self.random, self.requests = batch, np.random.default_rng(number), requests
        self.said: list[tuple[str, dict[str, Any], list[int], specdec.Result]] = []
        self.refused = 0

    def run(self) -> None:
        for _ in range(self.requests):
            prompt, options, other = request(self.random)
            breaks_off = self.random.random() < 0.25
            deadline_s = 0.02 if self.random.random() < 0.05 else 60.0
            try:
                generation = self.batch.submit(prompt, deadline_s=deadline_s, **options, **other)
            except QueueFullError:
                self.refused += 1
                time.sleep(0.01)
                continue
            tokens: list[int] = []
            for count, piece in enumerate(generation):
                tokens += piece.tokens
                if breaks_off and count == 2:
                    generation.close()
            self.said.append((prompt, options, tokens, generation.result()))


def test_answers_under_load_are_those_of_each_request_alone(tmp_path: Path):
    """32 clients; each answer equals plain decoding of that request alone, and broken-off ones are prefixes of it."""
    store = text_store(tmp_path / "store", max_context=512)
    model, alone = specdec.load(store), specdec.load(store)
    bound = 12 * model.runtime.cache_bytes(256)
    with specdec.Batch(model, max_sequences=10, cache_bytes=bound, queue=24) as batch:
        clients = [Client(batch, number, 4) for number in range(32)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(120)
            assert not client.is_alive()
        until(lambda: batch.status().running == 0)
        status = batch.status()
    said = [one for client in clients for one in client.said]
    assert len(said) + sum(client.refused for client in clients) == 32 * 4
    assert len(said) > 60
    assert status.cached_prompt_tokens > 0
    assert status.cache_bytes_used <= bound
    ends: dict[str, int] = {}
    for prompt, options, tokens, result in said:
        plain = specdec.generate(alone, prompt, speculate=False, **options)
        ends[result.stopped_by] = ends.get(result.stopped_by, 0) + 1
        assert tokens == result.tokens
        if result.stopped_by in ("caller", "deadline"):
            assert plain.tokens[: len(tokens)] == tokens
        else:
            assert (tokens, result.text, result.stopped_by) == (plain.tokens, plain.text, plain.stopped_by)
    assert ends.get("caller", 0) > 5
    assert ends.get("max_tokens", 0) > 20


def soak(seconds: float, seed: int = 0) -> tuple[specdec.Batch, CountedRuntime, int]:
    """Requests at random moments, some of which nobody reads to the end; returns when all have ended."""
    random = np.random.default_rng(seed)
    model = Model(CountedRuntime(seed=seed), ENDLESS)
    batch = specdec.Batch(model, max_sequences=8, cache_bytes=TOKEN_BYTES * 16 * 60, queue=12)
    held: list[specdec.Generation] = []
    end_s, asked = time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        prompt = [int(random.integers(4))] * int(random.integers(1, 80)) + random.integers(0, 256, 3).tolist()
        try:
            held.append(batch.submit(prompt, max_tokens=int(random.integers(1, 50)), owner=str(random.integers(2))))
            asked += 1
        except QueueFullError:
            pass
        time.sleep(float(random.exponential(0.004)))
        if len(held) > 20:
            place = int(random.integers(len(held)))
            if random.random() < 0.5:
                held[place].close()
            held.pop(place)
    for generation in held:
        list(generation)
    until(lambda: len(batch) == 0)
    return batch, model.runtime, asked


def remains() -> int:
    """Objects of requests that are still there."""
    gc.collect()
    return sum(isinstance(one, (Answer, Sequence, Ticket)) for one in gc.get_objects())


@pytest.mark.parametrize("seconds", [2.0, pytest.param(120.0, marks=pytest.mark.slow)])
def test_nothing_is_stuck_or_left_over(seconds):
    before = remains()
    batch, runtime, asked = soak(seconds)
    until(lambda: batch.status().running == 0)
    status = batch.status()
    assert asked > 10
    assert (status.waiting, status.running, status.cache_bytes_reserved, status.ended) == (0, 0, 0, asked)
    assert runtime.most_bytes <= TOKEN_BYTES * 16 * 60
    gc.collect()
    assert len(runtime.caches) == status.kept_texts
    assert remains() <= before + 1
    batch.close()
    assert remains() == before

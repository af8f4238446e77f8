"""What usually follows frequent tokens: asked of the model once, kept in the cache folder, and told to the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_runtime import ByteTokenizer, FakeRuntime

import specdec
from specdec.engine.successors import provide_successors
from specdec.model.loaded import Model


class Surveyed(FakeRuntime):
    """A runtime that counts surveys: every token is followed by those after it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(seed=3, most_ahead=15, recycles=16, **options)
        self.asked: list[tuple[list[int], int]] = []
        self.used: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def knows_successors(self) -> bool:
        return self.used is not None

    def survey(self, prefix: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        self.asked.append((list(prefix), len(tokens)))
        return (np.array(tokens, np.int32)[:, None] + 1 + np.arange(8, dtype=np.int32)) % self.config.vocab_size

    def use_successors(self, tokens: np.ndarray, successors: np.ndarray) -> None:
        self.used = tokens, successors


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    return tmp_path


def model_of(checksum: str | None = "abc") -> tuple[Model, Surveyed]:
    runtime = Surveyed()
    store: Any = None if checksum is None else SimpleNamespace(checksum=checksum, loaded_share=1.0)
    model = Model(runtime, ByteTokenizer())  # type: ignore[arg-type]
    model.store = store
    return model, runtime


def test_the_model_is_asked_once_and_the_next_process_reads_it(home):
    model, runtime = model_of()
    provide_successors(model, surveys=True)
    provide_successors(model, surveys=True)
    ((prefix, count),) = runtime.asked
    assert len(prefix) >= 2
    assert count == runtime.config.vocab_size  # of fewer tokens than are asked about in larger vocabularies
    assert runtime.used is not None
    tokens, successors = runtime.used
    assert successors.shape == (count, 8)
    assert (successors[:, 0] == (tokens + 1) % runtime.config.vocab_size).all()
    known = model.memory.drafters.successors
    assert len(known) == count
    assert known[3] == [(4 + rank) % runtime.config.vocab_size for rank in range(8)]
    again, other = model_of()
    provide_successors(again, surveys=False)
    assert again.memory.drafters.successors == known
    assert not other.asked
    assert other.used is not None
    assert all(np.array_equal(one, two) for one, two in zip(other.used, runtime.used, strict=True))
    another, third = model_of("def")
    provide_successors(another, surveys=True)
    assert third.asked


def test_nobody_waits_for_a_survey_beside_others():
    model, runtime = model_of()
    provide_successors(model, surveys=False)
    assert not runtime.knows_successors
    assert not runtime.asked


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 35, b"\xff" * 72, b"PK\x03\x04" * 9], ids=["empty", "cut", "far", "zip"]
)
def test_a_file_that_makes_no_sense_is_written_anew(home, content):
    model, _ = model_of()
    provide_successors(model, surveys=True)
    (file,) = (home / "successors").iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    again, runtime = model_of()
    provide_successors(again, surveys=True)
    assert runtime.asked
    assert file.read_bytes() == whole


def test_a_model_without_a_store_keeps_nothing(home):
    model, runtime = model_of(None)
    provide_successors(model, surveys=True)
    assert runtime.knows_successors
    assert not (home / "successors").exists()


def test_a_greedy_answer_asks_and_others_do_not():
    model, runtime = model_of(None)
    specdec.generate(model, "abc", max_tokens=4, temperature=0.8, seed=1)
    assert not runtime.asked
    specdec.generate(model, "abc", max_tokens=4, temperature=0.0)
    assert len(runtime.asked) == 1

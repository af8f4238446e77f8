"""Hostile input of many kinds, made from seeds, ends in an answer or in one sentence: no traceback, signal or hang."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import pytest
from command_line import run
from hostile import Bases, Worker, make_case
from hostile_sizes import CASES, LONG
from model_files import DATA, tiny_config, tiny_weights, write_huggingface
from text_model import CHAT_TEMPLATE, text_store, tokenizer_files
from tokenizer_files import ROWS, bpe_metadata, gguf_files, trained_sentencepiece

WORKERS = 2


class Case(NamedTuple):
    """A case's name, and what writes its files and returns the words of its command."""

    name: str
    write: Callable[[Bases, Path], list[str]]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    place = tmp_path_factory.mktemp("bases")
    folder = Path(shutil.copytree(DATA / "tiny-llama", place / "folder"))
    (folder / "tokenizer.json").write_bytes(tokenizer_files()["tokenizer.json"])
    settings = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE, "added_tokens_decoder": {}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    gguf_files(bpe_metadata(), place)
    pieces, weights = place / "pieces", tiny_weights("tiny-llama")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = np.resize(weights[name], (ROWS, weights[name].shape[1]))
    tensors = {name: ("F16", value) for name, value in weights.items()}
    write_huggingface(pieces, tiny_config("tiny-llama") | {"vocab_size": ROWS}, tensors)
    (pieces / "tokenizer.model").write_bytes(trained_sentencepiece())
    (pieces / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return Bases(folder, place / "m.gguf", text_store(place / "store"), pieces)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[SimpleQueue[Worker]]:
    free: SimpleQueue[Worker] = SimpleQueue()
    started = [Worker(tmp_path / "home") for _ in range(WORKERS)]
    for one in started:
        free.put(one)
    yield free
    for one in started:
        one.close()


def faults(cases: Iterable[Case], bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> list[str]:
    """What is wrong with how these cases end."""

    def try_case(case: Case) -> str:
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        worker = workers.get()
        try:
            found = worker.run(case.write(bases, place))
        finally:
            workers.put(worker)
            shutil.rmtree(place)
        return f"{case.name}: {found}" if found else ""

    with ThreadPoolExecutor(WORKERS) as pool:
        return [fault for fault in pool.map(try_case, cases) if fault]


def seeded(seeds: range) -> Iterator[Case]:
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    return (Case(f"seed {seed}", partial(make_case, seed)) for seed in seeds)


def test_what_cases_are_made_from_is_sound(bases: Bases, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (bases.folder, bases.gguf, bases.store, bases.pieces):
        ran = run(capsys, "generate", "--model", model, "--prompt", "hello", "--max-tokens", "2")
        assert ran.code == 0, ran.err


def test_500_cases(bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> None:
    found = faults(seeded(range(500)), bases, workers, tmp_path)
    assert not found, "\n".join(found)


def test_sizes_that_no_model_has(bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> None:
    found = faults((Case(*one) for one in CASES.items() if one[0] not in LONG), bases, workers, tmp_path)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_more_sizes_that_no_model_has(bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> None:
    found = faults((Case(name, CASES[name]) for name in LONG), bases, workers, tmp_path)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_10000_cases(bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> None:
    found = faults(seeded(range(500, 10_500)), bases, workers, tmp_path)
    assert not found, "\n".join(found)

"""Hostile input of many kinds, made from seeds, ends in an answer or in one sentence: no traceback, signal or hang."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest
from command_line import run
from hostile import Bases, Worker, make_case
from model_files import DATA
from text_model import CHAT_TEMPLATE, text_store, tokenizer_files
from tokenizer_files import bpe_metadata, gguf_files

WORKERS = 2


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    place = tmp_path_factory.mktemp("bases")
    folder = Path(shutil.copytree(DATA / "tiny-llama", place / "folder"))
    (folder / "tokenizer.json").write_bytes(tokenizer_files()["tokenizer.json"])
    settings = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE, "added_tokens_decoder": {}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    gguf_files(bpe_metadata(), place)
    return Bases(folder, place / "m.gguf", text_store(place / "store"))


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[SimpleQueue[Worker]]:
    free: SimpleQueue[Worker] = SimpleQueue()
    started = [Worker(tmp_path / "home") for _ in range(WORKERS)]
    for one in started:
        free.put(one)
    yield free
    for one in started:
        one.close()


def faults(seeds: range, bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> list[str]:
    """What is wrong with the cases of these seeds."""
    print(f"seeds {seeds.start} to {seeds.stop - 1}")

    def try_case(seed: int) -> str:
        place = tmp_path / str(seed)
        place.mkdir()
        worker = workers.get()
        try:
            found = worker.run(make_case(seed, bases, place))
        finally:
            workers.put(worker)
            shutil.rmtree(place)
        return f"seed {seed}: {found}" if found else ""

    with ThreadPoolExecutor(WORKERS) as pool:
        return [fault for fault in pool.map(try_case, seeds) if fault]


def test_what_cases_are_made_from_is_sound(bases: Bases, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (bases.folder, bases.gguf, bases.store):
        ran = run(capsys, "generate", "--model", model, "--prompt", "hello", "--max-tokens", "2")
        assert ran.code == 0, ran.err


def test_500_cases(bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> None:
    found = faults(range(500), bases, workers, tmp_path)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_10000_cases(bases: Bases, workers: SimpleQueue[Worker], tmp_path: Path) -> None:
    found = faults(range(500, 10_500), bases, workers, tmp_path)
    assert not found, "\n".join(found)

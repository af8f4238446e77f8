"""The comparison with peers: model files, what is read from other programs, and the sums; no peer is needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from model_files import gguf_parts, write_gguf
from places import ROOT

from specdec.formats import open_source
from specdec.store import Store, convert

BENCHMARKS = ROOT / "benchmarks"
MODULES = ("peers", "gguf_forms", "peer_llama", "peer_python", "common")
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the source tree")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the folder `benchmarks`, whose names are not to stay around."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_a_twin_as_gguf_holds_the_stores_matrices(name: str, tmp_path: Path, benchmark: Any) -> None:
    original = write_gguf(tmp_path / "model-f16.gguf", *gguf_parts(name))
    twin = convert(open_source(original), tmp_path / "twin.store", dither=3)
    made = benchmark("gguf_forms").with_weights_of(twin, original, tmp_path)
    store, found, before = Store.open(twin), open_source(made), open_source(original)
    for matrix in store.config.matrices():
        assert np.array_equal(found.matrix(matrix), store.exact(matrix).dense_bits()), matrix
    assert not np.array_equal(found.matrix("layers.0.attn.q"), before.matrix("layers.0.attn.q"))
    assert not list(tmp_path.glob("*.partial"))


def test_a_store_of_another_model_is_refused(tmp_path: Path, benchmark: Any) -> None:
    llama = write_gguf(tmp_path / "llama-f16.gguf", *gguf_parts("tiny-llama"))
    metadata, tensors = gguf_parts("tiny-llama")
    del tensors["blk.0.ffn_up.weight"]
    lacking = write_gguf(tmp_path / "lacking-f16.gguf", metadata, tensors)
    twin = convert(open_source(llama), tmp_path / "twin.store", dither=3)
    with pytest.raises(SystemExit, match=r"has no layers\.0\.mlp\.up"):
        benchmark("gguf_forms").with_weights_of(twin, lacking, tmp_path)


@pytest.mark.parametrize(
    ("draft", "printed", "expected"),
    [
        ("", "eval time = 500.00 ms / 20 runs", {"tokens": 20, "seconds": 0.5, "drafted": 0, "accepted": 0}),
        (
            "lookup",
            "decoded   31 tokens in    2.500 seconds, speed: 12.4 t/s\nn_drafted      = 12\nn_accept       = 9",
            {"tokens": 31, "seconds": 2.5, "drafted": 12, "accepted": 9},
        ),
    ],
)
def test_llama_cpps_words_are_read(
    tmp_path: Path, benchmark: Any, draft: str, printed: str, expected: dict[str, float]
) -> None:
    llama = benchmark("peer_llama")
    for name in llama.PROGRAMS:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{printed}' >&2\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    one = llama.LlamaContender(tmp_path, tmp_path / "m.gguf", draft=draft, threads=1, num_draft_tokens=4)
    assert one.answer("Hello", 32) == expected


def test_a_missing_peer_is_left_out_with_its_reason(tmp_path: Path, benchmark: Any) -> None:
    llama, peers = benchmark("peer_llama"), benchmark("peers")
    contenders = peers.Contenders()
    with contenders.peer("llama.cpp"):
        contenders.answers["llama.cpp original"] = None
        llama.programs(tmp_path, tmp_path)
    assert contenders.answers == {}
    assert "has no llama-completion" in contenders.skipped["llama.cpp"]


def test_a_worker_that_dies_says_why(tmp_path: Path, benchmark: Any) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(benchmark("peer_llama").PeerMissingError, match="no such package"):
        benchmark("peer_python").Worker(python, "peer_mlx_lm.py", [])


def test_ratios_are_to_plain_decoding_of_the_same_task(benchmark: Any) -> None:
    peers = benchmark("peers")
    tallies: dict[tuple[str, str], Any] = {}
    for name, task, tokens, seconds in (
        ("specdec plain", "qa", 10, 1.0),
        ("specdec plain", "rag", 10, 2.0),
        ("other", "qa", 30, 1.0),
        ("other", "rag", 10, 4.0),
    ):
        tally = tallies.setdefault((name, task), peers.Tally())
        tally.add({"tokens": tokens, "seconds": seconds, "drafted": 4, "accepted": 1})
        tally.add({"tokens": 0, "seconds": 1.0, "drafted": 0, "accepted": 0})  # nothing was decoded
    rows = {(row["contender"], row["task"]): row for row in peers.rows_of(tallies)}
    assert rows["other", "qa"]["ratio_to_plain"] == 3.0
    assert rows["other", "rag"]["ratio_to_plain"] == 0.5
    assert rows["other", "all"]["ratio_to_plain"] == 1.75
    assert rows["other", "all"]["tok_per_s"] == 8.0
    assert rows["other", "all"]["accepted_share"] == 0.25
    assert rows["other", "qa"]["answers"] == 1

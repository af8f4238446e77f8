"""A model that GPUs divide: one kernel for a step has the bits of a kernel for each phase, and two ranks those of one.

Where there is one GPU, both ranks have it and take turns, which takes some tenths of a second a step. Skipped where MLX
has no GPU, saying so. On the host: `test_rank_step.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_models import needed_gpu
from synthetic import SyntheticSource, tiny_config

from specdec.store import convert

GPU = needed_gpu()
if GPU.driver is None or GPU.driver.generation < 9:
    pytest.skip("needs a GPU of the Hopper generation", allow_module_level=True)

SIZES: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1280, "num_heads": 8, "num_kv_heads": 4}
SIZES |= {"head_dim": 64, "vocab_size": 1000, "num_layers": 3, "max_context": 1024, "qkv_bias": True}
PROGRAM = """
import json, sys
import numpy as np
import specdec
from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Rows

model = specdec.load(sys.argv[1], runtime="mlx")
runtime, full = model.runtime, resolve_efforts(1.0, model.config)
transformer = runtime._local._transformer
assert transformer.ranks is not None
ids = [int(token) for token in np.random.default_rng(5).integers(0, 1000, 600)]

def run(passes, view="exact"):
    cache, found = runtime.new_cache(1024), []
    for count in passes:
        begin = cache.length
        found.append(runtime.forward([Rows(cache, ids[begin : begin + count], full)], view=view)[0].logits)
    return [one.tobytes().hex() for one in found]

def greedy(ahead):
    cache = runtime.new_cache(1024)
    tokens = [runtime.forward([Rows(cache, ids[:9], full, logits="choices")])[0].choices[-1].token]
    while len(tokens) < 24:
        rows = Rows(cache, tokens[-1:], full, logits="choices", ahead=min(ahead, 23 - len(tokens)))
        tokens += [choice.token for choice in runtime.forward([rows])[0].choices]
    return tokens

passes = [1, 5, 13, 16, 230, 1, 7, 1]
found = {"steps": run(passes), "int4": run([1, 1], "int4"), "greedy": greedy(0), "ahead": greedy(15)}
if sys.argv[3] == "1":  # with one rank nobody else has to do the same
    transformer.ranks = None
    found["phases"] = run(passes)
json.dump(found, open(sys.argv[2], "w"))
"""


def answers(ranks: int, folder: Path, backend: str = "") -> dict[str, Any]:
    """What rank 0 finds."""
    program, target = folder / "program.py", folder / f"found{ranks}.json"
    program.write_text(PROGRAM)
    options = ["--backend", backend] if backend else []
    words = [sys.executable, "-m", "specdec", "launch", "-n", str(ranks), *options, "--", sys.executable]
    words += [str(program), str(folder / "model.store"), str(target), str(ranks)]
    subprocess.run(words, check=True, timeout=240, stdin=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def test_steps_of_ranks(tmp_path: Path) -> None:
    convert(SyntheticSource(tiny_config(**SIZES)), tmp_path / "model.store")
    alone = answers(1, tmp_path)
    assert alone["steps"] == alone["phases"]
    assert alone["ahead"] == alone["greedy"]
    last = np.frombuffer(bytes.fromhex(alone["steps"][-1]), np.float32)
    assert np.isfinite(last).all()
    assert last.std() > 0
    assert GPU.driver is not None
    both = answers(2, tmp_path, "nccl" if GPU.driver.neighbours()[1] else "ring")  # NCCL refuses ranks of one GPU
    assert all(both[name] == alone[name] for name in both)

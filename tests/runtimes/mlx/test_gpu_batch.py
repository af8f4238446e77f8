"""Passes over several sequences on a real GPU, as one kernel a step and as kernels one by one: a batch is its parts.

Skipped where MLX has no GPU, saying so. The same on the host is in `test_metal_batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Thread
from typing import Any

import numpy as np
import pytest
from batches import Company
from gpu_models import STEP_MODELS, WAYS, needed_gpu, random_store, runtime_in

from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import forward_one

needed_gpu()

EFFORTS = (1.0, 0.6, 0.3)
LENGTHS = (3, 250, 17, 200, 30)  # splits of attention end at 256


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """A runtime of one of `STEP_MODELS` that runs a step in one of `WAYS`; made once."""

    @cache
    def build(name: str, way: str) -> Any:
        return runtime_in(way, random_store(tmp_path_factory.mktemp("stores") / "store", STEP_MODELS[name]))

    return build


def play(company: Company, rounds: int) -> None:
    for number in range(rounds):
        company.round()
        if number == 1:
            company.fork(1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STEP_MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_equals_its_parts(runtime_of, name, way, seed):
    play(Company(runtime_of(name, way), seed, efforts=EFFORTS, lengths=LENGTHS, most=9), 8)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["float16", "quantised"])
def test_trees_of_many_rows_span_steps(runtime_of, name, way):
    company = Company(runtime_of(name, way), 5, efforts=(0.5, 1.0), lengths=(230, 30), most=60)
    play(company, 4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "view"), [("float16", "int4"), ("float16", "bucket"), ("quantised", "own"), ("quantised", "nested")]
)
def test_a_batch_of_drafts_equals_its_parts(runtime_of, name, view, way):
    play(Company(runtime_of(name, way), 7, efforts=(1.0, 0.5), view=view, lengths=(3, 250), most=4), 5)


@pytest.mark.parametrize("way", WAYS)
def test_twenty_sequences_share_steps(runtime_of, way):
    company = Company(runtime_of("float16", way), 9, efforts=(1.0,), lengths=tuple(range(1, 21)), most=2)
    play(company, 3)


@pytest.mark.parametrize("name", STEP_MODELS)
def test_a_model_uses_one_family_of_kernels_for_every_pass(runtime_of, monkeypatch, name):
    runtime = runtime_of(name, "one kernel")

    def refuse(*given: Any, **how: Any) -> Any:
        raise AssertionError("a kernel of one phase")

    monkeypatch.setattr(runtime._ops, "run", refuse)
    play(Company(runtime, 3, efforts=(1.0, 0.5), lengths=(40, 3, 5), most=5), 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STEP_MODELS)
def test_other_threads_get_the_same_bits(runtime_of, name, way):
    runtime, ids, found = runtime_of(name, way), list(range(40)), []
    wanted = forward_one(runtime, ids, runtime.new_cache(300), effort=EffortSchedule()).logits

    def run() -> None:
        kv = runtime.new_cache(300)
        found.append(forward_one(runtime, ids, kv, effort=EffortSchedule()).logits)

    for _ in range(2):
        threads = [Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 6
    assert all(np.array_equal(logits, wanted) for logits in found)

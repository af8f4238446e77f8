"""The bucket8 draft view of the native runtime: against the reference runtime, by instruction set, stored and built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_source, tiny_config

from specdec.effort import EffortSchedule
from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.native import NativeRuntime, native_module
from specdec.runtimes.reference import ReferenceRuntime
from specdec.store import Store, convert

try:
    ISAS = list(native_module().supported_isas())
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

FULL = EffortSchedule(1.0)
PROMPT = [3, 41, 7, 19, 2]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """One model with odd sizes, twice: with the view stored, and without."""
    folder = tmp_path_factory.mktemp("stores")
    sizes = {"hidden_size": 72, "intermediate_size": 230, "num_heads": 6, "head_dim": 12}
    config = tiny_config(architecture="qwen2", qkv_bias=True, **sizes)
    stored = convert(synthetic_source(config, dtype="bfloat16"), folder / "stored", views=("bucket8",))
    plain = convert(synthetic_source(config, dtype="bfloat16"), folder / "plain")
    return {"stored": Store.open(stored), "plain": Store.open(plain)}


def draft_logits(runtime: NativeRuntime | ReferenceRuntime, effort: EffortSchedule) -> np.ndarray:
    """Logits of the last prompt token by a bucket8 step over the exact history."""
    cache = runtime.new_cache(16)
    runtime.forward(PROMPT[:-1], cache, effort=FULL)
    return runtime.forward(PROMPT[-1:], cache, effort=effort, view="bucket8").logits[0]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("isa", ISAS)
def test_full_effort_matches_the_reference_view(stores: dict[str, Store], isa: str) -> None:
    expected = draft_logits(ReferenceRuntime(stores["stored"]), FULL)
    found = draft_logits(NativeRuntime(stores["stored"], isa=isa), FULL)
    # Native rounds activations to 8 bits, about 0.5 % a matrix; through two layers of random weights that
    # is a cosine of 0.9998.
    assert cosine(expected, found) > 0.999


@pytest.mark.parametrize("isa", ISAS)
def test_effort_chooses_tiers(stores: dict[str, Store], isa: str) -> None:
    runtime = NativeRuntime(stores["stored"], isa=isa)
    exact = draft_logits(runtime, FULL)
    by_effort = [cosine(exact, draft_logits(runtime, EffortSchedule(effort))) for effort in (0.8, 0.5, 0.2)]
    assert by_effort == sorted(by_effort, reverse=True)
    # Four fifths of the products, the largest, leave out about 1 % of the energy of Gaussian ones.
    assert by_effort[0] > 0.98
    assert by_effort[2] < 0.98


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_threads_or_repetition(stores: dict[str, Store], isa: str) -> None:
    schedules = [FULL, EffortSchedule(0.25), EffortSchedule(0.3, {"layers.*.mlp.up": 0.15, "layers.0.attn.k": 1.0})]
    one, three = (NativeRuntime(stores["stored"], isa=isa, threads=threads) for threads in (1, 3))
    for schedule in schedules:
        expected = draft_logits(one, schedule)
        for runtime in (one, three, three):
            assert np.array_equal(expected, draft_logits(runtime, schedule))


def test_view_is_built_where_the_store_lacks_it(stores: dict[str, Store]) -> None:
    stored, plain = NativeRuntime(stores["stored"]), NativeRuntime(stores["plain"])
    # Ranking and rounding are exact; only a score, a mean in float64 rounded once, could differ in its last bit,
    # which does not matter at effort 1.
    assert np.array_equal(draft_logits(stored, FULL), draft_logits(plain, FULL))
    assert cosine(draft_logits(stored, EffortSchedule(0.25)), draft_logits(plain, EffortSchedule(0.25))) > 0.999


def test_rows_of_a_pass_do_not_meet(stores: dict[str, Store]) -> None:
    runtime = NativeRuntime(stores["stored"])
    effort = EffortSchedule(0.25)
    cache = runtime.new_cache(16)
    together = runtime.forward(PROMPT, cache, effort=effort, view="bucket8").logits
    cache.trim(0)
    apart = [runtime.forward([token], cache, effort=effort, view="bucket8").logits[0] for token in PROMPT]
    assert np.array_equal(together, np.stack(apart))


def test_memory_is_reported(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=256, intermediate_size=512, num_heads=4, head_dim=64, vocab_size=1024)
    runtime = NativeRuntime(Store.open(convert(synthetic_source(config), tmp_path / "store")))
    runtime.prepare_view("bucket8")
    # 11 bits a weight of 16 (8 of the level, and 64 for the mask of every 16 but the last), steps and scores.
    assert 0.68 < runtime.memory["bucket8"] / runtime.memory["exact"] < 0.75

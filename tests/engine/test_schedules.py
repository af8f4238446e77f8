"""Row invariance: in any mixture of sequences, chunks, efforts, trees, drafts, joins and leaves each sequence gets the
bits that it gets alone. Schedules are drawn in `schedules`, and run and compared in `schedule_run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from alone import Alone
from fake_runtime import FakeRuntime, fake_config
from hypothesis import HealthCheck, Phase, given, settings
from metal_host_kernels import compiler
from metal_runtime import use_host
from schedule_run import ScheduleRun
from schedules import Limits, Schedule, random_schedule, schedules
from synthetic import quantised_config, quantised_source, synthetic_source, tiny_config

from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

# Shape of a model, and the types of its matrices in turn; none means 16 bits.
STORES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "16 bits": ({"max_context": 256}, ()),
    "window": ({"architecture": "mistral", "sliding_window": 5, "first_sliding_layer": 1, "num_layers": 3}, ()),
    "mixture": (
        {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False}, ()
    ),
    "head norms": ({"architecture": "qwen3", "qk_norm": True, "head_dim": 16, "max_context": 256}, ()),
    "quantised": ({"architecture": "qwen2", "qkv_bias": True, "tie_embeddings": False}, ("q4_k", "q8_0", "q6_k")),
    "quantised in part": ({"sliding_window": 7, "architecture": "mistral"}, ("q4_1", "16", "q5_0")),
    "one layer": ({"num_layers": 1}, ()),
    "quantised layer": ({"num_layers": 1}, ("q8_0",)),
    "quantised mixture": (
        {"architecture": "mixtral", "num_experts": 4, "experts_per_token": 2, "tie_embeddings": False},
        ("affine4-g128", "affine4-g32", "affine8-g64"),
    ),
}  # fmt: skip
# Runtime, store, schedules in `make test`, and more in `make test-all`: with those of Metal 100 and 2,000 in all.
CASES = (
    ("fake", "", 30, 660),
    ("reference", "16 bits", 6, 40),
    ("reference", "window", 4, 30),
    ("reference", "quantised", 4, 20),
    ("native", "16 bits", 16, 300),
    ("native", "window", 8, 200),
    ("native", "mixture", 8, 200),
    ("native", "head norms", 6, 140),
    ("native", "quantised", 8, 200),
    ("native", "quantised in part", 4, 100),
    ("native", "quantised mixture", 4, 100),
)
# A row takes 10 ms in plain MLX operations, and a second in GPU kernels on the host, which are a process each.
FEW_ROWS: dict[str, Any] = {"max_tokens": 40, "sequences": 3, "passes": 3, "prompt": 9, "tree": 6}
FEWEST_ROWS: dict[str, Any] = {"max_tokens": 12, "sequences": 2, "passes": 2, "prompt": 4, "tree": 4}

Make = Callable[[str, str], Alone]


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Store]:
    """A store of `STORES`, made once."""
    made: dict[str, Store] = {}

    def build(name: str) -> Store:
        if name not in made:
            shape, types = STORES[name]
            source = quantised_source(quantised_config(**shape), *types) if types else synthetic_source(
                tiny_config(**shape), dtype="bfloat16" if name == "window" else "float16"
            )  # fmt: skip
            path = convert(source, tmp_path_factory.mktemp("stores") / "store", quantised="keep" if types else None)
            made[name] = Store.open(path, verify=False)
        return made[name]

    return build


@pytest.fixture(scope="module")
def alone_of(store_of: Callable[[str], Store]) -> Make:
    """Rows alone of a runtime on a store, remembered for the tests of this file."""
    made: dict[tuple[str, str], Alone] = {}

    def build(name: str, store: str) -> Alone:
        if (name, store) not in made:
            if name == "fake":
                runtime: Any = FakeRuntime(fake_config(vocab_size=47))
            else:
                pytest.importorskip("mlx.core" if name == "reference" else "specdec.kernels.cpu._native")
                runtime = create_runtime(name, store_of(store))
            made[name, store] = Alone(runtime, capacity=runtime.config.max_context)
        return made[name, store]

    return build


def check(alone: Alone, limits: Limits, examples: int, *, shrink: bool = True) -> None:
    """Run schedules that hypothesis draws."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), phases=phases)
    @given(schedule=schedules(limits))
    def sequences_get_what_they_get_alone(schedule: Schedule) -> None:
        ScheduleRun(alone, schedule).run()

    sequences_get_what_they_get_alone()


@pytest.mark.parametrize(("runtime", "store", "examples", "_"), CASES)
def test_any_mixture_equals_its_parts(alone_of: Make, runtime: str, store: str, examples: int, _: int) -> None:
    alone = alone_of(runtime, store)
    check(alone, Limits.of(alone.runtime, **(FEW_ROWS if runtime == "reference" else {})), examples)


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "store", "_", "examples"), CASES)
def test_many_mixtures_equal_their_parts(alone_of: Make, runtime: str, store: str, _: int, examples: int) -> None:
    alone = alone_of(runtime, store)
    few = {"passes": 4, "sequences": 3}
    check(alone, Limits.of(alone.runtime, **(few if runtime == "reference" else {"passes": 9})), examples)


@pytest.mark.parametrize("store", ["16 bits", "quantised"])
def test_a_crowd_equals_its_parts(alone_of: Make, store: str) -> None:
    """Passes of up to 64 sequences and 512 rows."""
    alone = alone_of("native", store)
    crowd = Limits.of(alone.runtime, sequences=64, passes=4, prompt=40)
    for seed in range(3):
        ScheduleRun(alone, random_schedule(Random(seed), crowd)).run()


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch, programs: Path, store_of: Callable[[str], Store]) -> Callable[[str], Alone]:
    """Rows alone of the GPU runtime, its Metal kernels on the host."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    if compiler() is None:
        pytest.skip("needs a C++ compiler")
    use_host(monkeypatch, programs)
    from specdec.runtimes.mlx.runtime import MlxRuntime

    return lambda name: Alone(MlxRuntime(store_of(name)), capacity=FEWEST_ROWS["max_tokens"])


def test_any_mixture_equals_its_parts_in_metal_kernels(metal: Callable[[str], Alone]) -> None:
    alone = metal("one layer")
    check(alone, Limits.of(alone.runtime, early_exit=False, **FEWEST_ROWS, views=(), efforts=(1.0,)), 2, shrink=False)


@pytest.mark.slow
@pytest.mark.parametrize(("store", "examples"), [("one layer", 8), ("quantised layer", 4)])
def test_many_mixtures_equal_their_parts_in_metal_kernels(
    metal: Callable[[str], Alone], store: str, examples: int
) -> None:
    alone = metal(store)
    efforts = (1.0, 0.5)
    check(alone, Limits.of(alone.runtime, early_exit=False, **FEWEST_ROWS, efforts=efforts), examples, shrink=False)

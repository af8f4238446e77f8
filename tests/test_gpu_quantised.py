"""Quantised models on a real GPU: logits against float64, identity in any company, speculation by view.

Skipped where MLX has no GPU, saying so. The kernels' text on the host is in `test_metal_quant.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from synthetic import SyntheticSource, quantised_config, quantised_source
from test_engine_identity import POLICIES, assert_identical
from test_quantised_runtime import MODELS as ALL_MODELS
from test_quantised_runtime import float64_logits

from specdec.effort import EffortSchedule
from specdec.errors import RuntimeUnavailableError
from specdec.model import Model
from specdec.store import Store, convert

try:
    from specdec.runtimes.mlx import MlxRuntime
except (ImportError, RuntimeUnavailableError) as error:
    pytest.skip(f"needs a GPU that MLX can use: {error}", allow_module_level=True)

MODELS = {name: model for name, model in ALL_MODELS.items() if name != "mixture"}
IDS = [int(token) for token in np.random.default_rng(1).integers(0, 47, 40)]

Make = Callable[[str], tuple[SyntheticSource, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Source and runtime of a model of `MODELS`, made once."""

    @cache
    def build(name: str) -> tuple[SyntheticSource, Any]:
        shape, types = MODELS[name]
        dtype = "bfloat16" if "bf16" in types[0] else "float16"
        source = quantised_source(quantised_config(**shape), *types, dtype=dtype)
        path = convert(source, tmp_path_factory.mktemp("stores") / "store", quantised="keep")
        return source, MlxRuntime(Store.open(path, verify=False))

    return build


def logits_of(runtime: Any, piece: int, *, effort: float = 1.0, view: str = "exact") -> np.ndarray:
    """Logits of `IDS`, `piece` rows at a time."""
    kv, schedule = runtime.new_cache(len(IDS)), EffortSchedule(effort)
    pieces = [IDS[first : first + piece] for first in range(0, len(IDS), piece)]
    return np.concatenate([runtime.forward(rows, kv, effort=schedule, view=view).logits for rows in pieces])


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_dequantised_weights(made: Make, name: str) -> None:
    source, runtime = made(name)
    wanted = float64_logits(source, IDS)
    # As in test_gpu_runtime.py: the cache is float16, and where a step is one kernel activations are rounded, too.
    assert np.abs(logits_of(runtime, 16) - wanted).max() < 1e-2 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("effort", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_rows_are_the_same_bits_in_any_company(made: Make, name: str, effort: float) -> None:
    _, runtime = made(name)
    alone = logits_of(runtime, 1, effort=effort)
    assert np.isfinite(alone).all()
    for piece in (2, 5, 9, 16, 40):
        assert np.array_equal(logits_of(runtime, piece, effort=effort), alone)


@pytest.mark.parametrize("view", ["own", "nested"])
def test_drafts_are_near_the_model(made: Make, view: str) -> None:
    _, runtime = made("q8_0")
    exact = logits_of(runtime, 16).ravel()
    whole, half = (logits_of(runtime, 1, effort=effort, view=view).ravel() for effort in (1.0, 0.5))
    # On the reference runtime: 1 and 0.97; with half of the inputs, whose weights are as large as the others', 0.6.
    assert np.corrcoef(exact, whole)[0, 1] > 0.95
    assert 0.4 < np.corrcoef(exact, half)[0, 1] < 0.9


@pytest.mark.filterwarnings("ignore:draft effort:UserWarning")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["q4_k with q6_k", "affine in part"])
def test_speculation_changes_no_token(made: Make, name: str, policy: str) -> None:
    _, runtime = made(name)
    for view, efforts, temperature in (
        ("own", (0.5, 1.0), 0.0),
        ("nested", (1.0, 0.6), 1.0),
        ("own,nested", (0.3, 1), 0),
    ):
        drafting = {"draft_view": view, "policy": policy, "draft_effort": efforts[0], "draft_len": 4}
        assert_identical(
            Model(runtime), [1, 2, 3], drafting, max_tokens=16, verify_effort=efforts[1], temperature=temperature
        )

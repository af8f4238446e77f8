"""The native runtime at verify efforts below 1 on quantised stores: what it reads, and what it selects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from specdec.kernels.reference.selection import select_tiers
from synthetic import quantised_config, quantised_source

from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.runtimes.base import Rows, forward_one
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.store import Store, convert
from specdec.weights.quantised import QuantisedMatrix

pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native runtime", exc_type=ImportError)

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 16)]
TYPES = ("q8_0", "q5_0", "q4_k", "q6_k", "q4_1", "affine4-g64")


def runtime_of(kind: str, folder: Path, threads: int = 2) -> NativeRuntime:
    source = quantised_source(quantised_config(hidden_size=512, intermediate_size=1280), kind)
    return NativeRuntime(Store.open(convert(source, folder / f"{kind}-{threads}", quantised="keep")), threads=threads)


@pytest.mark.parametrize("kind", TYPES)
def test_a_lower_effort_reads_less(kind: str, tmp_path: Path) -> None:
    runtime = runtime_of(kind, tmp_path)

    def read(effort: float, rows: int) -> int:
        cache = runtime.new_cache(32)
        return forward_one(runtime, TOKENS[:rows], cache, effort=EffortSchedule(effort)).bytes_read

    full = read(1.0, 1)
    assert read(0.25, 1) < 0.6 * full
    assert read(0.5, 1) < 0.75 * full
    assert read(0.25, 1) <= read(0.25, 2) <= full
    assert read(0.5, 16) == read(1.0, 16)  # too many rows to leave anything out


@pytest.mark.parametrize("kind", TYPES)
def test_a_matrix_takes_the_inputs_of_the_definition(kind: str, tmp_path: Path) -> None:
    runtime = runtime_of(kind, tmp_path)
    name = "layers.0.mlp.down"
    matrix = runtime._store.exact(name)
    assert isinstance(matrix, QuantisedMatrix)
    rows = np.random.default_rng(3).standard_normal((3, matrix.shape[1])).astype(np.float32)
    rows += rows[0]  # rows that resemble each other
    left = rows.copy()
    for row in left:
        row[select_tiers(row, matrix.scores, matrix.tier_sizes, effort=0.3) == 0] = 0
    some, wanted = np.empty((2, 3, matrix.shape[0]), np.float32)
    runtime._model.multiply(runtime._index[name], rows, None, 0.3, some)
    runtime._model.multiply(runtime._index[name], left, None, 1.0, wanted)
    assert np.array_equal(some, wanted)


@pytest.mark.parametrize("kind", TYPES)
def test_rows_trees_and_threads_change_no_bit(kind: str, tmp_path: Path) -> None:
    runtime, other = runtime_of(kind, tmp_path), runtime_of(kind, tmp_path, threads=3)
    effort = EffortSchedule(0.4)
    alone, together = runtime.new_cache(32), other.new_cache(32)
    wanted = np.concatenate([forward_one(runtime, [token], alone, effort=effort).logits for token in TOKENS[:6]])
    assert np.array_equal(forward_one(other, TOKENS[:6], together, effort=effort).logits, wanted)
    # A second branch from the third token on: the first branch's rows keep their bits.
    tree = runtime.new_cache(32)
    tokens = [*TOKENS[:6], *TOKENS[8:10]]
    (found,) = runtime.forward(
        [Rows(tree, tokens, resolve_efforts(effort, runtime.config), parents=(-1, 0, 1, 2, 3, 4, 2, 6))]
    )
    assert np.array_equal(found.logits[:6], wanted)

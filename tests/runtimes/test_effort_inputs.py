"""Effort below 1 by whole inputs: the property of a store, its definition, and what runtimes make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specdec.kernels.reference.selection import select_tiers
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

import specdec
from specdec.errors import InvalidArgumentError, StoreError
from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows, forward_one
from specdec.store import FORMAT_VERSION, BucketLayout, Store, convert
from specdec.store.description import DESCRIPTION_FILE, _checksum
from specdec.weights.bucket import BucketedMatrix
from specdec.weights.dtypes import to_float32
from specdec.weights.inputs import InputsMatrix, input_scores

TOKENS = [5, 3, 9, 1, 7, 2, 8, 4, 6, 11, 10, 12, 3, 1, 0]


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A store of a small random model, by selection; each made once."""

    @cache
    def build(selection: str = "inputs", tie: bool = True) -> Store:
        path = tmp_path_factory.mktemp("stores") / "store"
        # More panels of 32 outputs than threads: matrices can be laid out for effort.
        source = SyntheticSource(tiny_config(tie_embeddings=tie, hidden_size=64, intermediate_size=200, vocab_size=300))
        return Store.open(convert(source, path, selection=selection), verify=False)

    return build


def runtime_for(name: str, store: Store, **options: Any) -> Any:
    if name == "native":
        native = pytest.importorskip("specdec.runtimes.native.runtime", reason="the native runtime is not built")
        return native.NativeRuntime(store, **{"threads": 1, **options})
    reference = pytest.importorskip("specdec.runtimes.reference.runtime", reason="needs MLX")
    return reference.ReferenceRuntime(store)


def logits_of(runtime: Any, effort: float, piece: int = len(TOKENS), view: str = "exact") -> np.ndarray:
    held = runtime.new_cache(len(TOKENS))
    parts = [TOKENS[first : first + piece] for first in range(0, len(TOKENS), piece)]
    return np.concatenate([forward_one(runtime, part, held, effort=effort, view=view).logits for part in parts])


def test_a_new_store_chooses_inputs_and_an_older_one_tiers(store_of: Callable[..., Store]) -> None:
    new, old = store_of("inputs"), store_of("tiers")
    assert (new.selection, new.description.version) == ("inputs", FORMAT_VERSION)
    assert (old.selection, old.description.version) == ("tiers", 1)
    assert "selection" not in json.loads((old.path / DESCRIPTION_FILE).read_text())
    assert new.config == old.config
    name = next(iter(new.config.matrices()))
    assert np.array_equal(new.bucketed(name).dense_bits(), old.bucketed(name).dense_bits())


def test_a_quantised_store_needs_no_newer_version(tmp_path: Path) -> None:
    source = quantised_source(quantised_config(), "q8_0")
    store = Store.open(convert(source, tmp_path / "store", quantised="keep"))
    assert store.selection == "inputs"
    assert store.description.version < FORMAT_VERSION


def test_bad_selections_are_refused(store_of: Callable[..., Store], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="a selection is 'inputs' or 'tiers', not 'columns'"):
        convert(SyntheticSource(tiny_config()), tmp_path / "store", selection="columns")
    copied = tmp_path / "copied"
    copied.mkdir()
    body = json.loads((store_of().path / DESCRIPTION_FILE).read_text())
    del body["checksum"]
    for wrong in ({"selection": "columns"}, {"selection": "tiers"}, {"version": 1}):
        changed = body | wrong
        (copied / DESCRIPTION_FILE).write_text(json.dumps(changed | {"checksum": _checksum(changed)}))
        with pytest.raises(StoreError):
            Store.open(copied)


@pytest.mark.parametrize("layout", [BucketLayout(), BucketLayout(16, (2, 2, 4, 8)), BucketLayout(8, (8,))])
def test_scores_of_inputs_are_their_mean_weights(layout: BucketLayout) -> None:
    random = np.random.default_rng(3)
    bits = random.normal(size=(48, 33)).astype(np.float16).view(np.uint16)
    matrix = BucketedMatrix.from_dense(bits, dtype="float16", layout=layout)
    wanted = np.abs(to_float32(bits, "float16").astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(input_scores(matrix.scores, layout)[:, 0], wanted, rtol=1e-6)
    first = input_scores(matrix.scores, layout, loaded=1)
    assert (first <= input_scores(matrix.scores, layout)).all()
    whole = InputsMatrix.of(matrix)
    prefix = select_tiers(random.normal(size=33).astype(np.float32), whole.scores, whole.tier_sizes, effort=0.5)
    assert (set(prefix), prefix.sum()) == ({0, 1}, 17)
    assert whole.bytes_read(prefix) == 2 * 48 * 17
    assert np.array_equal(whole.dequantise(), matrix.dequantise())


@pytest.mark.parametrize("effort", [0.5, 0.2])
def test_runtimes_choose_alike(store_of: Callable[..., Store], effort: float) -> None:
    """Other inputs would move logits more than the rounding of another runtime does. Where scores nearly agree, that
    rounding may take another one, but not for most tokens."""
    for selection in ("inputs", "tiers"):
        native, reference = (runtime_for(name, store_of(selection)) for name in ("native", "reference"))
        found, wanted = (
            np.concatenate([forward_one(one, [t], one.new_cache(4), effort=effort).logits for t in TOKENS])
            for one in (native, reference)
        )
        assert np.median(np.abs(found - wanted).max(axis=1)) < 5e-3
        full = np.concatenate([forward_one(native, [token], native.new_cache(4)).logits for token in TOKENS])
        assert np.median(np.abs(found - full).max(axis=1)) > 0.5


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("selection", ["inputs", "tiers"])
def test_rows_do_not_depend_on_their_company(store_of: Callable[..., Store], name: str, selection: str) -> None:
    runtime = runtime_for(name, store_of(selection))
    for effort in (0.7, 0.3):
        wanted = logits_of(runtime, effort, piece=1)
        for piece in (2, 5, len(TOKENS)):
            assert np.array_equal(logits_of(runtime, effort, piece=piece), wanted)
    schedules = [resolve_efforts(effort, runtime.config) for effort in (1.0, 0.6, 0.25)]
    caches = [runtime.new_cache(8) for _ in schedules]
    batch = [Rows(held, TOKENS[:4], efforts) for held, efforts in zip(caches, schedules, strict=True)]
    together = [one.logits for one in runtime.forward(batch)]
    for efforts, found in zip(schedules, together, strict=True):
        held = runtime.new_cache(8)
        assert np.array_equal(runtime.forward([Rows(held, TOKENS[:4], efforts)])[0].logits, found)
    held = runtime.new_cache(8)
    tree = runtime.forward([Rows(held, [5, 3, 9, 3], schedules[1], parents=[-1, 0, 0, 1])])[0].logits
    for row, path in ((1, [5, 3]), (2, [5, 9]), (3, [5, 3, 3])):
        alone = runtime.forward([Rows(runtime.new_cache(8), path, schedules[1])])[0].logits[-1]
        assert np.array_equal(tree[row], alone)


@pytest.mark.parametrize("tie", [True, False])
def test_a_native_model_laid_out_for_effort_computes_the_same(store_of: Callable[..., Store], tie: bool) -> None:
    """Everything that reads the exact weights afterwards: full passes, drafts of every view, and the embedding."""
    store = store_of("inputs", tie)
    fresh, used = runtime_for("native", store, threads=2), runtime_for("native", store, threads=1)
    logits_of(used, 0.3)
    for view, effort in (
        ("exact", 1.0),
        ("exact", 0.95),
        ("bucket", 0.4),
        ("bucket8", 0.4),
        ("int4", 0.6),
        ("int4", 1.0),
    ):
        for piece in (1, 5, len(TOKENS)):
            assert np.array_equal(logits_of(used, effort, piece, view), logits_of(fresh, effort, piece, view)), view


def test_a_native_pass_reads_what_it_takes(store_of: Callable[..., Store]) -> None:
    runtime = runtime_for("native", store_of())
    read = {
        effort: forward_one(runtime, TOKENS[:1], runtime.new_cache(4), effort=effort).bytes_read
        for effort in (1.0, 0.25)
    }
    assert read[0.25] < 0.5 * read[1.0]
    assert runtime.memory["masks"] == 0


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("selection", ["inputs", "tiers"])
def test_answers_say_what_they_are_identical_to(store_of: Callable[..., Store], name: str, selection: str) -> None:
    model = Model(runtime_for(name, store_of(selection)), store=store_of(selection))
    options: dict[str, Any] = {"max_tokens": 12, "verify_effort": EffortSchedule(0.6)}
    plain = specdec.generate(model, [1, 2, 3], speculate=False, **options)
    fast = specdec.generate(
        model,
        [1, 2, 3],
        policy="fixed",
        drafter="effort",
        draft_view="bucket",
        draft_effort=0.3,
        draft_len=3,
        **options,
    )
    assert fast.tokens == plain.tokens
    assert fast.stats.drafted > 0
    assert fast.identical_to == plain.identical_to == f"effort 0.6 by {selection}"
    assert specdec.generate(model, [1], max_tokens=1).identical_to == "dense"

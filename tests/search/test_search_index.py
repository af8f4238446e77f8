"""The index of vector search: exactness, effort, changes, and that nothing but the query decides a result."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")

from specdec.kernels.reference import search as reference

from specdec.errors import InvalidArgumentError
from specdec.search import BucketIndex
from specdec.search.chunk import CHUNK, LINE
from specdec.search.native import kernels

METRICS = ("ip", "cosine", "l2")
FORMS = ("float32", "float16", "int8", "int4")


def test_kernels_have_the_sizes_of_the_library() -> None:
    assert (kernels().SEARCH_CHUNK, kernels().SEARCH_LINE) == (CHUNK, LINE)


def vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Vectors whose dimensions differ in spread and whose lengths differ."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 1, d)) * np.exp(rng.normal(0, 0.3, (n, 1)))
    return (rng.normal(0, 1, (n, d)) * scale + rng.normal(0, 0.5, d)).astype(np.float32)


def truth(kept: np.ndarray, queries: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores and ids of brute force in float64."""
    ids, scores = [], []
    for query in queries.astype(np.float64):
        found = reference.exact_scores(kept.astype(np.float64), query, metric)
        ids.append(reference.best(found, k, metric))
        scores.append(found[ids[-1]])
    return np.array(scores), np.array(ids)


def decoded(index: BucketIndex) -> np.ndarray:
    """The vectors that the codes of an index stand for, float64."""
    space, parts = index._space, []
    for chunk in index._chunks:
        y = reference.levels(chunk.codes, len(chunk)).sum(axis=0).T * chunk.numbers[0][:, None].astype(np.float64)
        parts.append(space.centre.astype(np.float64) + space.spread.astype(np.float64) * y)
    return np.concatenate(parts)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["float32", "float16"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 3), (129, 33), (1023, 50), (8193, 17), (9000, 128)])
def test_effort_1_is_brute_force(metric: str, form: str, n: int, d: int) -> None:
    data, queries = vectors(n, d), vectors(9, d, seed=1)
    index = BucketIndex.build(data, metric=metric, form=form)
    kept = data if form == "float32" else data.astype(np.float16)
    k = min(10, n)
    scores, ids = index.search(queries, k, effort=1.0)
    expected_scores, expected_ids = truth(kept, queries, k, metric)
    assert np.array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, rtol=2e-7, atol=1e-12 * np.abs(expected_scores).max())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_effort_1_of_codes_is_brute_force_over_what_they_say(metric: str, form: str) -> None:
    data, queries = vectors(3000, 40), vectors(20, 40, seed=1)
    index = BucketIndex.build(data, metric=metric, form=form)
    kept = decoded(index)
    asked = queries.astype(np.float64)
    if metric == "cosine":  # codes are those of x / |x|
        expected = kept @ asked.T / np.linalg.norm(asked, axis=1)
        wanted = np.array([reference.best(column, 5, "ip") for column in expected.T])
    else:
        wanted = truth(kept, queries, 5, metric)[1]
    assert np.array_equal(index.search(queries, 5, effort=1.0)[1], wanted)


def test_codes_are_close_to_the_vectors() -> None:
    data = vectors(500, 64)
    spread = data.std(axis=0)
    for form, most in (("int4", 0.14), ("int8", 0.06)):
        gap = (decoded(BucketIndex.build(data, form=form)) - data) / spread
        share = np.linalg.norm(gap, axis=1) / np.linalg.norm((data - data.mean(axis=0)) / spread, axis=1)
        assert np.median(share) < most


@pytest.mark.parametrize("metric", METRICS)
def test_an_exact_search_scores_few_vectors(metric: str) -> None:
    """The bounds are tight enough to be of use, and hold: see test_effort_1_is_brute_force."""
    index = BucketIndex.build(vectors(9000, 64), metric=metric)
    _, _, candidates = index.search_counted(vectors(20, 64, seed=1), effort=1.0)
    assert candidates.mean() < 300


@pytest.mark.parametrize("metric", METRICS)
def test_recall_rises_with_effort(metric: str) -> None:
    data, queries = vectors(9000, 96), vectors(50, 96, seed=1)
    index = BucketIndex.build(data, metric=metric)
    exact = index.search(queries, effort=1.0)[1]
    recalls = []
    for effort in (0.02, 0.1, 0.25, 0.5):
        ids = index.search(queries, effort=effort, rerank=100)[1]
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, exact, strict=True)]))
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[1]
    assert recalls[2] > 0.9
    assert recalls[3] > 0.99


def test_scores_are_those_of_the_selected_runs() -> None:
    """With one candidate more than asked for, what is left out shows which scores chose the candidates."""
    data, query = vectors(2000, 48), vectors(1, 48, seed=3)[0].astype(np.float64)
    index = BucketIndex.build(data, form="float32")
    space, chunk = index._space, index._chunks[0]
    for effort in (0.05, 0.2, 0.6):
        runs = reference.select_runs(query, space.spread, 2, effort)
        levels = reference.levels(chunk.codes, len(chunk)).reshape(96, -1)
        weights = np.concatenate([query * space.spread] * 2)
        scores = (weights[runs] @ levels[runs]) * chunk.numbers[0]
        wanted = set(reference.best(scores, 30, "ip").tolist())
        found = index.search(query, 30, effort=effort, rerank=30)[1]
        assert len(wanted & set(found.tolist())) >= 28  # query weights are rounded to 8 bits


@pytest.mark.parametrize("form", FORMS)
def test_a_result_depends_on_the_query_alone(form: str) -> None:
    data, queries = vectors(20000, 24), vectors(33, 24, seed=1)
    index = BucketIndex.build(data, metric="l2", form=form)
    for effort in (0.1, 1.0):
        alone = [index.search(query, 7, effort=effort, threads=1) for query in queries]
        for threads in (1, 2, 3):
            for count in (1, 2, 33):
                scores, ids = index.search(queries[:count], 7, effort=effort, threads=threads)
                for j in range(count):
                    assert np.array_equal(ids[j], alone[j][1])
                    assert scores[j].tobytes() == alone[j][0].tobytes()


def test_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data, queries = vectors(9000, 37), vectors(11, 37, seed=1)
    results = []
    for isa in kernels().supported_isas():
        monkeypatch.setenv("SPECDEC_CPU", isa)
        index = BucketIndex.build(data)
        parts = [index.search_counted(queries, 12, effort=effort) for effort in (0.03, 0.3, 1.0)]
        results.append(b"".join(array.tobytes() for part in parts for array in part))
    assert len(set(results)) == 1


def test_ties_go_to_the_lower_id() -> None:
    data = np.tile(vectors(10, 8), (1000, 1))
    index = BucketIndex.build(data, form="float32")
    query = vectors(1, 8, seed=2)[0]
    for effort in (0.5, 1.0):
        ids = index.search(query, 20, effort=effort)[1]
        assert np.array_equal(ids, np.arange(20) * 10 + ids[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("metric", METRICS)
def test_adding_equals_building(form: str, metric: str) -> None:
    """Also where the first vectors fill a part of a line, or a chunk: places differ, codes do not."""
    data, queries = vectors(9000, 12), vectors(5, 12, seed=1)
    whole = BucketIndex.build(data, metric=metric, form=form)
    for cuts in ((1, 2, 130, 8192), (127, 8191, 8193), (5000,)):
        index = BucketIndex(whole._space)
        for part in np.split(data, cuts):
            index.add(part)
        assert len(index) == 9000
        for effort in (0.2, 1.0):
            for mine, other in zip(
                index.search(queries, effort=effort), whole.search(queries, effort=effort), strict=True
            ):
                assert mine.tobytes() == other.tobytes()


def test_ids_of_added_vectors() -> None:
    index = BucketIndex.build(vectors(10, 4))
    assert index.add(vectors(3, 4, seed=5)).tolist() == [10, 11, 12]
    assert index.add(np.empty((0, 4))).tolist() == []
    assert index.search(vectors(3, 4, seed=5) * 100, 13, effort=1.0)[1].max() == 12


@pytest.mark.parametrize("metric", METRICS)
def test_removed_vectors_are_not_found(metric: str) -> None:
    data, queries = vectors(9000, 16), vectors(4, 16, seed=1)
    index = BucketIndex.build(data, metric=metric, form="float32")
    gone = np.unique(index.search(queries, 5, effort=1.0)[1])
    assert index.remove(gone) == len(gone)
    assert index.remove(gone) == 0
    assert len(index) == 9000 - len(gone)
    rest = np.setdiff1d(np.arange(9000), gone)
    expected = rest[truth(data[rest], queries, 10, metric)[1]]
    assert np.array_equal(index.search(queries, 10, effort=1.0)[1], expected)
    assert not np.isin(index.search(queries, 100, effort=0.3)[1], gone).any()


@pytest.mark.parametrize("effort", [0.3, 1.0])
@pytest.mark.parametrize(("metric", "worst"), [("ip", -np.inf), ("l2", np.inf)])
def test_more_asked_for_than_there_are(metric: str, worst: float, effort: float) -> None:
    index = BucketIndex.build(vectors(5, 4), metric=metric)
    index.remove([2])
    scores, ids = index.search(vectors(2, 4, seed=1), 8, effort=effort)
    assert (np.sort(ids[:, :4], axis=1) == [0, 1, 3, 4]).all()
    assert (ids[:, 4:] == -1).all()
    assert (scores[:, 4:] == worst).all()
    index.remove(np.arange(5))
    assert (index.search(vectors(2, 4), 3, effort=effort)[1] == -1).all()
    assert len(index) == 0


def test_degenerate_vectors() -> None:
    """All equal, all zero, a dimension that never changes, a query of zeros."""
    for data in (np.zeros((300, 5)), np.full((300, 5), 3.0), np.eye(300, 5)):
        for metric in METRICS:
            index = BucketIndex.build(data, metric=metric)
            for query in (np.zeros(5), np.ones(5)):
                scores, ids = index.search(query, 3, effort=1.0)
                assert ids.tolist() == truth(data, query[None], 3, metric)[1][0].tolist()
                assert np.isfinite(scores).all()


def test_an_added_vector_far_away_is_found_exactly() -> None:
    data = vectors(500, 6)
    data[:, 0] = 1
    index = BucketIndex.build(data, form="float32")
    far = np.zeros((1, 6), np.float32)
    far[0, 0] = 1e6
    index.add(far)
    kept = np.concatenate([data, far])
    queries = vectors(9, 6, seed=4)
    assert np.array_equal(index.search(queries, 5, effort=1.0)[1], truth(kept, queries, 5, "ip")[1])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    d=st.integers(1, 40),
    exponent=st.integers(-12, 12),
    metric=st.sampled_from(METRICS),
)
def test_exactness_is_a_law(seed: int, n: int, d: int, exponent: int, metric: str) -> None:
    """Heavy tails, repeated vectors, any scale."""
    rng = np.random.default_rng(seed)
    data = (rng.standard_t(2, (n, d)) * 10.0**exponent).astype(np.float32)
    data[rng.integers(0, n, n // 3)] = data[0]
    query = (rng.standard_t(2, d) * 10.0**exponent).astype(np.float32)
    index = BucketIndex.build(data, metric=metric, form="float32")
    scores = reference.exact_scores(data.astype(np.float64), query.astype(np.float64), metric)
    ids = index.search(query, min(n, 8), effort=1.0)[1]
    wanted = np.sort(scores if metric == "l2" else -scores)[: len(ids)]
    np.testing.assert_allclose(
        scores[ids] * (1 if metric == "l2" else -1), wanted, rtol=1e-12, atol=1e-13 * np.abs(scores).max()
    )


def test_inputs_of_any_layout_and_type() -> None:
    data = vectors(300, 8)
    index = BucketIndex.build(data)
    expected = index.search(data[:3], 4)
    for same in (np.asfortranarray(data), data.astype(np.float64), data[::-1][::-1]):
        found = BucketIndex.build(same).search(same[:3], 4)
        assert np.array_equal(found[1], expected[1])
    assert BucketIndex.build(np.arange(12).reshape(4, 3)).search([1, 2, 3], 1)[1].tolist() == [3]


def test_searches_go_on_while_the_index_changes() -> None:
    index, data = BucketIndex.build(vectors(3000, 8)), vectors(2000, 8, seed=1)
    wrong: list[str] = []

    def search() -> None:
        for _ in range(50):
            ids = index.search(data[:4], 5)[1]
            if (ids < 0).any() or (ids >= 5000).any():
                wrong.append(str(ids))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for part in np.split(data, 20):
        index.add(part)
        index.remove([len(part)])
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(index) == 4999


BAD: list[tuple[Any, str]] = [
    (lambda: BucketIndex.build(np.empty((0, 4))), "at least one"),
    (lambda: BucketIndex.build(np.empty((4, 0))), "d from 1"),
    (lambda: BucketIndex.build([1.0, 2.0]), "shape"),
    (lambda: BucketIndex.build([[1.0], [1.0, 2.0]]), "unequal|shape"),
    (lambda: BucketIndex.build(np.array([["a"]])), "numbers"),
    (lambda: BucketIndex.build([[np.nan]]), "finite"),
    (lambda: BucketIndex.build([[1e16]]), "at most 1e"),
    (lambda: BucketIndex.build([[70000.0]]), "float32"),
    (lambda: BucketIndex.build([[1.0]], metric="dot"), "ip, cosine, l2"),
    (lambda: BucketIndex.build([[1.0]], form="fp8"), "float32, float16, int8, int4"),
    (lambda: BucketIndex.build([[1.0]], threads=0), "threads"),
    (lambda: BucketIndex.build([[1.0]]).add([[1.0, 2.0]]), "1 dimensions"),
    (lambda: BucketIndex.build([[1.0]]).remove([1]), "0 to 0"),
    (lambda: BucketIndex.build([[1.0]]).remove([-1]), "not -1"),
    (lambda: BucketIndex.build([[1.0]]).remove([0.5]), "whole"),
    (lambda: BucketIndex.build([[1.0]]).search([[1.0]], 0), "k must"),
    (lambda: BucketIndex.build([[1.0]]).search([[1.0]], effort=0), "effort"),
    (lambda: BucketIndex.build([[1.0]]).search([[1.0]], effort=1.5), "effort"),
    (lambda: BucketIndex.build([[1.0]]).search([[1.0]], rerank=0), "rerank"),
    (lambda: BucketIndex.build([[1.0]]).search([[np.inf]]), "finite"),
    (lambda: BucketIndex.build([[1.0]]).search([[1.0, 2.0]]), "1 dimensions"),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_arguments_are_told(call: Any, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        call()


def test_a_vector_that_cannot_be_added_leaves_the_index_as_it_was() -> None:
    index = BucketIndex.build(vectors(100, 4))
    bad = vectors(9000, 4)
    bad[8999, 0] = np.nan
    with pytest.raises(InvalidArgumentError):
        index.add(bad)
    assert len(index) == 100

"""Views by name."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runtime import FakeRuntime

from specdec.errors import InvalidArgumentError, PluginError, UnknownNameError
from specdec.runtimes.base import find_view
from specdec.weights import registry
from specdec.weights.bucket import BucketedMatrix, BucketView
from specdec.weights.int4 import Int4View
from specdec.weights.layout import BucketLayout
from specdec.weights.registry import get_view, known_views, register_view


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is forgotten."""
    monkeypatch.setattr(registry._views, "_own", dict(registry._views._own))


def test_the_views_of_the_package() -> None:
    assert {"bucket", "int4"} <= set(known_views())
    assert isinstance(get_view("bucket"), BucketView)
    assert isinstance(get_view("int4"), Int4View)


def test_an_unknown_view_lists_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match="unknown view 'int5': choose from bucket, bucket8, int4, nested, own"):
        get_view("int5")


@pytest.mark.usefixtures("scratch_registry")
def test_another_view_can_be_registered() -> None:
    class Other(BucketView):
        name = "other"

    register_view("other", Other)
    assert isinstance(get_view("other"), Other)
    with pytest.raises(InvalidArgumentError, match="registered already"):
        register_view("other", Other)


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("name", ["exact", "", "a/b", "..", "a b", "é"])
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="view's name"):
        register_view(name, BucketView)


@pytest.mark.usefixtures("scratch_registry")
def test_what_is_no_view_is_refused() -> None:
    register_view("dud", dict)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="view 'dud' must be a View"):
        get_view("dud")


def test_views_say_whether_they_read_the_exact_weights() -> None:
    assert {name for name in known_views() if get_view(name).reads_exact} == {"bucket", "own"}
    for name in known_views():
        view = get_view(name)
        assert not (view.reads_exact and view.tensors((64, 32)))  # nothing to store then


@pytest.mark.parametrize("name", ["exact", "int4", "bucket"])
def test_a_runtime_describes_its_views(name: str) -> None:
    found = find_view(FakeRuntime(), name)
    assert (found.name, found.is_exact) == (name, name == "exact")


def test_a_view_that_a_runtime_does_not_have_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown view 'int5': choose from bucket, exact, int4"):
        find_view(FakeRuntime(), "int5")


def test_the_bucket_view_is_the_exact_matrix() -> None:
    bits = np.arange(40, dtype=np.uint16).reshape(8, 5)
    matrix = BucketedMatrix.from_dense(bits, dtype="float16", layout=BucketLayout())
    view = get_view("bucket")
    assert view.build(matrix) is matrix
    assert view.tensors(matrix.shape) == {}
    assert view.arrays(matrix) == {}
    assert view.load({}, matrix) is matrix

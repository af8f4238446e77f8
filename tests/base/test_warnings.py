"""Warnings name the caller's line, whichever verb of the library they come through."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
from fake_runtime import fake_model

import specdec
from specdec.runtimes.choose import create_runtime
from specdec.store import Store


def generated(model):
    specdec.generate(model, [1], max_tokens=2, draft_effort=0.9, verify_effort=0.5)


def streamed(model):
    for _ in specdec.stream(model, [1], max_tokens=2, draft_effort=0.9, verify_effort=0.5):
        pass


@pytest.mark.parametrize("call", [generated, streamed])
def test_a_warning_names_the_callers_line(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(fake_model())
    (one,) = [one for one in caught if "is above verify effort" in str(one.message)]
    assert one.category is UserWarning
    assert one.filename == __file__
    assert call.__code__.co_firstlineno < one.lineno <= call.__code__.co_firstlineno + 2


def test_loading_with_threads_that_mean_nothing_names_the_caller(text_model: Path):
    pytest.importorskip("mlx.core", reason="the reference runtime needs MLX", exc_type=ImportError)
    with pytest.warns(UserWarning, match="threads=2 has no effect") as caught:
        create_runtime("reference", Store.open(text_model), threads=2)
    assert {one.filename for one in caught} == {__file__}
    with pytest.warns(UserWarning, match="threads=2 has no effect") as caught:
        specdec.load(text_model, runtime="reference", threads=2)
    assert {one.filename for one in caught} == {__file__}


def test_a_warning_is_shown_once_a_line_by_default():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            generated(fake_model())
    assert len([one for one in caught if "is above verify effort" in str(one.message)]) == 1


def test_the_package_warns_in_one_way_only():
    for path in Path(specdec.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "warnings":
                assert node.attr != "warn", f"{path}, line {node.lineno}: use specdec.warn"

"""Scripts in `benchmarks` import nothing of the package that is not there: most of them are run by hand only."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec

import pytest
from places import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


def missing(source: str) -> list[str]:
    """Names that a script imports from the package and that the package does not have."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "specdec":
            module = import_module(str(node.module))
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if not hasattr(module, alias.name) and not (hasattr(module, "__path__") and find_spec(name)):
                    found.append(name)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_script_imports_is_there(script):
    assert missing(script.read_text()) == []


def test_a_missing_name_is_found():
    assert missing("from specdec.errors import SpecdecError, NoSuchError") == ["specdec.errors.NoSuchError"]

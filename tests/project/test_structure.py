"""Imports run one way, from the command line down to the errors, without circles among packages; files are short.

Imports are read from the source, those in functions included; those under TYPE_CHECKING never run: they do not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from places import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "specdec" / "cli").is_dir(), reason="needs the source tree")

# Rooms, lowest first: each may import those before it. Five modules stand in another place than their package: the two
# contracts, windows and checks of runtimes depend on the model's description alone; the loaded model has all the rest.
ORDER = (
    "errors",
    "tools",
    "model",
    "families",
    "weights",
    "tokenizers",
    "formats",
    "store",
    "runtimes.window",
    "runtimes.choices",
    "runtimes.base",
    "runtimes.checks",
    "kernels",
    "runtimes",
    "search",
    "fff",
    "engine.policy",
    "drafters",
    "policies",
    "engine",
    "sources",
    "distributed",
    "model.loaded",
    "specdec",
    "lab",
    "server",
    "mlx_lm",
    "chat",
    "cli",
)
# Modules directly in `specdec`, by room.
MODULES = {
    "checks": "tools",
    "conforms": "tools",
    "interrupts": "tools",
    "lock_file": "tools",
    "message_stream": "tools",
    "model_files": "tools",
    "parse": "tools",
    "read_file": "tools",
    "turns": "tools",
    "paths": "tools",
    "plugin_spec": "tools",
    "progress": "tools",
    "record": "tools",
    "registry": "tools",
    "version": "tools",
    "warn": "tools",
    "whole_file": "tools",
    "workers": "tools",
    "cache": "sources",
    "catalogue": "sources",
    "download": "sources",
    "hub": "sources",
    "hub_name": "tools",
    "licence": "sources",
    "__main__": "cli",
}
REGISTRY = "specdec.policies.registry"
CODE = {".py", ".cpp", ".h", ".inl", ".cu", ".cuh", ".metal", ".js", ".css", ".html"}
MOST_LINES = 450


class Import(NamedTuple):
    """`importer` imports `imported`, both whole module names as installed."""

    importer: str
    imported: str


@cache
def modules() -> dict[str, Path]:
    """Every module of the installed package, by name."""
    found = {}
    for folder, prefix in (("specdec", ""), ("policies", "specdec."), ("kernels", "specdec.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[f"{prefix}{name}".removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """The room of a module of specdec."""
    parts = module.split(".")[1:]
    if not parts:
        return "specdec"
    pair = ".".join(parts[:2])
    return pair if pair in ORDER else MODULES.get(parts[0], parts[0])


@cache
def imports() -> tuple[Import, ...]:
    """All imports of one module of specdec by another."""
    return tuple(Import(name, one) for name, path in modules().items() for one in _imported(path))


def _imported(path: Path) -> Iterator[str]:
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] == "specdec")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "specdec":
            for one in node.names:
                whole = f"{node.module}.{one.name}"
                yield whole if whole in modules() else str(node.module)


def test_every_module_has_a_room() -> None:
    assert [name for name in modules() if room(name) not in ORDER] == []
    assert len(modules()) > 150
    assert len(imports()) > 500


def test_imports_run_one_way() -> None:
    rank = {name: number for number, name in enumerate(ORDER)}
    wrong = [one for one in imports() if rank[room(one.imported)] > rank[room(one.importer)]]
    assert wrong == []


def test_there_are_no_relative_imports() -> None:
    """They would not be seen here."""
    relative = [
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_policies_know_only_their_contract() -> None:
    found = {
        one
        for one in imports()
        if room(one.importer) == "policies"
        and one.importer != REGISTRY
        and room(one.imported) not in ("policies", "engine.policy")
    }
    assert found == set()


def test_policies_are_reached_through_their_registry() -> None:
    found = [
        one
        for one in imports()
        if room(one.imported) == "policies" and room(one.importer) != "policies" and one.imported != REGISTRY
    ]
    assert found == []


def test_parts_of_the_lab_share_and_do_not_borrow() -> None:
    """`bench`, `eval` and `tune` import what lies directly in `specdec.lab`, not each other."""
    parts = {name.name for name in (ROOT / "specdec" / "lab").iterdir() if (name / "__init__.py").exists()}
    assert len(parts) >= 3
    for one in imports():
        if room(one.importer) == room(one.imported) == "lab":
            own, other = one.importer.split(".")[2], [*one.imported.split("."), ""][2]
            assert other not in parts or other == own, one
            assert own in parts or other not in parts, one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import specdec.errors", ["specdec.errors"]),
        ("def f():\n    from specdec.cli import main", ["specdec.cli.main"]),
        ("from specdec.errors import SpecdecError, PluginError", ["specdec.errors"] * 2),
        ("if TYPE_CHECKING:\n    from specdec.cli import main\nelse:\n    import specdec.paths", ["specdec.paths"]),
        ("import numpy, specdecimal", []),
    ],
)
def test_imports_are_found(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "module.py").write_text(text, encoding="utf-8")
    assert sorted(_imported(tmp_path / "module.py")) == expected


def test_no_file_of_code_is_longer_than_450_lines() -> None:
    """CONTRIBUTING.md, house rule 1."""
    folders = ("specdec", "policies", "kernels", "benchmarks", "tests", "docs")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.suffix in CODE]
    assert len(files) > 500
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in files}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}

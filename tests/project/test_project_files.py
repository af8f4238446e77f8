"""Files for those who carry on: workflows, templates and hooks parse, and name what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from doc_pages import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="needs the source tree")
FILES = [*sorted((ROOT / ".github").rglob("*.yml")), ROOT / ".pre-commit-config.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_yaml_parses(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_issue_forms_have_a_field() -> None:
    forms = [path for path in FILES if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml"]
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"]
        assert form["description"]
        assert {field["type"] for field in form["body"]} <= {"textarea", "input", "checkboxes", "dropdown", "markdown"}


def test_wheels_are_tested_by_tests_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["cibuildwheel"]
    named = re.findall(r"tests/[\w/]+\.py", build["test-command"])
    assert named
    assert all((ROOT / name).is_file() for name in named)
    assert set(build["linux"]["test-extras"]) <= set(project["project"]["optional-dependencies"])


def test_the_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

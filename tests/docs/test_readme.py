"""The README is short, and names nothing that does not exist: options, folders, attributes of the library."""

from __future__ import annotations

import ast
import re

import pytest
from doc_pages import ROOT, blocks

import specdec
from specdec.cli.main import build_parser
from specdec.engine.options import flag_of

README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="needs the source tree")
MOST_LINES, MOST_PICTURE_BYTES = 150, 150_000


def test_it_is_short_and_its_pictures_are_small() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < MOST_PICTURE_BYTES, picture


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md", "docs/choosing.md", "docs/effort.md"])
def test_options_exist(page: str) -> None:
    commands = (
        ["generate", "--prompt", "x"],
        ["bench", "x"],
        ["serve"],
        ["convert", "x", "-o", "y"],
        ["pull"],
        ["rm"],
        ["tune", "x"],
    )
    helped = [build_parser().parse_args(words) for words in commands]
    known = {flag_of(name) for one in helped for name in vars(one)} | {"--help", "--list"}
    options = set(re.findall(r"`(--[a-z-]+)", (ROOT / page).read_text(encoding="utf-8")))
    assert options
    assert options <= known, options - known


def test_the_library_example_uses_what_there_is() -> None:
    examples = [code for code, _ in blocks(README, "python")]
    assert examples
    for node in (node for example in examples for node in ast.walk(ast.parse(example))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "specdec":
            assert hasattr(specdec, node.attr), node.attr

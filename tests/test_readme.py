"""The README names nothing that does not exist: its commands parse, its targets and folders are there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import specdec
from specdec.cli.main import build_parser
from specdec.engine.options import flag_of

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="needs the source tree")


def blocks(language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_commands_parse() -> None:
    lines = [line.split(" <")[0] for block in blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("specdec ")]
    assert len(commands) > 5
    for command in commands:
        build_parser().parse_args(command)


def test_options_exist() -> None:
    helped = [build_parser().parse_args(words) for words in (["generate", "--prompt", "x"], ["bench", "x"], ["serve"])]
    options = set(re.findall(r"`(--[a-z-]+)", README.read_text(encoding="utf-8")))
    known = {flag_of(name) for one in helped for name in vars(one)} | {"--list"}
    assert options <= known, options - known


def test_targets_and_folders_exist() -> None:
    text = README.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (?:\w+=\S+ )?([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for folder in re.findall(r"`((?:specdec|policies|kernels|configs)(?:/\w+)?)`(?=[,| ])", text):
        assert (ROOT / folder).is_dir(), folder


def test_library_example_uses_what_there_is() -> None:
    examples = blocks("python")
    assert len(examples) >= 2
    for node in (node for example in examples for node in ast.walk(ast.parse(example))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "specdec":
            assert hasattr(specdec, node.attr), node.attr

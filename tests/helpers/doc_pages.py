"""The pages that people read, and the code blocks in them."""

from __future__ import annotations

import re
from pathlib import Path

from places import ROOT

_TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [path for path in (ROOT / name for name in _TOP) if path.exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# A line `<!-- needs MODEL -->` above a block: it is run where that model is, and skipped where it is not.
_BLOCK = re.compile(r"(?:<!-- needs (?P<model>[\w.-]+) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S)


def name_of(page: Path) -> str:
    """Path of a page inside the project, as an id of a test."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """Code of the page's blocks in a language, and the real model that each needs, if any."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(one["code"], one["model"]) for one in found if one["language"] == language]


def named_files() -> dict[str, str]:
    """Files that pages write out: blocks of YAML whose first line is `# NAME`."""
    found = {}
    for page in PAGES:
        for code, _ in blocks(page, "yaml"):
            if named := re.match(r"# ([\w.-]+\.yaml)\n", code):
                found[named[1]] = code
    return found


def command_lines() -> dict[str, Path]:
    """Every line of the pages' shell blocks, and the page that has it first."""
    found: dict[str, Path] = {}
    for page in PAGES:
        for code, _ in blocks(page, "sh") + blocks(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                line = re.sub(r"(^|\s+)#.*$", "", line).strip()
                if line:
                    found.setdefault(line, page)
    return found

"""Where the project, its tests and their data are."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
DATA = TESTS / "data"
ROOT = TESTS.parent


def all_files(folder: Path) -> list[str]:
    """Every file under a folder, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

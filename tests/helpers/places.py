"""Where the project, its tests and their data are."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
DATA = TESTS / "data"
ROOT = TESTS.parent

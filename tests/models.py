"""Where tests find real models. They are never downloaded by a test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specdec import paths

FOLDER_VARIABLE = "SPECDEC_TEST_MODELS"


def real_model_path(name: str) -> Path:
    """`NAME.gguf` in `$SPECDEC_TEST_MODELS`, or else in the model cache; skips the test, naming what is missing."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    folder = Path(chosen).expanduser() if chosen else paths.home() / "models"
    path = folder / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"needs {path}: run `specdec pull {name}`, or set {FOLDER_VARIABLE} to a folder that has it")
    return path

"""Where tests find real models. They are never downloaded by a test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specdec import paths
from specdec.store import Store
from specdec.weights.quantised import QuantisedMatrix, QuantisedTable

FOLDER_VARIABLE = "SPECDEC_TEST_MODELS"
# Types of the quantised blocks in the files of models with golden logits: all of their matrices and tables are in some.
BLOCK_TYPES = {
    "smollm2-135m": {"q4_1", "q8_0"},
    "qwen2.5-coder-0.5b": {"q4_k", "q5_0", "q6_k", "q8_0"},
}


def real_model_path(name: str) -> Path:
    """`NAME.gguf` in `$SPECDEC_TEST_MODELS`, or else in the model cache; skips the test, naming what is missing."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    folder = Path(chosen).expanduser() if chosen else paths.home() / "models"
    path = folder / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"needs {path}: run `specdec pull {name}`, or set {FOLDER_VARIABLE} to a folder that has it")
    return path


def check_blocks_are_kept(store: Store, name: str) -> None:
    """Nothing of a real model's store was made 16-bit: every matrix and table has a type of its file."""
    config = store.config
    assert set(store.types) == set(config.matrices()) | set(config.tables())
    assert set(store.types.values()) == BLOCK_TYPES[name]
    assert all(isinstance(store.exact(matrix), QuantisedMatrix) for matrix in config.matrices())
    assert all(isinstance(store.table(table), QuantisedTable) for table in config.tables())

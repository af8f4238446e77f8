"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from text_model import text_store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "specdec-home"
    monkeypatch.setenv("SPECDEC_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a tiny model with a tokenizer. Not to be changed: `text_model_copy` is for that."""
    return text_store(tmp_path_factory.mktemp("stores") / "text")


@pytest.fixture
def text_model_copy(text_model: Path, tmp_path: Path) -> Path:
    """A copy of `text_model` that a test may damage."""
    return Path(shutil.copytree(text_model, tmp_path / "copy"))

"""Fixtures that test files of this folder share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_runtime import FakeRuntime

from specdec.runtimes.base import Rows


@pytest.fixture
def shown(monkeypatch) -> list[Rows]:
    """The rows of every pass."""
    seen: list[Rows] = []
    forward = FakeRuntime.forward

    def noted(self: FakeRuntime, batch: Any, **options: Any) -> Any:
        seen.extend(replace(rows, tokens=list(rows.tokens)) for rows in batch)
        return forward(self, batch, **options)

    monkeypatch.setattr(FakeRuntime, "forward", noted)
    return seen

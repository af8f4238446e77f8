"""Errors that travel: between processes, and as copies."""

from __future__ import annotations

import copy
import pickle

import pytest
from fake_runtime import fake_model

import specdec
from specdec.errors import (
    ContextLengthError,
    GrammarError,
    LicenceError,
    OptionError,
    PluginError,
    QueueFullError,
    SpecdecError,
    StoreError,
    UnknownNameError,
)

ERRORS = [
    ContextLengthError(20, 8, 16, can_grow=True, is_least=True),
    GrammarError("regex", "cannot be used", keywords=("type",)),
    LicenceError("gemma", "Gemma Terms", "https://example.org"),
    OptionError("draft_len", "must be at least 1", instead=("speculate", "to decode without drafts")),
    PluginError("policy", "mine", "failed"),
    QueueFullError(3, 1.5),
    SpecdecError("one sentence"),
    StoreError("is damaged"),
    UnknownNameError("view", "x", ["int4"]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy], ids=["pickle", "copy"])
def test_errors_arrive_whole(error, way):
    """One that cannot be unpickled breaks a pool of processes."""
    found = way(error)
    assert type(found) is type(error)
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))


def test_an_option_error_that_arrived_is_worded_as_before():
    with pytest.raises(OptionError) as caught:
        specdec.generate(fake_model(), [1], draft_len=0)
    found = pickle.loads(pickle.dumps(caught.value))
    assert found.worded(lambda name: f"--{name}") == caught.value.worded(lambda name: f"--{name}")

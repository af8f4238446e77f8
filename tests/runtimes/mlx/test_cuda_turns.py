"""Launches that draft by themselves as one CUDA kernel, run on the host: tokens, drafts by the rule, and surveys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuda_steps
import numpy as np
import pytest
from metal_host_kernels import compiler
from specdec.kernels.reference.recycle import TOP, Recycled
from test_cuda_steps import Model

from specdec.runtimes.base import Recycling
from specdec.runtimes.mlx.model import Kind
from specdec.runtimes.mlx.recycle import Recycler, turns_of
from specdec.runtimes.mlx.state import chain, show_choices, state_of

mx: Any = pytest.importorskip("mlx.core")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")]

ROWS = 16


class Turns:
    """Launches over one sequence of a random model.

    Args:
        monkeypatch: of the module.
        folder: for kernels.
    """

    def __init__(self, monkeypatch: Any, folder: Any) -> None:
        monkeypatch.setattr(cuda_steps, "GRID", ROWS)  # a block makes a row
        monkeypatch.setattr(cuda_steps.Driver, "multiprocessors", ROWS)
        self.model = Model(monkeypatch, folder)
        memory = cuda_steps.Memory()
        self.recycler = Recycler(
            memory,  # type: ignore[arg-type]
            memory.own,
            lambda array: int(array.ctypes.data),
            vocab_size=self.model.config.vocab_size,
            most_tokens=256,
        )
        self.kind = Kind("dense", False, ROWS, 0, ROWS, tree=True)
        ones = mx.ones((self.model.config.hidden_size,))
        self.entries = self.model.steps.step.entries(
            self.kind, self.model.layers, self.model.head, ones, self.model.table
        )
        held = np.zeros(self.model.cache.size + 8, np.float16)
        at = -held.ctypes.data % 16 // 2
        self.cache = held[at : at + self.model.cache.size].reshape(self.model.cache.shape)
        self.positions = self.cache.shape[3]

    def restart(self) -> Turns:
        """Begin again with the same history."""
        self.cache[:] = self.model.cache
        return self

    def launch(self, state: np.ndarray, *, backwards: bool = False) -> np.ndarray:
        angles = self.model.angles
        return self.model.steps.turns(self.kind, self.entries, self.cache, angles, state, backwards=backwards)

    def successors(self) -> np.ndarray:
        """What turns draft with now, (V, TOP)."""
        return self._tables()[0]

    def known(self) -> np.ndarray:
        """What another text begins with."""
        return self._tables()[1]

    def _tables(self) -> np.ndarray:
        memory = self.recycler._memory
        return memory[-2 * self.model.config.vocab_size * TOP :].reshape(2, -1, TOP).copy()

    def begin(self, text: list[int], ahead: int) -> np.ndarray:
        """The state of a launch, before it is told what to draft for."""
        state = state_of([chain(text[-1:], len(text) - 1, wanted=1)], [self.positions])
        show_choices(state, ahead=ahead)
        return state

    def likeliest(self, cache: np.ndarray, tokens: list[int], position: int) -> list[list[int]]:
        """The likeliest tokens after each of a chain, by a step of several rows."""
        kind, take = Kind("dense", False, ROWS, 0, ROWS), np.zeros(1, np.int32)
        given = (kind, self.entries, cache, self.model.angles, take, tokens)
        logits = self.model.steps.logits(*given, position=position)
        found: list[list[int]] = np.argsort(-logits, axis=1, kind="stable")[:, :TOP].tolist()
        return found

    def survey(self, text: list[int], tokens: list[int], *, backwards: bool = False) -> np.ndarray:
        state = self.begin(text, 15)
        self.recycler.tell_survey(state, self, tokens, ROWS)  # type: ignore[arg-type]
        found = self.launch(state, backwards=backwards).view(np.int32)
        assert len(found) == -(-len(tokens) // (ROWS - 1))
        return found[:, 1:].reshape(-1, TOP)[: len(tokens)]


@pytest.fixture(scope="module")
def turns(tmp_path_factory) -> Iterator[Turns]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Turns(monkeypatch, tmp_path_factory.mktemp("kernels"))


def text_of(length: int) -> list[int]:
    """A text whose end has occurred before, twice and with different tokens after it."""
    text: list[int] = np.random.default_rng(length).integers(0, 200, length).tolist()
    text[4:7] = text[12:15] = text[-3:]
    return text


def test_turns_draft_by_the_rule_and_choose_what_single_rows_do(turns):
    made, text = turns.restart(), text_of(24)
    tokens = list(range(0, 200, 2))
    made.recycler.know(np.array(tokens, np.int32), made.survey(text, tokens))
    kept = 0
    for number, rows in enumerate((16, 16, 9, 16, 4)):
        before, at = made.cache.copy(), len(text)
        state = made.begin(text, 0)
        made.recycler.tell(state, made, Recycling(text, rows, at + (3 if number == 3 else 99)))  # type: ignore[arg-type]
        table = made.known() if number == 0 else made.successors()
        rule = Recycled({token: [one for one in line if one >= 0] for token, line in enumerate(table.tolist())})
        (turn,) = turns_of(made.launch(state, backwards=number % 2 == 1))
        assert (turn.tokens, turn.parents) == rule.draft(text, rows, at + (3 if number == 3 else 99))
        assert len(turn.tokens) == rows - 1
        path = [text[-1], *(turn.tokens[index] for index in turn.kept)]
        likeliest = made.likeliest(before, path, at - 1)
        chosen = [choice.token for choice in turn.choices]
        assert chosen == [line[0] for line in likeliest]
        assert chosen[:-1] == path[1:]
        for token, line in dict(zip(path, likeliest, strict=True)).items():  # the last of equal tokens counts
            assert made.successors()[token].tolist() == line
        kept += len(turn.kept)
        text += chosen
    assert kept


def test_turns_follow_each_other_in_one_launch(turns):
    made, text = turns.restart(), text_of(24)
    tokens = list(range(200))
    made.recycler.know(np.array(tokens, np.int32), made.survey(text, tokens))
    before, grown = made.cache.copy(), list(text)
    state = made.begin(text, 2)
    made.recycler.tell(state, made, Recycling(text, ROWS, 99))  # type: ignore[arg-type]
    found = turns_of(made.launch(state))
    assert len(found) == 3
    for turn in found:
        grown += [choice.token for choice in turn.choices]
    fresh = grown[len(text) - 1 :][: ROWS + 1]
    assert fresh[1:] == [line[0] for line in made.likeliest(before, fresh[:-1], len(text) - 1)]


@pytest.mark.parametrize("count", [16, 37])
def test_a_survey_finds_what_follows_each_token_alone(turns, count):
    made, text = turns.restart(), text_of(24)
    tokens = np.random.default_rng(count).permutation(200)[:count].tolist()
    cache = made.cache.copy()
    found = made.survey(text, tokens, backwards=count == 37)
    assert np.array_equal(made.cache[:, :, :, : len(text) - 1], cache[:, :, :, : len(text) - 1])
    for token, line in list(zip(tokens, found.tolist(), strict=True))[:: max(1, count // 3)]:
        assert made.likeliest(cache, [text[-1], token], len(text) - 1)[1] == line

"""The questions of the original Effort, answered by comparing the logits of the choices.

`basicq` is true or false, `quiz` has four choices each. The order of the choices is shuffled by seed, since models
like some places in a list better than others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from specdec.effort import EffortSchedule
from specdec.errors import InvalidArgumentError
from specdec.runtimes.base import Cache, Runtime

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer

SETS = ("basicq", "quiz")
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it is asked.

    Attributes:
        text: everything before the answer.
        choices: how each choice would go on.
        answer: index of the right one.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """A question in tokens: what all choices begin with, and the tokens in which they part.

    Attributes:
        ids: the common beginning, at least one token.
        choice_ids: the next token of each choice, all different.
        answer: index of the right choice.
    """

    ids: list[int]
    choice_ids: list[int]
    answer: int


def load_questions(name: str, *, seed: int) -> list[Question]:
    """The questions of a set, choices in the order that the seed gives."""
    raw = resources.files("specdec.eval").joinpath(f"data/{name}.json").read_text(encoding="utf-8")
    random = np.random.Generator(np.random.Philox(key=seed))
    build = _statement if name == "basicq" else _multiple_choice
    return [build(row, random) for row in json.loads(raw)]


def _statement(row: dict[str, object], random: np.random.Generator) -> Question:
    order = [("True", "False")[index] for index in random.permutation(2)]
    text = f"Statement: {row['prompt']}\nQuestion: Is the statement {order[0].lower()} or {order[1].lower()}?\nAnswer:"
    return Question(text, tuple(f" {word}" for word in order), order.index("True" if row["answer"] else "False"))


def _multiple_choice(row: dict[str, object], random: np.random.Generator) -> Question:
    choices, answer = row["choices"], row["answer"]
    assert isinstance(choices, list)
    order = random.permutation(len(choices)).tolist()
    listed = "".join(f"{letter}. {choices[index]}\n" for letter, index in zip(LETTERS, order, strict=False))
    letters = tuple(f" {letter}" for letter in LETTERS[: len(choices)])
    return Question(f"Question: {row['prompt']}\n{listed}Answer:", letters, order.index(answer))


def encode_question(question: Question, tokenizer: Tokenizer) -> EncodedQuestion:
    """The question in tokens.

    Raises:
        InvalidArgumentError: two choices go on with the same token, so that one logit cannot tell them apart.
    """
    rows = [tokenizer.encode(question.text + choice) for choice in question.choices]
    common = 0
    while all(len(row) > common + 1 for row in rows) and len({row[common] for row in rows}) == 1:
        common += 1
    following = [row[common] for row in rows]
    if not common or len(set(following)) < len(following):
        raise InvalidArgumentError("this tokenizer gives two choices the same token: leave the questions out")
    return EncodedQuestion(rows[0][:common], following, question.answer)


def answer_questions(
    runtime: Runtime, questions: Sequence[EncodedQuestion], *, view: str, effort: float
) -> Iterator[int]:
    """The index of the choice with the largest logit, question after question; of equal ones the first.

    What a question has in common with the one before it is not computed again: a row depends on its own history alone.
    """
    schedule = EffortSchedule(effort)
    cache: Cache = runtime.new_cache(max(len(question.ids) for question in questions))
    held: list[int] = []
    for question in questions:
        same = 0
        while same < min(len(held), len(question.ids) - 1) and held[same] == question.ids[same]:
            same += 1
        cache.trim(same)
        held = question.ids
        logits = runtime.forward(held[same:], cache, effort=schedule, view=view, last_only=True).logits[0]
        yield int(np.argmax(logits[question.choice_ids]))

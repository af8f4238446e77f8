"""The questions of the original Effort, answered by comparing the logits of the choices.

`basicq` is true or false, both words named in an order that the seed shuffles, since models like the first or the last
better. `quiz` has four choices, and the likeliest continuation counts. They are not listed before: models as small
as those of the catalogue then choose by place or letter. The seed shuffles them all the same, so that no place is
favoured where two are equally likely.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidArgumentError
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import Cache, Runtime, forward_one

if TYPE_CHECKING:
    from specdec.tokenizers import Tokenizer

SETS = ("basicq", "quiz")


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it is asked.

    Attributes:
        text: everything before the answer.
        choices: how each choice goes on.
        answer: index of the right one.
    """

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """A question in tokens.

    Attributes:
        ids: what all choices begin with, at least one token.
        tails: what each choice continues with, at least one token each.
        answer: index of the right choice.
    """

    ids: list[int]
    tails: list[list[int]]
    answer: int


def load_questions(name: str, *, seed: int) -> list[Question]:
    """The questions of a set, choices in the order that the seed gives."""
    raw = resources.files("specdec").joinpath("data", f"effort_{name}.json").read_text(encoding="utf-8")
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
    return Question(
        f"Question: {row['prompt']}\nAnswer:", tuple(f" {choices[index]}" for index in order), order.index(answer)
    )


def encode_question(question: Question, tokenizer: Tokenizer) -> EncodedQuestion:
    """The question in tokens.

    Raises:
        InvalidArgumentError: one choice is the beginning of another, in tokens.
    """
    rows = [tokenizer.encode(question.text + choice) for choice in question.choices]
    common = 0
    while all(len(row) > common for row in rows) and len({row[common] for row in rows}) == 1:
        common += 1
    if not common or any(len(row) == common for row in rows):
        raise InvalidArgumentError(f"this tokenizer cannot tell the choices of {question.text!r} apart")
    return EncodedQuestion(rows[0][:common], [row[common:] for row in rows], question.answer)


def answer_questions(
    runtime: Runtime, questions: Sequence[EncodedQuestion], *, view: str, effort: float
) -> Iterator[int]:
    """The index of the likeliest choice, question after question; of equally likely ones the first.

    A choice is as likely as its tokens are together. What a question has in common with the one before it is not
    computed again: a row depends on its own history alone.
    """
    schedule, held = EffortSchedule(effort), list[int]()
    longest = max((len(one.ids) + max(map(len, one.tails)) for one in questions), default=1)
    cache = runtime.new_cache(longest)

    def rows(tokens: Sequence[int]) -> NDArray[np.float64]:
        """Log-probabilities (T, V) after each of the tokens."""
        logits = forward_one(runtime, tokens, cache, effort=schedule, view=view).logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    for question in questions:
        same = _common(held, question.ids[:-1])
        cache.trim(same)
        held = question.ids
        first = rows(held[same:])[-1]
        scores = [_score(first, tail, rows, cache) for tail in question.tails]
        cache.trim(len(held))
        yield int(np.argmax(scores))


def _score(
    first: NDArray[np.float64], tail: Sequence[int], rows: Callable[[Sequence[int]], NDArray[np.float64]], cache: Cache
) -> float:
    """Log-probability of a choice, in nats; `first` is the log-probability of the token after the question."""
    held = cache.length
    score = float(first[tail[0]])
    if len(tail) > 1:
        after = rows(tail[:-1])
        score += float(after[np.arange(len(tail) - 1), tail[1:]].sum())
        cache.trim(held)
    return score


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length

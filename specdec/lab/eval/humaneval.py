"""HumanEval: the model completes functions, and their tests are run on what it wrote.

Source: Chen et al. 2107.03374. Greedy, one answer for each problem, the bundled half of the problems.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from specdec.engine.generate import stream
from specdec.engine.prompt import encode_prompt
from specdec.lab.eval.sandbox import Program
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import find_view, forward_one

if TYPE_CHECKING:
    from specdec.model.loaded import Model

_FENCE = re.compile(r"^```\w*[ \t]*$", re.MULTILINE)
# Where an answer without a fence continues with something else.
_NEXT = re.compile(r"^(?:def |class |if __name__|print\(|assert )", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to complete.

    Attributes:
        name: such as "HumanEval/0".
        prompt: Python source up to the function's body.
        entry_point: the function's name.
        test: Python source that defines `check(candidate)`.
    """

    name: str
    prompt: str
    entry_point: str
    test: str


def load_problems(count: int | None = None) -> list[Problem]:
    """`count` problems, evenly spread over the bundled ones; None takes all of them."""
    text = resources.files("specdec").joinpath("data", "humaneval_dev.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    count = len(rows) if count is None else min(count, len(rows))
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    return [Problem(row["task_id"], row["prompt"], row["entry_point"], row["test"]) for row in chosen]


def write_answer(model: Model, problem: Problem, *, view: str, effort: float, max_tokens: int) -> str:
    """What the model answers, greedily, at an effort of a view; up to the end of the first block of code.

    On the exact view tokens are drafted and verified at that effort: faster, and the same tokens.
    """
    chat = model.tokenizer is not None and model.tokenizer.has_chat_template
    prompt = f"Complete this Python function:\n\n{problem.prompt}" if chat else problem.prompt
    pieces = (
        _speculated(model, prompt, effort, max_tokens)
        if find_view(model.runtime, view).is_exact
        else _one_by_one(model, prompt, view, effort, max_tokens)
    )
    text = ""
    with closing(pieces):
        for piece in pieces:
            text += piece
            if len(_FENCE.findall(text)) >= 2 and text.endswith("\n"):
                break
            if not chat and _NEXT.search(text):
                break
    return text


def to_program(problem: Problem, answer: str) -> Program:
    """What the problem begins with and the answer's code, to be run with the problem's tests."""
    code = _code(answer)
    header = re.split(rf"^def {problem.entry_point}\b", problem.prompt, maxsplit=1, flags=re.MULTILINE)[0]
    begin = header
    if not re.search(rf"^def {problem.entry_point}\b", code, re.MULTILINE):
        if code.strip() and not re.match(r"[ \t]", next(line for line in code.splitlines() if line.strip())):
            code = "\n".join(f"    {line}" for line in code.splitlines())
        begin, code = problem.prompt, _NEXT.split(code)[0]
    return Program(
        source=f"{begin}{code}\n",
        helpers=header,
        tests=f"{problem.test}\n\ncheck({problem.entry_point})\n",
        functions=(problem.entry_point,),
    )


def _code(answer: str) -> str:
    """The first block between fences, or everything where there is none."""
    fences = list(_FENCE.finditer(answer))
    if not fences:
        return answer
    return answer[fences[0].end() + 1 : fences[1].start() if len(fences) > 1 else None]


def _speculated(model: Model, prompt: str, effort: float, max_tokens: int) -> Generator[str, None, None]:
    with stream(model, prompt, max_tokens=max_tokens, verify_effort=effort) as generation:
        for piece in generation:
            yield piece.text


def _one_by_one(model: Model, prompt: str, view: str, effort: float, max_tokens: int) -> Generator[str, None, None]:
    assert model.tokenizer is not None
    encoded = encode_prompt(prompt, model.tokenizer, model.config, chat=True)
    ids: Sequence[int] = encoded.ids
    length = min(max_tokens, model.config.max_context - len(ids))
    cache, detokenizer = (
        model.runtime.new_cache(len(ids) + length),
        model.tokenizer.detokenizer(continues=encoded.continues),
    )
    for _ in range(length):
        logits = forward_one(model.runtime, ids, cache, effort=EffortSchedule(effort), view=view, logits="last").logits[
            0
        ]
        token = int(np.argmax(logits))
        if token in model.tokenizer.eos_ids:
            break
        ids = [token]
        yield detokenizer.add(token)
    yield detokenizer.finish()

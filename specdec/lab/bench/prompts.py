"""Prompts to measure with: the bundled sets, and the user's files."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from specdec.errors import InvalidArgumentError
from specdec.parse import ParseError, parse_json
from specdec.read_file import read_bytes

MOST_PROMPTS = 100_000  # of a file
Content: TypeAlias = "str | tuple[Mapping[str, str], ...]"

_MT_BENCH = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A prompt and where it belongs.

    Attributes:
        task: kind of prompt; results are reported by task.
        name: of the prompt within its set.
        content: text, or chat messages.
    """

    task: str
    name: str
    content: Content


def load_prompts(
    sets: Sequence[str], *, tasks: Sequence[str] | None = None, per_task: int | None = None
) -> list[TaskPrompt]:
    """Prompts of several sets, those of a task together.

    Args:
        sets: names of bundled sets ("spec-bench", "humaneval"), or files. A file that ends in .jsonl holds a
            JSON object on each line, with "prompt" (text), "turns" (texts, of which the first is asked) or "messages"
            (chat messages), and, if it likes, "task" and "id". Any other file holds a prompt on each line that is not
            empty.
        tasks: only these tasks; None takes all.
        per_task: most prompts of a task, evenly spread over those that there are; None takes all.

    Raises:
        InvalidArgumentError: a set or task that does not exist, a file that cannot be read or holds no prompts, or
            `per_task` below 1.
    """
    if per_task is not None and per_task < 1:
        raise InvalidArgumentError(f"per_task must be a whole number of at least 1, not {per_task!r}")
    by_task: dict[str, list[TaskPrompt]] = {}
    for name in dict.fromkeys(sets):
        for prompt in _BUILT_IN[name]() if name in _BUILT_IN else _read(name):
            by_task.setdefault(prompt.task, []).append(prompt)
    if unknown := [task for task in tasks or () if task not in by_task]:
        raise InvalidArgumentError(f"no task {unknown[0]!r} among the prompts: choose from {', '.join(by_task)}")
    return [
        prompt
        for task, prompts in by_task.items()
        if not tasks or task in tasks
        for prompt in (prompts if per_task is None else prompts[:: max(1, len(prompts) // per_task)][:per_task])
    ]


def fingerprint(prompts: Sequence[TaskPrompt]) -> str:
    """The same for equal prompts in the same order, and for no others."""
    plain = [
        [one.task, one.name, one.content if isinstance(one.content, str) else list(one.content)] for one in prompts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _spec_bench() -> list[TaskPrompt]:
    return [
        TaskPrompt("mt_bench" if row["category"] in _MT_BENCH else row["category"], str(row["id"]), row["turns"][0])
        for row in _own_rows("spec_bench_dev.jsonl")
    ]


def _humaneval() -> list[TaskPrompt]:
    return [
        TaskPrompt("humaneval", row["task_id"], "Complete this Python function:\n\n" + row["prompt"])
        for row in _own_rows("humaneval_dev.jsonl")
    ]


_BUILT_IN: dict[str, Callable[[], list[TaskPrompt]]] = {"spec-bench": _spec_bench, "humaneval": _humaneval}
BUILT_IN = tuple(_BUILT_IN)


def _own_rows(file: str) -> list[dict[str, Any]]:
    text = resources.files("specdec").joinpath("data", file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _read(file: str) -> list[TaskPrompt]:
    """Prompts of the user's own file."""
    path = Path(file)
    if not path.suffix and not path.exists():
        raise InvalidArgumentError(f"no prompt set and no file {file!r}: choose from {', '.join(BUILT_IN)}, or a file")
    try:
        text = read_bytes(path).decode("utf-8")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the prompts {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the prompts {file} are not valid UTF-8 (byte {error.start})") from None
    numbered = ((number, line) for number, line in enumerate(io.StringIO(text), start=1) if line.strip())
    lines = list(islice(numbered, MOST_PROMPTS + 1))
    if len(lines) > MOST_PROMPTS:
        raise InvalidArgumentError(f"{file} holds more than {MOST_PROMPTS} prompts: give fewer")
    if not lines:
        raise InvalidArgumentError(f"{file} holds no prompts: write one on each line")
    if path.suffix != ".jsonl":
        return [TaskPrompt(path.stem, str(number), line.strip()) for number, line in lines]
    return [_row(line, path=path, number=number) for number, line in lines]


def _row(line: str, *, path: Path, number: int) -> TaskPrompt:
    """The prompt on a line of a .jsonl file.

    Raises:
        InvalidArgumentError: it holds none.
    """
    try:
        row = parse_json(line)
    except ParseError:
        row = None
    content = _content(row) if isinstance(row, Mapping) else None
    if content is None:
        raise InvalidArgumentError(
            f"{path} line {number} must be a JSON object with a prompt (text), turns (texts) or messages (objects with "
            "role and content)"
        )
    return TaskPrompt(str(row.get("task", path.stem)), str(row.get("id", number)), content)


def _content(row: Mapping[str, Any]) -> Content | None:
    """What to ask; None where there is nothing, or more than one thing."""
    match {key: row[key] for key in ("prompt", "turns", "messages") if key in row}:
        case {"prompt": str(text), **rest} if text and not rest:
            return text
        case {"turns": [str(text), *_], **rest} if text and not rest:
            return text
        case {"messages": [*messages], **rest} if messages and not rest:
            if all(_is_message(one) for one in messages):
                return tuple({"role": one["role"], "content": one["content"]} for one in messages)
    return None


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))

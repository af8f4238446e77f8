"""Who is measured: `Contender`s, made from lists of options, from single descriptions, and from grid files."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdec.drafters.registry import names as drafter_names
from specdec.engine.option_checks import WITHOUT_WEIGHTS
from specdec.engine.options import CONDITION_OPTIONS, DEFAULTS, DRAFT_OPTIONS, option_value
from specdec.engine.policy import Learner
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.parse import ParseError, parse_yaml
from specdec.policies.registry import create as create_policy
from specdec.read_file import read_bytes

PLAIN = "plain"
DEFAULT = ("auto", "int4:0.7:4", "drafter=ngram")


@dataclass(frozen=True, slots=True)
class Contender:
    """A way of decoding.

    Attributes:
        name: in tables.
        options: arguments of `specdec.generate`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether its policy keeps what it learns from answer to answer."""
        return self.name != PLAIN and isinstance(create_policy(self.options.get("policy", "auto")), Learner)


@dataclass(frozen=True, slots=True)
class Condition:
    """What all contenders are measured under; each has plain decoding of its own to be compared with."""

    verify_effort: float = 1.0
    temperature: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """In words: "greedy", "temperature 0.8, seed 1", "greedy, verified at effort 0.6"."""
        words = ["greedy"] if self.temperature == 0 else [f"temperature {self.temperature:g}", f"seed {self.seed}"]
        return ", ".join([*words, *([] if self.verify_effort == 1 else [f"verified at effort {self.verify_effort:g}"])])

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `specdec.generate`."""
        return {"verify_effort": self.verify_effort, "temperature": self.temperature, "seed": self.seed}


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure: every contender, plain decoding first, under every condition."""

    contenders: tuple[Contender, ...]
    conditions: tuple[Condition, ...] = (Condition(),)


def make_grid(
    *,
    file: str | Path | None = None,
    singles: Sequence[str] = (),
    lists: Mapping[str, Sequence[Any]] | None = None,
) -> Grid:
    """A grid from everything that was asked for.

    Args:
        file: grid file in YAML: `contenders` (each a single description, or options of which each may be a list: all
            combinations), and lists `verify_effort`, `temperature` and `seed`.
        singles: descriptions of single contenders, as in `parse_contender`.
        lists: values by option; contenders are all combinations of `DRAFT_OPTIONS`, conditions those of
            `verify_effort`, `temperature` and `seed`, which take the place of the file's.

    Raises:
        InvalidArgumentError: a value is out of range, two contenders have the same name, or the file makes no sense.
        UnknownNameError: no such policy or drafter.
    """
    given = {name: list(values) for name, values in (lists or {}).items() if values}
    found, axes = ([], {}) if file is None else _read(Path(file))
    found += [parse_contender(one) for one in singles]
    chosen = {name: given[name] for name in DRAFT_OPTIONS if name in given}
    found += _product(chosen) if chosen else []
    if not found:
        found = [parse_contender(one) for one in DEFAULT]
    axes |= {name: given[name] for name in CONDITION_OPTIONS if name in given}
    return Grid(_unique([Contender(PLAIN, {"speculate": False}), *found]), _conditions(axes))


def parse_contender(text: str) -> Contender:
    """A contender from its description: "auto", "VIEW:EFFORT:LENGTH" for a fixed draft by the model itself, or words
    `key=value` with the keys `name`, `policy`, `drafter`, `draft_view`, `draft_effort` and `draft_len`.

    Raises:
        InvalidArgumentError: it is none of these, or a value is out of range.
        UnknownNameError: no such policy or drafter.
    """
    if text.strip() == "auto":
        return _contender({})
    parts = text.split(":")
    if len(parts) == 3 and "=" not in text:
        view, effort, length = parts
        fixed = {"policy": "fixed", "drafter": "effort", "draft_view": view}
        return _contender(fixed | {"draft_effort": effort, "draft_len": length})
    try:
        words = [word.partition("=") for word in shlex.split(text)]
    except ValueError:
        words = []
    options = {key: value for key, equals, value in words if equals and value}
    if not words or len(options) < len(words):
        raise InvalidArgumentError(
            "a contender must be auto, VIEW:EFFORT:LENGTH, or words such as policy=fixed drafter=ngram draft_len=4, "
            f"not {text!r}"
        )
    return _contender(options)


def _contender(options: Mapping[str, Any]) -> Contender:
    """A contender from checked options; "name" among them is its name."""
    if unknown := [key for key in options if key not in (*DRAFT_OPTIONS, "name")]:
        raise InvalidArgumentError(
            f"a contender has no option {unknown[0]!r}: choose from name, {', '.join(DRAFT_OPTIONS)}"
        )
    chosen = {key: _checked(key, options[key]) for key in DRAFT_OPTIONS if options.get(key) is not None}
    if "draft_len" in chosen:
        chosen = {"policy": "fixed"} | chosen  # no other policy asks for a length
        if chosen["policy"].partition(":")[0] != "fixed":
            raise InvalidArgumentError(f"draft_len is for the policy fixed, not for {chosen['policy']!r}")
    if chosen.get("drafter", "").partition(":")[0] in WITHOUT_WEIGHTS:
        chosen = {key: value for key, value in chosen.items() if key not in ("draft_view", "draft_effort")}
    return Contender(str(options.get("name") or _name(chosen)), chosen)


def _checked(key: str, value: Any) -> Any:
    """The value of an option, in its type and range; policies and drafters exist."""
    value = option_value(key, value)
    if key == "policy":
        create_policy(value)
    if key == "drafter":
        for one in value.split(";"):
            name = one.strip().partition(":")[0]
            if name not in (known := ["auto", *drafter_names()]):
                raise UnknownNameError("drafter", name, known)
    return value


def _name(options: Mapping[str, Any]) -> str:
    """What to call a contender that was given no name."""
    policy, drafter = options.get("policy", "auto"), options.get("drafter", "auto")
    if policy == "fixed" and drafter == "effort" and {"draft_view", "draft_effort", "draft_len"} <= set(options):
        return f"{options['draft_view']}:{options['draft_effort']:g}:{options['draft_len']}"
    words = [policy, *([drafter] if drafter != "auto" else [])]
    words += [options[key] for key in ("draft_view",) if key in options]
    words += [f"effort {options[key]:g}" for key in ("draft_effort",) if key in options]
    words += [f"{options[key]} tokens" for key in ("draft_len",) if key in options]
    return ", ".join(words)


def _product(lists: Mapping[str, Sequence[Any]], name: str | None = None) -> list[Contender]:
    """All combinations of values by option."""
    made = [
        _contender(dict(zip(lists, values, strict=True)) | ({} if name is None else {"name": name}))
        for values in itertools.product(*lists.values())
    ]
    if name is not None and len(made) > 1:
        return [Contender(f"{name}, {_name(one.options)}", one.options) for one in made]
    return made


def _unique(contenders: Iterable[Contender]) -> tuple[Contender, ...]:
    """Each contender once.

    Raises:
        InvalidArgumentError: two different ones have the same name.
    """
    by_name: dict[str, Contender] = {}
    for one in contenders:
        if by_name.setdefault(one.name, one).options != one.options:
            raise InvalidArgumentError(f"two contenders are called {one.name!r}: give one of them another name")
    return tuple(by_name.values())


def _conditions(axes: Mapping[str, Sequence[Any]]) -> tuple[Condition, ...]:
    """All combinations; the seed means nothing to greedy decoding."""
    defaults = DEFAULTS | {"seed": 0}  # a fixed one: all contenders are to draw the same tokens
    lists = [[option_value(name, value) for value in axes.get(name, (defaults[name],))] for name in CONDITION_OPTIONS]
    made = [
        Condition(effort, temperature, seed if temperature else 0)
        for effort, temperature, seed in itertools.product(*lists)
    ]
    return tuple(dict.fromkeys(made))


def _read(path: Path) -> tuple[list[Contender], dict[str, list[Any]]]:
    """Contenders and lists of a grid file."""
    try:
        content = parse_yaml(read_bytes(path))
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the grid {path}: {error.strerror}") from None
    except ParseError:
        content = None
    listed = content.get("contenders", []) if isinstance(content, Mapping) else None
    if (
        not isinstance(content, Mapping)
        or not isinstance(listed, list)
        or set(content) - {"contenders", *CONDITION_OPTIONS}
    ):
        known = ", ".join(CONDITION_OPTIONS)
        raise InvalidArgumentError(
            f"the grid {path} must be a YAML file with contenders: (a list), and, if any, {known}"
        )
    found: list[Contender] = []
    for entry in listed:
        if isinstance(entry, str):
            found.append(parse_contender(entry))
        elif isinstance(entry, Mapping):
            lists = {str(k): v if isinstance(v, list) else [v] for k, v in entry.items() if k != "name"}
            found += _product(lists, entry.get("name"))
        else:
            raise InvalidArgumentError(f"the grid {path}: a contender must be text or options, not {entry!r}")
    axes = {
        name: content[name] if isinstance(content[name], list) else [content[name]]
        for name in CONDITION_OPTIONS
        if name in content
    }
    return found, axes

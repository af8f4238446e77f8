"""A plug-in with its parameters as text: `name:key=value,key=value`, or a YAML file that names it. `read_spec` reads
one, `construct` makes the object. Which plug-ins there are is the business of a `Registry`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from specdec.errors import InvalidArgumentError, PluginError
from specdec.interrupts import unless_signalled
from specdec.parse import ParseError, parse_yaml
from specdec.read_file import read_bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """What a caller asked for.

    Attributes:
        name: of the plug-in.
        parameters: arguments of its constructor.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def read_spec(text: str, *, kind: str, presets: str) -> PluginSpec:
    """Read `name`, `name:key=value,key=value`, or a file, `FILE.yaml`.

    A file names the plug-in under its kind, and its `parameters`; one that is not there is looked for among the
    presets. In a text, values are read as whole numbers, numbers, `true`, `false`, `none`, or text.

    Args:
        text: what the caller wrote.
        kind: of the plug-in, such as "policy".
        presets: folder of `configs` with files of this kind.

    Raises:
        InvalidArgumentError: a key given twice, a missing value, or a file that does not hold such a plug-in.
    """
    if text.endswith((".yaml", ".yml")):
        return _read_file(text, kind, resources.files("specdec.configs").joinpath(presets, text))
    name, _, written = text.partition(":")
    parameters: dict[str, Any] = {}
    for item in (part.strip() for part in written.split(",") if part.strip()):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise InvalidArgumentError(f"{kind} parameter {item!r} must be written key=value")
        if key in parameters:
            raise InvalidArgumentError(f"{kind} parameter {key!r} is given twice")
        parameters[key] = _value(value)
    return PluginSpec(name, parameters)


def construct(constructor: Callable[..., T], spec: PluginSpec, *, kind: str) -> T:
    """The plug-in that `spec` describes.

    Args:
        constructor: makes it from the parameters.
        spec: what the caller asked for.
        kind: of the plug-in.

    Raises:
        InvalidArgumentError: an unknown parameter, or values that the constructor refuses.
        PluginError: the constructor fails in another way than with ValueError or TypeError.
    """
    if not callable(constructor):
        raise PluginError(kind, spec.name, f"must be a class or function that makes it, not {constructor!r}")
    allowed = _parameters(constructor) if spec.parameters else []
    for key in spec.parameters:
        if key not in allowed:
            raise InvalidArgumentError(
                f"{kind} {spec.name!r} has no parameter {key!r}: choose from {', '.join(allowed) or '(none)'}"
            )
    try:
        return constructor(**spec.parameters)
    except PluginError:
        raise
    except unless_signalled(Exception) as error:
        if isinstance(error, ValueError | TypeError):
            raise InvalidArgumentError(f"{kind} {spec.name!r} refuses its parameters: {error}") from error
        raise PluginError.raised(kind, spec.name, error, doing="its constructor") from error


def _parameters(constructor: Callable[..., Any]) -> list[str]:
    """Names of a constructor's parameters; none for one that does not tell, as some written in C."""
    try:
        return list(inspect.signature(constructor).parameters)
    except unless_signalled(TypeError, ValueError):
        return []


def _read_file(text: str, kind: str, preset: Traversable) -> PluginSpec:
    """Name and parameters from a file, or from the preset where there is no such file."""
    path = Path(text)
    try:
        is_preset = not path.exists() and path.name == text and preset.is_file()
        content = parse_yaml(preset.read_bytes() if is_preset else read_bytes(path))
    except ParseError as error:
        raise InvalidArgumentError(f"the {kind} file {text} {error}: write {kind}: NAME and parameters:") from None
    except unless_signalled(OSError, ValueError) as error:  # a name that is too long, or has a zero byte
        why = getattr(error, "strerror", None) or error
        raise InvalidArgumentError(f"cannot read the {kind} file {text[:200]}: {why}") from None
    parameters = content.get("parameters") or {} if isinstance(content, Mapping) else None
    if (
        not isinstance(content, Mapping)
        or not isinstance(content.get(kind), str)
        or set(content) - {kind, "parameters"}
        or not isinstance(parameters, Mapping)
    ):
        raise InvalidArgumentError(f"the {kind} file {text} must hold {kind}: NAME and, if any, parameters: of it")
    return PluginSpec(content[kind], {str(key): value for key, value in parameters.items()})


def _value(text: str) -> Any:
    """`text` as a whole number, a number, a truth value, None, or itself."""
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

"""Functions as tools in `specdec.mlx_lm`, and the calls of them that answers hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from specdec.errors import InvalidArgumentError
from specdec.mlx_lm.tool_calls import ToolCalls
from specdec.mlx_lm.tool_schema import function_tool


def multiply(a: float, b: int, note: str = "") -> float:
    """Multiplies.

    Args:
        a: The first number.
        note: Something.
    """
    return a * b


def test_functions_as_tools() -> None:
    schema = function_tool(multiply)["function"]
    assert schema["name"] == "multiply"
    assert schema["description"] == "Multiplies."
    assert schema["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "number", "description": "The first number."},
            "b": {"type": "integer"},
            "note": {"type": "string", "description": "Something."},
        },
        "required": ["a", "b"],
    }
    bare: Callable[..., None] = lambda _: None  # noqa: E731
    with pytest.raises(InvalidArgumentError, match="needs a docstring"):
        function_tool(bare)


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (
            "<tool_call> {{ tool_call.name }}",
            '<tool_call>\n{"name": "multiply", "arguments": {"a": 2.5, "b": 3}}\n</tool_call>',
        ),
        (
            "<tool_call>\n<function= <parameter=",
            "<tool_call>\n<function=multiply>\n<parameter=a>\n2.5\n</parameter>\n<parameter=b>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        ("[TOOL_CALLS] [ARGS]", '[TOOL_CALLS]multiply[ARGS]{"a": 2.5, "b": 3}'),
        ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "multiply", "arguments": {"a": 2.5, "b": 3}}]'),
    ],
)  # fmt: skip
def test_tool_calls_are_parsed_as_in_the_example(template: str, answer: str) -> None:
    calls = ToolCalls(template)
    assert calls.start is not None
    start = answer.find(calls.start) + len(calls.start)
    end = answer.find(str(calls.end)) if calls.end else len(answer)
    found = calls.parse(answer[start:end].strip(), [function_tool(multiply)])
    assert found == {"name": "multiply", "arguments": {"a": 2.5, "b": 3}}
    with pytest.raises(InvalidArgumentError, match="this is not a tool call"):
        calls.parse("nothing")


def test_a_template_without_tools() -> None:
    assert ToolCalls("{{ messages }}").start is None

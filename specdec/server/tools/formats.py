"""How models write tool calls, and which of these ways a model's chat template shows: `tool_format`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specdec.server.tools.layout import Layout
from specdec.server.tools.markers import (
    DEEPSEEK_CALL,
    DEEPSEEK_CALL_END,
    DEEPSEEK_CALLS,
    DEEPSEEK_CALLS_END,
    DEEPSEEK_SEPARATOR,
    FENCE,
    FUNCTION,
    FUNCTION_END,
    MISTRAL_ARGUMENTS,
    MISTRAL_CALLS,
    PARAMETER,
    PIPED_CALL,
    PIPED_CALL_END,
    PYTHON_TAG,
    TOOL_CALL,
    TOOL_CALL_END,
)
from specdec.server.tools.named_calls import read_deepseek, read_deepseek_calls, read_function, read_mistral
from specdec.server.tools.parser import Reader
from specdec.server.tools.readers import read_bare, read_fenced, read_json, read_piped, read_tool_call

_NAME, _ARGUMENTS = '{"name": "', '", "arguments": '


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way of writing tool calls.

    Attributes:
        name: of the format.
        layout: the text of calls, exactly.
        readers: by the marker after which each reads.
        bare: reads calls without a marker, at the beginning of an answer.
    """

    name: str
    layout: Layout
    readers: Mapping[str, Reader] = field(default_factory=dict)
    bare: Reader | None = None


# Small models often leave out the markers, or put a block of Markdown in their place.
_LOOSE: dict[str, Reader] = {TOOL_CALL: read_tool_call, FUNCTION: read_function, FENCE: read_fenced}
_DEEPSEEK: dict[str, Reader] = {DEEPSEEK_CALLS: read_deepseek_calls, DEEPSEEK_CALL: read_deepseek}

HERMES = ToolFormat(
    "hermes",
    Layout(name=f"{TOOL_CALL}\n{_NAME}", arguments=_ARGUMENTS, end="}\n" + TOOL_CALL_END, between="\n"),
    _LOOSE,
    read_bare,
)
QWEN_CODER = ToolFormat(
    "qwen3-coder",
    Layout(
        name=f"{TOOL_CALL}\n{FUNCTION}",
        arguments=">\n",
        end=f"{FUNCTION_END}\n{TOOL_CALL_END}",
        between="\n",
        in_tags=True,
    ),
    _LOOSE,
    read_bare,
)
LLAMA = ToolFormat(
    "llama",
    Layout(name=_NAME, arguments='", "parameters": ', end="}", several=False),
    {PYTHON_TAG: read_json, FUNCTION: read_function, FENCE: read_fenced},
    read_bare,
)
LLAMA_FUNCTION = ToolFormat(
    "llama-function",
    Layout(name=FUNCTION, arguments=">", end=FUNCTION_END, several=False),
    LLAMA.readers,
    read_bare,
)
MISTRAL_LIST = ToolFormat(
    "mistral-list",
    Layout(before=f"{MISTRAL_CALLS}[", name=_NAME, arguments=_ARGUMENTS, end="}", between=", ", after="]"),
    {MISTRAL_CALLS: read_mistral},
)
MISTRAL = ToolFormat(
    "mistral",
    Layout(name=MISTRAL_CALLS, arguments=MISTRAL_ARGUMENTS, end=""),
    {MISTRAL_CALLS: read_mistral},
)
DEEPSEEK_R1 = ToolFormat(
    "deepseek-r1",
    Layout(
        before=DEEPSEEK_CALLS,
        name=f"{DEEPSEEK_CALL}function{DEEPSEEK_SEPARATOR}",
        arguments=f"\n{FENCE}json\n",
        end=f"\n{FENCE}{DEEPSEEK_CALL_END}",
        between="\n",
        after=DEEPSEEK_CALLS_END,
    ),
    _DEEPSEEK,
)
DEEPSEEK = ToolFormat(
    "deepseek",
    Layout(
        before=DEEPSEEK_CALLS,
        name=DEEPSEEK_CALL,
        arguments=DEEPSEEK_SEPARATOR,
        end=DEEPSEEK_CALL_END,
        after=DEEPSEEK_CALLS_END,
    ),
    _DEEPSEEK,
)
GRANITE = ToolFormat(
    "granite",
    Layout(before=f"{PIPED_CALL}[", name=_NAME, arguments=_ARGUMENTS, end="}", between=", ", after="]"),
    {PIPED_CALL: read_piped, TOOL_CALL: read_tool_call},
)
PHI = ToolFormat(
    "phi",
    Layout(name=f"{PIPED_CALL}{_NAME}", arguments=_ARGUMENTS, end="}" + PIPED_CALL_END),
    {PIPED_CALL: read_piped, "functools": read_json},
)
# Read by `HarmonyParser`.
HARMONY = ToolFormat(
    "harmony",
    Layout(
        name="<|channel|>commentary to=functions.",
        arguments=" <|constrain|>json<|message|>",
        end="",  # the end token follows
        several=False,
    ),
)


def tool_format(chat_template: str | None) -> ToolFormat:
    """The way in which the model of a chat template writes tool calls.

    Args:
        chat_template: Jinja source. A template that shows no format of its own, or None, gets the format of Hermes and
            Qwen, which `ToolPrompt` then explains to the model.
    """
    text = chat_template or ""
    if "<|channel|>" in text and "<|message|>" in text:
        return HARMONY
    if DEEPSEEK_CALLS in text:
        return DEEPSEEK_R1 if f"{FENCE}json" in text else DEEPSEEK
    if MISTRAL_CALLS in text:
        return MISTRAL if MISTRAL_ARGUMENTS in text else MISTRAL_LIST
    if FUNCTION in text and PARAMETER in text:
        return QWEN_CODER
    if TOOL_CALL in text:
        return HERMES
    if PIPED_CALL in text:
        return PHI if PIPED_CALL_END in text else GRANITE
    if '"parameters": ' in text or PYTHON_TAG in text:
        return LLAMA
    return LLAMA_FUNCTION if FUNCTION in text else HERMES

"""Markers around tool calls in answers. In most vocabularies they are tokens of their own, often control tokens."""

from __future__ import annotations

TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
PIPED_CALL, PIPED_CALL_END = "<|tool_call|>", "<|/tool_call|>"
PYTHON_TAG = "<|python_tag|>"
FENCE = "```"
MISTRAL_CALLS, MISTRAL_ARGUMENTS, MISTRAL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


def _deepseek(name: str) -> str:
    """DeepSeek writes wide bars, and blocks for spaces."""
    return f"<\uff5c{name}\uff5c>".replace(" ", "\u2581")


DEEPSEEK_CALLS, DEEPSEEK_CALLS_END = _deepseek("tool calls begin"), _deepseek("tool calls end")
DEEPSEEK_CALL, DEEPSEEK_CALL_END = _deepseek("tool call begin"), _deepseek("tool call end")
DEEPSEEK_SEPARATOR = _deepseek("tool sep")

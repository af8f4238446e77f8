"""The body of `/v1/messages` as a `ChatRequest`, and how the caller wants the answer: `MessageForm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.model.architecture import ModelConfig
from specdec.server.anthropic.content import read_conversation
from specdec.server.chat_request import MOST_TOOLS, read_model, read_tools, refuse_unsupported
from specdec.server.errors import bad_request, missing
from specdec.server.events import ChatRequest
from specdec.server.fields import Fields
from specdec.server.sampling import read_options
from specdec.server.settings import ServerSettings

# Of Anthropic's API: they change no token here. Context management lets a server drop parts of a prompt; this one
# keeps them.
_IGNORED = (
    "metadata", "service_tier", "inference_geo", "cache_control", "context_management", "speed", "diagnostics",
    "user_profile_id", "workspace_id", "betas",
)  # fmt: skip
_UNSUPPORTED = {
    "container": "this server runs no code",
    "mcp_servers": "this server calls no other servers",
}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageForm:
    """How an answer is to be sent.

    Attributes:
        model: as the request called it.
        stream: as server-sent events.
        shows_thinking: with the text of the model's reasoning, not only a block for it.
    """

    model: str
    stream: bool = False
    shows_thinking: bool = True


def read_messages_request(
    body: Mapping[str, Any], config: ModelConfig, settings: ServerSettings, *, owner: str, counts: bool = False
) -> tuple[ChatRequest, MessageForm]:
    """The request, and how it is to be answered.

    Args:
        body: of the HTTP request.
        config: of the model.
        settings: of the server.
        owner: the client that asks.
        counts: the prompt's tokens are to be counted, so that `max_tokens` is not needed.

    Raises:
        ApiError: a field is wrong, unknown or missing.
    """
    renamed, effort = _renamed(body)
    fields = Fields(renamed)
    if "model" not in fields:
        raise missing("model")
    model = read_model(fields, settings)
    refuse_unsupported(fields, _UNSUPPORTED)
    max_tokens = fields.whole("max_tokens", 1, 2**63)
    if max_tokens is None and not counts:
        raise missing("max_tokens")
    messages = read_conversation(fields.any("system"), fields.required("messages"))
    tools = _tools(fields)
    choice, parallel = _tool_choice(fields, tools)
    variables, shows_thinking = _thinking(fields, max_tokens)
    stream = bool(fields.flag("stream"))
    if effort is not None:
        variables["reasoning_effort"] = effort
    options = read_options(fields, config, settings)
    options["chat_template_kwargs"] = variables | (fields.object("chat_template_kwargs") or {})
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    fields.ignore(*_IGNORED)
    fields.finish()
    request = ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        continue_final=messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"),
        streamed=stream,
        options=options,
        owner=owner,
        deadline_s=settings.timeout_s,
        schema_field="output_config.format.schema",
    )
    return request, MessageForm(model=model, stream=stream, shows_thinking=shows_thinking)


def _tools(fields: Fields) -> list[dict[str, Any]]:
    """The tools in OpenAI's form."""
    done = []
    for number, tool in enumerate((fields.array("tools") or [])[: MOST_TOOLS + 1]):
        path = f"tools.{number}"
        if not isinstance(tool, dict):
            raise bad_request(f"'{path}' must be an object with 'name' and 'input_schema'", path)
        inner = Fields(tool, path)
        kind = inner.text("type")
        if kind not in (None, "custom"):
            raise bad_request(
                f"'{path}.type' {kind[:60]!r} is not supported: this server runs no tools of its own, so describe it "
                "with 'name' and 'input_schema'",
                path,
            )
        name, schema = inner.required("name"), inner.required("input_schema")
        if not isinstance(schema, dict):
            raise inner.wrong("input_schema", "an object", schema)
        more = {"description": inner.text("description"), "parameters": schema, "strict": inner.flag("strict")}
        given = {key: value for key, value in more.items() if value is not None}
        done.append({"type": "function", "function": {"name": name, **given}})
    return read_tools(Fields({"tools": done}), path="tools.{}.name")


def _tool_choice(fields: Fields, tools: list[dict[str, Any]]) -> tuple[str | Mapping[str, str], bool]:
    """The choice as `ChatRequest` has it, and whether several calls may come at once."""
    choice = fields.inner("tool_choice")
    if choice is None:
        return "auto", True
    kind = choice.choice("type", ("auto", "any", "tool", "none"))
    parallel = not choice.flag("disable_parallel_tool_use")
    name = choice.text("name")
    choice.finish()
    if kind is None:
        raise missing("tool_choice.type")
    if kind in ("any", "tool") and not tools:
        raise bad_request(f"'tool_choice' of type {kind!r} needs at least one of 'tools'", "tool_choice")
    if kind != "tool":
        return {"any": "required"}.get(kind, kind), parallel
    if name not in [tool["function"]["name"] for tool in tools]:
        raise bad_request("'tool_choice.name' must be the name of one of the tools", "tool_choice.name")
    return {"name": str(name)}, parallel


def _thinking(fields: Fields, max_tokens: int | None) -> tuple[dict[str, Any], bool]:
    """Variables of the chat template, and whether the reasoning is shown."""
    thinking = fields.inner("thinking")
    if thinking is None:
        return {"enable_thinking": False, "thinking": False}, True
    kind = thinking.choice("type", ("enabled", "disabled", "adaptive", "between_tools"))
    if kind is None:
        raise missing("thinking.type")
    budget = thinking.whole("budget_tokens", 1, 2**63)
    display = thinking.choice("display", ("summarized", "omitted"))
    thinking.finish()
    if kind == "enabled" and budget is None:
        raise missing("thinking.budget_tokens")
    if kind == "enabled" and budget is not None and max_tokens is not None and budget >= max_tokens:
        raise bad_request("'thinking.budget_tokens' must be less than 'max_tokens'", "thinking.budget_tokens")
    is_on = kind != "disabled"
    return {"enable_thinking": is_on, "thinking": is_on}, display != "omitted"


def _renamed(body: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The body with the fields that OpenAI's interface has too under its names, and how hard to think."""
    for name in ("stop", "response_format"):
        if name in body:
            raise bad_request(f"Unrecognized request argument supplied: {name}", name, code="unknown_parameter")
    fields = Fields(body)
    stops, output = fields.array("stop_sequences"), fields.inner("output_config")
    if stops is not None and not all(isinstance(stop, str) and stop for stop in stops):
        raise fields.wrong("stop_sequences", "an array of strings, none of them empty", stops)
    done = {name: value for name, value in body.items() if name not in ("stop_sequences", "output_config")}
    done["stop"] = stops
    if output is None:
        return done, None
    effort, form = output.choice("effort", tuple(_EFFORTS)), output.inner("format")
    output.finish()
    if form is not None:
        form.choice("type", ("json_schema",))
        schema = form.object("schema")
        form.finish()
        if schema is None:
            raise missing("output_config.format.schema")
        done["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    return done, _EFFORTS.get(effort or "")

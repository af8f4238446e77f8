"""The body of `/v1/responses` as a `ChatRequest`, and how the caller wants the answer: `ResponseForm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.model.architecture import ModelConfig
from specdec.server.chat_request import MOST_TOOLS, read_model, read_tools, refuse_unsupported
from specdec.server.errors import bad_request
from specdec.server.events import ChatRequest
from specdec.server.fields import Fields
from specdec.server.responses.items import Item, messages_of, read_items
from specdec.server.responses.store import StoredResponse
from specdec.server.sampling import read_max_tokens, read_options
from specdec.server.settings import ServerSettings

# They change no token here. `max_tool_calls` counts tools that OpenAI runs.
_IGNORED = (
    "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "max_tool_calls", "access_programs", "background_options", "stream_options",
)  # fmt: skip
_UNSUPPORTED = {
    "conversation": "use 'previous_response_id'",
    "prompt": "this server keeps no prompts: send 'instructions' and 'input'",
    "moderation": "this server moderates nothing",
    "context_management": "this server drops nothing from a prompt",
    "image": "this model reads and writes text only",
}
_INCLUDABLE = (
    "message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results",
    "web_search_call.results", "web_search_call.action.sources", "code_interpreter_call.outputs",
    "computer_call_output.output.image_url", "message.input_image.image_url",
)  # fmt: skip
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_MOST_METADATA = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseForm:
    """How an answer is to be sent and kept.

    Attributes:
        model: as the request called it.
        stream: as server-sent events.
        store: keep it for later requests.
        logprobs: with log-probabilities of the text's tokens.
        input: items of the request.
        before: items of the conversation that it continues from.
        echo: fields of the response that repeat the request's.
    """

    model: str
    stream: bool = False
    store: bool = True
    logprobs: bool = False
    input: Sequence[Item] = ()
    before: Sequence[Item] = ()
    echo: Mapping[str, Any] = field(default_factory=dict)


def read_response_request(
    body: Mapping[str, Any],
    config: ModelConfig,
    settings: ServerSettings,
    *,
    owner: str,
    previous: Callable[[str], StoredResponse],
) -> tuple[ChatRequest, ResponseForm]:
    """The request, and how it is to be answered.

    Args:
        body: of the HTTP request.
        config: of the model.
        settings: of the server.
        owner: the client that asks.
        previous: gives the response of an id.

    Raises:
        ApiError: a field is wrong, unknown or missing.
    """
    fields = Fields(body)
    model = read_model(fields, settings)
    refuse_unsupported(fields, _UNSUPPORTED)
    if fields.flag("background"):
        raise bad_request("'background' is not supported: wait for the response, or stream it", "background")
    items = read_items(fields.required("input"))
    instructions, name = fields.text("instructions"), fields.text("previous_response_id")
    before = [] if name is None else previous(name).items
    text, formats = _text(fields)
    flat, tools = _tools(fields)
    given_choice = fields.any("tool_choice")
    choice, offered = _tool_choice(given_choice, tools)
    parallel = fields.flag("parallel_tool_calls") is not False
    echo = _echo(fields) | {
        "instructions": instructions,
        "parallel_tool_calls": parallel,
        "previous_response_id": name,
        "text": text,
        "tool_choice": given_choice or "auto",
        "tools": flat,
    }
    logprobs = _logprobs(fields)
    stream, store = bool(fields.flag("stream")), fields.flag("store") is not False
    options = _options(fields, config, settings, formats)
    options |= {} if logprobs is None else {"logprobs": logprobs}
    echo |= {"temperature": options["temperature"], "top_p": options.get("top_p", 1.0), "top_logprobs": logprobs or 0}
    echo |= {"max_output_tokens": options.get("max_tokens"), "reasoning": _reasoning(fields, options), "store": store}
    fields.ignore(*_IGNORED)
    fields.finish()
    messages = messages_of([*before, *items])
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    if not messages:
        raise bad_request("'input' must hold at least one item with text", "input")
    request = ChatRequest(
        messages=messages,
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        streamed=stream,
        options=options,
        owner=owner,
        deadline_s=settings.timeout_s,
        schema_field="text.format.schema",
        messages_field="input",
    )
    form = ResponseForm(
        model=model, stream=stream, store=store, logprobs=logprobs is not None, input=items, before=before, echo=echo
    )
    return request, form


def _echo(fields: Fields) -> dict[str, Any]:
    """Fields that the response repeats and nothing else reads."""
    metadata = fields.object("metadata") or {}
    if len(metadata) > _MOST_METADATA or not all(isinstance(value, str) for value in metadata.values()):
        raise fields.wrong("metadata", f"an object of at most {_MOST_METADATA} strings", metadata)
    truncation = fields.choice("truncation", ("auto", "disabled"))
    if truncation == "auto":
        raise bad_request("'truncation' 'auto' is not supported: this server drops nothing from a prompt", "truncation")
    return {"metadata": metadata, "truncation": "disabled", "user": fields.text("user")}


def _text(fields: Fields) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The field `text` as the response repeats it, and OpenAI's `response_format` of the chat API."""
    text = fields.inner("text")
    if text is None:
        return {"format": {"type": "text"}}, None
    verbosity, form = text.choice("verbosity", ("low", "medium", "high")), text.object("format")
    text.finish()
    echo = {"format": form or {"type": "text"}, **({} if verbosity is None else {"verbosity": verbosity})}
    if form is None:
        return echo, None
    inner = Fields(form, "text.format")
    kind = inner.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise inner.wrong("type", "'text', 'json_object' or 'json_schema'", None)
    if kind != "json_schema":
        return echo, None if kind == "text" else {"type": kind}
    schema = inner.required("schema")
    if not isinstance(schema, dict):
        raise inner.wrong("schema", "an object", schema)
    described = {"name": inner.text("name") or "response", "schema": schema, "strict": inner.flag("strict")}
    return echo, {"type": kind, "json_schema": {name: value for name, value in described.items() if value is not None}}


def _tools(fields: Fields) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tools as the response repeats them, and in the form of the chat API."""
    flat, done = [], []
    for number, tool in enumerate((fields.array("tools") or [])[: MOST_TOOLS + 1]):
        path = f"tools[{number}]"
        if not isinstance(tool, dict):
            raise bad_request(f"'{path}' must be an object with 'type' and 'name'", path, code="invalid_type")
        inner = Fields(tool, path)
        kind = inner.text("type")
        if kind != "function":
            raise bad_request(
                f"'{path}.type' {str(kind)[:60]!r} is not supported: this server runs no tools of its own, so send "
                "functions",
                f"{path}.type",
                code="unsupported_value",
            )
        shown = {
            "name": inner.required("name"),
            "description": inner.text("description"),
            "parameters": inner.object("parameters"),
        }
        shown["strict"] = inner.flag("strict")
        flat.append({"type": "function", **shown})
        function = {name: value for name, value in shown.items() if value is not None}
        done.append({"type": "function", "function": function})
    return flat, read_tools(Fields({"tools": done}), path="tools[{}].name")


def _tool_choice(given: Any, tools: list[dict[str, Any]]) -> tuple[str | Mapping[str, str], list[dict[str, Any]]]:
    """The choice as `ChatRequest` has it, and the tools that are left."""
    if given in (None, "auto", "none"):
        return given or "auto", tools
    if not tools:
        raise bad_request("'tool_choice' is only allowed when 'tools' are specified", "tool_choice")
    if given == "required":
        return given, tools
    names = {tool["function"]["name"]: tool for tool in tools}
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "function" and given.get("name") in [*names]:
        return {"name": given["name"]}, tools
    if kind == "allowed_tools" and given.get("mode") in ("auto", "required") and isinstance(given.get("tools"), list):
        allowed = [one.get("name") for one in given["tools"] if isinstance(one, dict)]
        kept = [tool for name, tool in names.items() if name in allowed]
        if kept and len(kept) == len(given["tools"]):
            return given["mode"], kept
    raise bad_request("'tool_choice' must be 'none', 'auto', 'required', or name functions of 'tools'", "tool_choice")


def _logprobs(fields: Fields) -> int | None:
    """How many likely rivals of each token are asked for; None if log-probabilities are not."""
    include, top = fields.array("include") or [], fields.whole("top_logprobs", 0, 20)
    for name in include:
        if not isinstance(name, str) or name not in _INCLUDABLE:
            raise fields.wrong("include", f"an array with some of {', '.join(_INCLUDABLE)}", name)
    return (top or 0) if "message.output_text.logprobs" in include or top else None


def _options(
    fields: Fields, config: ModelConfig, settings: ServerSettings, response_format: dict[str, Any] | None
) -> dict[str, Any]:
    """Options of the library."""
    if "response_format" in fields:
        raise bad_request("'response_format' is called 'text.format' here", "response_format")
    variables = fields.object("chat_template_kwargs") or {}
    options = read_options(fields, config, settings)
    max_tokens = read_max_tokens(fields, "max_output_tokens")
    options |= {} if max_tokens is None else {"max_tokens": max_tokens}
    options |= {} if response_format is None else {"response_format": response_format}
    return options | {"chat_template_kwargs": variables}


def _reasoning(fields: Fields, options: dict[str, Any]) -> dict[str, Any]:
    """The field `reasoning` as the response repeats it; the effort becomes a variable of the chat template."""
    reasoning = fields.inner("reasoning")
    if reasoning is None:
        return {"effort": None, "summary": None}
    effort = reasoning.choice("effort", _EFFORTS)
    summary = reasoning.choice("summary", ("auto", "concise", "detailed"))
    reasoning.ignore("generate_summary", "context", "mode")
    reasoning.finish()
    variables: dict[str, Any] = {}
    if effort == "none":
        variables = {"enable_thinking": False, "thinking": False}
    elif effort is not None:
        variables = {"reasoning_effort": {"minimal": "low", "xhigh": "high", "max": "high"}.get(effort, effort)}
    options["chat_template_kwargs"] = variables | options["chat_template_kwargs"]
    return {"effort": effort, "summary": summary}

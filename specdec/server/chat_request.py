"""The body of `/v1/chat/completions` as a `ChatRequest`, and how the caller wants the answer: `ChatForm`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.engine.logprobs import MOST_LOGPROBS
from specdec.model.architecture import ModelConfig
from specdec.server.errors import ApiError, bad_request, missing
from specdec.server.events import ChatRequest
from specdec.server.fields import Fields
from specdec.server.sampling import read_max_tokens, read_options
from specdec.server.settings import ServerSettings

MOST_CHOICES = 128
MOST_TOOLS = 1024
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
# Of OpenAI's API, and of programs that follow it: they change no token here.
IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prediction", "verbosity", "cache_prompt", "id_slot", "timings_per_token", "return_progress",
)  # fmt: skip
_UNSUPPORTED = {
    "functions": "use 'tools'",
    "function_call": "use 'tool_choice'",
    "audio": "this model answers in text",
    "web_search_options": "this server searches nothing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatForm:
    """How an answer is to be sent.

    Attributes:
        model: as the request called it.
        choices: how many answers.
        stream: as server-sent events.
        include_usage: a last chunk with the usage.
        continuous_usage: every chunk with the usage so far.
        logprobs: log-probabilities of the answer's tokens.
        token_origins: who produced each token.
    """

    model: str
    choices: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False
    token_origins: bool = False


def read_chat(
    body: Mapping[str, Any], config: ModelConfig, settings: ServerSettings, *, owner: str
) -> tuple[ChatRequest, ChatForm]:
    """The request, and how it is to be answered.

    Args:
        body: of the HTTP request.
        config: of the model.
        settings: of the server.
        owner: the client that asks.

    Raises:
        ApiError: a field is wrong, unknown or missing.
    """
    fields = Fields(body)
    model = read_model(fields, settings)
    refuse_unsupported(fields, _UNSUPPORTED)
    messages = read_messages(fields)
    tools = read_tools(fields)
    choice, tools = _tool_choice(fields, tools)
    parallel = fields.flag("parallel_tool_calls")
    options = read_options(fields, config, settings)
    max_tokens = read_max_tokens(fields, "max_completion_tokens", "max_tokens")
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    logprobs, top_logprobs = bool(fields.flag("logprobs")), fields.whole("top_logprobs", 0, MOST_LOGPROBS)
    if top_logprobs is not None and not logprobs:
        raise bad_request("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
    if logprobs:
        options["logprobs"] = top_logprobs or 0
    continues, begins, variables = read_template(fields, messages)
    if variables:
        options["chat_template_kwargs"] = variables
    form = ChatForm(
        model=model,
        choices=fields.whole("n", 1, MOST_CHOICES) or 1,
        logprobs=logprobs,
        token_origins=bool(fields.flag("token_origins")),
        **read_stream(fields),
    )
    _check_modalities(fields)
    fields.ignore(*IGNORED)
    fields.finish()
    request = ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel is not False,
        continue_final=continues,
        begin_answer=begins,
        streamed=form.stream,
        options=options,
        owner=owner,
        deadline_s=settings.timeout_s,
    )
    return request, form


def read_model(fields: Fields, settings: ServerSettings) -> str:
    """The model that a request names; the server's own where it names none.

    Raises:
        ApiError: with status 404, it is another one.
    """
    name = fields.text("model")
    if name is not None and name not in settings.names:
        raise no_such_model(name, settings)
    return name or settings.name


def no_such_model(name: str, settings: ServerSettings) -> ApiError:
    """The error of a request for another model."""
    message = f"The model '{name[:100]}' does not exist: this server has '{settings.name}'"
    return ApiError(404, message, param="model", code="model_not_found")


def refuse_unsupported(fields: Fields, names: Mapping[str, str]) -> None:
    """Refuse fields that would change the answer in a way that this server does not know.

    Raises:
        ApiError: one of them is there.
    """
    for name, instead in names.items():
        if name in fields:
            raise bad_request(f"'{name}' is not supported: {instead}", name, code="unsupported_parameter")
        fields.ignore(name)


def read_stream(fields: Fields) -> dict[str, bool]:
    """`stream`, `include_usage` and `continuous_usage` of the two endpoints.

    Raises:
        ApiError: options of a stream without one.
    """
    stream, options = bool(fields.flag("stream")), fields.inner("stream_options")
    if options is None:
        return {"stream": stream}
    if not stream:
        raise bad_request("'stream_options' needs 'stream' to be true", "stream_options")
    include_usage, continuous = bool(options.flag("include_usage")), bool(options.flag("continuous_usage_stats"))
    options.ignore("include_obfuscation")
    options.finish()
    return {"stream": stream, "include_usage": include_usage, "continuous_usage": include_usage and continuous}


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages of a chat; what their contents may be is the tokenizer's business.

    Raises:
        ApiError: there are none, or one is malformed.
    """
    given = fields.required("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", "an array of at least one message", given)
    messages = []
    for number, message in enumerate(given):
        name = f"messages[{number}]"
        if not isinstance(message, dict):
            raise fields.wrong(name, "an object with 'role' and 'content'", message)
        role = Fields(message, name).choice("role", _ROLES)
        if role is None:
            raise missing(f"{name}.role")
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
            raise bad_request(f"'{name}.tool_calls' must be an array of calls of functions", f"{name}.tool_calls")
        messages.append(message)
    return messages


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments", ""), (str, dict))
    )


def read_tools(fields: Fields, *, path: str = "tools[{}].function.name") -> list[dict[str, Any]]:
    """The functions that the model may call.

    Args:
        fields: of the request.
        path: of a function's name in the request, for errors; {} stands for its number.

    Raises:
        ApiError: one is malformed.
    """
    tools = fields.array("tools") or []
    if len(tools) > MOST_TOOLS:
        raise fields.wrong("tools", f"at most {MOST_TOOLS} tools", len(tools))
    for number, tool in enumerate(tools):
        name = f"tools[{number}]"
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise fields.wrong(name, "of type 'function' with an object 'function'", tool)
        function = Fields(tool["function"], f"{name}.function")
        if not _FUNCTION_NAME.fullmatch(function.required("name") if function.is_text("name") else ""):
            raise bad_request(
                f"'{path.format(number)}' must be 1 to 128 letters, digits, dashes, dots or underscores", name
            )
        function.text("description")
        function.object("parameters")
    return tools


def _tool_choice(fields: Fields, tools: list[dict[str, Any]]) -> tuple[str | Mapping[str, str], list[dict[str, Any]]]:
    """The choice as `ChatRequest` has it, and the tools that are left."""
    given = fields.any("tool_choice")
    if given in (None, "auto", "none"):
        return given or "auto", tools
    if not tools:
        raise bad_request("'tool_choice' is only allowed when 'tools' are specified", "tool_choice")
    if given == "required":
        return given, tools
    names = {tool["function"]["name"] for tool in tools}
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "function":
        name = _function_name(given)
        if name not in names:
            raise bad_request(f"'tool_choice' must name one of the tools, not {name!r}", "tool_choice")
        return {"name": name}, tools
    if kind == "allowed_tools" and isinstance(given.get("allowed_tools"), dict):
        allowed = given["allowed_tools"]
        listed = allowed.get("tools")
        kept = {_function_name(one) for one in listed} if isinstance(listed, list) else set()
        if allowed.get("mode", "auto") in ("auto", "required") and kept and kept <= names:
            return allowed.get("mode", "auto"), [tool for tool in tools if tool["function"]["name"] in kept]
    raise fields.wrong("tool_choice", "'none', 'auto', 'required', or a function of the tools", given)


def _function_name(value: Any) -> str:
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def read_template(fields: Fields, messages: list[dict[str, Any]]) -> tuple[bool, bool, dict[str, Any]]:
    """Whether the answer continues with the last message, whether the prompt else ends with what begins an answer, and
    variables of the chat template.

    Raises:
        ApiError: they contradict each other or the messages.
    """
    variables = fields.object("chat_template_kwargs") or {}
    for name in ("tools", "messages", "add_generation_prompt", "continue_final_message"):
        if name in variables:
            raise bad_request(
                f"'chat_template_kwargs' must not hold '{name}': it is a field of its own", "chat_template_kwargs"
            )
    effort = fields.text("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
    generate = fields.flag("add_generation_prompt")
    asked = fields.flag("continue_final_message")
    is_last = messages[-1]["role"] == "assistant" and bool(messages[-1].get("content"))
    if asked and not is_last:
        raise bad_request(
            "'continue_final_message' needs a last message of the assistant with content", "continue_final_message"
        )
    if asked and generate:
        raise bad_request(
            "'add_generation_prompt' and 'continue_final_message' contradict each other", "add_generation_prompt"
        )
    calls = messages[-1].get("tool_calls")
    continues = asked if asked is not None else is_last and not calls and not generate
    return continues, generate is not False, variables


def _check_modalities(fields: Fields) -> None:
    modalities = fields.array("modalities")
    if modalities is not None and modalities != ["text"]:
        raise fields.wrong("modalities", '["text"]', modalities)

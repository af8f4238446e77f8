"""The body of `/v1/completions`, checked: `CompletionRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.engine.logprobs import MOST_LOGPROBS
from specdec.model.architecture import ModelConfig
from specdec.server.chat_request import IGNORED, MOST_CHOICES, read_model, read_stream, refuse_unsupported
from specdec.server.errors import bad_request
from specdec.server.fields import Fields
from specdec.server.sampling import read_max_tokens, read_options
from specdec.server.settings import ServerSettings

MOST_PROMPTS = 2048
_UNSUPPORTED = {"suffix": "this server does not insert text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A request for the continuation of texts.

    Attributes:
        model: as the request called it.
        prompts: texts, or token ids.
        choices: how many answers to each prompt.
        options: keyword arguments of `specdec.stream`.
        echo: the prompt's text comes before the answer's.
        logprobs: number of alternatives to report for each token; None for no log-probabilities.
        stream: as server-sent events.
        include_usage: a last chunk with the usage.
        continuous_usage: every chunk with the usage so far.
        token_origins: who produced each token.
        owner: the client that asks.
        deadline_s: seconds after which an answer ends where it is.
    """

    model: str
    prompts: Sequence[str | list[int]]
    choices: int
    options: Mapping[str, Any]
    echo: bool
    logprobs: int | None
    stream: bool
    include_usage: bool = False
    continuous_usage: bool = False
    token_origins: bool
    owner: str
    deadline_s: float | None


def read_completion(
    body: Mapping[str, Any], config: ModelConfig, settings: ServerSettings, *, owner: str
) -> CompletionRequest:
    """The request.

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
    if fields.is_text("suffix") and not body["suffix"]:
        fields.ignore("suffix")
    refuse_unsupported(fields, _UNSUPPORTED)
    echo = bool(fields.flag("echo"))
    choices = fields.whole("n", 1, MOST_CHOICES) or 1
    best_of = fields.whole("best_of", 1, MOST_CHOICES)
    if best_of not in (None, choices):
        raise bad_request("'best_of' must equal 'n': this server returns every answer that it makes", "best_of")
    options = read_options(fields, config, settings)
    max_tokens, logprobs = read_max_tokens(fields, "max_tokens", least=0 if echo else 1), _logprobs(fields)
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if logprobs is not None:
        options |= {"logprobs": logprobs} | ({"prompt_logprobs": logprobs} if echo else {})
    elif max_tokens == 0:
        options["prompt_logprobs"] = 0  # what the library reads a prompt alone for
    request = CompletionRequest(
        model=model,
        prompts=_prompts(fields, config.vocab_size),
        choices=choices,
        options=options,
        echo=echo,
        logprobs=logprobs,
        token_origins=bool(fields.flag("token_origins")),
        owner=owner,
        deadline_s=settings.timeout_s,
        **read_stream(fields),
    )
    fields.ignore(*IGNORED)
    fields.finish()
    return request


def _logprobs(fields: Fields) -> int | None:
    """Number of alternatives to report for each token; true asks for none of them, as in chats."""
    if fields.is_flag("logprobs"):
        return 0 if fields.flag("logprobs") else None
    return fields.whole("logprobs", 0, MOST_LOGPROBS)


def _prompts(fields: Fields, vocab_size: int) -> list[str | list[int]]:
    """A text, token ids, or several of either."""
    given = fields.required("prompt")
    several = given if isinstance(given, list) and given and isinstance(given[0], (str, list)) else [given]
    if len(several) > MOST_PROMPTS:
        raise fields.wrong("prompt", f"at most {MOST_PROMPTS} prompts", len(several))
    for prompt in several:
        if isinstance(prompt, str):
            continue
        if not isinstance(prompt, list) or not prompt:
            raise fields.wrong("prompt", "text, token ids, or an array of either", prompt)
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise fields.wrong("prompt", f"text, or token ids below {vocab_size}", token)
    return several

"""`/tokenize` and `/detokenize`, in the forms of vLLM and of llama-server, and vLLM's `/tokenizer_info`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from specdec.engine.prompt import EncodedPrompt
from specdec.server.chat_request import read_messages, read_model, read_template, read_tools
from specdec.server.connection import json_response
from specdec.server.errors import bad_request, missing
from specdec.server.events import ChatRequest
from specdec.server.fields import Fields
from specdec.server.site import Site, site_of
from specdec.tokenizers import Tokenizer


async def tokenize(request: Request) -> Response:
    """Token ids of a text: of `content` as llama-server's clients send it, of `prompt` or `messages` as vLLM's do."""
    site = site_of(request)
    fields = Fields(await site.body(request))
    read_model(fields, site.settings)
    if "messages" in fields:
        return await _tokenize_chat(site, fields)
    if "content" in fields:
        return await _tokenize_content(site, fields)
    text = fields.text("prompt")
    if text is None:
        raise bad_request(
            "Missing required parameter: 'prompt', 'messages' or 'content'.",
            "prompt",
            code="missing_required_parameter",
        )
    special, strings = fields.flag("add_special_tokens"), bool(fields.flag("return_token_strs"))
    fields.finish()
    add_bos = False if special is False else None
    tokenizer = tokenizer_of(site)
    ids = await site.answers.work(lambda: tokenizer.encode(text, add_bos=add_bos))
    return _counted(site, ids, strings)


async def detokenize(request: Request) -> Response:
    """The text of token ids, under the names of both programs."""
    site = site_of(request)
    fields = Fields(await site.body(request))
    read_model(fields, site.settings)
    tokens = fields.array("tokens")
    if tokens is None:
        raise missing("tokens")
    size = site.model.config.vocab_size
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise fields.wrong("tokens", f"token ids below {size}", token)
    fields.finish()
    tokenizer = tokenizer_of(site)
    text = await site.answers.work(lambda: tokenizer.decode(tokens, continues=True))
    return json_response({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """What clients that count tokens themselves, such as lm-eval, ask of the tokenizer; names as vLLM's.

    Raises:
        ApiError: the model has no tokenizer.
    """
    site = site_of(request)
    tokenizer = tokenizer_of(site)

    def named(token: int | None) -> str | None:
        return None if token is None else tokenizer.decode([token], continues=True)

    return json_response(
        {
            "bos_token": named(tokenizer.bos_id),
            "eos_token": tokenizer.named_tokens.get("eos_token", named(min(tokenizer.eos_ids, default=None))),
            "pad_token": None,
            "add_bos_token": tokenizer.add_bos,
            "chat_template": tokenizer.chat_template,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": site.answers.context,
        }
    )


def tokenizer_of(site: Site) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ApiError: the model has none.
    """
    if site.model.tokenizer is None:
        raise bad_request("this model has no tokenizer: give token ids")
    return site.model.tokenizer


async def _tokenize_chat(site: Site, fields: Fields) -> Response:
    """A chat's prompt as an answer to it would read it."""
    messages = read_messages(fields)
    continues, begins, variables = read_template(fields, messages)
    strings = bool(fields.flag("return_token_strs"))
    fields.ignore("add_special_tokens")  # the template says
    chat = ChatRequest(
        messages=messages,
        tools=read_tools(fields),
        continue_final=continues,
        begin_answer=begins,
        options={"chat_template_kwargs": variables},
    )
    fields.finish()
    prompt: EncodedPrompt = await site.chat.rendered(chat)
    return _counted(site, prompt.ids, strings)


async def _tokenize_content(site: Site, fields: Fields) -> Response:
    text, tokenizer = fields.required("content"), tokenizer_of(site)
    if not isinstance(text, str):
        raise fields.wrong("content", "a string", text)
    add_bos = bool(fields.flag("add_special")) and tokenizer.bos_id is not None
    literal = fields.flag("parse_special") is False
    pieces = bool(fields.flag("with_pieces"))
    fields.finish()
    ids = await site.answers.work(lambda: tokenizer.encode(text, add_bos=add_bos, literal=literal))
    if not pieces:
        return json_response({"tokens": ids})
    return json_response({"tokens": [{"id": token, "piece": _piece(tokenizer, token)} for token in ids]})


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """A token's text; its bytes where they are a part of a character."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return list(raw)


def _counted(site: Site, ids: list[int], strings: bool) -> Response:
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": site.answers.context, "tokens": ids}
    tokenizer = tokenizer_of(site)
    answer["token_strs"] = [tokenizer.decode([token], continues=True) for token in ids] if strings else None
    return json_response(answer)

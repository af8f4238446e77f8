"""Fields that all ways of asking for text share, as options of the library: `read_options`."""

from __future__ import annotations

import secrets
from hashlib import blake2b
from typing import Any

from specdec.drafters.registry import names as drafter_names
from specdec.model.architecture import ModelConfig
from specdec.policies.registry import names as policy_names
from specdec.server.errors import bad_request, missing
from specdec.server.fields import Fields, shown
from specdec.server.settings import ServerSettings

MOST_STOPS = 64
_MOST_STOP_CHARACTERS = 1000
_FILTERS = ("top_k", "top_p", "min_p")  # none of them changes the most likely token
_SEED_BITS = 53  # a seed that JavaScript reads back without loss
# These need an argument after their names, most of them a file or a model, which is not for a request to choose.
_OPERATORS_DRAFTERS = frozenset({"chain", "early-exit", "model", "replay"})


def read_options(fields: Fields, config: ModelConfig, settings: ServerSettings) -> dict[str, Any]:
    """Options of `specdec.stream` from the fields of a request. The seed is always among them.

    Raises:
        ApiError: a value is out of range.
    """
    options = {"seed": read_seed(fields), "temperature": 1.0, "verify_effort": settings.default_effort}
    given = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.whole("top_k", -1, config.vocab_size),
        "min_p": fields.number("min_p", 0, 1),
        "stop": _stops(fields),
        "stop_token_ids": _stop_ids(fields, config.vocab_size),
        "ignore_eos": fields.flag("ignore_eos"),
        "logit_bias": _logit_bias(fields, config.vocab_size),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repetition_penalty": _positive(fields, "repetition_penalty", 10),
        "response_format": _response_format(fields),
        "grammar": fields.text("grammar"),
        "regex": fields.text("regex"),
        **_speculation(fields, settings),
    }
    options |= {name: value for name, value in given.items() if value is not None}
    if options["temperature"] == 0:  # clients send their usual filters, too; OpenAI and vLLM take them
        return {name: value for name, value in options.items() if name not in _FILTERS}
    if options.get("top_k") == -1:
        options["top_k"] = 0
    if options.get("top_p") == 0:  # the fewest tokens that hold nothing: the likeliest one
        options |= {"top_p": 1.0, "top_k": 1}
    return options


def read_seed(fields: Fields) -> int:
    """The seed; a random one where the request names none or -1, as for llama-server and vLLM. Other negative ones
    count from 2**64 down."""
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    return secrets.randbits(_SEED_BITS) if seed is None or seed == -1 else seed % 2**64


def seed_of_choice(seed: int, choice: int) -> int:
    """The seed of one of several answers to a request: the first has the request's own."""
    if choice == 0:
        return seed
    digest = blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> (64 - _SEED_BITS)


def read_max_tokens(fields: Fields, *names: str, least: int = 1) -> int | None:
    """Most tokens of the answer, under the first of the names that the request has."""
    found = [fields.whole(name, least, 2**63) for name in names]
    return next((value for value in found if value is not None), None)


def _positive(fields: Fields, name: str, high: float) -> float | None:
    """A number above 0 and at most `high`."""
    value = fields.number(name, 0, high)
    if value == 0:
        raise fields.wrong(name, f"above 0 and at most {high:g}", value)
    return value


def _stops(fields: Fields) -> tuple[str, ...] | None:
    value = fields.any("stop")
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise fields.wrong("stop", "a string or an array of strings", value)
    if len(stops) > MOST_STOPS or any(len(stop) > _MOST_STOP_CHARACTERS for stop in stops):
        raise bad_request(
            f"'stop' must be at most {MOST_STOPS} strings of at most {_MOST_STOP_CHARACTERS} characters", "stop"
        )
    return tuple(stop for stop in stops if stop) or None


def _stop_ids(fields: Fields, vocab: int) -> tuple[int, ...] | None:
    value = fields.any("stop_token_ids")
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) > MOST_STOPS
        or not all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < vocab for one in value)
    ):
        raise fields.wrong("stop_token_ids", f"an array of at most {MOST_STOPS} token ids from 0 to {vocab - 1}", value)
    return tuple(value)


def _logit_bias(fields: Fields, vocab_size: int) -> dict[int, float] | None:
    given = fields.object("logit_bias")
    if not given:
        return None
    bias: dict[int, float] = {}
    for name, value in given.items():
        token = int(name) if name.isascii() and name.isdigit() and len(name) < 12 else -1
        if not 0 <= token < vocab_size:
            raise bad_request(
                f"'logit_bias' must have token ids below {vocab_size} as its names, not {shown(name)}", "logit_bias"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise bad_request(f"'logit_bias' must hold numbers from -100 to 100, not {shown(value)}", "logit_bias")
        bias[token] = float(value)
    return bias


def _response_format(fields: Fields) -> dict[str, Any] | None:
    """OpenAI's `response_format`, None where text will do. What a schema may hold is the library's business."""
    given = fields.object("response_format")
    if given is None:
        return None
    inner = Fields(given, "response_format")
    kind = inner.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise inner.wrong("type", "'text', 'json_object' or 'json_schema'", None)
    if kind == "json_schema":
        described = inner.inner("json_schema") if "json_schema" in inner else inner
        schema = None if described is None else described.any("schema")
        if not isinstance(schema, (dict, bool)):
            raise missing("response_format.json_schema.schema")
    return None if kind == "text" else given


def _speculation(fields: Fields, settings: ServerSettings) -> dict[str, Any]:
    """How to draft. Policies and drafters are called by their names: never a file or a plug-in's file."""
    effort = fields.number("verify_effort", 0, 1)
    if effort is not None and effort not in settings.efforts:
        allowed = ", ".join(f"{one:g}" for one in settings.efforts)
        raise fields.wrong("verify_effort", f"one of those that this server allows ({allowed})", effort)
    draft_effort = _positive(fields, "draft_effort", 1)
    drafters = sorted({*drafter_names(), "auto"} - _OPERATORS_DRAFTERS)
    return {
        "verify_effort": effort,
        "draft_effort": draft_effort,
        "policy": fields.choice("policy", policy_names()),
        "drafter": fields.choice("drafter", drafters),
        "speculate": fields.flag("speculate"),
    }

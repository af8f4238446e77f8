"""`specdec serve`: answer HTTP requests through OpenAI's and Anthropic's interfaces."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

import specdec
from specdec.catalogue import DEFAULT_MODEL
from specdec.cli.commands import COMMANDS
from specdec.cli.common import (
    MODEL_HELP,
    Subparsers,
    add_runtime_options,
    examples,
    load_model,
)
from specdec.cli.startup import EXIT_INTERRUPTED
from specdec.errors import InvalidArgumentError
from specdec.hub_name import parse_hub_name

API_KEY_VARIABLE = "SPECDEC_API_KEY"
_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9}
QUEUE = 256
LOG_LEVELS = ("error", "warning", "info", "debug")


def add_parser(subparsers: Subparsers) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help=COMMANDS["serve"],
        description="Answer HTTP requests through OpenAI's and Anthropic's interfaces. Requests share passes; each "
        "answer has the tokens that it would have alone. A chat page is at the server's address.",
        **examples(
            "specdec serve qwen2.5-coder-0.5b --port 8080 --api-key my-secret",
            "specdec serve ./model.gguf --host 0.0.0.0 --api-key my-secret --alias coder",
        ),
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s)"
    )
    add_runtime_options(parser)
    _add_access(parser.add_argument_group("access"))
    _add_limits(parser.add_argument_group("load"))
    parser.set_defaults(run=run)


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=int, default=8080, help="port; 0 chooses a free one (default: %(default)s)")
    group.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help=f"key that requests must carry; repeatable; or set {API_KEY_VARIABLE} (default: no key)",
    )
    group.add_argument(
        "--cors", action="append", metavar="ORIGIN", help="allow web pages of this origin; * allows all; repeatable"
    )
    group.add_argument(
        "--alias",
        action="append",
        metavar="NAME",
        help="name of the model in requests; repeatable (default: name of its file or folder)",
    )
    group.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="info logs every request (default: %(default)s)"
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-sequences", type=int, metavar="N", help="most answers in progress (default: 64)")
    group.add_argument("--max-rows", type=int, metavar="N", help="most rows of a pass, of prompts and answers")
    group.add_argument(
        "--cache-bytes",
        type=_bytes,
        metavar="B",
        help="most bytes of keys and values, such as 2000000000 or 2G (default: half of the free memory)",
    )
    group.add_argument(
        "--queue", type=int, default=QUEUE, metavar="N", help="most waiting requests (default: %(default)s)"
    )
    group.add_argument(
        "--efforts",
        type=_efforts,
        default=(1.0,),
        metavar="E,...",
        help="verify efforts that requests may ask for (default: 1.0)",
    )
    group.add_argument(
        "--max-body-bytes", type=_bytes, default=16 << 20, metavar="B", help="largest request (default: 16 MiB)"
    )
    group.add_argument("--timeout-s", type=float, metavar="S", help="end an answer after S seconds (default: never)")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidArgumentError(f"serve needs {', '.join(missing)}: pip install 'specdec-mlx[serve]'")
    from specdec.engine.limits import check_limits
    from specdec.server.guard import is_loopback
    from specdec.server.run import open_socket, serve
    from specdec.server.settings import ServerSettings

    names = arguments.alias or [_name(arguments.model)]
    settings = ServerSettings(
        name=names[0],
        aliases=tuple(names[1:]),
        host=arguments.host,
        port=arguments.port,
        api_keys=_api_keys(arguments.api_key),
        efforts=arguments.efforts,
        cors=tuple(arguments.cors or ()),
        max_body_bytes=arguments.max_body_bytes,
        timeout_s=arguments.timeout_s,
    )
    named = ("max_sequences", "max_rows", "cache_bytes", "queue")
    limits = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    check_limits(**limits)
    with open_socket(settings) as listener:
        if not is_loopback(settings.host) and not settings.api_keys:
            _say(f"warning: everybody who can reach {settings.host} may use this server; --api-key requires a key")
        model = load_model(arguments)
        with specdec.Batch(model, **limits) as batch:
            ended = serve(
                model,
                batch,
                settings,
                listener,
                log_level=arguments.log_level,
                started=lambda address: _say(f"serving {settings.name} at {address}"),
            )
    return 0 if ended else EXIT_INTERRUPTED


def _name(model: str) -> str:
    """What requests call a model: its name in the catalogue or on a hub, or that of its file or folder."""
    if not Path(model).exists() and (on_hub := parse_hub_name(model)) is not None:
        return on_hub.short
    return Path(model).name.removesuffix(".gguf") or model


def _api_keys(given: list[str] | None) -> tuple[str, ...]:
    """The keys of the command line, or else those of the environment, where other users cannot see them."""
    if given:
        return tuple(given)
    kept = os.environ.get(API_KEY_VARIABLE, "")
    keys = tuple(key for key in kept.split(",") if key)
    if kept and not keys:
        raise InvalidArgumentError(f"{API_KEY_VARIABLE} is {kept!r} and holds no key: set keys with commas between")
    return keys


def _efforts(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between, such as 0.6,1.0, not {text!r}"
        ) from None


def _bytes(text: str) -> int:
    """Bytes from a whole number, perhaps with a decimal unit."""
    unit = _UNITS.get(text[-1:].lower(), 1)
    digits = text if unit == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise argparse.ArgumentTypeError(f"must be a number of bytes, such as 2000000000 or 2G, not {text!r}")
    return int(digits) * unit


def _say(sentence: str) -> None:
    print(f"specdec: {sentence}", file=sys.stderr, flush=True)

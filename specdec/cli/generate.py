"""`specdec generate`: an answer to a prompt, streamed to standard output, its statistics to standard error."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import specdec
from specdec.catalogue import DEFAULT_MODEL
from specdec.cli.common import Subparsers, check_writable
from specdec.cli.statistics import report
from specdec.effort import EffortSchedule, check_effort
from specdec.engine.sampler import SamplingParams
from specdec.engine.settings import GenerationSettings, stop_strings
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.policies.registry import create as create_policy

if TYPE_CHECKING:
    from specdec.engine.prompt import Prompt

EXIT_DIFFERENT = 1
EXIT_INTERRUPTED = 130

# Options that go to the library under their own name; where one is not given, the library's default holds.
_LIBRARY_OPTIONS = (
    "max_tokens draft_view draft_len policy drafter temperature top_k top_p min_p seed trace".split()  # noqa: SIM905
)


def add_parser(subparsers: Subparsers) -> None:
    """Add `generate` to the command line."""
    parser = subparsers.add_parser(
        "generate",
        help="answer a prompt",
        description="Answer a prompt. The text goes to standard output, statistics to standard error.",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a catalogue name, a store, a Hugging Face folder or a .gguf file (default: %(default)s)",
    )
    parser.add_argument("--runtime", default="auto", help="auto, native, mlx or reference (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads to compute with (default: the runtime's choice)"
    )
    _add_prompt(parser.add_argument_group("prompt"))
    _add_speculation(parser.add_argument_group("speculation"))
    _add_sampling(parser.add_argument_group("sampling and length"))
    output = parser.add_argument_group("output")
    output.add_argument("--check", action="store_true", help="decode plainly too; exit code 1 at the first difference")
    output.add_argument("--json", action="store_true", help="one JSON object instead of text and statistics")
    output.add_argument("--trace", metavar="FILE.jsonl", help="write a line for every round")
    parser.set_defaults(run=run)


def _add_prompt(group: argparse._ArgumentGroup) -> None:
    given = group.add_mutually_exclusive_group()
    given.add_argument("--prompt", metavar="TEXT", help="the prompt itself")
    given.add_argument("--prompt-file", metavar="FILE", help="a UTF-8 file with the prompt; - reads standard input")
    group.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    group.add_argument("--raw", action="store_true", help="take the prompt as it is, without the chat template")


def _add_speculation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--draft-effort", type=float, metavar="E", help="share of multiplications in a draft step (0.15)"
    )
    group.add_argument("--draft-schedule", metavar="FILE", help="efforts by matrix: a YAML file, or a preset's name")
    group.add_argument("--draft-view", metavar="VIEW", help="weights that drafts read: bucket, int4, ... (bucket)")
    group.add_argument("--verify-effort", type=float, metavar="E", help="effort of verification; 1 is the model (1.0)")
    group.add_argument("--verify-schedule", metavar="FILE", help="the same by matrix")
    group.add_argument("--draft-len", type=int, metavar="K", help="tokens drafted in a round (4)")
    group.add_argument("--policy", help="NAME or NAME:key=value,...: how much to draft (fixed)")
    group.add_argument("--drafter", help="NAME or NAME:argument: who drafts (effort)")
    group.add_argument("--plain", action="store_true", help="decode without speculation")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate (256)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token (0)")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0 from all (0)")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens that hold P (1.0)")
    group.add_argument("--min-p", type=float, metavar="P", help="draw from tokens at least P times the likeliest (0)")
    group.add_argument("--seed", type=int, metavar="N", help="of the draw (0)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")


def run(arguments: argparse.Namespace) -> int:
    """Generate, and check when asked to."""
    prompt = _prompt(arguments)
    options = _options(arguments)
    _check_early(arguments, options)
    model = specdec.load(arguments.model, runtime=arguments.runtime, threads=arguments.threads)
    for name in ("draft", "verify"):
        options |= _schedule(name, arguments, model)
    result, interrupted = _answer(model, prompt, options, show=not arguments.json)
    checked = None
    if arguments.check and not interrupted:
        plain = specdec.generate(model, prompt, **{**options, "speculate": False, "trace": None})
        checked = compare(model, result, plain)
    if arguments.json:
        print(json.dumps(result.to_dict() | ({} if checked is None else {"check": checked})))
    else:
        report(result, options, sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return _verdict(checked)


def compare(model: specdec.Model, speculative: specdec.Result, plain: specdec.Result) -> dict[str, Any]:
    """The first difference between two answers that should be one, as plain JSON values.

    `identical` tells whether tokens, text and the reason to stop are equal. When tokens differ, `position` is the index
    in the answer of the first that does, and `speculative` and `plain` are what stands there (id and text, or null
    where an answer has ended).
    """
    found: dict[str, Any] = {"identical": True, "tokens": len(speculative.tokens), "plain_stats": plain.stats.to_dict()}
    if speculative.tokens != plain.tokens:
        pairs = zip(speculative.tokens, plain.tokens, strict=False)
        shorter = min(len(speculative.tokens), len(plain.tokens))
        position = next((i for i, (left, right) in enumerate(pairs) if left != right), shorter)
        found |= {
            "identical": False,
            "position": position,
            "speculative": _token_at(model, speculative, position),
            "plain": _token_at(model, plain, position),
        }
    elif (speculative.text, speculative.stopped_by) != (plain.text, plain.stopped_by):
        found |= {
            "identical": False,
            "position": None,
            "speculative": speculative.stopped_by,
            "plain": plain.stopped_by,
        }
    return found


def _token_at(model: specdec.Model, result: specdec.Result, position: int) -> dict[str, Any] | None:
    if position >= len(result.tokens):
        return None
    token = result.tokens[position]
    return {"id": token, "text": "" if model.tokenizer is None else model.tokenizer.decode([token])}


def _verdict(checked: dict[str, Any] | None) -> int:
    """Say what the check found; the exit code."""
    if checked is None:
        return 0
    if checked["identical"]:
        print(f"check      identical to plain decoding, {checked['tokens']} tokens", file=sys.stderr)
        return 0
    if checked["position"] is None:
        what = f"same tokens, but ended by {checked['speculative']} with speculation and by {checked['plain']} without"
    else:
        told = {side: _told(checked[side]) for side in ("speculative", "plain")}
        what = f"token {checked['position']} is {told['speculative']} with speculation and {told['plain']} without"
    print(f"specdec: CHECK FAILED: {what}", file=sys.stderr)
    return EXIT_DIFFERENT


def _told(token: dict[str, Any] | None) -> str:
    return "missing" if token is None else f"{token['id']} {token['text']!r}"


def _answer(
    model: specdec.Model, prompt: Prompt, options: dict[str, Any], *, show: bool
) -> tuple[specdec.Result, bool]:
    """The answer, shown as it grows, and whether Ctrl-C cut it short; what was there by then stays."""
    text, interrupted = "", False
    with specdec.stream(model, prompt, **options) as generation:
        try:
            for piece in generation:
                text += piece.text
                if show:
                    print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
        result = generation.result()
    if show and not text.endswith("\n"):
        print(flush=True)
    return result, interrupted


def _prompt(arguments: argparse.Namespace) -> Prompt:
    """Text, or messages when there is a system message.

    Raises:
        InvalidArgumentError: no prompt, or one that cannot be read or is no UTF-8.
    """
    text = _prompt_text(arguments)
    if arguments.system is None:
        return text
    if arguments.raw:
        raise InvalidArgumentError("--system needs the chat template, which --raw leaves out: give one of the two")
    return [{"role": "system", "content": arguments.system}, {"role": "user", "content": text}]


def _prompt_text(arguments: argparse.Namespace) -> str:
    if arguments.prompt_file is None:
        if arguments.prompt is None:
            raise InvalidArgumentError("generate needs --prompt TEXT or --prompt-file FILE ('-' reads standard input)")
        data = arguments.prompt.encode("utf-8", "surrogateescape")  # the bytes that the shell handed over
    elif arguments.prompt_file == "-":
        data = sys.stdin.buffer.read().removesuffix(b"\n")
    else:
        try:
            data = (
                Path(arguments.prompt_file).read_bytes().removesuffix(b"\n")
            )  # the one that ends a text file's last line
        except OSError as error:
            raise InvalidArgumentError(f"cannot read the prompt {arguments.prompt_file}: {error.strerror}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the prompt is not valid UTF-8 (byte {error.start})") from None
    if not text:
        raise InvalidArgumentError("the prompt is empty: give at least one character")
    return text


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as arguments of `specdec.stream`."""
    given = {name: getattr(arguments, name) for name in _LIBRARY_OPTIONS if getattr(arguments, name) is not None}
    given |= {"stop": arguments.stop, "chat": not arguments.raw, "speculate": not arguments.plain}
    for name in ("draft_effort", "verify_effort"):
        if getattr(arguments, name) is not None:
            given[name] = check_effort(getattr(arguments, name), "--" + name.replace("_", "-"))
    return given


def _check_early(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Refuse what can be refused before a model is fetched and loaded.

    Raises:
        InvalidArgumentError: an option is out of range or contradicts another one, or the trace cannot be written.
        UnknownNameError: no such policy or schedule.
    """
    if arguments.check and arguments.plain:
        raise InvalidArgumentError("--check compares with plain decoding, so --plain leaves nothing to check")
    if arguments.trace is not None:
        check_writable("--trace", arguments.trace)
    sampling = {name: options[name] for name in SamplingParams.__dataclass_fields__ if name in options}
    counts = {name: options[name] for name in ("max_tokens", "draft_len") if name in options}
    GenerationSettings(sampling=SamplingParams(**sampling), stop=stop_strings(arguments.stop), **counts)
    if "policy" in options:
        create_policy(options["policy"])
    for name in ("draft", "verify"):
        _read_schedule(name, arguments)


def _read_schedule(name: str, arguments: argparse.Namespace) -> EffortSchedule | None:
    """The schedule of `--draft-schedule` or `--verify-schedule`: a file, or a preset of `configs/efforts`."""
    wanted = getattr(arguments, f"{name}_schedule")
    if wanted is None:
        return None
    if Path(wanted).exists() or Path(wanted).name != wanted or Path(wanted).suffix in (".yaml", ".yml"):
        return EffortSchedule.from_yaml(wanted)
    folder = resources.files("specdec.configs").joinpath("efforts")
    presets = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    if wanted not in presets:
        raise UnknownNameError("effort schedule", wanted, presets)
    with resources.as_file(folder.joinpath(f"{wanted}.yaml")) as path:
        return EffortSchedule.from_yaml(path)


def _schedule(name: str, arguments: argparse.Namespace, model: specdec.Model) -> dict[str, EffortSchedule]:
    """The effort option that a schedule stands for: as it is, or scaled to the mean effort that was given with it."""
    schedule = _read_schedule(name, arguments)
    if schedule is None:
        return {}
    mean = getattr(arguments, f"{name}_effort")
    return {f"{name}_effort": schedule if mean is None else schedule.scaled_to(mean, model.config)}

"""`specdec generate`: an answer to a prompt, streamed to standard output, its statistics to standard error."""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import specdec
from specdec.catalogue import DEFAULT_MODEL
from specdec.cli import check
from specdec.cli.commands import COMMANDS
from specdec.cli.common import (
    MODEL_HELP,
    Subparsers,
    add_remeasure_option,
    add_runtime_options,
    check_writable,
    examples,
    load_model,
)
from specdec.cli.explain import Shown
from specdec.cli.options import add_option, add_shaping, check_options, given_options
from specdec.cli.output import add_json_option, check_different, check_json, write_json_output
from specdec.cli.prompt import add_prompt_options, system_text
from specdec.cli.prompt import prompt_text as _prompt_text
from specdec.cli.startup import EXIT_INTERRUPTED
from specdec.cli.statistics import report, summary
from specdec.engine.option_checks import check_useful, plain_options
from specdec.engine.options import DEFAULTS
from specdec.engine.policy import Learner
from specdec.errors import InvalidArgumentError, OptionError, UnknownNameError
from specdec.interrupts import take_interrupt
from specdec.model.effort import EffortSchedule
from specdec.policies.registry import create as create_policy
from specdec.progress import StreamProgress

if TYPE_CHECKING:
    from specdec.engine.prompt import Prompt

_PATIENCE_S = 1.0  # that reading a prompt or building a view may take before a terminal shows how it goes


def add_parser(subparsers: Subparsers) -> None:
    """Add `generate` to the command line."""
    parser = subparsers.add_parser(
        "generate",
        help=COMMANDS["generate"],
        description="Answer a prompt. The text goes to standard output, one line of statistics to standard error. On a "
        "terminal, progress is shown if reading the prompt takes more than a second.",
        **examples(
            'specdec generate --prompt "Why is the sky blue?" --check',
            "specdec generate --model ./model.gguf --temperature 0.8 --seed 7 < prompt.txt",
        ),
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"{MODEL_HELP} (default: %(default)s)",
    )
    add_runtime_options(parser)
    add_remeasure_option(parser)
    parser.add_argument(
        "--load-share",
        type=float,
        default=1.0,
        metavar="S",
        help="load only this share of the weights, the most important tiers and bits: lossy (default: %(default)s)",
    )
    _add_prompt(parser.add_argument_group("prompt"))
    _add_speculation(parser.add_argument_group("speculation"))
    _add_sampling(parser.add_argument_group("sampling and length"))
    add_shaping(parser.add_argument_group("penalties and constraints"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--check", action="store_true", help="also decode plainly and compare; exit code 1 at the first difference"
    )
    add_json_option(output)
    output.add_argument("--stats", action="store_true", help="print all statistics instead of one line")
    output.add_argument("--explain", action="store_true", help="colour each token by its producer, on a terminal")
    for name in ("logprobs", "prompt_logprobs", "trace"):
        add_option(output, name)
    parser.set_defaults(run=run)


def _add_prompt(group: argparse._ArgumentGroup) -> None:
    add_prompt_options(group)
    for name in ("chat", "literal", "chat_template_kwargs"):
        add_option(group, name)


def _add_speculation(group: argparse._ArgumentGroup) -> None:
    group.description = (
        "Nothing here needs to be set. The default policy measures this machine and chooses drafter, length and effort "
        "for each round, and does not draft if that does not pay. It keeps to what you set."
    )
    add_option(group, "draft_effort")
    group.add_argument(
        "--draft-schedule", metavar="FILE", help="draft effort by matrix: a YAML file, or the name of a preset"
    )
    add_option(group, "draft_view")
    add_option(group, "verify_effort")
    group.add_argument(
        "--verify-schedule", metavar="FILE", help="verify effort by matrix: a YAML file, or the name of a preset"
    )
    for name in ("draft_len", "policy", "drafter", "trust", "speculate"):
        add_option(group, name)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    for name in ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed"):
        add_option(group, name)
    for name in ("stop", "stop_token_ids", "ignore_eos"):
        add_option(group, name)


def run(arguments: argparse.Namespace) -> int:
    """Generate, and check when asked to."""
    prompt = _prompt(arguments)
    options = given_options(arguments)
    _check_early(arguments, options)
    model = load_model(arguments, load_share=arguments.load_share)
    if model.tokenizer is None:
        raise InvalidArgumentError("this model has no tokenizer, so it reads no text: the library takes token ids")
    for name in ("draft", "verify"):
        options |= _schedule(name, arguments, model)
    show = None if arguments.json == "-" else Shown(sys.stdout, explain=arguments.explain)
    result, interrupted = _answer(model, prompt, options, show)
    checked = None
    if arguments.check and not interrupted:
        plain = specdec.generate(model, prompt, **plain_options(options | {"seed": result.seed, "trace": None}))
        checked = check.compare(model, result, plain)
    write_json_output(arguments, result.to_dict() | ({} if checked is None else {"check": checked}))
    if arguments.stats:
        report(result, options, sys.stderr)
    elif show is not None:
        summary(result, options, sys.stderr)
    if show is not None and arguments.explain:
        show.legend(sys.stderr)
    if interrupted:
        return EXIT_INTERRUPTED
    return 0 if checked is None else check.conclude(checked)


def _answer(
    model: specdec.Model, prompt: Prompt, options: dict[str, Any], show: Shown | None
) -> tuple[specdec.Result, bool]:
    """The answer, shown as it grows, and whether Ctrl-C cut it short; what was there by then stays."""
    interrupted, progress = False, StreamProgress(delay_s=_PATIENCE_S, lines=False)
    try:
        with specdec.stream(model, prompt, progress=progress, **options) as generation:
            try:
                for piece in generation:
                    if show is not None:
                        show.piece(piece)
            except KeyboardInterrupt as interrupt:
                take_interrupt(interrupt)
                interrupted = True
                progress.close()
            result = generation.result()
    finally:
        progress.close()
    if show is not None:
        show.end()
    return result, interrupted


def _prompt(arguments: argparse.Namespace) -> Prompt:
    """Text, or messages when there is a system message.

    Raises:
        InvalidArgumentError: there is no prompt that can be read, or no place for the system message.
    """
    text, system = _prompt_text(arguments), system_text(arguments)
    if system is None:
        return text
    if arguments.chat is False:
        raise InvalidArgumentError("--system needs the chat template, which --raw leaves out: give one of the two")
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _check_early(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """Refuse what can be refused before a model is fetched and loaded.

    Raises:
        InvalidArgumentError: an option is out of range or contradicts another one, or the trace cannot be written.
        UnknownNameError: no such policy or schedule.
    """
    if arguments.check and arguments.speculate is False:
        raise InvalidArgumentError("--check compares with plain decoding, so --plain leaves nothing to check")
    if arguments.check and arguments.trust is not None:
        raise InvalidArgumentError("--trust gives up what --check looks for: give one of the two")
    check_json(arguments)
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(arguments, name) is not None and arguments.json is None:
            raise OptionError(name, "is part of the JSON output only: give --json, too")
    if arguments.explain and arguments.json == "-":
        raise InvalidArgumentError("--explain colours the text, which --json leaves out: give one of the two")
    if arguments.trace is not None:
        check_writable("--trace", arguments.trace)
        check_different(arguments, "trace")
    check_options(options)
    check_useful(options if arguments.draft_schedule is None else {**options, "draft_effort": 1.0})
    policy = create_policy(options.get("policy", DEFAULTS["policy"]))
    if arguments.remeasure and (arguments.speculate is False or not isinstance(policy, Learner)):
        way = "--plain" if arguments.speculate is False else f"the policy {options['policy']!r}"
        raise InvalidArgumentError(f"--remeasure has no effect: {way} does not go by what passes cost")
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

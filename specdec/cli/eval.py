"""`specdec eval`: what a lower effort costs in quality."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from specdec.cli.commands import COMMANDS
from specdec.cli.common import (
    Subparsers,
    add_model_argument,
    add_runtime_options,
    check_outputs,
    examples,
    interruptible,
    load_model,
)
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.cli.startup import EXIT_INTERRUPTED
from specdec.errors import InvalidArgumentError
from specdec.runtimes.base import EXACT

if TYPE_CHECKING:
    from specdec.lab.eval.plan import Plan
    from specdec.lab.eval.report import Evaluation


def add_parser(subparsers: Subparsers) -> None:
    """Add `eval` to the command line."""
    parser = subparsers.add_parser(
        "eval",
        help=COMMANDS["eval"],
        description=(
            "Run a model at lower efforts and compare it with itself at effort 1: perplexity, divergence and agreement "
            "on a text, hidden states layer by layer, the questions of the original Effort, and, with --humaneval, "
            "programs that it writes. After an interrupt the same command continues."
        ),
        **examples(
            "specdec eval smollm2-135m",
            "specdec eval qwen2.5-coder-0.5b --measure humaneval --effort 1 0.5 --problems 20",
        ),
    )
    add_model_argument(parser)
    add_runtime_options(parser)
    parser.add_argument(
        "--view",
        nargs="+",
        default=[EXACT],
        metavar="VIEW",
        help="views to measure: exact, or draft views such as int4 (default: exact)",
    )
    parser.add_argument(
        "--effort", type=float, nargs="+", metavar="E", help="efforts to measure (default: 0.1 to 1 in steps of 0.1)"
    )
    parser.add_argument(
        "--load-share",
        type=float,
        nargs="+",
        default=[],
        metavar="S",
        help="also measure the exact view at effort 1 with at least this share of the weights loaded",
    )
    _add_measures(parser.add_argument_group("what is measured"))
    output = parser.add_argument_group("output")
    add_json_option(output)
    output.add_argument("--report", metavar="FOLDER", help="write the table, and plots as PNGs")
    output.add_argument("--restart", action="store_true", help="start over instead of continuing an interrupted run")
    parser.set_defaults(run=run)


def _add_measures(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--measure",
        nargs="+",
        default=["text", "basicq", "quiz"],
        metavar="WHAT",
        help="text, basicq, quiz, humaneval (default: the first three)",
    )
    group.add_argument("--text", metavar="FILE", help="UTF-8 text to compare on (default: bundled prompts)")
    group.add_argument(
        "--passages", type=int, default=8, metavar="N", help="passages of the text (default: %(default)s)"
    )
    group.add_argument(
        "--passage-tokens", type=int, default=256, metavar="T", help="tokens of a passage (default: %(default)s)"
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed for the order of choices (default: 0)"
    )
    group.add_argument(
        "--humaneval",
        action="store_true",
        help=(
            "also let the model write functions and run their tests, without network, files or other processes, with "
            "limits on time and memory (Linux)"
        ),
    )
    group.add_argument(
        "--unconfined",
        action="store_true",
        help="run these functions with your rights if the system cannot confine them: dangerous",
    )
    group.add_argument("--problems", type=int, metavar="N", help="HumanEval problems (default: all 82 bundled ones)")
    group.add_argument(
        "--max-tokens",
        type=int,
        default=384,
        metavar="N",
        help="longest answer to a HumanEval problem (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the table."""
    from specdec.lab.eval.report import table
    from specdec.lab.eval.run import evaluate

    plan = _plan(arguments)
    check_json(arguments)
    check_outputs(arguments)
    model = load_model(arguments)
    evaluation = interruptible(lambda progress: evaluate(model, plan, restart=arguments.restart, progress=progress))
    if evaluation is None:
        return EXIT_INTERRUPTED
    if arguments.json != "-":
        for line in table(evaluation):
            print(line)
    _write(arguments, evaluation)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    from specdec.lab.eval.plan import EFFORTS, Plan, Setting, make_settings

    if not (arguments.humaneval or "humaneval" in arguments.measure):
        for name in ("unconfined", "problems"):
            if getattr(arguments, name):
                raise InvalidArgumentError(f"--{name} has an effect only with --humaneval: give both")
    measures = dict.fromkeys([*arguments.measure, *(["humaneval"] if arguments.humaneval else [])])
    return Plan(
        settings=make_settings(arguments.view, arguments.effort or EFFORTS)
        + tuple(Setting(EXACT, 1.0, share) for share in arguments.load_share),
        measures=tuple(measures),
        text=arguments.text,
        passages=arguments.passages,
        passage_tokens=arguments.passage_tokens,
        problems=arguments.problems,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
        unconfined=arguments.unconfined,
    )


def _write(arguments: argparse.Namespace, evaluation: Evaluation) -> None:
    from specdec.record import command_line, record, write_json

    results = evaluation.to_dict()
    results["settings"] = {"model": Path(arguments.model).name.removesuffix(".store")} | results["settings"]
    if arguments.json is not None:
        found = record("eval", command=command_line("specdec", arguments.words), results=results)
        if arguments.json == "-":
            write_json_output(arguments, found)
        else:
            write_json(Path(arguments.json), found)
    if arguments.report is not None:
        from specdec.lab.eval.plots import write_plots

        folder = write_plots(Path(arguments.report), evaluation, title=results["settings"]["model"])
        print(f"\nreport: {folder}", file=sys.stderr if arguments.json == "-" else sys.stdout)

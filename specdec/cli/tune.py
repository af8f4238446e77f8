"""`specdec tune`: find the efforts that draft fastest on this machine, and keep them with the store."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from specdec.cli.commands import COMMANDS
from specdec.cli.common import (
    Subparsers,
    add_model_argument,
    add_runtime_options,
    examples,
    interruptible,
    load_model,
)
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.cli.startup import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from specdec.store.profile import DraftProfile


def add_parser(subparsers: Subparsers) -> None:
    """Add `tune` to the command line."""
    parser = subparsers.add_parser(
        "tune",
        help=COMMANDS["tune"],
        description=(
            "Measure how much effort each matrix of a model needs and what a step costs on this machine, allocate the "
            "effort, and write the best setting to the model's store, where other commands use it. After an interrupt "
            "the same command continues."
        ),
        **examples(
            "specdec tune smollm2-135m --quick",
            "specdec tune store --text notes.txt --view int4 --effort 0.5",
        ),
    )
    add_model_argument(parser)
    parser.add_argument("--text", metavar="FILE", help="UTF-8 text to measure on (default: a bundled one)")
    parser.add_argument(
        "--view", metavar="VIEW", default="auto", help="draft view: bucket, int4, ... (default: the runtime's fastest)"
    )
    parser.add_argument(
        "--effort", type=float, metavar="E", help="mean effort to allocate (default: try several, take the fastest)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure groups of matrices instead of each matrix: takes seconds"
    )
    parser.add_argument("--restart", action="store_true", help="start over instead of continuing an interrupted run")
    add_runtime_options(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tune, and print what was tried."""
    from specdec.checks import check_effort
    from specdec.lab.tune.run import QUICK, THOROUGH, tune

    check_json(arguments)
    if arguments.effort is not None:
        check_effort(arguments.effort, "--effort")
    model = load_model(arguments)
    profile = interruptible(
        lambda progress: tune(
            model,
            text=arguments.text,
            view=arguments.view,
            mean=arguments.effort,
            thoroughness=QUICK if arguments.quick else THOROUGH,
            restart=arguments.restart,
            progress=progress,
        )
    )
    if profile is None:
        return EXIT_INTERRUPTED
    write_json_output(arguments, asdict(profile))
    if arguments.json != "-":
        _report(profile)
    return 0


def _report(profile: DraftProfile) -> None:
    print(
        f"view {profile.view} on {profile.runtime}; a step of the model itself takes {profile.verify_s[1] * 1e3:.3g} ms"
    )
    print("   effort                 agreement      KL   step (ms)   expected")
    for index, one in enumerate(profile.candidates):
        mark = " *" if index == profile.best else "  "
        kind = f"by matrix, {one.tuned:g}" if one.tuned else "equal"
        gain = f"{one.speedup:.2f}x with {one.draft_len} drafts" if one.draft_len else "no gain"
        print(
            f"{mark} {one.mean:<5g}  {kind:15s}  {one.agreement:9.3f}  {one.kl:6.3f}  {one.step_s * 1e3:10.3g}   {gain}"
        )
    if not profile.choice.draft_len:
        print("drafting at a fixed length does not pay with this view here")

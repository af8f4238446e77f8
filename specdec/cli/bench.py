"""`specdec bench`: how fast a model answers in many ways of decoding, compared with plain decoding."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.cli.commands import COMMANDS
from specdec.cli.common import (
    Subparsers,
    add_model_argument,
    add_remeasure_option,
    add_runtime_options,
    check_outputs,
    examples,
    load_model,
)
from specdec.cli.output import add_json_option, check_different, check_json, write_json_output
from specdec.cli.startup import EXIT_INTERRUPTED
from specdec.engine.options import CONDITION_OPTIONS, DRAFT_OPTIONS, FLAGS, flag_of
from specdec.errors import InvalidArgumentError
from specdec.interrupts import take_interrupt
from specdec.progress import StreamProgress

if TYPE_CHECKING:
    from specdec.lab.bench.findings import Findings
    from specdec.lab.bench.plan import Plan
    from specdec.lab.bench.sample import Sample
    from specdec.lab.journal import Journal
    from specdec.model.loaded import Model

EXIT_DIFFERENT, EXIT_NOISY = 1, 3
_PROMPTS = ("spec-bench", "humaneval")


def add_parser(subparsers: Subparsers) -> None:
    """Add `bench` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help=COMMANDS["bench"],
        description=(
            "Answer prompts in several ways of decoding, in turns with plain decoding; check that all answers are the "
            "same; report speed, speed-up, acceptance and where the time went. After an interrupt the same command "
            "continues."
        ),
        **examples(
            "specdec bench smollm2-135m --report report",
            "specdec bench smollm2-135m --prompts mine.jsonl --temperature 0 0.8",
        ),
    )
    add_model_argument(parser)
    add_runtime_options(parser)
    add_remeasure_option(parser)
    _add_contenders(parser.add_argument_group("ways of decoding"))
    _add_conditions(parser.add_argument_group("conditions"))
    _add_prompts(parser.add_argument_group("prompts and answers"))
    _add_output(parser.add_argument_group("output"))
    parser.set_defaults(run=run)


def _add_contenders(group: argparse._ArgumentGroup) -> None:
    group.description = (
        "Plain decoding is always measured. Options with several values mean all combinations; --contender and --grid "
        "add single ways. The default is: auto, int4:0.7:4, and auto with lookup only."
    )
    group.add_argument(
        "--contender",
        action="append",
        default=[],
        metavar="WAY",
        help="auto, VIEW:EFFORT:LENGTH, or words such as 'policy=fixed drafter=ngram draft_len=4'; repeatable",
    )
    group.add_argument("--grid", metavar="FILE.yaml", help="a file of contenders and conditions")
    _add_lists(group, DRAFT_OPTIONS)


def _add_conditions(group: argparse._ArgumentGroup) -> None:
    group.description = "Every way is measured under every combination of these."
    _add_lists(group, CONDITION_OPTIONS)


def _add_lists(group: argparse._ArgumentGroup, names: tuple[str, ...]) -> None:
    """Options of the library (`specdec.Options`), each with one value or more."""
    for name in names:
        flag = FLAGS[name]
        group.add_argument(
            flag_of(name), type=flag.kind, nargs="+", metavar=flag.metavar, help=f"{flag.help}; one or more values"
        )


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompts",
        nargs="+",
        default=list(_PROMPTS),
        metavar="SET",
        help="spec-bench, humaneval, a .jsonl file, or a text file with a prompt on each line (default: both sets)",
    )
    group.add_argument("--tasks", nargs="+", metavar="TASK", help="kinds of prompt to use (default: all)")
    group.add_argument(
        "--per-task", type=int, default=2, metavar="N", help="prompts of each task (default: %(default)s)"
    )
    group.add_argument("--max-tokens", type=int, default=128, metavar="N", help="longest answer (default: %(default)s)")
    group.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="answers to each prompt (default: %(default)s)"
    )
    group.add_argument("--raw", action="store_true", help="use prompts as they are, without the chat template")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add_json_option(group)
    group.add_argument("--csv", metavar="FILE", help="write the table")
    group.add_argument("--report", metavar="FOLDER", help="write a page with plots, index.html, and the plots as PNGs")
    group.add_argument("--resume", metavar="FILE", help="keep the answers in this file, and continue from it")
    group.add_argument("--restart", action="store_true", help="start over instead of continuing an interrupted run")
    group.add_argument(
        "--max-noise",
        type=float,
        metavar="SHARE",
        help="largest standard error of a speed-up by noise that is still reported (default: 0.05)",
    )
    group.add_argument("--force", action="store_true", help="report even if the measurement is too noisy, labelled so")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    from specdec.lab.bench.compare import DifferenceFoundError
    from specdec.lab.bench.run import measure

    plan, limit = _plan(arguments), _noise_limit(arguments)
    check_json(arguments)
    check_outputs(arguments)
    check_different(arguments, "csv", "resume")
    _check_page(arguments)
    model = load_model(arguments)
    journal, progress = _journal(arguments, plan, model), StreamProgress()
    try:
        samples = measure(model, plan, journal, progress=progress)
    except KeyboardInterrupt as interrupt:
        take_interrupt(interrupt)
        progress.close()
        print(f"specdec: interrupted after {len(journal.results)} answers; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    except DifferenceFoundError as error:
        progress.close()
        print(f"specdec: CHECK FAILED: {error.difference.sentence(plan)}", file=sys.stderr)
        return EXIT_DIFFERENT
    finally:
        progress.close()
        journal.close()
    findings = _findings(arguments, plan, model, journal, samples, limit)
    if findings.noise.is_too_loud and not arguments.force:
        print(f"specdec: {_refusal(findings, journal)}", file=sys.stderr)
        return EXIT_NOISY
    _report(arguments, findings)
    if arguments.resume is None:
        journal.path.unlink(missing_ok=True)
    return 0


def _check_page(arguments: argparse.Namespace) -> None:
    """Refuse a folder of `--report` with somebody else's page in it.

    Raises:
        InvalidArgumentError: there is one.
    """
    page = Path(arguments.report or "") / "index.html"
    if arguments.report is not None and page.is_file() and b"<title>specdec bench: " not in page.read_bytes()[:4096]:
        raise InvalidArgumentError(f"--report would replace {page}, which is not a page of bench: name another folder")


def _plan(arguments: argparse.Namespace) -> Plan:
    """What was asked for."""
    from specdec.lab.bench.grid import make_grid
    from specdec.lab.bench.plan import Plan
    from specdec.lab.bench.prompts import load_prompts

    names = (*DRAFT_OPTIONS, *CONDITION_OPTIONS)
    grid = make_grid(
        file=arguments.grid,
        singles=arguments.contender,
        lists={name: values for name in names if (values := getattr(arguments, name))},
    )
    prompts = load_prompts(arguments.prompts, tasks=arguments.tasks, per_task=arguments.per_task)
    return Plan(
        grid=grid,
        prompts=tuple(prompts),
        max_tokens=arguments.max_tokens,
        repeat=arguments.repeat,
        chat=not arguments.raw,
    )


def _noise_limit(arguments: argparse.Namespace) -> float:
    from specdec.lab.bench.noise import LIMIT

    limit = LIMIT if arguments.max_noise is None else float(arguments.max_noise)
    if not limit > 0:
        raise InvalidArgumentError(f"--max-noise must be a share above 0, such as 0.05, not {limit:g}")
    return limit


def _journal(arguments: argparse.Namespace, plan: Plan, model: Model) -> Journal[Sample]:
    """The file that keeps the answers: the one that was named, or one in the cache folder."""
    from specdec import paths
    from specdec.lab.bench.sample import open_answers
    from specdec.record import machine

    own = paths.home() / "bench" / plan.file_name(model)
    path = own if arguments.resume is None else Path(arguments.resume)
    journal = open_answers(path, plan.header(model), extra={"machine": machine()}, restart=arguments.restart)
    if journal.results:
        print(f"going on with {len(journal.results)} answers from {path}", file=sys.stderr)
    return journal


def _findings(
    arguments: argparse.Namespace, plan: Plan, model: Model, journal: Journal[Sample], samples: Any, limit: float
) -> Findings:
    from specdec.lab.bench.findings import find
    from specdec.record import command_line

    settings = {
        "model": Path(arguments.model).name.removesuffix(".store"),
        "runtime": model.runtime.info.name,
        "threads": model.runtime.info.threads,
        "sets": arguments.prompts,
        "per_task": arguments.per_task,
    }
    return find(
        plan,
        samples,
        command=command_line("specdec", arguments.words),
        machine=journal.header["machine"],
        settings=settings,
        noise_limit=limit,
    )


def _refusal(findings: Findings, journal: Journal[Sample]) -> str:
    from specdec.lab.bench.table import noise_sentence

    return (
        f"{noise_sentence(findings.noise)}. Stop what else is running and measure again with --restart, or add "
        f"repetitions with a higher --repeat (the answers are kept in {journal.path}); --force reports all the same"
    )


def _report(arguments: argparse.Namespace, findings: Findings) -> None:
    from specdec.lab.bench.table import lines, write_csv
    from specdec.record import write_json

    if arguments.json == "-":
        write_json_output(arguments, findings.to_record())
    else:
        for line in lines(findings):
            print(line)
    if arguments.json not in (None, "-"):
        write_json(Path(arguments.json), findings.to_record())
    if arguments.csv is not None:
        write_csv(Path(arguments.csv), findings)
    if arguments.report is not None:
        from specdec.lab.bench.report import write_report

        page = write_report(Path(arguments.report), findings)
        print(f"\nreport: {page}", file=sys.stderr if arguments.json == "-" else sys.stdout)

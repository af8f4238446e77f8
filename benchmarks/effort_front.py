"""What effort below 1 buys: time of a pass, agreement and KL of plain decoding, for each selection and view.

Of one model in 16 bits, on the native runtime: the exact view by whole inputs and by tiers, and `int4`, at several
efforts; and with --q8 the same weights rounded to Q8_0. Times are single rows and passes of 5 rows, in units of a
single row of the dense layout at effort 1, lower quartiles over rounds in which all passes take turns. Agreement and KL
are against the model at effort 1, each with a history of its own, on the text of `specdec eval`.

    python benchmarks/effort_front.py STORE --q8 STORE --json front.json
    python benchmarks/effort_front.py --draw docs/images/effort.svg front.json...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import add_json_option, print_machine, print_table, write_json

from specdec.lab.eval.passages import run_passage, score_passage
from specdec.lab.text import spec_bench, split_passages
from specdec.model.effort import EffortSchedule
from specdec.runtimes.base import EXACT, forward_one
from specdec.runtimes.native.runtime import NativeRuntime
from specdec.runtimes.timing import PassTimer, Timed
from specdec.store import Store

EFFORTS = (0.9, 0.75, 0.6, 0.5, 0.35, 0.25, 0.15)
INT4 = (1.0, 0.7, 0.5)
ROWS = (1, 5)
CONTEXT = 200


@dataclass
class Point:
    """One setting: what it is, its times in single dense rows, and how near it is to the model at effort 1."""

    layout: str
    effort: float
    row: float = 0.0
    rows5: float = 0.0
    agreement: float = 0.0
    kl: float = 0.0


def settings(
    inputs: NativeRuntime, tiers: NativeRuntime, q8: NativeRuntime | None
) -> list[tuple[Point, NativeRuntime, str]]:
    """Every point with the runtime and view that it belongs to."""
    found = [(Point("inputs", effort), inputs, EXACT) for effort in (1.0, *EFFORTS)]
    found += [(Point("tiers", effort), tiers, EXACT) for effort in EFFORTS]
    found += [(Point("int4", effort), inputs, "int4") for effort in INT4]
    return found + ([(Point("q8_0", 1.0), q8, EXACT)] if q8 else [])


def measure_times(points: Sequence[tuple[Point, NativeRuntime, str]], dense: NativeRuntime, rounds: int) -> None:
    """Fill in times; all passes of all runtimes take turns."""
    passes: dict[int, tuple[NativeRuntime, list[Timed]]] = {id(dense): (dense, [Timed(rows) for rows in ROWS])}
    for point, runtime, view in points:
        own = passes.setdefault(id(runtime), (runtime, []))[1]
        own += [Timed(rows, point.effort, view) for rows in ROWS]
    timers = []
    for runtime, timed in passes.values():
        tokens = [(7 * i + 11) % runtime.config.vocab for i in range(CONTEXT)]
        cache = runtime.new_cache(CONTEXT + 16)
        forward_one(runtime, tokens, cache, effort=EffortSchedule(1.0), logits="last")
        timers.append(PassTimer(runtime, cache, tokens, timed))
        timers[-1].warm_up()
    for _ in range(rounds):
        for timer in timers:
            timer.round()
    seconds = {
        key: [float(np.quantile(one, 0.25)) for one in timer.seconds] for key, timer in zip(passes, timers, strict=True)
    }
    unit = seconds[id(dense)][0]
    points_of = {id(dense): [Point("dense", 1.0)]}
    for point, runtime, _ in points:
        points_of.setdefault(id(runtime), []).append(point)
    for key, own in points_of.items():
        for j, point in enumerate(own):
            point.row, point.rows5 = seconds[key][2 * j] / unit, seconds[key][2 * j + 1] / unit
    one = points_of[id(dense)][0]
    print(f"a dense row takes {unit * 1e3:.2f} ms, 5 rows {one.rows5:.3f} times as long\n")


def measure_quality(
    points: Sequence[tuple[Point, NativeRuntime, str]], dense: NativeRuntime, passages: Sequence[Sequence[int]]
) -> None:
    """Fill in agreement and KL."""
    for ids in passages:
        wanted = run_passage(dense, ids, view=EXACT, effort=1.0)
        for point, runtime, view in points:
            score = score_passage(ids, wanted, run_passage(runtime, ids, view=view, effort=point.effort))
            point.agreement += score.agreed / score.count / len(passages)
            point.kl += score.kl / score.count / len(passages)


def draw(path: Path, files: Sequence[Path]) -> None:
    """Draw KL against the time of a row, for each file, as an SVG."""
    from front_picture import picture

    described = [json.loads(file.read_text()) for file in files]
    path.write_text(picture([(one["results"]["model"], one["results"]["points"]) for one in described]))


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="+", help="a store of 16-bit weights; with --draw, JSON files")
    parser.add_argument("--q8", help="the same model's store in Q8_0")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--passages", type=int, default=4, help="of 256 tokens")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the results in JSON files")
    add_json_option(parser)
    return parser.parse_args()


def main() -> None:
    """Measure and print, or draw."""
    arguments = options()
    if arguments.draw:
        draw(arguments.draw, [Path(name) for name in arguments.store])
        return
    from specdec.model.loaded import load

    print_machine()
    (name,) = arguments.store
    tokenizer = load(name, threads=arguments.threads).tokenizer
    assert tokenizer is not None
    stores = [Store.open(name, verify=False) for _ in range(3)]
    stores[0].selection = stores[1].selection = "inputs"
    stores[2].selection = "tiers"
    dense, inputs, tiers = (NativeRuntime(store, threads=arguments.threads) for store in stores)
    q8 = NativeRuntime(Store.open(arguments.q8, verify=False), threads=arguments.threads) if arguments.q8 else None
    points = settings(inputs, tiers, q8)
    measure_times(points, dense, arguments.rounds)
    measure_quality(points, dense, split_passages(spec_bench(), tokenizer, count=arguments.passages, length=256))
    rows = [(p.layout, f"{p.effort:g}", p.row, p.rows5, p.agreement, f"{p.kl:.2g}") for p, _, _ in points]
    print_table(("layout", "effort", "1 row", "5 rows", "agreement", "KL"), rows)
    results = {"model": Path(name).name, "points": [asdict(point) for point, _, _ in points]}
    write_json(arguments.json, results, benchmark="effort_front")


if __name__ == "__main__":
    main()

"""Policies and drafters against each other, task by task: `specdec bench` over a grid of them, and a verdict on `auto`.

    python benchmarks/policies.py smollm2-135m --per-task 1 --repeat 2 --json results/bench-policies.json

All options but `--grid` are those of `specdec bench`; the verdict is drawn from the JSON file that it writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench_section import verdict
from common import print_table

from specdec.cli.main import main as specdec_main
from specdec.lab.bench.findings import Findings

GRIDS = Path(__file__).parent / "grids"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, folder or .gguf")
    parser.add_argument("--grid", type=Path, default=GRIDS / "policies.yaml", help="contenders (%(default)s)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where specdec bench writes")
    args, rest = parser.parse_known_args()
    code = specdec_main(["bench", args.model, "--grid", str(args.grid), "--json", str(args.json), *rest])
    if code:
        raise SystemExit(code)
    findings = Findings.from_record(json.loads(args.json.read_text(encoding="utf-8")))
    for condition in findings.conditions:
        header, rows = verdict(findings, condition)
        print(f"\nauto over others, {condition}")
        print_table(header, rows)


if __name__ == "__main__":
    main()

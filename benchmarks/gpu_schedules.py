"""Row invariance on this machine's GPU: random schedules of many sequences, every row compared with the row alone.

python benchmarks/gpu_schedules.py                              # small random models of every kind
python benchmarks/gpu_schedules.py smollm2-135m --schedules 40
python benchmarks/gpu_schedules.py --only "16 bits" --seed 1234 --schedules 1    # the one that failed

A schedule mixes prompt chunks, verify passes, trees, drafts in every view, forks, joins and leaves; see
`tests/helpers/schedules.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from common import add_json_option, print_machine, write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from alone import Alone
from schedule_run import ScheduleRun
from schedules import Limits, random_schedule
from synthetic import quantised_config, quantised_source, synthetic_source, tiny_config

import specdec
from specdec.errors import SpecdecError
from specdec.runtimes.base import Runtime
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

_WIDE = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
# Shape, 16-bit type, and the types of quantised matrices in turn; none means that all have 16 bits.
MODELS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "16 bits": ({"max_context": 2048}, "float16", ()),
    "bfloat16": ({"architecture": "qwen2", "qkv_bias": True, "max_context": 2048}, "bfloat16", ()),
    "window": ({"architecture": "mistral", "sliding_window": 5, "first_sliding_layer": 1}, "float16", ()),
    "head norms": ({"architecture": "qwen3", "qk_norm": True, "head_dim": 16}, "float16", ()),
    "wide": ({**_WIDE, "max_context": 2048}, "float16", ()),
    "quantised": ({}, "float16", ("q4_k", "q8_0", "q6_k")),
    "quantised, wide": ({**_WIDE, "max_context": 2048}, "float16", ("q8_0",)),
    "quantised in part": ({"architecture": "qwen2", "qkv_bias": True}, "float16", ("q4_1", "16", "q5_0")),
}


def models(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Runtime]]:
    """Name and runtime of every model asked for."""
    for name in arguments.models:
        yield Path(name).name, specdec.load(name, runtime=arguments.runtime).runtime
    for name in arguments.only or ([] if arguments.models else MODELS):
        shape, dtype, types = MODELS[name]
        if types:
            source = quantised_source(quantised_config(**shape), *types, dtype=dtype)
        else:
            source = synthetic_source(tiny_config(**shape), dtype=dtype)
        path = convert(source, folder / name.replace(" ", "-"), quantised="keep" if types else None)
        yield name, create_runtime(arguments.runtime, Store.open(path, verify=False))


def run(name: str, runtime: Runtime, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the schedules of one model; a failure is printed with its seed."""
    limits = Limits.of(
        runtime,
        early_exit=runtime.info.name != "mlx",  # which always runs all layers
        max_tokens=min(arguments.max_tokens, runtime.config.max_context),
        passes=arguments.passes,
        sequences=arguments.sequences,
    )
    alone = Alone(runtime, capacity=limits.max_tokens)
    start_s, rows, failed = time.perf_counter(), 0, []
    for seed in range(arguments.seed, arguments.seed + arguments.schedules):
        try:
            rows += ScheduleRun(alone, random_schedule(Random(seed), limits)).run().checked
        except AssertionError as error:
            failed.append(seed)
            print(f"{name}, seed {seed}: {error}", flush=True)
            if len(failed) == arguments.stop_after:
                break
            alone.clear()
    took_s = time.perf_counter() - start_s
    return {"model": name, "schedules": arguments.schedules, "rows": rows, "failed_seeds": failed, "seconds": took_s}


def main() -> int:
    """Print a line for each model; exit with 1 where a row differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="models to load (default: small random ones)")
    parser.add_argument("--runtime", default="mlx", help="default: %(default)s")
    parser.add_argument(
        "--only", nargs="+", choices=MODELS, help="small random models to run, in addition to those named"
    )
    parser.add_argument("--schedules", type=int, default=100, help="for each model (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule (default %(default)s)")
    parser.add_argument("--passes", type=int, default=8, help="most passes of a schedule (default %(default)s)")
    parser.add_argument("--sequences", type=int, default=6, help="most sequences at a time (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=320, help="of a sequence (default %(default)s)")
    parser.add_argument("--stop-after", type=int, default=3, help="failures of a model (default %(default)s)")
    add_json_option(parser)
    arguments = parser.parse_args()
    print_machine()
    results, device = [], None
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, runtime in models(arguments, Path(folder)):
                device = runtime.info.device or runtime.info.build
                result = run(name, runtime, arguments)
                results.append(result)
                verdict = f"{len(result['failed_seeds'])} schedules FAILED" if result["failed_seeds"] else "all equal"
                print(
                    f"{name} on {device}: {result['schedules']} schedules, {result['rows']} rows: {verdict} "
                    f"({result['seconds']:.1f} s)",
                    flush=True,
                )
        except SpecdecError as error:
            sys.exit(str(error))
    write_json(arguments.json, {"device": device, "rows": results}, benchmark="gpu_schedules")
    return 1 if any(result["failed_seeds"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

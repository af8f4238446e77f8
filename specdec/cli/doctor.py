"""`specdec doctor`: what this machine and this installation offer, and what would be used."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from specdec import cache, catalogue, paths
from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples, readable_bytes
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.errors import RuntimeUnavailableError, SpecdecError
from specdec.runtimes.choose import best_runtime, known_runtimes
from specdec.runtimes.cores import usable_cores
from specdec.runtimes.mlx.device import find_gpu
from specdec.runtimes.native.threads import ALL_OF, kept_choices
from specdec.version import DISTRIBUTION, version

# Those that decide which kernels can run; the rest of the list would only be noise.
_CPU_FEATURES = re.compile(r"(avx|fma|f16c|sse4|amx|bmi2|vnni|asimd|neon|dotprod|sve|i8mm|bf16|fp16)", re.IGNORECASE)


def add_parser(subparsers: Subparsers) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help=COMMANDS["doctor"],
        description="Show processor, GPU, runtimes (and why one is not available), packages and models. Bug reports "
        "should contain it.",
        **examples("specdec doctor", "specdec doctor --json"),
    )
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    check_json(arguments)
    findings = examine()
    write_json_output(arguments, findings)
    if arguments.json != "-":
        for line in _lines(findings):
            print(line)
    return 0


def examine() -> dict[str, Any]:
    """Everything that `doctor` says, as plain JSON values."""
    runtimes = {name: _unavailable(name) for name in known_runtimes()}
    return {
        "version": version(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": {"cores": usable_cores(), "measured": [asdict(choice) for choice in kept_choices()]},
        "mlx": _mlx(),
        "dependencies": _dependencies(),
        "runtimes": {name: {"available": reason is None, "reason": reason} for name, reason in runtimes.items()},
        "auto": best_runtime(),
        "cache": _cache(),
    }


def _unavailable(runtime: str) -> str | None:
    """Why a runtime cannot run here; None when it can."""
    try:
        importlib.import_module(f"specdec.runtimes.{runtime}.runtime").check_available()
    except (SpecdecError, ImportError) as error:
        return str(error)
    return None


def _cpu() -> dict[str, Any]:
    name, flags = _cpu_description()
    try:
        usable = len(os.sched_getaffinity(0))  # type: ignore[attr-defined,unused-ignore]
    except AttributeError:  # not on macOS
        usable = os.cpu_count() or 1
    features = sorted({flag for flag in flags if _CPU_FEATURES.search(flag)})
    return {"name": name, "architecture": platform.machine(), "usable_threads": usable, "features": features}


def _cpu_description() -> tuple[str, list[str]]:
    """Model name and feature flags, as the operating system tells them; empty where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _sysctl("machdep.cpu.brand_string"), _sysctl_features()
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", text, re.MULTILINE))
    return fields.get("model name", ""), (fields.get("flags") or fields.get("Features") or "").split()


def _sysctl(*names: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _sysctl_features() -> list[str]:
    """Features that macOS lists as `hw.optional.arm.FEAT_X: 1` (Apple silicon)."""
    try:
        done = subprocess.run(["sysctl", "hw.optional"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [
        name.rsplit(".", 1)[-1]
        for name, value in re.findall(r"^(\S+): (\d+)$", done.stdout, re.MULTILINE)
        if value == "1"
    ]


def _mlx() -> dict[str, Any]:
    """Version and devices of MLX, or why it cannot be loaded."""
    try:
        import mlx.core as mx
    except ImportError as error:
        return {"version": None, "default_device": None, "metal": False, "gpu": None, "error": str(error)}
    return {
        "version": _installed("mlx"),
        "default_device": str(mx.default_device()),
        "metal": bool(mx.metal.is_available()),
        "gpu": _gpu(),
        "error": None,
    }


def _gpu() -> str | None:
    """Name and backend of the GPU that MLX would use, or None."""
    try:
        gpu = find_gpu()
    except RuntimeUnavailableError:
        return None
    others, reached = (0, 0) if gpu.driver is None else gpu.driver.neighbours()
    more = f", reaches the memory of {reached} of {others} other GPUs" if others else ""
    return f"{gpu.name} ({gpu.backend}){more}"


def _dependencies() -> dict[str, str | None]:
    """Installed version of everything that this distribution requires or can use."""
    try:
        stated = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        stated = []
    needed = [re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0] for line in stated if "extra ==" not in line]
    return {name: _installed(name) for name in [*sorted(needed), "huggingface_hub"]}


def _installed(name: str) -> str | None:
    try:
        return distribution_version(name)
    except PackageNotFoundError:
        return None


def _cache() -> dict[str, Any]:
    home = paths.home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    return {
        "path": str(home),
        "used_bytes": cache.size_of(home),
        "free_bytes": shutil.disk_usage(existing).free,
        "problem": _cache_problem(existing),
        "models": [name for name in catalogue.list_names() if catalogue.is_pulled(name)],
    }


def _cache_problem(existing: Path) -> str | None:
    """Why nothing can be added to the cache folder, of which `existing` is there; None if something can."""
    if not existing.is_dir():
        return f"{existing} is not a folder: set SPECDEC_HOME to one"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written: models that are in the cache can be used, others not"
    return None


def _thread_lines(threads: dict[str, Any]) -> Iterator[str]:
    """What the native runtime takes without --threads."""
    cores, measured = threads["cores"], [one for one in threads["measured"] if one["cores"] == threads["cores"]]
    plain = f"threads    {cores} physical cores may be used"
    yield plain if measured or cores <= ALL_OF else f"{plain}; the first load of a model measures how many decode best"
    for one in measured:
        steps = ", ".join(f"{count}: {seconds * 1e3:.2f}" for count, seconds in one["step_s"].items())
        yield f"           {one['threads']} for {one['model']} (ms a token by threads: {steps})"


def _lines(found: dict[str, Any]) -> Iterator[str]:
    cpu, mlx, cache = found["cpu"], found["mlx"], found["cache"]
    yield f"specdec    {found['version']}, Python {found['python']['version']} ({found['python']['executable']})"
    yield f"platform   {found['platform']}"
    yield f"cpu        {cpu['name'] or cpu['architecture']}, {cpu['usable_threads']} usable threads"
    yield f"           {' '.join(cpu['features']) or 'features unknown'}"
    yield from _thread_lines(found["threads"])
    yield (
        f"mlx        {mlx['version']}, default device {mlx['default_device']}, GPU {mlx['gpu'] or 'none'}"
        if mlx["version"]
        else f"mlx        {mlx['error']}"
    )
    for name, state in found["runtimes"].items():
        taken = ", taken by auto" if state["available"] else "; auto takes it nevertheless"
        chosen = taken if name == found["auto"] else ""
        yield f"runtime    {name}: {'available' if state['available'] else state['reason']}{chosen}"
    versions = ", ".join(
        f"{name} {found_version or '(missing)'}" for name, found_version in found["dependencies"].items()
    )
    yield f"packages   {versions}"
    used, free = readable_bytes(cache["used_bytes"]), readable_bytes(cache["free_bytes"])
    yield f"cache      {cache['path']}: {used} used, {free} free"
    if cache["problem"]:
        yield f"           {cache['problem']}"
    yield f"models     {', '.join(cache['models']) or 'none pulled yet'}"

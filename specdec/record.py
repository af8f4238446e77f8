"""Records where a measurement comes from: machine, versions, date and command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from specdec.whole_file import write_output

_PACKAGES = ("specdec-mlx", "mlx", "numpy")  # whose versions may change a result


def device_name() -> str:
    """Processor name as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Device, core count, system and the versions that decide a result, as plain JSON values."""
    return {
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _installed(name)) is not None},
        "date": time.strftime("%Y-%m-%d"),
    }


def command_line(program: str, words: Sequence[str]) -> str:
    """A command for others to read and to run: files without their folders, where those are of this machine only."""
    return shlex.join([*program.split(), *(Path(w).name if w.startswith(("/", "~", "..")) else w for w in words)])


def record(benchmark: str, *, command: str, results: Any) -> dict[str, Any]:
    """A measurement's file: `benchmark`, `command`, `machine` and `results`."""
    return {"benchmark": benchmark, "command": command, "machine": machine(), "results": results}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `whole_file.write_output` does; lists of plain values and objects of them take one line each.

    Raises:
        OSError: the file cannot be written.
    """
    write_output(path, (to_json(value) + "\n").encode())


def to_json(value: Any, indent: int = 0) -> str:
    """JSON with a line for each object of plain values and each list of them; whatever holds more is broken up."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    if all(_is_plain(one, depth=isinstance(value, dict)) for one in inner):
        return json.dumps(value)
    pad, end = "\n" + " " * (indent + 1), "\n" + " " * indent
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(key))}: {to_json(one, indent + 1)}" for key, one in value.items()]
        return "{" + pad + ("," + pad).join(parts) + end + "}"
    return "[" + pad + ("," + pad).join(to_json(one, indent + 1) for one in inner) + end + "]"


def _is_plain(value: Any, *, depth: int) -> bool:
    """Whether a value is a scalar, an empty container, or a list of these, nested at most `depth` deep."""
    if isinstance(value, (list, tuple)):
        return not value or (depth > 0 and all(_is_plain(one, depth=depth - 1) for one in value))
    return not isinstance(value, dict) or not value

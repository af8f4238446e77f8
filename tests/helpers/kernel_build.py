"""Builds the C++ kernels and their tests for tests, with other options than an installation has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT


def need(*programs: str) -> None:
    """Skip a test where one of these is missing, or the source tree is."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs the source tree")


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(folder: Path, *options: str) -> Path:
    """The test program, built in `folder`."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    fixed = ["-DSPECDEC_PYTHON=OFF", "-DSPECDEC_TESTS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    run(["cmake", "-S", str(ROOT), "-B", str(folder), *generator, *fixed, *options])
    run(["cmake", "--build", str(folder), "--parallel", "2"])
    return folder / "kernel_tests"


def check_output(output: str, *, tests: int) -> None:
    """That so many tests ran, or more, and every check held."""
    *lines, last = output.splitlines()
    assert last.endswith(" checks, 0 failed")
    assert int(last.split()[0]) > 20_000
    assert sum(line.startswith("ok ") for line in lines) >= tests

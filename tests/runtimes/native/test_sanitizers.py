"""C++ under sanitizers: the kernel tests (`kernels/cpu/tests`), and the extension module with tests that load models.

The sanitized module is in a folder of its own. A process finds it before the installed one by a `sitecustomize`, which
Python runs at each start, so that processes which tests start find it too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from kernel_build import ROOT, build, check_output, need, run
from places import TESTS

MODULE = "specdec.kernels.cpu._native"
FIND_FIRST = """
import importlib.util, sys

class Sanitized:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, {file!r}) if name == {module!r} else None

sys.meta_path.insert(0, Sanitized)
"""
# GCC 13 moves locals to another stack where this is on, as it is by default, and stores vectors there as if their
# places were aligned to 64 bytes.
OWN_STACK = "detect_stack_use_after_return=0"
# What reads files of models, or gives the module sizes and shapes from outside.
LOADERS = (
    "runtimes/native/test_native_runtime.py", "runtimes/native/test_native_refusals.py",
    "runtimes/native/test_native_drafts.py",
    "runtimes/native/test_native_batch.py", "runtimes/test_quantised_runtime.py", "cli/test_bad_blocks.py",
    "store/test_quantised_store.py", "store/test_partial_load.py", "store/test_store_damage.py",
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kernel tests and extension module under the address and undefined-behaviour sanitizers."""
    need("cmake", "c++")
    if find_spec("nanobind") is None:
        pytest.skip("needs nanobind")
    folder = tmp_path_factory.mktemp("sanitized")
    build(
        folder, "-DSPECDEC_SANITIZE=address,undefined", "-DSPECDEC_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"
    )
    return folder


@pytest.fixture(scope="module")
def environment(sanitized: Path) -> dict[str, str]:
    """In which Python takes the sanitized module."""
    libraries = [run(["c++", f"-print-file-name={name}"]).strip() for name in ("libasan.so", "libstdc++.so")]
    if platform.system() != "Linux" or not all(Path(one).is_absolute() for one in libraries):
        pytest.skip("needs Linux and GCC's address sanitizer")
    (module,) = sanitized.glob("_native*.so")
    (sanitized / "site").mkdir()
    (sanitized / "site" / "sitecustomize.py").write_text(FIND_FIRST.format(file=str(module), module=MODULE))
    return {
        **os.environ,
        "PYTHONPATH": str(sanitized / "site"),
        "LD_PRELOAD": " ".join(libraries),  # Python itself is not sanitized
        "ASAN_OPTIONS": f"{OWN_STACK}:detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # bytes have their borders
    }


def apart(*command: str) -> list[str]:
    """A command without address randomisation: older sanitizers do not know the wider ranges of newer kernels."""
    fixed = ["setarch", platform.machine(), "-R"]
    works = shutil.which("setarch") and subprocess.run([*fixed, "true"], check=False).returncode == 0
    return [*fixed, *command] if works else list(command)


def run_tests(environment: dict[str, str], *words: str) -> None:
    """Run tests of this project in a process of its own."""
    found = run(apart(sys.executable, "-c", f"import {MODULE} as module; print(module.__file__)"), environment)
    assert Path(found.strip()).parent == Path(environment["PYTHONPATH"]).parent
    command = apart(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *words)
    assert " passed" in run(command, environment)


def test_kernels_run_clean(sanitized: Path) -> None:
    found = run(apart(str(sanitized / "kernel_tests")), {**os.environ, "ASAN_OPTIONS": OWN_STACK})
    check_output(found, tests=30)


def test_loaders_run_clean(environment: dict[str, str]) -> None:
    chosen = ("-m", "not slow", "-k", "not any_schedule")  # which take long, and are about bits
    run_tests(environment, *chosen, *(str(TESTS / name) for name in LOADERS))


def test_hostile_files_run_clean(environment: dict[str, str]) -> None:
    run_tests(environment, f"{TESTS / 'base' / 'test_hostile.py'}::test_500_cases")


def test_threads_run_clean(tmp_path: Path) -> None:
    """The thread sanitizer looks at tests that start threads alone."""
    need("cmake", "c++")
    program = build(tmp_path / "build", "-DSPECDEC_SANITIZE=thread")
    check_output(run(apart(str(program))), tests=10)

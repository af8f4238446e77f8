"""The C++ kernel tests (`kernels/cpu/tests`), built and run here: all their cases, then fewer of them (`check.h`) under
sanitizers, and for 64-bit Arm emulated."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
    "-DSPECDEC_FEW_CASES=ON",
]

pytestmark = pytest.mark.slow


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("needs the source tree")


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
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


def test_kernels_match_their_definitions(tmp_path: Path) -> None:
    need("cmake", "c++")
    check_output(run([str(build(tmp_path / "build"))]), tests=30)


# The thread sanitizer looks at tests that start threads alone.
@pytest.mark.parametrize(("sanitizers", "tests"), [("address,undefined", 30), ("thread", 10)])
def test_kernels_run_clean_under_sanitizers(tmp_path: Path, sanitizers: str, tests: int) -> None:
    need("cmake", "c++")
    program = build(tmp_path / "build", f"-DSPECDEC_SANITIZE={sanitizers}")
    # Without address randomisation: older thread sanitizers do not know the wider ranges of newer kernels.
    fixed_addresses = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    check_output(run([*fixed_addresses, str(program)]), tests=tests)


def test_kernels_for_arm_in_an_emulator(tmp_path: Path) -> None:
    need("cmake", ARM_COMPILER, ARM_EMULATOR)
    output = run([ARM_EMULATOR, str(build(tmp_path / "build", *ARM))])
    assert "instruction sets: neon_dotprod neon scalar" in output
    check_output(output, tests=30)

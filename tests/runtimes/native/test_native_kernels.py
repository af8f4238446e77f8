"""The C++ kernel tests (`kernels/cpu/tests`), built and run here: all their cases, then fewer of them (`check.h`) for
64-bit Arm emulated. Under sanitizers they run in `test_sanitizers`."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_build import build, check_output, need, run

ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
    "-DSPECDEC_FEW_CASES=ON",
]

pytestmark = pytest.mark.slow


def test_kernels_match_their_definitions(tmp_path: Path) -> None:
    need("cmake", "c++")
    check_output(run([str(build(tmp_path / "build"))]), tests=30)


def test_kernels_for_arm_in_an_emulator(tmp_path: Path) -> None:
    need("cmake", ARM_COMPILER, ARM_EMULATOR)
    output = run([ARM_EMULATOR, str(build(tmp_path / "build", *ARM))])
    assert "instruction sets: neon_dotprod neon scalar" in output
    check_output(output, tests=30)

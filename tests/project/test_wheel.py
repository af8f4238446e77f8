"""A wheel with the native runtime, in an environment without a compiler: version, doctor, and an answer.

cibuildwheel runs this file against every wheel that it builds, except what is marked slow: that builds a wheel itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from kernel_build import need, run
from places import ROOT

# Libraries that manylinux wheels may expect of a system; specdec must need no others.
SYSTEM = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libstdc++.so.6", "libgcc_s.so.1"}


def check_command(python: Path, model: Path) -> None:
    """`python -m specdec` works, and finds the native runtime, with no other program on the path."""
    environment = {name: os.environ[name] for name in ("HOME", "SPECDEC_HOME", "TMPDIR") if name in os.environ}
    environment["PATH"] = str(python.parent)
    command = [str(python), "-P", "-m", "specdec"]
    assert run([*command, "--version"], environment).startswith("specdec ")
    assert "native: available" in run([*command, "doctor"], environment)
    asked = ["--model", str(model), "--prompt", "Name a river.", "--max-tokens", "8", "--runtime", "native", "--json"]
    answer = json.loads(run([*command, "generate", *asked, "--check"], environment))
    assert 0 < len(answer["tokens"]) <= 8


def test_the_installed_package_answers(text_model: Path) -> None:
    if importlib.util.find_spec("specdec.kernels.cpu._native") is None:
        pytest.skip("specdec was installed without its native runtime")
    check_command(Path(sys.executable), text_model)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built with the compiler that is here. Takes minutes."""
    need("c++")
    for module in ("build", "scikit_build_core", "nanobind"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: install the extra `test`")
    folder = tmp_path_factory.mktemp("wheel")
    environment = {name: value for name, value in os.environ.items() if name != "SPECDEC_NO_NATIVE"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(ROOT)]
    run(command, environment)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_holds_the_native_runtime_for_this_platform(wheel: Path) -> None:
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{version}-{version}-" in wheel.name
    assert "-none-any" not in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.startswith("specdec/kernels/cpu/_native.") for name in archive.namelist())


@pytest.mark.slow
def test_auditwheel_finds_only_system_libraries(wheel: Path) -> None:
    if importlib.util.find_spec("auditwheel") is None:
        pytest.skip("needs auditwheel: pip install auditwheel")
    shown = json.loads(run([sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]))
    assert shown["overall_tag"].startswith("manylinux")
    assert set(shown["external_libs"]) <= SYSTEM


@pytest.mark.slow
def test_a_wheel_runs_where_there_is_no_compiler(wheel: Path, text_model: Path, tmp_path: Path) -> None:
    """In a new environment, which takes the packages that specdec needs from the one that runs the tests."""
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "clean")])
    python = tmp_path / "clean" / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    (site / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    run([*pip, "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", "--no-compile", str(wheel)])
    where = run([str(python), "-P", "-c", "import specdec; print(specdec.__file__)"]).strip()
    assert Path(where).is_relative_to(tmp_path)
    check_command(python, text_model)
    done = subprocess.run([str(python.parent / "specdec"), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("specdec ")

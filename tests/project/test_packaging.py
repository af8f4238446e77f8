"""What is built and installed: a wheel and an sdist hold what they must, and both kinds of install import."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from places import ROOT

BACKEND = "scikit_build_core"
# Imports the top-level folders under the package's name, and reads their data. The plain search of sys.path comes
# first, so that an editable install of the project does not answer in the copy's place.
PROBE = """
import sys
from importlib.machinery import PathFinder
sys.meta_path.insert(0, PathFinder)
import specdec, specdec.kernels, specdec.policies.fixed, specdec.configs, specdec.kernels.reference.selection
from importlib import resources
from importlib.metadata import entry_points
from specdec import catalogue
from specdec.policies import registry
for module in (specdec, specdec.kernels, specdec.policies, specdec.configs):
    print(module.__file__)
print(len(catalogue.list_names()), registry.names())
print(sorted(entry.name for entry in resources.files("specdec.configs").joinpath("efforts").iterdir()))
"""


def need_backend() -> None:
    for module in (BACKEND, "build", "pip"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: install the extra `test`")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("needs the source tree")


def project_files() -> list[str]:
    """Every file that belongs to the project: what git does not ignore, or all that is there in an unpacked sdist."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [name for name in listed.splitlines() if (ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that building leaves nothing in the tree."""
    need_backend()
    target = tmp_path_factory.mktemp("source") / "project"
    for name in project_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel and an sdist, built without the network; the wheel without the native runtime, which takes a minute."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist"]
    env = {**os.environ, "SPECDEC_NO_NATIVE": "1"}
    command = [*build, "--outdir", str(folder), str(source)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_the_package_and_its_data(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("METADATA"))
    expected = {name for name in project_files() if name.startswith("specdec/")}
    for name in project_files():
        if name.startswith(("kernels/", "policies/", "configs/")) and name.endswith((".py", ".yaml", ".txt")):
            expected.add(f"specdec/{name}")
    assert expected <= names, sorted(expected - names)
    assert "specdec/configs/models.yaml" in names
    assert "specdec/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"specdec"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "specdec=specdec.cli.startup:main" in entry_points.replace(" ", "")
    assert "Name: specdec-mlx\n" in metadata
    for extra in ("cpu", "cuda13", "report", "test"):
        assert f"Provides-Extra: {extra}\n" in metadata


def test_the_sdist_holds_the_whole_project(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    expected = {name for name in project_files() if not name.startswith((".ci/", ".github/", ".git"))}
    assert expected <= names, sorted(expected - names)


def test_an_installed_wheel_imports(built: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    install = [*pip, "--no-index", "--no-deps", "--target", str(target), str(built[0])]
    subprocess.run(install, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        str(target / "specdec" / part / "__init__.py") for part in ("", "kernels", "policies", "configs")
    ]
    assert lines[4].startswith("7 ['auto', 'bandit'")
    assert "uniform.yaml" in lines[5]


def test_the_running_install_resolves_the_top_level_folders() -> None:
    import specdec.configs
    import specdec.kernels
    import specdec.policies

    if Path(specdec.__file__).parent != ROOT / "specdec":
        pytest.skip("the package under test is not an editable install of this tree")
    for name in ("kernels", "policies", "configs"):
        module = getattr(specdec, name)
        assert Path(module.__file__) == ROOT / name / "__init__.py"
    assert resources.files("specdec.configs").joinpath("models.yaml").is_file()

"""The documentation's examples run, its links lead somewhere, and what it says of the store is so."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from command_line import run, says
from doc_pages import PAGES, ROOT, blocks, name_of
from models import real_model_path
from specdec.policies import registry as policies
from text_model import text_gguf, text_store

import specdec
from specdec.drafters import registry as drafters
from specdec.store import Store
from specdec.weights import registry as views

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="needs the source tree")


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model whose context has room for the examples."""
    return text_store(tmp_path_factory.mktemp("stores") / "roomy", max_context=2048)


def with_code(page: Path) -> bool:
    return bool(blocks(page, "python")) and page.name != "server.md"  # whose examples need a server


@pytest.mark.parametrize("page", [page for page in PAGES if with_code(page)], ids=name_of)
def test_python_examples_run(
    page: Path, roomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All blocks of a page, one after another in one namespace, with a tiny model under every catalogue name."""
    if page.name in ("search.md", "fff.md"):
        pytest.importorskip("specdec.kernels.cpu._native", reason="needs the native kernels")
    load = specdec.load
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(specdec, "load", lambda _, **options: load(roomy, **options))
    space: dict[str, Any] = {"__name__": "example", "specdec": specdec, "model": load(roomy), "folder": str(roomy)}
    skipped = ""
    for code, needed in blocks(page, "python"):
        if needed is not None:
            try:
                space["model"] = load(real_model_path(needed))
            except pytest.skip.Exception as missing:
                skipped = str(missing)
                continue
        exec(compile(code, page.name, "exec", dont_inherit=True), space)
    if page.name == "store.md":
        store = Store.open(roomy)
        assert np.array_equal(space["query"], store.exact("layers.0.attn.q").dense_bits())
        assert np.array_equal(space["weights"], store.exact("layers.0.attn.q").dequantise())
    if skipped:
        pytest.skip(skipped)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Makes a package of the plug-in that a page writes out; returns its code."""
    made: list[str] = []

    def package(page: str, name: str) -> str:
        (code,) = [
            code for code, _ in blocks(ROOT / "docs" / f"{page}.md", "python") if code.startswith(f"# {name}.py")
        ]
        (project,) = [tomllib.loads(code) for code, _ in blocks(ROOT / "docs" / f"{page}.md", "toml")]
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        information = tmp_path / f"specdec_{name}-0.1.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Name: {project['project']['name']}\nVersion: 0.1\n", encoding="utf-8")
        group = project["project"]["entry-points"][f"specdec.{page}"]
        lines = "".join(f"{key} = {value}\n" for key, value in group.items())
        (information / "entry_points.txt").write_text(f"[specdec.{page}]\n{lines}", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry = {"policies": policies._registry, "drafters": drafters._registry, "views": views._views}[page]
        monkeypatch.setattr(registry, "_points", list(metadata.entry_points(group=f"specdec.{page}")))
        sys.modules.pop(name, None)
        made.append(name)
        return code

    yield package
    for name in made:
        sys.modules.pop(name, None)


def test_the_policy_of_the_docs_works_as_a_package(roomy: Path, packaged: Callable[[str, str], str]) -> None:
    code = packaged("policies", "alternate")
    assert len(code.splitlines()) <= 32
    result = specdec.generate(specdec.load(roomy), "Hello", max_tokens=24, policy="alternate:long=6,margin=1")
    assert sum(result.stats.policy.values()) == result.stats.rounds


def test_the_drafter_of_the_docs_works_as_a_package(
    roomy: Path, packaged: Callable[[str, str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    packaged("drafters", "repeat")
    model = specdec.load(roomy)
    result = specdec.generate(model, "Hello", max_tokens=24, drafter="repeat:3")  # the default policy tries it
    assert result.stats.by_drafter["repeat:3"]["drafted"] > 0
    assert result.tokens == specdec.generate(model, "Hello", max_tokens=24, speculate=False).tokens
    ask = ("generate", "--model", roomy, "--prompt", "Hello", "--max-tokens", "4", "--drafter")
    assert run(capsys, *ask, "repeat").code == 0
    says(run(capsys, *ask, "repeat:0"), "^drafter 'repeat' refuses its argument '0': the period must be at least 1")
    says(run(capsys, *ask, "repeat:x"), "^drafter 'repeat' refuses its argument 'x': ")


def test_the_view_of_the_docs_works_as_a_package(
    roomy: Path, packaged: Callable[[str, str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    packaged("views", "eight")
    stored, source = tmp_path / "eight.store", text_gguf(tmp_path / "model.gguf")
    done = run(capsys, "convert", source, "-o", stored, "--views", "eight")
    assert done.code == 0, done.err
    options = {"max_tokens": 12, "policy": "fixed", "draft_view": "eight", "draft_effort": 1.0}
    for store in (stored, roomy):  # read from the store, and built on loading
        model = specdec.load(store, runtime="reference")
        result = specdec.generate(model, "Hello", **options)
        assert result.stats.draft_view == "eight"
        assert result.stats.acceptance_rate > 0.8  # 8 bits are close
        assert result.tokens == specdec.generate(model, "Hello", max_tokens=12, speculate=False).tokens


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:specdec|policies|kernels|configs|benchmarks|tests|docs)/[\w./-]+\.\w+)`", text):
        installed = re.sub(
            r"^specdec/(kernels|policies|configs)/", r"\1/", name
        )  # as these folders are called installed
        assert (ROOT / name).exists() or (ROOT / installed).exists(), name


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(pages) > 20
    assert {name for name in pages if f"({name})" not in index} == set()


def test_the_figures_are_what_the_script_draws(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "figures"
    module = ModuleType("draw")
    module.__file__ = str(folder / "draw.py")
    exec(compile((folder / "draw.py").read_text(encoding="utf-8"), "draw.py", "exec"), module.__dict__)
    module.__dict__["HERE"] = tmp_path
    for draw in (module.draw_bucketmul, module.draw_round, module.draw_identity, module.draw_pass, module.draw_fff):
        draw()
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: path.read_bytes() for path in folder.glob("*.svg")}
    assert len(drawn) == 5

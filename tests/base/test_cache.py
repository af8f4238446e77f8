"""The cache folder: one store for each model, nothing left over, listed and removed by command, readable as it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import run, says
from model_files import DATA

from specdec import cache, catalogue, paths
from specdec.errors import InvalidArgumentError
from specdec.store.staging import MARKER

TINY = DATA / "tiny-llama"


def quiet(*_: object) -> None:
    """No progress."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Hugging Face folder that a test may change."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def stores(home: Path) -> list[str]:
    """Everything in the folder of stores."""
    return sorted(path.name for path in (home / "stores").iterdir())


def test_files_that_are_not_read_do_not_matter(model: Path, home: Path) -> None:
    store = catalogue.resolve_model(model, progress=quiet)
    for name in ("eval_results.json", "trainer_state.json", "adapter_model.safetensors", "notes.model"):
        (model / name).write_text("{}")
        assert catalogue.resolve_model(model, progress=quiet) == store


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja", "generation_config.json"])
def test_a_changed_model_takes_the_place_of_its_old_store(name: str, model: Path, home: Path) -> None:
    first = catalogue.resolve_model(model, progress=quiet)
    if (model / name).exists():
        os.utime(model / name, ns=(1, 1))
    else:
        (model / name).write_text("{}")
    second = catalogue.resolve_model(model, progress=quiet)
    assert second != first
    assert stores(home) == [second.name]


def test_two_models_have_two_stores(model: Path, home: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other" / "model")
    kept = {catalogue.resolve_model(path, progress=quiet).name for path in (model, other)}
    assert set(stores(home)) == kept
    assert len(kept) == 2


def test_a_store_goes_when_its_model_is_gone(model: Path, home: Path, tmp_path: Path) -> None:
    away = shutil.copytree(model, tmp_path / "disk" / "model")
    gone = shutil.copytree(model, tmp_path / "gone")
    kept, orphan = (catalogue.resolve_model(path, progress=quiet) for path in (away, gone))
    shutil.rmtree(gone)
    shutil.rmtree(tmp_path / "disk")  # as when a disk is unplugged: the folder of the model is away too
    new = catalogue.resolve_model(model, progress=quiet)
    assert stores(home) == sorted((kept.name, new.name))
    assert not orphan.exists()


def test_what_a_killed_conversion_left_is_cleared(model: Path, home: Path) -> None:
    partial = paths.stores_folder() / ".other-0123.partial"
    partial.mkdir()
    (partial / MARKER).touch()
    foreign = home / "stores" / ".mine.partial"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    store = catalogue.resolve_model(model, progress=quiet)
    assert stores(home) == [".mine.partial", store.name]


def test_a_finished_cache_that_cannot_be_written_works(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = catalogue.resolve_model(model, progress=quiet)
    shutil.rmtree(home / "locks")

    def refuse(folder: Path) -> Path:
        raise InvalidArgumentError(f"{folder} is not writable")

    monkeypatch.setattr(paths, "_ready", refuse)
    assert catalogue.resolve_model(model, progress=quiet) == store
    assert sorted(path.name for path in home.iterdir()) == ["stores"]


def test_list_and_rm(model: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(model, tmp_path / "second")
    first, second = (catalogue.resolve_model(path, progress=quiet) for path in (model, other))
    (home / "costs").mkdir()
    (home / "costs" / "a.json").write_bytes(bytes(10))
    listed = json.loads(run(capsys, "list", "--json").out)
    by_name = {one["name"]: one for one in listed["entries"]}
    assert by_name[first.name]["source"] == str(model)
    assert by_name[first.name]["size_bytes"] == sum(p.stat().st_size for p in first.rglob("*") if p.is_file())
    assert by_name["costs"]["size_bytes"] == 10
    assert listed["size_bytes"] == sum(one["size_bytes"] for one in listed["entries"])
    text = run(capsys, "list").out
    assert str(model) in text
    assert str(first) in text

    assert run(capsys, "rm", model).code == 0  # by the model that it was made from
    assert stores(home) == [second.name]
    assert model.exists()
    says(run(capsys, "rm", "nosuch"), f"the cache holds nothing named 'nosuch': it holds {second.name}, costs")
    says(run(capsys, "rm"), "rm needs names, --orphans or --all")
    shutil.rmtree(other)
    assert "which is gone" in run(capsys, "list").out
    assert second.name in run(capsys, "rm", "--orphans").out
    assert stores(home) == []
    assert run(capsys, "rm", "--all").code == 0
    assert not (home / "costs").exists()


def test_names_with_line_breaks_take_one_line(
    model: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = shutil.copytree(model, tmp_path / "a\nb\x1b[31m")
    store = catalogue.resolve_model(odd, progress=quiet)
    first, *others = run(capsys, "list").out.splitlines()
    assert r"a\nb\x1b[31m" in first
    assert len(others) == 1
    assert "\x1b" not in first
    assert rf"removed a\nb\x1b[31m{store.name[-13:]} (" in run(capsys, "rm", odd).out
    assert stores(home) == []


def test_a_store_in_preparation_is_not_removed(model: Path, home: Path) -> None:
    store = catalogue.resolve_model(model, progress=quiet)
    (entry,) = (one for one in catalogue.cached() if one.kind == "store")
    with catalogue._lock(store.name, quiet), pytest.raises(InvalidArgumentError, match="in use"):
        cache.remove(entry)
    assert store.exists()

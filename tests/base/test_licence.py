"""Models whose licence asks for consent: who is asked, how, and that the answer is remembered."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import run, says
from model_files import gguf_parts, write_gguf

import specdec
from specdec import catalogue, download, licence
from specdec.cli import consent
from specdec.errors import LicenceError
from specdec.licence import Terms

TERMS = Terms("Tiny Terms of Use", "https://example.org/terms")


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of one tiny model under terms, and its twin, fetched from a file."""
    gguf = write_gguf(tmp_path / "tiny.gguf", *gguf_parts("tiny-llama"))
    entry = catalogue.CatalogueEntry(
        name="tiny", title="Tiny", licence=TERMS.licence, terms=TERMS, size_bytes=gguf.stat().st_size,
        sha256=download.file_sha256(gguf), packages=("tiny==1",), hub=None, source="tiny", dither=None,
    )  # fmt: skip
    twin = replace(entry, name="tiny-dithered", dither=1)
    monkeypatch.setattr(catalogue, "entries", lambda: {"tiny": entry, "tiny-dithered": twin})
    monkeypatch.setattr(download, "fetch", lambda _name, target, **_: shutil.copy(gguf, target))


def at_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A user at a terminal who types `answer`."""
    monkeypatch.setattr(consent, "_is_terminal", lambda _stream: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))


def test_without_a_terminal_the_option_is_needed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = r"tiny is under the Tiny Terms of Use \(https://example.org/terms\).* --accept-licence"
    says(run(capsys, "pull", "tiny"), told)
    says(run(capsys, "generate", "--model", "tiny", "--prompt", "x"), told)
    says(run(capsys, "convert", "tiny", "-o", home.parent / "out.store"), told)
    assert not (home / "models" / "tiny.gguf").exists()
    assert run(capsys, "pull", "tiny", "--accept-license").code == 0
    noted = json.loads((home / "licences" / "tiny-terms-of-use.json").read_text())
    assert (noted["licence"], noted["url"], noted["model"]) == (TERMS.licence, TERMS.url, "tiny")
    assert run(capsys, "pull", "tiny-dithered").code == 0


def test_an_answer_at_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for answer in ("no\n", "\n", ""):
        at_terminal(monkeypatch, answer)
        assert run(capsys, "pull", "tiny").code == 2
    at_terminal(monkeypatch, "Yes\n")
    ran = run(capsys, "pull", "tiny")
    assert ran.code == 0
    assert "Do you accept them? [y/N]" in ran.err
    at_terminal(monkeypatch, "")
    assert run(capsys, "pull", "tiny", "--force").code == 0


def test_the_library() -> None:
    with pytest.raises(LicenceError, match="accept_licence=True") as refusal:
        specdec.load("tiny")
    assert refusal.value.url == TERMS.url
    asked: list[tuple[str, Terms]] = []
    with pytest.raises(LicenceError):
        specdec.load("tiny", accept_licence=lambda *terms: bool(asked.append(terms)))
    assert asked == [("tiny", TERMS)]
    specdec.load("tiny", accept_licence=True, runtime="reference")
    specdec.load("tiny", runtime="reference")


def test_other_terms_of_the_same_name_are_asked_for_again(home: Path) -> None:
    licence.require("tiny", TERMS, licence.accepted)
    assert licence.is_accepted(TERMS)
    assert not licence.is_accepted(Terms(TERMS.licence, "https://example.org/terms/2"))
    (home / "licences" / "tiny-terms-of-use.json").write_text("[")
    assert not licence.is_accepted(TERMS)


def test_gemma_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    entry = catalogue.find("gemma-3-270m")
    assert entry.terms == Terms("Gemma Terms of Use", "https://ai.google.dev/gemma/terms")
    assert all(one.terms is None for one in catalogue.entries().values() if one.source != "gemma-3-270m")

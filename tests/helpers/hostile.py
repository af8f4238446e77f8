"""Makes hostile input from a seed, and gives it to the command line in worker processes that are used again.

A case is a seed: `make_case` writes its files and returns the words of a command. As a program this file is a worker:
it reads a command line as a JSON list from standard input, runs it, and answers with a line of JSON.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("folder", "gguf", "store", "bytes", "template", "yaml", "jsonl", "options", "pieces")
# What takes 10 s on a quiet machine takes long on a busy one, but not so much more processor time.
MOST_CPU_S, MOST_S = 30, 600
MOST_BYTES = 6 << 30  # of address space; thread stacks and mapped files count there
MOST_GROWTH_BYTES = 2 << 30
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 7, 255, 1 << 31, (1 << 31) - 1, 1 << 40, -(1 << 63), 1 << 64, 10**30, 1e308, -0.5, 1e-300,
    float("inf"), float("nan"), "", "x", "\ud800", "a" * 100_000, [], [0], [-1], [None], ["x", 1], {}, {"type": "x"},
    {"a": {"b": []}}, [[[[[]]]]], "\x00", "../../etc/passwd", "{{ 1 / 0 }}", [1 << 40] * 3,
)  # fmt: skip
_TEMPLATES = (
    "{{ N * 'a' }}", "{{ 'a' * N }}", "{% for i in range(N) %}{% for j in range(N) %}x{% endfor %}{% endfor %}",
    "{{ messages | F(N) }}", "{{ messages[0].content | F(N, N) }}", "{{ messages[0].content.F(N) }}", "{% break %}",
    "{{ 'x'.F('y', N) }}", "{{ [[N]] | F }}", "{{ N ** N }}", "{{ '%Nd' % 1 }}", "{{ '{:N}'.format(1) }}",
    "{% macro f(x) %}{{ f(x) }}{{ f(N) }}{% endmacro %}{{ f(1) }}", "{% set x = messages * N %}{{ x | F }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ namespace(x=N).x.F() }}",
)  # fmt: skip
_FILTERS = (
    "abs", "attr", "batch", "capitalize", "center", "count", "default", "dictsort", "escape", "filesizeformat", "first",
    "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower",
    "map", "max", "min", "pprint", "random", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select",
    "selectattr", "slice", "sort", "string", "striptags", "sum", "title", "tojson", "trim", "truncate", "unique",
    "upper", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr", "ljust", "rjust", "zfill", "expandtabs",
    "split", "splitlines", "encode", "translate", "partition",
)  # fmt: skip
_WORDS = (
    "--prompt", "hello", "", "-x", "--stop", "---", "--seed", "-1", "99999999999999999999", "--temperature", "nan",
    "1e400", "--top-p", "2", "--top-k", "-5", "--draft-len", "0", "--policy", "fixed", "fixed:x=1", "goodput", "nosuch",
    "--drafter", "ngram", "ngram:99", "replay:/dev/null", "self;self", "--draft-view", "int4", "bucket,nosuch",
    "--max-tokens", "3", "--json", "--plain", "--raw", "--check", "--explain", "--trust", "0.1", "inf", "--threads",
    "0", "1", "--load-share", "0.5", "--system", "\udcff", "--draft-effort", "0.5", "--draft-schedule", "/dev/null",
    "--runtime", "native",
)  # fmt: skip


@dataclass(frozen=True)
class Bases:
    """What cases are made from: a checkpoint's folder, a GGUF file, a store, and a checkpoint's folder with a
    sentencepiece tokenizer; all of tiny models."""

    folder: Path
    gguf: Path
    store: Path
    pieces: Path


def make_case(seed: int, bases: Bases, place: Path) -> list[str]:
    """Write the files of a case into `place`, and return the words of its command."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    ask = ["--prompt", "hello", "--max-tokens", "2"]
    if kind == "folder":
        target = Path(shutil.copytree(bases.folder, place / "model"))
        file = target / chance.choice([path.name for path in target.iterdir() if path.suffix == ".json"])
        changed = _mutated(json.loads(file.read_bytes()), chance)
        file.write_text(_dumped(changed))
        return ["generate", "--model", str(target), *ask]
    if kind == "template":
        target = Path(shutil.copytree(bases.folder, place / "model"))
        source = "".join(chance.choice(_TEMPLATES) for _ in range(chance.randint(1, 3)))
        source = source.replace("F", chance.choice(_FILTERS)).replace(
            "N", chance.choice(("3", "70", "100000", "9" * 10))
        )
        (target / "chat_template.jinja").write_text(source)
        return ["generate", "--model", str(target), *ask]
    if kind == "store":
        target = Path(shutil.copytree(bases.store, place / "store"))
        _mutate_store(target / "store.json", chance)
        return chance.choice((["inspect", str(target)], ["generate", "--model", str(target), *ask]))
    if kind in ("gguf", "bytes", "pieces"):
        return _flipped(kind, bases, place, chance, ask)
    if kind == "yaml":
        file = place / "schedule.yaml"
        file.write_text(_yaml(chance))
        return ["generate", "--model", str(bases.store), *ask, "--draft-schedule", str(file)]
    if kind == "jsonl":
        file = place / "prompts.jsonl"
        rows = [_dumped(_mutated({"prompt": "a", "id": 1, "task": "t", "messages": [{"role": "user"}]}, chance))]
        file.write_text("\n".join([*rows, "[" * chance.choice((1, 100, 100_000))]))
        return ["bench", str(bases.store), "--prompts", str(file), "--max-tokens", "1", "--force", "--restart"]
    return [
        "generate",
        "--model",
        str(bases.store),
        *ask[: 2 * chance.randint(0, 2)],
        *chance.choices(_WORDS, k=chance.randint(1, 8)),
    ]


def _flipped(kind: str, bases: Bases, place: Path, chance: random.Random, ask: list[str]) -> list[str]:
    """Bytes of a GGUF file's metadata, a tokenizer.model, or any file of a folder, replaced, left out or repeated."""
    if kind == "gguf":
        target = file = Path(shutil.copy(bases.gguf, place / "model.gguf"))
    elif kind == "pieces":
        target = Path(shutil.copytree(bases.pieces, place / "model"))
        file = target / "tokenizer.model"
    else:
        target = Path(shutil.copytree(bases.folder, place / "model"))
        file = chance.choice(sorted(path for path in target.iterdir() if path.is_file()))
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(content), 20_000))
        match chance.randrange(4):
            case 0:
                content[at] = chance.randrange(256)
            case 1:
                content[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), b"\x00\x00\x00\x00\x01\x00\x00\x00"))
            case 2:
                del content[at : at + chance.choice((1, 8, 1000, 1 << 30))]
            case 3:
                content[at:at] = content[max(0, at - chance.randint(1, 64)) : at]
        content = content or bytearray(b"\x00")
    file.write_bytes(content)
    return ["generate", "--model", str(target), *ask]


def _mutated(value: Any, chance: random.Random) -> Any:
    """`value` with one to three of its parts replaced, removed or nested."""
    value = {"": copy.deepcopy(value)}
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(list(_places(value)))
        if chance.random() < 0.15 and isinstance(holder, dict) and key != "":
            del holder[key]
        elif chance.random() < 0.1:
            for _ in range(chance.choice((3, 70, 2000))):
                holder[key] = [holder[key]]
        else:
            holder[key] = copy.deepcopy(chance.choice(_ODD))
    return value[""]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        pairs = list(one.items()) if isinstance(one, dict) else list(enumerate(one))
        for key, inner in pairs[:200]:
            yield one, key
            if isinstance(inner, (dict, list)) and inner:
                waiting.append(inner)


def _dumped(value: Any) -> str:
    """JSON of whatever depth."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return json.dumps(value)
    finally:
        sys.setrecursionlimit(limit)


def _mutate_store(file: Path, chance: random.Random) -> None:
    """Change a store's description and make its checksum right again, where it can be."""
    values = json.loads(file.read_bytes())
    values.pop("checksum")
    part = chance.choice([key for key in values if key != "files"] + ["config"] * 6)
    values[part] = _mutated(values[part], chance)
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        file.write_text(json.dumps(values | {"checksum": hashlib.sha256(text.encode()).hexdigest()}))
    except (RecursionError, ValueError):
        file.write_text(_dumped(values))


def _yaml(chance: random.Random) -> str:
    return chance.choice(
        (
            "{a: " * chance.choice((10, 3000)),
            "[" * chance.choice((10, 100_000)),
            "- " * chance.choice((10, 5000)) + "x",
            "a: &a [x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a]" for i in range(30)),
            "effort: " + str(chance.choice(_ODD)).encode(errors="replace").decode(),
            "effort: 0.5\nrules:\n  'layers.*': " + str(chance.choice(_ODD)).encode(errors="replace").decode(),
            "effort: " + "9" * 5000,
            "effort: 2020-99-99",
            "effort: 1:99:99",
            "rules: {? [a] : 1}",
            "!!python/object:os.system x",
            "\x00\x01",
            "effort: 0.5 # " + "x" * 300_000,
        )
    )


class Worker:
    """A process that runs command lines, one after another."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process = self._start()

    def run(self, words: list[str]) -> str:
        """Run one; returns what is wrong with how it ended, or nothing."""
        if self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        began_s, spent_s = time.monotonic(), self._cpu_s()
        while not select.select([self._process.stdout], [], [], 1)[0]:
            if self._cpu_s() - spent_s > MOST_CPU_S or time.monotonic() - began_s > MOST_S:
                self.close()
                return f"hang of more than {MOST_CPU_S} s of processor time, or {MOST_S} s"
        line = self._process.stdout.readline()
        if not line:
            return f"the process ended with {self._process.wait()}"
        code, said, grown = json.loads(line)
        if code not in (0, 2):
            return f"exit code {code}: {said[-300:]}"
        if grown > MOST_GROWTH_BYTES:
            return f"{grown >> 20} MiB of memory: {said[-300:]}"
        return next(
            (f"{mark}: {said[-300:]}" for mark in ("Traceback", "panicked", "error: unexpected ") if mark in said), ""
        )

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _cpu_s(self) -> float:
        """Processor time of the process; 0 where the system does not show it."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "SPECDEC_HOME": str(self._home)},
        )


def main() -> None:
    """Run the command lines that come on standard input."""
    from specdec.cli.main import main as specdec

    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # whose shadow of the address space is larger
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    answers, commands = os.fdopen(os.dup(1), "w"), sys.stdin
    for line in commands:
        sys.stdin = io.TextIOWrapper(io.BytesIO())  # a prompt that a command reads from a pipe is empty
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="replace"), io.StringIO()
        before = _restart_peak()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = specdec(json.loads(line))
        grown = _peak_bytes() - before
        print(json.dumps([code, err.getvalue()[-2000:], grown]), file=answers, flush=True)


def _restart_peak() -> int:
    """Reset the kernel's count of this process's peak memory, where it can; returns what is used now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    """The most memory that this process has had since `_restart_peak`, or ever where the kernel counts no other."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


if __name__ == "__main__":
    main()

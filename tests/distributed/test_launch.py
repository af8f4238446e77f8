"""Ranks as processes of this machine: bits and tokens equal one process's; failures end all with one sentence."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rank_programs import PATIENCE_S, answers, environment, launch_words, run
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.native.runtime import native_module
from specdec.store import Store, convert

mlx = pytest.importorskip("mlx.core", reason="needs MLX", exc_type=ImportError)
pytestmark = [pytest.mark.skipif(not mlx.distributed.is_available("ring"), reason="needs MLX's ring")]
try:
    native_module()
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

# Loads a model, says so, and answers without end.
ENDLESS = """
import sys
import specdec
model = specdec.load(sys.argv[1], runtime="native", threads=1)
print("loaded", flush=True)
while True:
    specdec.generate(model, [1, 2, 3], max_tokens=50, ignore_eos=True, speculate=False)
"""
# The same in which one rank is of another version.
OTHER_VERSION = """
import os, sys
import specdec.distributed.opening as opening
if os.environ["MLX_RANK"] == "1":
    opening.version = lambda: "0.0.1"
import specdec
specdec.load(sys.argv[1], runtime="native", threads=1)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("models")
    config = quantised_config(num_layers=2)
    quantised = convert(quantised_source(config, "q4_k", "q6_k", "q8_0"), folder / "quantised", quantised="keep")
    dense = convert(SyntheticSource(tiny_config(num_heads=6, num_kv_heads=3)), folder / "dense")
    return [(str(quantised), "native"), (str(dense), "native"), (str(dense), "reference")]


@pytest.fixture(scope="module")
def alone(models: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return answers(tmp_path_factory.mktemp("alone"), models, ranks=None)


def test_two_ranks_give_the_bits_and_tokens_of_one(
    models: list[tuple[str, str]], alone: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert answers(tmp_path, models, ranks=2) == alone
    for one in alone:
        assert one["drafted"] == one["ngram"] == one["plain"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_any_number_of_ranks(
    models: list[tuple[str, str]], alone: list[dict[str, Any]], tmp_path: Path, ranks: int
) -> None:
    assert answers(tmp_path, models, ranks=ranks) == alone


def sentences(text: str) -> list[str]:
    """What specdec says; MLX's ring notes lost connections itself."""
    return [line for line in text.splitlines() if line.startswith("specdec:")]


@pytest.mark.slow
def test_a_rank_of_another_version_is_refused(models: list[tuple[str, str]], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OTHER_VERSION, encoding="utf-8")
    ended = run(launch_words(str(script), models[0][0], ranks=2))
    assert ended.returncode != 0
    assert re.search(r"rank 1 \(.*\) has version 0\.0\.1 of specdec and rank 0 has .*: install the same", ended.stderr)


def test_a_port_in_use_is_named(models: list[tuple[str, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = launch_words("generate", "--prompt", "Hi", ranks=2)
        ended = run([*words[:4], "--port", str(port), *words[4:]])
    assert ended.returncode == 2
    assert sentences(ended.stderr) == [ended.stderr.strip()]
    assert f"port {port} of 127.0.0.1 cannot be used" in ended.stderr


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    missing = ("--model", str(tmp_path / "none.gguf"), "--prompt", "Hi")
    for words in (("generate", *missing), ("generate", "--nosuch"), ("specdec", "nosuch")):
        ended = run(launch_words(*words, ranks=2))
        assert ended.returncode == 2, words
        assert sentences(ended.stderr) == [ended.stderr.strip()], words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank", "sentence"),
    [
        (signal.SIGKILL, 1, r"rank 1 \(.*\) has ended before its time"),
        (signal.SIGKILL, 0, r"rank 0 \(.*\) has ended before its time"),
        (signal.SIGSTOP, 2, r"rank 2 \(.*\) has not been heard of for 4 s"),
    ],
)
def test_a_rank_that_dies_or_hangs_ends_all(
    models: list[tuple[str, str]], tmp_path: Path, number: int, rank: int, sentence: str
) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS, encoding="utf-8")
    words = launch_words(str(script), models[0][0], ranks=3, timeout_s="4")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as launched:
        assert launched.stdout is not None
        assert launched.stdout.readline() == "loaded\n"
        os.kill(child_of(launched.pid, rank), number)
        _, said = launched.communicate(timeout=PATIENCE_S)
    assert launched.returncode != 0
    (told,) = sentences(said)
    assert re.search(sentence, told), told


def child_of(pid: int, rank: int) -> int:
    """The process of a rank that `pid` has started."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for name in (path.name for path in Path("/proc").iterdir() if path.name.isdigit()):
            try:
                parent = int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])
                variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0") if parent == pid else []
            except OSError:
                continue
            if f"MLX_RANK={rank}".encode() in variables:
                return int(name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_store_of_one_rank_alone_is_refused(models: list[tuple[str, str]]) -> None:
    from specdec.distributed.opening import _compare
    from specdec.errors import DistributedError

    own = {"version": "1", "store": Store.open(models[0][0]).checksum, "views": ["own"], "runtime": "native"}
    _compare("rank 1 (b)", dict(own), own)
    for name, problem in (("store", "another store"), ("version", "install the same"), ("views", "in its views")):
        with pytest.raises(DistributedError, match=problem):
            _compare("rank 1 (b)", own | {name: "other"}, own)


def test_programs_and_options() -> None:
    from specdec.cli.launch import program

    specdec = [sys.executable, "-m", "specdec"]
    assert program(["generate", "--prompt", "x"]) == [*specdec, "generate", "--prompt", "x"]
    assert program(["specdec", "chat"]) == [*specdec, "chat"]
    assert program(["python", "a.py"]) == program(["a.py"]) == [sys.executable, "a.py"]
    assert program(["./tool", "-x"]) == ["./tool", "-x"]

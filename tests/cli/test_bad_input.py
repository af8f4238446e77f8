"""What a user can get wrong: each mistake is one clear sentence, exit code 2, and nothing left behind.

Model files: `test_bad_files`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run, says, start, tree
from model_files import DATA
from text_model import text_source, text_store, tokenizer_files

from specdec.store import Store, convert

MODELS = "gemma-3-270m, qwen2.5-coder-0.5b, .*smollm2-135m"


# --- arguments ------------------------------------------------------------------------------------------------------

ASK = ("generate", "--model", "MODEL", "--prompt", "x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--draft-effort", "0"), "--draft-effort must be a number above 0 and at most 1, not 0"),
        (("--draft-effort", "1.5"), "--draft-effort must be a number above 0 and at most 1, not 1.5"),
        (("--verify-effort", "-0.5"), "--verify-effort must be a number above 0 and at most 1, not -0.5"),
        (("--verify-effort", "nan"), "--verify-effort must be a number above 0 and at most 1, not nan"),
        (("--draft-effort", "much"), "argument --draft-effort: invalid float value: 'much'"),
        (("--draft-len", "0"), "--draft-len must be a whole number of at least 1, not 0; use --plain"),
        (("--draft-len", "-2"), "--draft-len must be a whole number of at least 1, not -2"),
        (("--draft-len", "2.5"), "argument --draft-len: invalid int value: '2.5'"),
        (("--max-tokens", "0"), "--max-tokens must be a whole number of at least 1, not 0"),
        (("--temperature", "-1"), "--temperature .*-1"),
        (("--top-k", "-1"), "--top-k .*-1"),
        (("--top-p", "0"), "--top-p .*0"),
        (("--min-p", "1.5"), "--min-p .*1.5"),
        (("--seed", "-1"), "--seed .*-1"),
        (("--stop", ""), "a stop string must be text of at least one character"),
        (("--policy", "nosuch"), "unknown policy 'nosuch': choose from .*fixed"),
        (("--policy", "fixed:nosuch=1"), "policy 'fixed' has no parameter 'nosuch'"),
        (("--drafter", "nosuch"), "unknown drafter 'nosuch': choose from .*effort"),
        (("--draft-view", "nosuch"), "unknown .*view 'nosuch': choose from .*bucket.*int4"),
        (("--runtime", "nosuch"), "unknown runtime 'nosuch': choose from auto.*reference"),
        (("--threads", "0"), "--threads must be a whole number of at least 1, not 0"),
        (("--draft-schedule", "nosuch"), "unknown effort schedule 'nosuch': choose from .*uniform"),
        (("--draft-schedule", "nosuch.yaml"), "cannot read effort schedule nosuch.yaml"),
        (("--verify-schedule", "./nosuch"), "cannot read effort schedule ./nosuch"),
        (("--check", "--plain"), "--check compares with plain decoding"),
        (("--raw", "--system", "x"), "--system needs the chat template"),
        (("--trace", "nosuch/trace.jsonl"), "--trace nosuch/trace.jsonl: the folder nosuch does not exist"),
        (("--trace", "."), "--trace . is a folder"),
        (("--trace", "-"), "--trace needs the name of a file: /dev/stdout is standard output"),
        (("--trace", "one.json", "--json", "./one.json"), "--json and --trace need different files"),
        (("--nosuch",), r"unrecognized arguments: --nosuch \(see specdec generate --help\)"),
        (
            ("--max-token", "5", "--temperatur=1", "--top_k", "3"),
            r"unrecognized arguments: --top_k 3; there is --top-k \(see",
        ),
        (("--ranks", "0"), "--ranks must be 1 to 256 processes, not 0"),
        (("--threads", "5000"), "--threads must be 1 to 1024, not 5000"),
        (("--regex", ""), "--regex must be text of at least one character"),
    ],
)
def test_arguments_of_generate(
    arguments: tuple[str, ...],
    told: str,
    text_model: Path,
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    command = [str(text_model) if part == "MODEL" else part for part in ASK]
    says(run(capsys, *command, *arguments), f"^{told}")
    assert list((tmp_path / "empty").iterdir()) == []
    assert not home.exists()


def test_a_trace_on_a_full_disk(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "x", "--json", "--trace", "/dev/full")
    says(ran, "cannot write the trace '/dev/full': No space left on device")
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "x", "--json", "/dev/full")
    assert (ran.code, ran.err) == (2, "specdec: error: cannot write --json /dev/full: No space left on device\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prompts(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    generate = ("generate", "--model", text_model)
    monkeypatch.setattr(sys, "stdin", Terminal())
    says(run(capsys, *generate), "generate needs --prompt TEXT or --prompt-file FILE, or a prompt on standard input")
    for empty in (b"", b"\n", b"\xef\xbb\xbf\r\n"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(empty)))
        says(run(capsys, *generate), "the prompt is empty")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(empty)))
        says(run(capsys, *generate, "--prompt-file", "-"), "the prompt is empty")
    says(run(capsys, *generate, "--prompt", ""), "the prompt is empty")
    says(run(capsys, *generate, "--prompt", "\udcff"), r"the prompt is not valid UTF-8 \(byte 0\)")
    for command in (("chat", text_model), (*generate, "--prompt", "x")):
        says(run(capsys, *command, "--system", "a\udcff"), r"--system is not valid UTF-8 \(byte 1\)")
    says(run(capsys, *generate, "--prompt-file", tmp_path / "empty.txt"), "the prompt is empty")
    says(run(capsys, *generate, "--prompt-file", tmp_path / "latin1.txt"), r"the prompt is not valid UTF-8 \(byte 3\)")
    says(run(capsys, *generate, "--prompt-file", tmp_path / "nosuch.txt"), "cannot read the prompt .*nosuch.txt")
    says(run(capsys, *generate, "--prompt-file", tmp_path), "cannot read the prompt .*directory")
    says(run(capsys, *generate, "--prompt", "x", "--prompt-file", "y"), "not allowed with argument")
    says(run(capsys, *generate, "--prompt", "x" * 200), "the prompt has 203 tokens and the model's context holds 128")
    (tmp_path / "long.txt").write_text("x " * 10_000)
    for raw in ((), ("--raw",)):
        ran = run(capsys, *generate, "--prompt-file", tmp_path / "long.txt", *raw)
        says(ran, r"the prompt has at least \d+ tokens and the model's context holds 128")


def test_models(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    says(run(capsys, "generate", "--model", "nosuch", "--prompt", "x"), f"unknown model 'nosuch': choose from {MODELS}")
    says(run(capsys, "pull", "nosuch"), f"unknown model 'nosuch': choose from {MODELS}")
    says(run(capsys, "pull"), f"pull needs the name of a model: one of .*{MODELS[:10]}")
    says(run(capsys, "pull", "--list", "nosuch"), "--list lists all models and fetches none")
    says(run(capsys, "generate", "--model", "./nosuch", "--prompt", "x"), "no model at ./nosuch: give a store")
    says(run(capsys, "generate", "--model", "nosuch.gguf", "--prompt", "x"), "no model at nosuch.gguf")
    says(run(capsys, "generate", "--model", "~nosuch/x", "--prompt", "x"), "no model at ~nosuch/x: give a store")
    says(run(capsys, "rm", "~nosuch/x"), "the cache holds nothing named '~nosuch/x'")
    says(run(capsys, "convert", "nosuch", "-o", tmp_path / "out"), f"unknown model 'nosuch': choose from {MODELS}")
    says(run(capsys, "generate", "--model", "", "--prompt", "x"), "a model needs a name: give a path")
    for output in ("", "-"):
        ran = run(capsys, "convert", DATA / "tiny-llama", "-o", output)
        says(ran, "--output needs the name of a folder to create")
    for words in (("--problems", "3"), ("--unconfined",)):
        ran = run(capsys, "eval", DATA / "tiny-llama", *words)
        says(ran, f"{words[0]} has an effect only with --humaneval: give both")
    says(run(capsys, "generate", "--model", "/dev/null", "--prompt", "x"), "/dev/null is neither a file nor a folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "links").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, target in (("gone", "nosuch.gguf"), ("loop", "loop")):  # names that a model on a hub could have
        (tmp_path / "links" / name).symlink_to(target)
        ran = run(capsys, "generate", "--model", f"links/{name}", "--prompt", "x")
        says(ran, f"links/{name} is a link to {target}, which leads to no file: name one that exists")


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    says(run(capsys), "required: COMMAND.*specdec --help")
    says(run(capsys, "nosuch"), "invalid choice: 'nosuch'.*generate.*doctor")
    says(run(capsys, "inspect"), "required: STORE.*specdec inspect --help")


def test_a_cache_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path / "file" / "home"))
    says(run(capsys, "pull", "smollm2-135m"), "cannot create the cache folder .*SPECDEC_HOME")


# --- converting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--views", "nosuch"), "unknown view 'nosuch': choose from bucket, bucket8, int4, nested, own"),
        (("--dither", "-1"), "dither.*-1|seed.*-1"),
        (("--bucket-size", "12"), "--bucket-size must be a multiple of 8 from 8 to 64, not 12"),
        (("--tiers", "1,2"), "--tiers must add up to a multiple of 8 from 8 to 64, not 3"),
        (("--tiers", "4,x"), "argument --tiers: must be whole numbers with commas between"),
        (("--bucket-size", "16", "--tiers", "4,4"), "tier_sizes must be positive and add up to bucket_size 16"),
        (("--dtype", "float64"), "argument --dtype: invalid choice: 'float64'"),
    ],
)
def test_arguments_of_convert(
    arguments: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(run(capsys, "convert", DATA / "tiny-llama", "-o", tmp_path / "out", *arguments), told)
    assert list(tmp_path.iterdir()) == []


def test_places_that_convert_must_not_touch(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    store = Path(shutil.copytree(text_model, tmp_path / "store"))
    before = tree(tmp_path)
    source = DATA / "tiny-llama"
    says(run(capsys, "convert", source, "-o", tmp_path / "mine", "--overwrite"), "exists and is not a store")
    says(run(capsys, "convert", source, "-o", store), "is a store already: .*overwrite")
    says(run(capsys, "convert", source, "-o", tmp_path / "no" / "such"), "no does not exist")
    says(run(capsys, "convert", source), "required: -o/--output")
    says(run(capsys, "convert", text_model, "-o", tmp_path / "out"), "converted store already")
    assert tree(tmp_path) == before


def test_too_little_space_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    says(run(capsys, "convert", DATA / "tiny-llama", "-o", tmp_path / "out"), "no space left for .*free some")
    assert list(tmp_path.iterdir()) == []


def test_space_that_runs_out_in_the_middle(tmp_path: Path) -> None:
    """A limit on the size of a file makes the system refuse a write half-way, as a full disk does."""
    limit = 20_000
    assert limit < sum(path.stat().st_size for path in text_store(tmp_path / "whole").rglob("exact.safetensors"))
    shutil.rmtree(tmp_path / "whole")
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from specdec.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "convert", str(DATA / "tiny-llama"), "-o", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = [line for line in ran.stderr.splitlines() if not line.startswith("converting")]
    assert ran.returncode == 2
    assert len(told) == 1
    assert re.match("specdec: error: no space left to write .*free some, or choose another place", told[0])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_nothing_that_looks_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import os, signal, sys; import specdec.cli.convert as command; from specdec.cli.main import main\n"
        "class Killer(command.StreamProgress):\n"
        "    def __call__(self, stage, done, total):\n"
        "        if done > total / 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "command.StreamProgress = Killer\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ("convert", str(DATA / "tiny-llama"), "-o", str(tmp_path / "out"))
    killed = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert any(path.stat().st_size > 0 for path in tmp_path.rglob("exact.safetensors"))  # it was in the middle of it
    for partial in tmp_path.glob(".*"):
        if partial.is_dir():
            says(run(capsys, "inspect", partial), "unfinished conversion: convert the model again")
    again = run(capsys, *arguments)
    assert again.code == 0, again.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    Store.open(tmp_path / "out")


# --- how a generation may end ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for an answer that takes a while."""
    source = text_source(max_context=20_000)
    source.tokenizer_files = tokenizer_files()
    return convert(source, tmp_path_factory.mktemp("long") / "store")


# Its tokens are random: some are end tokens.
LONG = ("--prompt", "x", "--temperature", "1", "--stop", "never", "--max-tokens", "15000", "--ignore-eos")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupt_keeps_the_text_so_far(long_model: Path, as_json: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    flags = ("--json",) if as_json else ()
    process = start("generate", "--model", long_model, *LONG, "--trace", trace, *flags)
    assert process.stdout is not None
    deadline = 60_000
    while deadline and not (trace.exists() and trace.read_text().count("\n") > 3):
        deadline -= 1
        signal.sigtimedwait([], 0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"Traceback" not in err
    if as_json:
        said = json.loads(out)
        assert said["finish_reason"] == "interrupted"
        assert len(said["tokens"]) >= 4
    else:
        assert len(out) >= 4
        assert out.endswith(b"\n")
        assert b"ended by caller" in err


def test_an_interrupt_while_loading(
    text_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specdec.load", interrupted)
    ran = run(capsys, "generate", "--model", text_model, "--prompt", "x")
    assert (ran.code, ran.out, ran.err) == (130, "", "specdec: interrupted\n")


def test_a_closed_pipe_ends_quietly(long_model: Path) -> None:
    process = start("generate", "--model", long_model, *LONG)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert err == b""


def test_streams_that_were_closed_before_the_start(text_model: Path) -> None:
    command = f"{sys.executable} -m specdec generate --model {text_model} --max-tokens 2 --prompt"
    ran = subprocess.run(["sh", "-c", f"{command} x >&-"], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "2 tokens" in ran.stderr
    ran = subprocess.run(["sh", "-c", f"{command}-file - <&-"], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "specdec: error: --prompt-file - reads standard input, which is closed\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written(text_model: Path) -> None:
    command = [sys.executable, "-m", "specdec", "generate", "--model", str(text_model), "--prompt", "x"]
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            command,
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            text=True,
            timeout=60,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (
        2,
        "specdec: error: No space left on device\n",
    )

"""A server that runs for long under load: memory stays level, no answer is stuck; one that is killed loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `grammar`")
httpx = pytest.importorskip("httpx", reason="needs the extra `test`")

from command_line import start, tree  # noqa: E402
from http_server import until  # noqa: E402
from text_model import text_store  # noqa: E402

CLIENTS = 6
WARM_UP = 0.4  # of the time, in which caches fill
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0},
    {"speculate": False},
    {"n": 3},
    {"logprobs": True, "top_logprobs": 5},
    {"response_format": {"type": "json_object"}},
    {"regex": "[a-z]{2,30}"},
    {"stop": ["e"]},
    {"no_such_field": 1},  # refused
    {"regex": "("},  # likewise
)


@contextmanager
def served(store: Path, home: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server's process, and its address."""
    process = start("serve", store, "--port", 0, "--log-level", "error", *arguments, SPECDEC_HOME=str(home))
    try:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert "serving" in said, said
        yield process, said.split()[-1]
    finally:
        process.terminate()
        _, said_later = process.communicate(timeout=60)
        assert b"Traceback" not in said_later, said_later.decode()


def client(url: str) -> Any:
    return httpx.Client(base_url=url, timeout=120, trust_env=False)


def resident_bytes(process: subprocess.Popen[bytes]) -> int:
    """Memory of a process that is not swapped out."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, text=True, check=True)
    return int(done.stdout) << 10


def gauge(asking: Any, name: str) -> float:
    lines = asking.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"specdec:{name}{{"))


def send(url: str, rng: random.Random) -> int:
    """One request: a whole answer, a stream, or a stream that is left; its status."""
    text = "".join(rng.choices("abc xyz", k=rng.randint(1, 300)))
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": rng.randint(1, 60),
        "seed": rng.randint(0, 9),
    }
    body |= rng.choice(SHAPES)
    with client(url) as asking:
        if rng.random() < 0.4:
            return int(asking.post("/v1/chat/completions", json=body).status_code)
        leave_after = rng.choice([None, 0, 3])
        with asking.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            for number, _ in enumerate(response.iter_lines()):
                if number == leave_after:
                    break
            return int(response.status_code)


def soak(url: str, end_s: float, statuses: list[int], seed: int) -> None:
    """Send requests until a time."""
    rng = random.Random(seed)
    while time.monotonic() < end_s:
        statuses.append(send(url, rng))


@pytest.mark.parametrize(
    ("seconds", "growth"), [(10, 1.25), pytest.param(1800, 1.05, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_memory_stays_level_and_nothing_is_stuck(tmp_path: Path, seconds: float, growth: float) -> None:
    seconds = float(os.environ.get("SPECDEC_SOAK_S", seconds)) if seconds > 60 else seconds
    store = text_store(tmp_path / "store", max_context=1024)
    with served(store, tmp_path / "home", "--cache-bytes", "2M", "--queue", 4 * CLIENTS) as (process, url):
        begun, statuses = time.monotonic(), list[int]()
        threads = [
            threading.Thread(target=soak, args=(url, begun + seconds, statuses, number)) for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP * seconds)
        warm = resident_bytes(process)
        for thread in threads:
            thread.join(seconds + 120)
            assert not thread.is_alive(), "a request was never answered"
        with client(url) as asking:
            until(lambda: gauge(asking, "num_requests_running") == gauge(asking, "num_requests_waiting") == 0)
            assert gauge(asking, "request_success_total") > 0
            assert resident_bytes(process) < growth * warm
        assert set(statuses) == {200, 400}
        assert process.poll() is None


def test_a_killed_server_loses_nothing_on_disk(tmp_path: Path) -> None:
    store, home = text_store(tmp_path / "store", max_context=1024), tmp_path / "home"
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "temperature": 0}
    with served(store, home) as (_, url), client(url) as asking:
        answer = asking.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    before = tree(store), {path: path.read_bytes() for path in (home / "costs").glob("*.json")}
    assert before[1], "no costs were kept"
    with served(store, home) as (process, url), client(url) as asking:
        body = {**asked, "max_tokens": 900, "n": 8, "stream": True}
        with asking.stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_lines())
            os.kill(process.pid, signal.SIGKILL)
            process.wait(60)
    assert tree(store) == before[0]
    costs = {path: path.read_bytes() for path in (home / "costs").glob("*.json")}
    assert costs.keys() >= before[1].keys()
    assert all(isinstance(json.loads(content), dict) for content in costs.values())
    with served(store, home) as (_, url), client(url) as asking:
        assert asking.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"] == answer

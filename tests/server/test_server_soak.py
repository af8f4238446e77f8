"""A server for a long time: nothing is stuck, memory stays level, and what is on disk outlives a kill.

SPECDEC_SOAK_MINUTES says how long the long test takes; 30 by default.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("llguidance", reason="needs the extra `grammar`")
pytest.importorskip("httpx", reason="needs the extra `test`")

from command_line import tree
from http_requests import Process, asked, other_process, outcome, requests
from http_server import until
from text_model import text_store

MINUTES = float(os.environ.get("SPECDEC_SOAK_MINUTES", "30"))
CLIENTS = 12
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see another's memory")


def memory_bytes(server: Process) -> int:
    """Resident memory of the server."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def gauge(server: Process, name: str) -> float:
    """The value of a metric of the server."""
    lines = server.client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"specdec:{name}{{")).rsplit(" ", 1)[1])


def ask_until(end_s: float, url: str, number: int, failures: list[BaseException], counts: list[int]) -> None:
    """One client's requests, of which some are left."""
    rng = random.Random(number)
    made = requests(number, 200)
    try:
        while time.monotonic() < end_s:
            asked(url, rng.choice(made), rng.choice(("whole", "stream", "left")))
            counts[number] += 1
    except BaseException as error:
        failures.append(error)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_store(tmp_path_factory.mktemp("stores") / "roomy", max_context=2048)


@pytest.mark.slow
def test_memory_stays_level_and_nothing_is_stuck(store: Path) -> None:
    seconds = MINUTES * 60
    # Small enough that it is full long before memory is compared.
    with other_process(store, "--cache-bytes", "20M", "--max-sequences", 8) as server:
        failures: list[BaseException] = []
        counts, seen = [0] * CLIENTS, list[int]()
        end_s = time.monotonic() + seconds
        url = str(server.client.base_url)
        clients = [
            threading.Thread(target=ask_until, args=(end_s, url, number, failures, counts)) for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            time.sleep(min(1.0, seconds / 60))
            seen.append(memory_bytes(server))
            assert time.monotonic() < end_s + 120, "an answer is stuck"
        assert failures == []
        assert min(counts) > 0
        until(lambda: gauge(server, "num_requests_running") == gauge(server, "num_requests_waiting") == 0)
        assert 0 < gauge(server, "kv_cache_usage_perc") <= 1
        early, late = max(seen[len(seen) // 4 : len(seen) // 2]), max(seen[-len(seen) // 4 :])
        # Allocators and tables of policies grow a little; a leak of an answer's state would be many times this.
        assert late < early + (16 << 20), (early, late, sum(counts))


def test_a_killed_server_leaves_the_disk_as_it_was(store: Path) -> None:
    before = tree(store)
    request = requests(1, 1)[0]
    answers: list[dict[str, Any]] = []
    for _ in range(2):
        with other_process(store) as server:
            response = server.client.post("/v1/chat/completions", json=request)
            answers.append(outcome(response.json()))
            beginning = {**request, "stream": True, "max_tokens": 1000}
            with server.client.stream("POST", "/v1/chat/completions", json=beginning) as stream:
                next(stream.iter_lines())
                server.process.send_signal(signal.SIGKILL)
                server.process.wait(60)
        assert tree(store) == before
    assert answers[0] == answers[1]

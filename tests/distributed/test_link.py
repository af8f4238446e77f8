"""Messages between ranks, and what launchers write into the environment."""

from __future__ import annotations

import json
import queue
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from specdec.distributed import environment
from specdec.distributed.environment import Place, find_place, timeout_s, wanted_split
from specdec.distributed.launch import Host, Plan, _variables, read_hosts
from specdec.distributed.link import CLOSED, Link
from specdec.errors import DistributedError, InvalidArgumentError

LOOPBACK = Host("127.0.0.1", ("127.0.0.1",))


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    pair = Link(near, 1, "far"), Link(far, 0, "near")
    yield pair
    for link in pair:
        link.close()


def test_messages_arrive_whole_and_in_order(links: tuple[Link, Link]) -> None:
    near, far = links
    messages = [["forward", [1, 2], 0.1 + 0.2, None, "ä"], {"long": list(range(50_000))}, []]
    for message in messages:
        near.send(message)
        near.beat()
    assert [far.receive(10) for _ in messages] == messages
    with pytest.raises(queue.Empty):
        far.receive(0.01)


def test_the_end_of_a_link_is_noticed(links: tuple[Link, Link]) -> None:
    near, far = links
    near.send(["last"])
    near.close()
    assert far.receive(10) == ["last"]
    assert far.receive(10) is CLOSED
    assert far.receive(10) is CLOSED
    assert far.closed.wait(10)
    assert far.failure is None
    near.send(["nobody hears this"])


def test_a_failure_passes_what_waits(links: tuple[Link, Link]) -> None:
    near, far = links
    heard = queue.SimpleQueue[str | None]()
    far.on_end = lambda: heard.put(far.failure)
    near.send(["work"])
    near.fail("no memory")
    assert heard.get(timeout=10) == "no memory"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    names = ("MLX_RANK", "MLX_HOSTFILE", "NCCL_HOST_IP", "MLX_JACCL_COORDINATOR", "OMPI_COMM_WORLD_SIZE")
    for name in (*names, environment.RANKS_VARIABLE, environment.SPLIT_VARIABLE, environment.TIMEOUT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_process_knows_its_place(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_place() is None
    clean.setenv("MLX_RANK", "1")
    assert find_place() is None  # of one alone
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["10.0.0.1:5000", "10.0.0.2:5000"], ["10.0.0.3:5001"]]))
    clean.setenv("MLX_HOSTFILE", str(hosts))
    assert find_place() == Place(1, "ring", "10.0.0.1")
    assert environment.is_follower()
    clean.setenv("MLX_RANK", "7")
    with pytest.raises(DistributedError, match="MLX_RANK is 7, but the host file lists 2"):
        find_place()
    clean.setenv("MLX_RANK", "0")
    clean.setenv("NCCL_HOST_IP", "10.0.0.9")
    assert find_place() == Place(0, "nccl", "10.0.0.9")
    assert not environment.is_follower()
    clean.setenv("MLX_JACCL_COORDINATOR", "10.0.0.8:3000")
    assert find_place() == Place(0, "jaccl", "10.0.0.8")


def test_settings_that_make_no_sense_are_refused(clean: pytest.MonkeyPatch) -> None:
    assert timeout_s() == environment.DEFAULT_TIMEOUT_S
    assert wanted_split() == "auto"
    for text in ("0", "-1", "soon", "nan"):
        clean.setenv(environment.TIMEOUT_VARIABLE, text)
        with pytest.raises(InvalidArgumentError, match="must be a positive number"):
            timeout_s()
    clean.setenv(environment.SPLIT_VARIABLE, "columns")
    with pytest.raises(InvalidArgumentError, match="must be auto, outputs, layers"):
        wanted_split()


@pytest.mark.parametrize("text", ["", "{", "[]", "[{}]", '{"hosts": 3}', '[{"ssh": 1, "ips": 2}]'])
def test_host_files_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match="host file"):
        read_hosts(path)
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_hosts(tmp_path / "none.json")


def test_host_files_of_mlx_are_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    listed = [
        {"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, "en2"]},
        {"ssh": "b", "ips": ["10.0.0.2"], "rdma": ["en2", None]},
    ]
    path.write_text(json.dumps({"backend": "jaccl", "envs": ["A=b=c"], "hosts": listed}))
    hosts, backend, variables = read_hosts(path)
    assert [host.ssh for host in hosts] == ["a", "b"]
    assert (backend, variables) == ("jaccl", {"A": "b=c"})
    own, files = _variables(Plan(hosts=hosts, backend="jaccl"))
    assert own["MLX_JACCL_COORDINATOR"] == "10.0.0.1:32323"
    assert json.loads(files["MLX_IBV_DEVICES"]) == [[None, "en2"], ["en2", None]]
    own, files = _variables(Plan(hosts=hosts, backend="ring", port=4000))
    assert json.loads(files["MLX_HOSTFILE"]) == [["10.0.0.1:4000"], ["10.0.0.2:4001"]]


def test_every_backend_gets_its_variables() -> None:
    own, files = _variables(Plan(hosts=(LOOPBACK, LOOPBACK), backend="ring"))
    ports = [address.rsplit(":", 1)[1] for (address,) in json.loads(files["MLX_HOSTFILE"])]
    assert len(set(ports)) == 2
    own, files = _variables(Plan(hosts=(LOOPBACK, LOOPBACK), backend="nccl"))
    assert (own["MLX_WORLD_SIZE"], own["NCCL_HOST_IP"], own["NCCL_NVLS_ENABLE"], files) == ("2", "127.0.0.1", "0", {})
    assert _variables(Plan(hosts=(LOOPBACK,), backend="ring")) == ({environment.RANKS_VARIABLE: "1"}, {})
    with pytest.raises(InvalidArgumentError, match="RDMA devices"):
        _variables(Plan(hosts=(LOOPBACK, LOOPBACK), backend="jaccl"))
    with pytest.raises(InvalidArgumentError, match="needs an address"):
        _variables(Plan(hosts=(Host("a"), Host("b")), backend="ring"))

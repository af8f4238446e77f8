"""Models by their names on a hub: against a stand-in on this machine, through the hub's real client."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import run, says, start
from hub_server import COMMITS, StandIn
from hub_server import start as start_hub
from model_files import DATA, gguf_parts, write_gguf

import specdec
from specdec import catalogue, hub, paths
from specdec.errors import DownloadError
from specdec.hub_name import HubName, parse_hub_name, wanted_files
from specdec.store import Store
from specdec.store.description import StoreDescription

TINY = DATA / "tiny-llama"
FOLDER, GGUF, SEVERAL = "owner/Tiny-Llama", "owner/one-GGUF", "owner/many-GGUF"
needs_client = pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="no huggingface_hub here")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF file of a tiny model."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, *gguf_parts("tiny-llama")).read_bytes()


@pytest.fixture
def stand_in(gguf: bytes, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub with three repositories; this process, and those that it starts, ask it and no other."""
    served, server = start_hub()
    folder = {path.name: path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    served.repos[FOLDER] = folder | {"README.md": b"#", "pytorch_model.bin": b"x" * 999, "onnx/model.onnx": b"y"}
    served.repos[GGUF] = {"tiny-Q8_0.gguf": gguf, "config.json": b"{}", "README.md": b"#"}
    served.repos[SEVERAL] = {"tiny-Q4_K_M.gguf": gguf, "tiny-Q8_0.gguf": gguf, "mmproj-tiny.gguf": b"GGUF"}
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    yield served
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("Qwen/Qwen2.5-0.5B-GGUF:Q4_K_M", HubName("Qwen/Qwen2.5-0.5B-GGUF", None, "Q4_K_M")),
        ("o/n@v1.0:sub/x.gguf", HubName("o/n", "v1.0", "sub/x.gguf")),
        ("o/n@refs/pr/1", HubName("o/n", "refs/pr/1", None)),
    ],
)
def test_names(text: str, name: HubName) -> None:
    assert parse_hub_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    ["name", "./a/b", "/a/b", "~/b", "a/b/c", "a/b.gguf", "a/", "a//b", "a/..", "a/b:", "a b/c", "a/b.store"],
)
def test_other_texts_are_no_names(text: str) -> None:
    assert parse_hub_name(text) is None


@needs_client
def test_a_folder_is_fetched_once_and_only_what_is_read(stand_in: StandIn) -> None:
    model = specdec.load(FOLDER, runtime="reference")
    here = specdec.load(TINY, runtime="reference")
    prompt = [1, 2, 3]
    assert specdec.generate(model, prompt, max_tokens=8).tokens == specdec.generate(here, prompt, max_tokens=8).tokens
    assert model.name == "Tiny-Llama"
    assert stand_in.files_asked() == {"config.json", "model.safetensors"} | (
        {path.name for path in TINY.iterdir()} & {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    )
    count, looked_up = len(stand_in.asked), len(stand_in.looked_up)
    specdec.load(FOLDER, runtime="reference")
    assert (len(stand_in.asked), len(stand_in.looked_up)) == (count, looked_up)


@needs_client
def test_the_store_names_the_revision_and_keeps_to_it(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    store = Path(run(capsys, "pull", GGUF).out.strip())
    source = StoreDescription.read(store).source
    assert (source["hub"], source["revision"], source["file"]) == (GGUF, COMMITS[0], "tiny-Q8_0.gguf")
    stand_in.commit = COMMITS[1]
    assert run(capsys, "pull", GGUF).out.strip() == str(store)
    assert StoreDescription.read(store).source["revision"] == COMMITS[0]
    assert run(capsys, "pull", GGUF, "--force").code == 0
    assert StoreDescription.read(store).source["revision"] == COMMITS[1]
    assert [path.name for path in hub.folder_of(GGUF).iterdir()] == [COMMITS[1]]


@needs_client
def test_a_named_revision_is_another_store(stand_in: StandIn) -> None:
    assert catalogue.pull(f"{GGUF}@v1") != catalogue.pull(GGUF)
    with pytest.raises(DownloadError, match=r"owner/one-GGUF has no revision 'v9': see http"):
        catalogue.pull(f"{GGUF}@v9")


@needs_client
def test_every_command_takes_a_name(stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{SEVERAL}:q8_0"
    target = tmp_path / "own.store"
    assert run(capsys, "convert", name, "-o", target).code == 0
    assert StoreDescription.read(target).source["revision"] == COMMITS[0]
    told = json.loads(run(capsys, "pull", name, "--json").out)
    assert told["name"] == name
    assert run(capsys, "inspect", name).code == 0
    assert stand_in.files_asked() == {"tiny-Q8_0.gguf"}
    listed = json.loads(run(capsys, "list", "--json").out)["entries"]
    assert {(one["kind"], one["source"], one["orphan"]) for one in listed} == {
        ("store", name, False), ("file", SEVERAL, False),
    }  # fmt: skip
    assert run(capsys, "rm", name, SEVERAL).code == 0
    assert json.loads(run(capsys, "list", "--json").out)["entries"] == []
    says(run(capsys, "generate", "--model", f"{SEVERAL}:Q5", "--prompt", "x"), r"no GGUF file 'Q5': it has .*Q4_K_M")
    says(run(capsys, "serve", "owner/none"), "the hub has no model owner/none, and no folder here has that name")


@needs_client
def test_several_models_and_none_named(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    says(
        run(capsys, "pull", SEVERAL),
        r"has 2 GGUF models: name one as owner/many-GGUF:FILE, of tiny-Q4_K_M.gguf, tiny-Q8_0.gguf$",
    )
    stand_in.repos[SEVERAL] = {"README.md": b"#"}
    says(run(capsys, "pull", SEVERAL), "no model that is read here")
    assert stand_in.asked == []


@needs_client
def test_a_folder_of_that_name_wins(stand_in: StandIn, gguf: bytes, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / FOLDER)
    (tmp_path / FOLDER / "own.gguf").write_bytes(gguf)
    specdec.load(FOLDER, runtime="reference")
    specdec.load(f"{FOLDER}:own.gguf", runtime="reference")
    assert stand_in.looked_up == []
    with pytest.raises(specdec.SpecdecError, match=r"no model at owner/Tiny-Llama:gone\.gguf"):
        specdec.load(f"{FOLDER}:gone.gguf")


@needs_client
def test_a_split_gguf_comes_whole() -> None:
    names = ["Q4/a-00001-of-00002.gguf", "Q4/a-00002-of-00002.gguf", "b-Q8_0.gguf"]
    name = HubName("o/n", None, "Q4")
    assert wanted_files(name, names, bytes) == names[:2]
    assert wanted_files(HubName("o/n", None, names[1]), names, bytes) == names[:2]


def test_weights_of_an_index() -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "../x"}})
    names = ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors",
             "model-3.safetensors", "tokenizer.json", "sub/model.safetensors", "x"]  # fmt: skip
    assert wanted_files(HubName("o/n"), names, index.encode) == sorted({*names[:4], "tokenizer.json"})


@needs_client
def test_what_was_cut_short_goes_on(stand_in: StandIn, gguf: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.cut["tiny-Q8_0.gguf"] = 10_000
    ran = run(capsys, "pull", GGUF)
    assert ran.code == 2
    assert ran.err.endswith("specdec: error: the hub answered 500 for owner/one-GGUF: try again later\n")
    kind = {one["kind"] for one in json.loads(run(capsys, "list", "--json").out)["entries"]}
    assert kind == {"unfinished"}
    stand_in.broken.clear()
    stand_in.asked.clear()
    store = catalogue.pull(GGUF)
    assert stand_in.asked == [("tiny-Q8_0.gguf", "bytes=10000-")]
    assert (hub.folder_of(GGUF) / COMMITS[0] / "tiny-Q8_0.gguf").read_bytes() == gguf
    assert Store.open(store).config.num_layers


@needs_client
def test_a_file_with_another_checksum_is_not_kept(stand_in: StandIn) -> None:
    stand_in.wrong.add("tiny-Q8_0.gguf")
    with pytest.raises(DownloadError, match="another checksum"):
        catalogue.pull(GGUF)
    stand_in.wrong.clear()
    catalogue.pull(GGUF)


@needs_client
def test_refusals_say_what_to_do(stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in.gated.add(GGUF)
    says(run(capsys, "pull", GGUF), r"owner/one-GGUF is gated: ask for access at http://\S+, then log in with `hf auth")
    says(run(capsys, "pull", "owner/none"), "the hub has no model owner/none, and no folder here")


@needs_client
def test_without_the_network(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        says(run(capsys, "pull", GGUF), "the connection to the hub failed .* connect to the network")


@needs_client
def test_an_endpoint_that_is_not_an_address(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    says(run(capsys, "pull", GGUF), "HF_ENDPOINT must begin with http:// or https://, not 'hub.example'")


def test_without_the_client(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _name: None)
    says(run(capsys, "pull", GGUF), r"needs huggingface_hub: pip install 'specdec-mlx\[hub\]'")


@needs_client
def test_files_of_the_clients_own_cache_are_used(
    stand_in: StandIn, gguf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    cache = Path(stand_in.url and str(hub._client_cache()))
    hf_hub_download(GGUF, "tiny-Q8_0.gguf", cache_dir=cache, endpoint=stand_in.url)
    stand_in.asked.clear()
    catalogue.pull(GGUF)
    assert stand_in.asked == []
    shutil.rmtree(paths.home())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused at once
    store = catalogue.pull(GGUF)
    assert StoreDescription.read(store).source["revision"] == COMMITS[0]
    with pytest.raises(DownloadError, match="connect to the network"):
        catalogue.pull(FOLDER)


@needs_client
def test_a_process_of_its_own(stand_in: StandIn, home: Path) -> None:
    process = start("pull", GGUF, SPECDEC_HOME=str(home))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert Store.open(Path(out.decode().strip())).config.num_layers

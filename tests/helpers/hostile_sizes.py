"""Files that claim, or hold, far more than any model does: reading them must not take what they say.

Each case writes its files and returns the words of a command. Large files are sparse, or repeat a few bytes.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from hostile import Bases

Case = Callable[[Bases, Path], list[str]]
MB = 1 << 20
ASK = ("--prompt", "hello", "--max-tokens", "2")


# --- bytes ------------------------------------------------------------------------------------------------------------


def sparse(file: Path, content: bytes, size: int) -> None:
    """A file that begins with `content`, and holds zeros up to `size` without taking room for them."""
    with file.open("wb") as out:
        out.write(content)
        out.truncate(max(size, len(content)))


def filled(part: str, megabytes: int, before: str = "", after: str = "") -> bytes:
    """Repetitions of a part, without the last one's comma, between `before` and `after`."""
    content = part.encode()
    return before.encode() + (content * (megabytes * MB // len(content))).removesuffix(b",") + after.encode()


def numbered(form: str, count: int) -> Iterable[str]:
    """`form` with each number."""
    return (form % number for number in range(count))


def keys(count: int) -> bytes:
    """A JSON object of `count` keys."""
    return json.dumps(dict.fromkeys(numbered("%d", count), 0)).encode()


def text(content: bytes) -> bytes:
    """A string of a GGUF file."""
    return struct.pack("<Q", len(content)) + content


def gguf(*keys: bytes, key_count: int | None = None, tensor_count: int = 0, then: bytes = b"") -> bytes:
    """The beginning of a GGUF file."""
    key_count = len(keys) if key_count is None else key_count
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, key_count) + b"".join(keys) + then


def array(kind: int, count: int) -> bytes:
    """A metadata key that claims an array of `count` values of a kind."""
    return text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, kind, count)


def tensor(name: bytes, shape: tuple[int, ...], offset: int = 0) -> bytes:
    """A tensor of a GGUF file, float32."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, offset)


def alignment(value: int) -> bytes:
    """A GGUF file with one tensor and an alignment of 64 bits."""
    key = text(b"general.alignment") + struct.pack("<IQ", 10, value)
    return gguf(key, tensor_count=1, then=tensor(b"a", (1,)))


def header(size: int, content: bytes = b"{") -> bytes:
    """The beginning of a safetensors file."""
    return struct.pack("<Q", size) + content


def aliases() -> bytes:
    """A YAML file of a few lines that stands for 2**30 values."""
    lines = [f"b{n}: &b{n} [*b{n - 1}, *b{n - 1}]" for n in range(1, 31)]
    return "\n".join(["policy: fixed", "parameters: &b0 [x]", *lines]).encode()


def pieces(count: int, *, control: bool) -> bytes:
    """A tokenizer.model of `count` pieces."""
    from specdec.tokenizers.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, build_model

    texts = ["<unk>", *numbered("<%d>", count)]
    return build_model(texts, [0.0] * len(texts), [UNKNOWN, *[CONTROL if control else NORMAL] * count])


# --- cases ------------------------------------------------------------------------------------------------------------


def gguf_case(content: Callable[[], bytes], size: int = 1 << 30) -> Case:
    """A GGUF file, sparse up to `size`."""

    def write(bases: Bases, place: Path) -> list[str]:
        sparse(place / "m.gguf", content(), size)
        return ["generate", "--model", str(place / "m.gguf"), *ASK]

    return write


def folder_case(
    name: str, content: Callable[[], bytes], size: int = 0, *, without: str = "", store: bool = False
) -> Case:
    """A checkpoint, or a store, with one file replaced and another one removed."""

    def write(bases: Bases, place: Path) -> list[str]:
        folder = Path(shutil.copytree(bases.store if store else bases.folder, place / "model"))
        if without:
            (folder / without).unlink()
        sparse(folder / name, content(), size)
        return ["generate", "--model", str(folder), *ASK]

    return write


def tokenizer_case(change: Callable[[dict[str, Any]], object]) -> Case:
    """A checkpoint whose tokenizer.json is changed."""

    def write(bases: Bases, place: Path) -> list[str]:
        folder = Path(shutil.copytree(bases.folder, place / "model"))
        values = json.loads((folder / "tokenizer.json").read_bytes())
        change(values)
        (folder / "tokenizer.json").write_text(json.dumps(values))
        return ["generate", "--model", str(folder), *ASK]

    return write


def file_case(name: str, content: Callable[[], bytes], *words: str) -> Case:
    """A file beside a sound model; STORE and FILE stand for both in the words."""

    def write(bases: Bases, place: Path) -> list[str]:
        (place / name).write_bytes(content())
        stand_for = {"STORE": str(bases.store), "FILE": str(place / name), "replay:FILE": f"replay:{place / name}"}
        return [stand_for.get(word, word) for word in words]

    return write


def part(key: str, value: Any) -> Case:
    """A tokenizer.json with one part replaced."""
    return tokenizer_case(lambda values: values.update({key: value}))


def added(texts: Iterable[str]) -> Case:
    """A tokenizer.json with more added tokens."""

    def change(values: dict[str, Any]) -> None:
        token = values["added_tokens"][0]
        values["added_tokens"] += [token | {"content": text, "id": 1000 + n} for n, text in enumerate(texts)]

    return tokenizer_case(change)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A step that replaces."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def cut(pattern: str) -> dict[str, Any]:
    """A step that cuts a text."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def normalizers(*steps: dict[str, Any]) -> Case:
    """A tokenizer.json with these steps before all others."""
    return part("normalizer", {"type": "Sequence", "normalizers": list(steps)})


def templates(single: list[dict[str, Any]], count: int = 1) -> Case:
    """A tokenizer.json that puts a text through templates."""
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}
    return part("post_processor", {"type": "Sequence", "processors": [template] * count})


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
PADDING = {
    "strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "x",
}  # fmt: skip
BENCH = (
    "bench", "STORE", "--prompts", "FILE", "--max-tokens", "1", "--force", "--restart", "--per-task", "1",
    "--repeat", "2",
)  # fmt: skip
GENERATE = ("generate", "--model", "STORE", "--max-tokens", "1")
ANSWER = (*GENERATE, "--prompt", "a")
LISTS = partial(filled, "[],", 30, '{"a":[', "]}")
JSON_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    "model.safetensors.index.json",
)  # fmt: skip

CASES: dict[str, Case] = {
    "GGUF: 100 million empty texts": gguf_case(lambda: gguf(array(8, 100_000_000))),
    "GGUF: a billion numbers": gguf_case(lambda: gguf(array(0, 1_000_000_000))),
    "GGUF: 2**63 values": gguf_case(lambda: gguf(array(8, 1 << 63))),
    "GGUF: a text of a gigabyte": gguf_case(lambda: gguf(text(b"a") + struct.pack("<IQ", 8, 1 << 30)), 5 << 28),
    "GGUF: a text of 2**63 bytes": gguf_case(lambda: gguf(text(b"a") + struct.pack("<IQ", 8, 1 << 63))),
    "GGUF: a key of a gigabyte": gguf_case(lambda: gguf(struct.pack("<Q", 1 << 30)), 5 << 28),
    "GGUF: 2**63 keys": gguf_case(lambda: gguf(key_count=1 << 63)),
    "GGUF: 2**63 tensors": gguf_case(lambda: gguf(tensor_count=1 << 63)),
    "GGUF: 2 million keys": gguf_case(lambda: gguf(*(text(b"%d" % n) + bytes(5) for n in range(2_000_000)))),
    "GGUF: a terabyte": gguf_case(gguf, 1 << 40),
    "GGUF: alignment 2**31": gguf_case(lambda: alignment(1 << 31), 0),
    "GGUF: alignment 2**62": gguf_case(lambda: alignment(1 << 62), 0),
    "GGUF: alignment 3": gguf_case(lambda: alignment(3), 0),
    "GGUF: an offset that overflows": gguf_case(lambda: gguf(tensor_count=1, then=tensor(b"a", (1,), (1 << 64) - 32))),
    "GGUF: a shape that overflows": gguf_case(lambda: gguf(tensor_count=1, then=tensor(b"a", (1 << 63,) * 4))),
    "safetensors: a header of 2**63 bytes": folder_case("model.safetensors", lambda: header(1 << 63), 1 << 30),
    "safetensors: a header of 3 gigabytes": folder_case("model.safetensors", lambda: header(3 << 30), 4 << 30),
    "safetensors: a deep header": folder_case("model.safetensors", lambda: header(5 * MB, filled('{"":', 5)), 6 * MB),
    **{f"{name}: lists": folder_case(name, LISTS) for name in JSON_FILES},
    "config.json: objects": folder_case("config.json", partial(filled, "{},", 30, '{"a":[', "]}")),
    "config.json: texts": folder_case("config.json", partial(filled, '"é€",', 20, '{"a":[', "]}")),
    "config.json: fractions": folder_case("config.json", partial(filled, "1.5,", 20, '{"a":[', "]}")),
    "config.json: a long number": folder_case("config.json", partial(filled, "9", 30, '{"a":', "}")),
    "config.json: a long fraction": folder_case("config.json", partial(filled, "9", 30, '{"a":0.', "}")),
    "config.json: keys": folder_case("config.json", lambda: keys(300_000)),
    "config.json: 10 gigabytes": folder_case("config.json", lambda: b"{", 10 << 30),
    "chat_template.jinja: 10 gigabytes": folder_case("chat_template.jinja", lambda: b"a", 10 << 30),
    "chat_template.jinja: 5 megabytes": folder_case("chat_template.jinja", partial(filled, "{{a}}", 5)),
    "chat_template.jinja: many outputs": folder_case("chat_template.jinja", lambda: b"{{a}}" * 25_000),
    "chat_template.jinja: wide text": folder_case("chat_template.jinja", partial(filled, "🙂", 5)),
    "tokenizer.model: many control tokens": folder_case(
        "tokenizer.model", lambda: pieces(100_000, control=True), without="tokenizer.json"
    ),
    "tokenizer.model: a large piece": folder_case(
        "tokenizer.model",
        lambda: b"\x0a\x80\x80\x80\x0a\x0a\xfb\xff\xff\x09" + b"x" * (20 * MB - 5),
        without="tokenizer.json",
    ),
    "tokenizer.model: empty pieces": folder_case(
        "tokenizer.model", lambda: b"\x0a\x00" * (5 * MB), without="tokenizer.json"
    ),
    "tokenizer.json: many added tokens": added(numbered("<%d>", 40_000)),
    "tokenizer.json: large added tokens": added(chr(97 + n % 26) * 100_000 + f"{n}" for n in range(80)),
    "tokenizer.json: padding": part("padding", PADDING),
    "tokenizer.json: text that doubles": normalizers(*[replace({"String": "l"}, "ll")] * 40),
    "tokenizer.json: text that grows": normalizers(*[replace({"String": "l"}, "l" * 100_000)] * 2),
    "tokenizer.json: nothing that grows": normalizers(*[replace({"Regex": "l|"}, "lll")] * 30),
    "tokenizer.json: text before text": normalizers(*[{"type": "Prepend", "prepend": "x" * 1_000_000}] * 50),
    "tokenizer.json: bytes of bytes": normalizers(*[{"type": "ByteLevel"}] * 40),
    "tokenizer.json: bytes of bytes, later": part("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTES] * 40}),
    "tokenizer.json: the text twice, 40 times": templates([TEXT] * 2, 40),
    "tokenizer.json: the text 100,000 times": templates([TEXT] * 100_000),
    "tokenizer.json: a slow pattern": part("pre_tokenizer", cut("(x+x+)+y|(.+)+(.+)+(.+)+(.+)+$z")),
    "tokenizer.json: repeated repetitions": part("pre_tokenizer", cut("(((a{1000}){1000}){1000}){1000}")),
    "tokenizer.json: a long pattern": part("pre_tokenizer", cut("(a|b)*" * 100_000)),
    "tokenizer.json: a deep pattern": part("pre_tokenizer", cut("(" * 30_000 + ")" * 30_000)),
    "tokenizer.json: many steps": part("pre_tokenizer", {"type": "Sequence", "pretokenizers": [cut(".")] * 10_000}),
    "store.json: lists": folder_case("store.json", LISTS, store=True),
    "store.json: 10 gigabytes": folder_case("store.json", lambda: b"{", 10 << 30, store=True),
    "a store: a terabyte of weights": folder_case("exact.safetensors", lambda: b"", 1 << 40, store=True),
    "a store: lists beside the tokenizer": folder_case("tokenizer/tokenizer_meta.json", LISTS, store=True),
    "prompts: many lines": file_case("p.txt", partial(filled, "a\n", 30), *BENCH),
    "prompts: many rows": file_case("p.jsonl", partial(filled, '{"prompt":"a"}\n', 30), *BENCH),
    "prompts: a row of lists": file_case("p.jsonl", LISTS, *BENCH),
    "a prompt of words": file_case("p.txt", partial(filled, "a b ", 60), *GENERATE, "--prompt-file", "FILE"),
    "a raw prompt": file_case("p.txt", partial(filled, "a b ", 60), *GENERATE, "--raw", "--prompt-file", "FILE"),
    "a prompt of one word": file_case("p.txt", partial(filled, "a", 60), *GENERATE, "--prompt-file", "FILE"),
    "a schedule of lists": file_case(
        "s.yaml", lambda: b"[" + b"[]," * 80_000 + b"]", *ANSWER, "--draft-schedule", "FILE"
    ),
    "a policy of lists": file_case("p.yaml", lambda: b"[" + b"[]," * 20_000 + b"]", *ANSWER, "--policy", "FILE"),
    "a policy of aliases": file_case("p.yaml", aliases, *ANSWER, "--policy", "FILE"),
    "a deep policy": file_case("p.yaml", lambda: b"[" * 100_000, *ANSWER, "--policy", "FILE"),
    "an answer of many tokens": file_case(
        "r.json", partial(filled, "1,", 30, "[", "]"), *ANSWER, "--drafter", "replay:FILE"
    ),
}
# Those that take more than half a second.
LONG = {
    "config.json: texts", "config.json: fractions", "config.json: keys", "chat_template.jinja: 5 megabytes",
    "chat_template.jinja: many outputs", "chat_template.jinja: wide text", "tokenizer.model: empty pieces",
    "tokenizer.model: many control tokens", "tokenizer.json: text before text",
    "tokenizer.json: the text 100,000 times",    "a schedule of lists", "prompts: a row of lists", "a raw prompt",
}  # fmt: skip

"""Quantised files that are damaged or of unknown types, through the command line: one sentence that names the tensor,
exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Outcome, run, tree
from gguf import GGMLQuantizationType
from model_files import write_gguf, write_huggingface
from quantised_checkpoint import mlx_checkpoint
from synthetic import quantised_config, random_table

UP = "blk.1.ffn_up.weight"
LAYER = "model.layers.1.mlp.up_proj"
PARTS = {
    "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output", "attn_norm": "attn_norm",
    "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down", "mlp_norm": "ffn_norm",
}  # fmt: skip
OUTER = {"embed": "token_embd", "head": "output", "final_norm": "output_norm"}
# Where a block has 16-bit floats: all are scales or offsets.
FACTORS = {
    "q8_0": (0,), "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
}  # fmt: skip
Capture = pytest.CaptureFixture[str]


def llama_gguf(path: Path, kind: str = "q8_0", damage: Callable[[np.ndarray], None] | None = None) -> Path:
    """A small llama whose second ffn_up is of type `kind`, its blocks uint8 (out, blocks, bytes) damaged."""
    config = quantised_config()
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": config.num_layers,
        "llama.context_length": config.max_context,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
    }
    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, shape in (config.matrices() | config.tables()).items():
        tensors[gguf_name(name, tied=config.tie_embeddings)] = random.standard_normal(shape).astype(np.float16)
    for name, length in config.vectors().items():
        tensors[gguf_name(name, tied=config.tie_embeddings)] = np.ones(length, np.float32)
    outputs, inputs = tensors[UP].shape
    table = random_table(kind, (outputs, inputs), random)
    blocks = table.blocks.reshape(outputs, inputs // table.kind.block, -1).copy()
    if damage is not None:
        damage(blocks)
    tensors[UP] = blocks.reshape(outputs, -1), GGMLQuantizationType[kind.upper()]
    return write_gguf(path, metadata, tensors)


def gguf_name(name: str, *, tied: bool) -> str:
    if name == "head" and tied:
        name = "embed"
    if name in OUTER:
        return f"{OUTER[name]}.weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{PARTS[part]}.weight"


def refused(capsys: Capture, source: Path, *options: str) -> str:
    """The sentence that converting ends with; nothing is left behind."""
    before = tree(source.parent)
    outcome = run(capsys, "convert", source, "-o", source.parent / "store", *options)
    assert tree(source.parent) == before
    # What a conversion is at is told first, once it has begun.
    told = "".join(line for line in outcome.err.splitlines(keepends=True) if not line.startswith("converting "))
    return Outcome(outcome.code, outcome.out, told).error


def test_the_undamaged_file_is_converted(tmp_path: Path, capsys: Capture) -> None:
    for kind in FACTORS:
        path = llama_gguf(tmp_path / f"{kind}.gguf", kind)
        assert run(capsys, "convert", path, "-o", tmp_path / kind).code == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("kind", "at"), [(kind, at) for kind, places in FACTORS.items() for at in places])
def test_factors_of_gguf_blocks_that_are_no_numbers(
    kind: str, at: int, bad: float, tmp_path: Path, capsys: Capture
) -> None:
    def damage(blocks: np.ndarray) -> None:
        blocks[-1, -1, at : at + 2] = np.array([bad], np.float16).view(np.uint8)

    path = llama_gguf(tmp_path / "m.gguf", kind, damage)
    for options in ((), ("--to", "q8"), ("--to", "f16")):
        sentence = refused(capsys, path, *options)
        assert sentence.startswith(f"m.gguf: tensor {UP!r} holds ")
        assert "NaN" in sentence


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (4, np.uint64(224), rf"tensor '{UP}' must have shape \(512, 256\), not \(512, 224\)"),
        (4, np.uint64(250), rf"tensor '{UP}' of shape \(512, 250\) cannot be Q8_0, which stores blocks of 32"),
        (20, np.uint32(GGMLQuantizationType.F32), rf"m.gguf is truncated: tensor '{UP}' ends at byte"),
        (
            20,
            np.uint32(GGMLQuantizationType.Q8_K),
            rf"tensor '{UP}' has type Q8_K \(15\), which gguf .* does not decode",
        ),
        (20, np.uint32(99), rf"tensor '{UP}' has type 99, which gguf .* does not decode"),
    ],
)
def test_gguf_blocks_of_the_wrong_size_or_type(
    at: int, value: np.generic, told: str, tmp_path: Path, capsys: Capture
) -> None:
    path = llama_gguf(tmp_path / "m.gguf")
    raw = bytearray(path.read_bytes())
    start = raw.index(UP.encode()) + len(UP) + at  # dimensions, their lengths, the type's number, the offset
    raw[start : start + value.nbytes] = value.tobytes()
    path.write_bytes(raw)
    assert re.search(told, refused(capsys, path))


def test_a_gguf_file_that_ends_within_its_blocks(tmp_path: Path, capsys: Capture) -> None:
    path = llama_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    assert re.search(r"m.gguf is truncated: tensor '.*' ends at byte \d+, the file at \d+", refused(capsys, path))


# --- MLX checkpoints --------------------------------------------------------------------------------------------------


Tensors = dict[str, tuple[str, np.ndarray]]


def changed(folder: Path, change: Callable[[Tensors], None], bits: int = 8) -> Path:
    """An MLX checkpoint whose tensors were changed."""
    whole = mlx_checkpoint(folder, "tiny-llama", {"group_size": 32, "bits": bits})
    path = whole / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    kinds = {"F16": np.uint16, "U32": np.uint32}
    tensors: Tensors = {}
    for name, told in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + at for at in told["data_offsets"])
            values = np.frombuffer(raw[begin:end], kinds[told["dtype"]]).reshape(told["shape"])
            tensors[name] = told["dtype"], values.copy()
    change(tensors)
    config = json.loads((whole / "config.json").read_text())
    return write_huggingface(whole, config, tensors)


@pytest.mark.parametrize("part", ["scales", "biases"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_factors_of_mlx_layers_that_are_no_numbers(part: str, bad: float, tmp_path: Path, capsys: Capture) -> None:
    def damage(tensors: Tensors) -> None:
        tensors[f"{LAYER}.{part}"][1][-1, -1] = np.array(bad, np.float16).view(np.uint16)

    folder = changed(tmp_path / "m", damage)
    for options in ((), ("--to", "q8"), ("--to", "f16")):
        sentence = refused(capsys, folder, *options)
        assert sentence.startswith(f"m: tensor '{LAYER}.weight' holds ")
        assert "NaN" in sentence


def replaced(part: str, kind: str | None, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], None]:
    """A change of one tensor of the layer: of its type, its values or their shape."""

    def apply(tensors: Tensors) -> None:
        own, values = tensors[f"{LAYER}.{part}"]
        tensors[f"{LAYER}.{part}"] = kind or own, change(values)

    return apply


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (replaced("weight", None, lambda v: v[:, :-1]), f"tensor '{LAYER}.weight' of shape .* does not fit scales"),
        (replaced("weight", None, lambda v: v[:-1]), f"tensor '{LAYER}.weight' of shape .* does not fit scales"),
        (replaced("weight", None, lambda v: v[0, 0].reshape(())), f"tensor '{LAYER}.weight' of shape .* does not fit"),
        (
            replaced("weight", "F32", lambda v: v),
            f"tensor '{LAYER}.weight' must be U32 with scales .* not F32 with F16",
        ),
        (replaced("scales", None, lambda v: v[:, :-1]), f"tensor '{LAYER}.weight' of shape .* does not fit scales"),
        (replaced("biases", None, lambda v: v[:-1]), f"tensor '{LAYER}.weight' of shape .* does not fit scales"),
        (replaced("scales", "U16", lambda v: v), f"tensor '{LAYER}.weight' must be U32 .* not U32 with U16 and F16"),
        (lambda tensors: tensors.pop(f"{LAYER}.biases"), f"lacks tensor '{LAYER}.biases' of a quantised layer"),
        (lambda tensors: tensors.pop(f"{LAYER}.weight"), f"lacks tensor '{LAYER}.weight' of a quantised layer"),
        (lambda tensors: tensors.pop(f"{LAYER}.scales"), f"'{LAYER}.biases', which this architecture does not have"),
    ],
)
def test_mlx_layers_whose_tensors_do_not_fit(
    change: Callable[[Tensors], None], told: str, tmp_path: Path, capsys: Capture
) -> None:
    sentence = refused(capsys, changed(tmp_path / "m", change))
    assert re.search(told, sentence), sentence


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"bits": 7}, "has 7 bits in groups of 32: this version reads"),
        ({"bits": 8, "group_size": 16}, "has 8 bits in groups of 16: this version reads"),
        ({"mode": "nvfp4"}, "is quantised as nvfp4: only affine and mxfp4 are read"),
        ({"bits": 4}, "does not fit scales"),
    ],
)
def test_mlx_layers_of_unknown_types(own: dict[str, Any], told: str, tmp_path: Path, capsys: Capture) -> None:
    folder = mlx_checkpoint(tmp_path / "m", "tiny-llama", {"group_size": 32, "bits": 8})
    config = json.loads((folder / "config.json").read_text())
    config["quantization"][LAYER] = {"group_size": 32, "bits": 8} | own
    (folder / "config.json").write_text(json.dumps(config))
    sentence = refused(capsys, folder)
    assert f"tensor '{LAYER}.weight' " in sentence
    assert told in sentence


def test_an_mlx_checkpoint_that_ends_within_its_words(tmp_path: Path, capsys: Capture) -> None:
    folder = changed(tmp_path / "m", lambda _: None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused(capsys, folder)

"""Model files for the peers: an original .gguf file in other number formats, and the dithered twin as a .gguf file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

from specdec.store import Store

_PARTS = {
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.o",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def quantised(source: Path, kind: str, folder: Path, quantize: Path) -> Path:
    """`source` in the format `kind` ("F16", "Q8_0"), made once by llama.cpp's own tool.

    Raises:
        SystemExit: the tool fails.
    """
    target = folder / f"{source.stem.removesuffix('-f16')}-{kind.lower()}.gguf"
    if target.exists():
        return target
    unfinished = target.with_suffix(".partial")
    command = [str(quantize), "--allow-requantize", str(source), str(unfinished), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{quantize.name} could not write {target.name}: {(done.stdout + done.stderr)[-300:]}")
    unfinished.rename(target)
    return target


def with_weights_of(store_path: Path, like: Path, folder: Path) -> Path:
    """A copy of the F16 file `like` that holds the matrices of a store, bit for bit.

    Raises:
        SystemExit: the store is of another model, or of another type than float16.
    """
    target = folder / f"{store_path.name.removesuffix('.store')}-f16.gguf"
    if target.exists():
        return target
    store = Store.open(store_path)
    if store.dtype != "float16" or store.types:
        raise SystemExit(f"{store_path} does not hold float16 weights")
    unfinished = target.with_suffix(".partial")
    shutil.copyfile(like, unfinished)
    matrices, tied = set(store.config.matrices()), store.config.tie_embeddings
    for tensor in GGUFReader(unfinished, "r+").tensors:
        name = _canonical(tensor.name, tied=tied)
        if name not in matrices:
            continue
        if tensor.tensor_type != GGMLQuantizationType.F16:
            raise SystemExit(f"{like.name} holds {tensor.name} in another type than F16")
        bits = store.exact(name).dense_bits()
        tensor.data.view(np.uint16).reshape(bits.shape)[...] = _rows_for_gguf(name, bits, store)
        matrices.remove(name)
    if matrices:
        raise SystemExit(f"{like.name} has no {min(matrices)}: it is not the model of {store_path.name}")
    unfinished.rename(target)
    return target


def _canonical(name: str, *, tied: bool) -> str:
    """The store's name of a tensor of a .gguf file; empty if it is not a matrix."""
    parts = name.split(".")
    if name == "output.weight" or (name == "token_embd.weight" and tied):
        return "head"
    if parts[0] == "blk" and parts[-1] == "weight" and parts[2] in _PARTS:
        return f"layers.{parts[1]}.{_PARTS[parts[2]]}"
    return ""


def _rows_for_gguf(name: str, bits: np.ndarray, store: Store) -> np.ndarray:
    """Rows of queries and keys as the file orders them: llama files interleave the halves that are rotated together."""
    config = store.config
    if config.family not in ("llama", "mistral", "mixtral") or name.rsplit(".", 1)[-1] not in ("q", "k"):
        return bits
    heads = bits.reshape(-1, 2, config.head_dim // 2, bits.shape[1])
    return heads.swapaxes(1, 2).reshape(bits.shape)

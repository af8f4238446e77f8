"""Small tokenizers, trained on the spot, and folders that hold them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from model_files import gguf_parts, tiny_config, tiny_weights, write_gguf, write_huggingface
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from specdec.formats import open_source
from specdec.tokenizers import Tokenizer, load_tokenizer
from specdec.tokenizers.pretokenizers import RULES, build_byte_level

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "  Naïve café — 東京 🙂 1234567890\n\tint main() { }",
    "The weather is nice today and we're going to the beach: It'll be 25 degrees.",
    "l'été, où ça? 12 345,67 € — ÄÖÜ ß; привет, мир; नमस्ते; \u200b\r\n\r\nend  ",
]
ROWS = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Names of control tokens of any tokenizer here: in a text they are those tokens, and nothing to be shown.
CONTROL = (*SPECIAL, "<s>", "</s>", "<unk>", "[INST]", "[/INST]")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def trained_bpe() -> dict[str, Any]:
    """The `model` section of a byte-level BPE tokenizer.json: vocabulary and merges."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return json.loads(backend.to_str())["model"]


@cache
def trained_sentencepiece(*user_defined: str, prefix: bool = True) -> bytes:
    """A sentencepiece model of type BPE with byte fallback, two control tokens and a user-defined one, and others."""
    sentencepiece.set_min_log_level(2)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 3),
        model_writer=out,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        control_symbols=["[INST]", "[INST]s", "[/INST]"],
        user_defined_symbols=["<|user|>", *user_defined],
        add_dummy_prefix=prefix,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


def bpe_metadata(pre: str | None = "smollm", **changes: Any) -> dict[str, Any]:
    """GGUF metadata of the byte-level tokenizer, filled up to `ROWS` tokens with unused ones and a user-defined one."""
    model = trained_bpe()
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [3 if token in SPECIAL else 1 for token in tokens]
    tokens, types = [*tokens, "<tool>"], [*types, 4]
    padding = range(len(tokens), ROWS)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{i}]" for i in padding],
        "tokenizer.ggml.token_type": types + [5 for _ in padding],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    if pre is not None:
        metadata["tokenizer.ggml.pre"] = pre
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def sentencepiece_metadata(model: bytes, **changes: Any) -> dict[str, Any]:
    """GGUF metadata of a sentencepiece model, as llama.cpp's converter writes it."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = processor.vocab_size()
    types = []
    for token in range(size):
        if processor.is_unknown(token):
            types.append(2)
        elif processor.is_control(token):
            types.append(3)
        elif processor.is_byte(token):
            types.append(6)
        else:
            types.append(4 if processor.id_to_piece(token) == "<|user|>" else 1)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(token) for token in range(size)],
        "tokenizer.ggml.scores": [processor.get_score(token) for token in range(size)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def saved(files: Mapping[str, bytes], folder: Path) -> Tokenizer:
    """The tokenizer of these files, through a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder)


def gguf_files(metadata: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """Tokenizer files of a GGUF file with this metadata and the weights of a tiny model, vocabulary widened to fit."""
    model, tensors = gguf_parts("tiny-qwen2")
    rows = max(ROWS, len(metadata.get("tokenizer.ggml.tokens", [])))
    tensors["token_embd.weight"] = np.zeros((rows, 64), np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    source = open_source(write_gguf(folder / "m.gguf", model | dict(metadata), tensors))
    try:
        return source.tokenizer_files
    finally:
        source.close()


def gguf_tokenizer(metadata: Mapping[str, Any], folder: Path) -> Tokenizer:
    """The tokenizer of such a file."""
    return saved(gguf_files(metadata, folder), folder / "tokenizer")


def huggingface_files(files: Mapping[str, Any], folder: Path, **config: Any) -> dict[str, bytes]:
    """Tokenizer files of a checkpoint folder with these files; a mapping is written as JSON."""
    tensors = {key: ("F16", value) for key, value in tiny_weights("tiny-llama").items()}
    write_huggingface(folder, tiny_config("tiny-llama") | config, tensors)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    source = open_source(folder)
    try:
        return source.tokenizer_files
    finally:
        source.close()


def huggingface_tokenizer(files: Mapping[str, Any], folder: Path, **config: Any) -> Tokenizer:
    """The tokenizer of such a folder."""
    return saved(huggingface_files(files, folder, **config), folder / "tokenizer")


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json such as a checkpoint has: it adds the first token by itself."""
    merges = [(left, right) for left, right in trained_bpe()["merges"]]
    backend = build_byte_level(trained_bpe()["vocab"], merges, rule=RULES["smollm"], special=SPECIAL)
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return json.loads(backend.to_str()) | changes

"""A tiny model that reads and writes text: random weights behind a byte-level tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quantize
from model_files import gguf_parts, write_gguf
from synthetic import SyntheticSource, tiny_config
from tokenizer_files import ROWS, bpe_metadata
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from specdec.store import convert
from specdec.tokenizers.meta import BPE_NAME, META_NAME, TokenizerMeta

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
VOCAB_SIZE = 256 + len(SPECIAL)


def tokenizer_files(*, chat_template: str | None = CHAT_TEMPLATE) -> dict[str, bytes]:
    """The store's tokenizer: one token for each byte, and those of `SPECIAL` after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    meta = TokenizerMeta(kind="bpe", eos_ids=(tokenizer.token_to_id("<|end|>"),), chat_template=chat_template)
    return {BPE_NAME: tokenizer.to_str().encode(), META_NAME: meta.to_bytes()}


def text_source(*, seed: int = 0, files: dict[str, bytes] | None = None, **overrides: Any) -> SyntheticSource:
    """A source of such a model; keyword arguments replace values of its configuration."""
    source = SyntheticSource(tiny_config(vocab_size=VOCAB_SIZE, **overrides), seed=seed)
    source.tokenizer_files = tokenizer_files() if files is None else files
    return source


def text_store(folder: Path, **options: Any) -> Path:
    """A store of such a model at `folder`; options are those of `text_source`."""
    return convert(text_source(**options), folder)


def text_gguf(path: Path) -> Path:
    """A GGUF file in Q8_0 with random weights, another tokenizer, a chat template and a context with room."""
    metadata, tensors = gguf_parts("tiny-qwen2")
    metadata |= bpe_metadata() | {"qwen2.context_length": 8192}
    random = np.random.default_rng(0)
    tensors["token_embd.weight"] = random.standard_normal((ROWS, 64)).astype(np.float16)
    kind = GGMLQuantizationType.Q8_0
    packed: dict[str, Any] = {
        name: (quantize(tensor.astype(np.float32), kind), kind) if tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }
    return write_gguf(path, metadata, packed)

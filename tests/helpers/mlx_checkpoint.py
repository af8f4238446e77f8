"""A tiny MLX checkpoint with a tokenizer, as mlx-lm reads it: random weights of a llama behind one token a byte."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from text_model import SPECIAL, VOCAB_SIZE, tokenizer_files

from specdec.tokenizers.meta import BPE_NAME

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_HIDDEN, _HEADS, _WIDTH, _LAYERS = 64, 4, 128, 2


def write_checkpoint(folder: Path, *, bits: int | None = None, seed: int = 0) -> Path:
    """Write the checkpoint; with `bits` its matrices are quantised in groups of 64, as mlx-lm's `convert -q` does."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> mx.array:
        return mx.array(random.standard_normal((rows, columns), dtype=np.float32) * 1.5 / columns**0.5, mx.float16)

    # Many heads of the head weigh little, a few much: the likeliest token stands out.
    weights = {
        "model.embed_tokens.weight": matrix(VOCAB_SIZE, _HIDDEN),
        "lm_head.weight": 6 * matrix(VOCAB_SIZE, _HIDDEN),
    }
    shapes = {"q_proj": (_HIDDEN, _HIDDEN), "k_proj": (_HIDDEN // 2, _HIDDEN), "v_proj": (_HIDDEN // 2, _HIDDEN),
              "o_proj": (_HIDDEN, _HIDDEN)}  # fmt: skip
    for layer in range(_LAYERS):
        at = f"model.layers.{layer}"
        weights |= {f"{at}.self_attn.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        weights |= {f"{at}.mlp.{name}.weight": matrix(_WIDTH, _HIDDEN) for name in ("gate_proj", "up_proj")}
        weights[f"{at}.mlp.down_proj.weight"] = matrix(_HIDDEN, _WIDTH)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{at}.{name}.weight"] = mx.ones(_HIDDEN, mx.float16)
    weights["model.norm.weight"] = mx.ones(_HIDDEN, mx.float16)
    tokenizer = tokenizer_files()[BPE_NAME].decode()
    end = 256 + SPECIAL.index("<|end|>")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": _HIDDEN,
        "intermediate_size": _WIDTH, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS // 2, "head_dim": _HIDDEN // _HEADS, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "tie_word_embeddings": False, "eos_token_id": end, "torch_dtype": "float16",
    }  # fmt: skip
    if bits is not None:
        config["quantization"] = {"group_size": 64, "bits": bits}
        weights = _quantised(weights, bits)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer)
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE,
        "model_max_length": 512, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def _quantised(weights: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    found = {}
    for name, values in weights.items():
        if values.ndim == 1:
            found[name] = values
            continue
        packed, scales, biases = mx.quantize(values, group_size=64, bits=bits)
        stem = name.removesuffix(".weight")
        found |= {name: packed, f"{stem}.scales": scales, f"{stem}.biases": biases}
    return found

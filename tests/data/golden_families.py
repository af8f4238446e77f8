"""Writes the folders of `families`: tiny random checkpoints of model families with what transformers makes of them.

Run with torch 2.13 and transformers 5.24: `python golden_families.py [NAME ...]`. Weights are exact in float16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parent / "families"
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SCALES = {
    "attention_multiplier": 0.125, "embedding_multiplier": 6.0, "residual_multiplier": 0.7, "logits_scaling": 1.5,
}  # fmt: skip
MOE = {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 24}
YARN = {
    "rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
    "beta_slow": 1.0,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1,
                          "num_hidden_layers": 2, "query_pre_attn_scalar": 24, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16,
                               "num_hidden_layers": 7, "rope_parameters": {
                                   "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                   "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}),
    "phi3": ("phi3", {"sliding_window": 20}),
    "phi4-mini": ("phi3", {"head_dim": 16, "hidden_size": 64, "original_max_position_embeddings": 64,
                           "tie_word_embeddings": True, "rope_parameters": {
                               "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
                               "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7],
                               "long_factor": [1.0, 1.3, 1.9, 2.5, 4.0, 8.0]}}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {"sliding_window": 16, "num_hidden_layers": 4, "rope_parameters": {
        "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "granite": ("granite", SCALES | {"attention_bias": True, "mlp_bias": True}),
    "granitemoe": ("granitemoe", SCALES | MOE | {"tie_word_embeddings": True}),
    "granitemoeshared": ("granitemoeshared", SCALES | MOE | {"shared_intermediate_size": 40}),
    "glm4": ("glm4", {"head_dim": 16, "attention_bias": True}),
    "glm": ("glm", {"head_dim": 16, "attention_bias": True}),
    "ministral": ("ministral", {"head_dim": 16, "sliding_window": 16, "num_hidden_layers": 2,
                                "layer_types": ["full_attention", "sliding_attention"]}),
    "ministral3": ("ministral3", {"head_dim": 16, "rope_parameters": YARN | {
        "type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1}}),
    "mistral-yarn": ("mistral", {"head_dim": 16, "sliding_window": None, "rope_parameters": YARN}),
    "qwen3moe": ("qwen3_moe", {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2,
                               "moe_intermediate_size": 24, "mlp_only_layers": [1], "norm_topk_prob": True}),
    "olmoe": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 24}),
    "mixtral-own-heads": ("mixtral", {"num_local_experts": 4, "intermediate_size": 24, "head_dim": 16}),
    "gpt-oss": ("gpt_oss", {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
                            "intermediate_size": 32, "sliding_window": 16}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma3-images": ("gemma3", {"text_config": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
                                 "vision_config": VISION, "mm_tokens_per_image": 1}),
    "mistral3-images": ("mistral3", {"text_config": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
                                     "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8},
                                     "tie_word_embeddings": False}),
}  # fmt: skip


def build(kind: str, changes: dict[str, Any]) -> Any:
    """A model with random weights."""
    if "text_config" in changes:
        changes = changes | {"text_config": SIZES | changes["text_config"]}
        made = {"gemma3": "Gemma3ForConditionalGeneration", "mistral3": "Mistral3ForConditionalGeneration"}[kind]
        model = getattr(transformers, made)(AutoConfig.for_model(kind, **changes))
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | changes)))
    random = torch.Generator().manual_seed(sum(map(ord, kind)))
    with torch.no_grad():
        for name, values in model.named_parameters():
            noise = torch.randn(values.shape, generator=random)
            if "norm" in name:
                values.copy_(noise * 0.2 + (0.0 if "gemma" in kind else 1.0))
            elif values.ndim == 1 or "bias" in name:
                values.copy_(noise * 0.2)
            else:
                inputs = values.shape[-2 if kind == "gpt_oss" and "experts" in name else -1]
                values.copy_(noise * 1.3 / inputs**0.5)
            values.copy_(values.half().float())
    model.set_attn_implementation("eager")
    return model.eval()


def make(name: str) -> None:
    """Write one folder."""
    model = build(*MODELS[name])
    ids = torch.randint(3, SIZES["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits, continuations = model(input_ids=ids).logits, []
        for row in ids:
            text = row[:12]
            for _ in range(12):
                text = torch.cat([text, model(input_ids=text[None]).logits[0, -1].argmax()[None]])
            continuations.append(text[12:].tolist())
    expected = {
        "source": f"transformers {transformers.__version__}, float32, eager attention",
        "input_ids": ids.tolist(),
        "logits": [[[round(value, 5) for value in row] for row in one] for one in logits.tolist()],
        "greedy_prompt_len": 12,
        "greedy_ids": continuations,
    }
    model.half().save_pretrained(FOLDER / name)
    (FOLDER / name / "generation_config.json").unlink(missing_ok=True)
    (FOLDER / name / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODELS:
        make(chosen)
        print(chosen, flush=True)

"""Architectures that are known and not read, by what they need that no runtime here has."""

from __future__ import annotations

# Names in config.json and in GGUF files, by what is missing.
_NEEDS = {
    "an encoder": (
        "bert", "modernbert", "modern-bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "distilbert", "albert",
        "electra", "deberta", "deberta-v2", "mpnet", "nomic-bert", "nomic_bert", "nomic-bert-moe", "neo-bert",
        "neobert", "jina-bert-v2", "jina-bert-v3", "eurobert", "gemma-embedding",
    ),
    "an encoder beside the decoder": (
        "t5", "t5encoder", "mt5", "umt5", "byt5", "longt5", "switch_transformers", "bart", "mbart", "marian", "pegasus",
        "m2m_100", "whisper", "t5gemma", "t5gemma2", "fsmt", "led", "prophetnet",
    ),
    "state-space layers (Mamba)": (
        "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba", "zamba2", "falcon_h1", "falcon-h1", "nemotron_h",
        "nemotron_h_moe", "granitemoehybrid", "granitehybrid", "granite-hybrid", "plamo2", "plamo3", "hymba", "mamba-2",
    ),
    "linear attention (DeltaNet)": (
        "qwen3_next", "qwen3next", "qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen35", "qwen35moe",
        "kimi_linear", "kimi-linear", "olmo_hybrid", "gated_deltanet", "delta_net",
    ),
    "linear attention": ("minimax", "minimax_text_01", "minimax-text-01", "bailing_moe_linear"),
    "recurrent layers (RWKV)": ("rwkv", "rwkv5", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7"),
    "recurrent layers": ("recurrent_gemma", "recurrentgemma", "xlstm", "griffin"),
    "short convolutions": ("lfm2", "lfm2_moe", "lfm2moe", "lfm2_vl"),
    "an encoder of images": (
        "clip", "siglip", "siglip_vision_model", "siglip2", "vit", "dinov2", "pixtral", "clip_vision_model", "swin",
    ),
}  # fmt: skip


def missing_of(name: str) -> str | None:
    """What an architecture needs that is missing here, as the beginning of a sentence; None for one that is unknown."""
    needs = next((needs for needs, names in _NEEDS.items() if name in names), None)
    return None if needs is None else f"{name!r} needs {needs}, which is not supported"

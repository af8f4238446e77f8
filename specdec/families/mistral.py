"""Mistral (2310.06825), Mistral Small and Ministral: a Llama with a sliding window or none, and a head size of its own.

Ministral 3 scales its queries with their position. GGUF files of older models call themselves Llama.
"""

from __future__ import annotations

from typing import Any

from specdec.families import gguf, huggingface
from specdec.families.base import Family, within
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(
    context=131_072,
    kv_heads=8,
    classes=("MistralForCausalLM", "MinistralForCausalLM", "Mistral3ForConditionalGeneration"),
)
_THIRD = huggingface.Defaults(
    context=262_144,
    rope=RopeDefaults(theta=1e6),
    kv_heads=8,
    head_dim=128,
    eps=1e-5,
    classes=("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
)
_WINDOW = 4096  # what the model classes take when config.json does not mention one
_GROWTH, _ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
# Rotary positions of Ministral 3 where config.json states none.
_ROPE = {
    "type": "yarn", "factor": 16.0, _ORIGINAL: 16_384, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, _GROWTH: 0.1,
}  # fmt: skip


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json, or of its text part."""
    if "text_config" in fields or fields.text("model_type") == "mistral3":
        fields = fields.part("text_config", tie_word_embeddings=True)
    if fields.text("model_type", "mistral") == "ministral3":
        return _third(fields)
    window = huggingface.stated_window(fields) if "sliding_window" in fields.values else _WINDOW
    return huggingface.decoder(fields, defaults=_DEFAULTS, window=window)


def _third(fields: Fields) -> ModelConfig:
    """Ministral 3."""
    if not fields.mapping("rope_parameters").values and not fields.mapping("rope_scaling").values:
        fields = Fields({**fields.values, "rope_parameters": _ROPE}, fields.where)
    rule = next(one for one in map(fields.mapping, ("rope_scaling", "rope_parameters")) if one.values)
    growth: dict[str, Any] = {}
    if beta := rule.at_least_zero(_GROWTH, 0.0):
        growth = {"growth": beta, "growth_span": rule.integer(_ORIGINAL)}
    window = huggingface.stated_window(fields)
    return huggingface.decoder(fields, defaults=_THIRD, window=window, attention=growth)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file of the architecture mistral3."""
    attention: dict[str, Any] = dict(gguf.biases(fields))
    if beta := gguf.scale(fields, "attention.temperature_scale", 0.0):
        original = fields.integer(fields.key("rope.scaling.original_context_length"))
        attention |= {"growth": beta, "growth_span": original}
    return gguf.decoder(fields, family="mistral", reads=("attention.temperature_scale",), attention=attention)


FAMILY = Family(
    name="mistral",
    model_types=("mistral", "ministral", "ministral3", "mistral3"),
    from_huggingface=from_huggingface,
    huggingface=within(
        huggingface.DENSE,
        ("model.", "language_model.model."),
        ("model.", "model.language_model."),
        ("lm_head.", "language_model.lm_head."),
    ),
    ignored=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    gguf_name="mistral3",
    from_gguf=from_gguf,
    gguf=gguf.interleaved(gguf.DECODER),
)

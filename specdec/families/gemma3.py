"""Gemma 3 (2503.19786), its text part: norms of queries and keys, one of six layers sees the whole context, and those
with a sliding window have rotary positions of another base."""

from __future__ import annotations

from specdec.families import gemma2, gguf, huggingface
from specdec.families.base import Family, within
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig

# What the model class takes when config.json does not say.
_CLASS = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip
_THETA, _LOCAL_THETA = 1e6, 1e4
_DEFAULTS = huggingface.Defaults(
    context=131_072,
    rope=RopeDefaults(theta=_THETA, local_theta=_LOCAL_THETA, scales_local=False),
    head_dim=256,
    tied=True,
    activation="gelu_tanh",
    bias="all",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
)
_PERIOD = 6
_LARGEST = 62  # layers of the model with another scale of scores
_ATTENTION = {"qk_norm": "head"}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json, or of its text part."""
    if "text_config" in fields:
        fields = fields.part("text_config", tie_word_embeddings=True)
    fields = fields.with_defaults(_CLASS)
    period = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", _PERIOD))
    if period <= 0:
        raise fields.wrong("sliding_window_pattern", "a positive whole number")
    return gemma2.gemma(
        fields,
        defaults=_DEFAULTS,
        sliding=lambda number: (number + 1) % period != 0,
        attention=_ATTENTION,
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file, whose norms have their offset in them."""
    return gemma2.gemma_gguf(
        fields,
        family="gemma3",
        largest=_LARGEST,
        attention=_ATTENTION,
        sliding=lambda number: (number + 1) % _PERIOD != 0,
        scales_local=False,
        local_theta=_LOCAL_THETA,
        logit_cap=gguf.scale(fields, "final_logit_softcapping", 0.0) or None,
    )


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3", "gemma3_text"),
    from_huggingface=from_huggingface,
    huggingface=within(
        {**gemma2.HUGGINGFACE, **huggingface.QK_NORMS},
        ("model.", "language_model.model."),
        ("model.", "model.language_model."),
        ("lm_head.", "language_model.lm_head."),
    ),
    ignored=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    gguf_name="gemma3",
    from_gguf=from_gguf,
    gguf=gguf.DECODER,
)

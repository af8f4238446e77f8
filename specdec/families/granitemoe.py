"""Granite 3 (IBM) with mixtures of experts, and perhaps an expert that every token uses."""

from __future__ import annotations

from specdec.families import gguf, granite, huggingface
from specdec.families.base import Family, Places, Stored, either
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(bias="all", classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"))
# What the model class takes when config.json does not say.
_CLASS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_LAYER = "model.layers.{layer}"
_MOE, _SHARED = f"{_LAYER}.block_sparse_moe", f"{_LAYER}.shared_mlp"


def _inputs(tensor: str, base: str) -> Places:
    """Gates before ups in one tensor."""
    among = (f"{base}.gate", f"{base}.up")
    return {kind: Stored(tensor, among=among) for kind in among}


_HUGGINGFACE: Places = {
    **huggingface.ATTENTION,
    **huggingface.BIASES,
    "mlp.router": Stored(f"{_MOE}.router.layer.weight"),
    **either(
        {
            **_inputs(f"{_MOE}.input_linear.weight", "mlp.experts"),
            "mlp.experts.down": Stored(f"{_MOE}.output_linear.weight"),
        },
        {f"mlp.experts.{name}": Stored(f"{_MOE}.switch_mlp.{name}_proj.weight") for name in ("gate", "up", "down")},
        {
            **_inputs(f"{_MOE}.experts.gate_up_proj", "mlp.experts"),
            "mlp.experts.down": Stored(f"{_MOE}.experts.down_proj"),
        },
    ),
    **_inputs(f"{_SHARED}.input_linear.weight", "mlp.shared"),
    "mlp.shared.down": Stored(f"{_SHARED}.output_linear.weight"),
}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    fields = fields.with_defaults(_CLASS)
    has_shared = fields.text("model_type") == "granitemoeshared"
    mlp = huggingface.mixture(
        fields,
        count="num_local_experts",
        width="intermediate_size",
        shared_width=fields.integer("shared_intermediate_size", 0) if has_shared else 0,
    )
    return granite.scaled(fields, defaults=_DEFAULTS, mlp=lambda _: mlp)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    shared = fields.integer(fields.key("expert_shared_feed_forward_length"), 0)
    mlp = gguf.mixture(fields, width="feed_forward_length", shared_width=shared)
    return granite.scaled_gguf(fields, family="granitemoe", mlp=lambda _: mlp)


FAMILY = Family(
    name="granitemoe",
    model_types=("granitemoe", "granitemoeshared"),
    from_huggingface=from_huggingface,
    huggingface=_HUGGINGFACE,
    gguf_name="granitemoe",
    from_gguf=from_gguf,
    gguf={**gguf.interleaved(gguf.DECODER), **gguf.EXPERTS},
)

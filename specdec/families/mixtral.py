"""Mixtral (2401.04088): a Mistral with a mixture of experts for each MLP. Its GGUF files call themselves Llama."""

from __future__ import annotations

from dataclasses import replace

from specdec.families import gguf, huggingface
from specdec.families.base import Family, Stored, Tensors
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(context=131_072, theta=1e6, kv_heads=8, eps=1e-5)
_EXPERTS, _USED = 8, 2  # what the model class takes when config.json does not say
_MOE = "model.layers.{layer}.block_sparse_moe"
_PROJECTIONS = {"gate": "w1", "up": "w3", "down": "w2"}

_ROUTER = {"mlp.router": Stored(f"{_MOE}.gate.weight")}
_SINGLE = _ROUTER | {
    f"mlp.experts.{name}": Stored(f"{_MOE}.experts.{{expert}}.{theirs}.weight") for name, theirs in _PROJECTIONS.items()
}
# Newer checkpoints of transformers: the rows of every expert's gate, then those of its up.
_FUSED = {
    "mlp.router": Stored("model.layers.{layer}.mlp.gate.weight"),
    "mlp.experts.gate": Stored("model.layers.{layer}.mlp.experts.gate_up_proj", part=0, parts=2),
    "mlp.experts.up": Stored("model.layers.{layer}.mlp.experts.gate_up_proj", part=1, parts=2),
    "mlp.experts.down": Stored("model.layers.{layer}.mlp.experts.down_proj"),
}
# mlx-lm.
_STACKED = _ROUTER | {f"mlp.experts.{name}": Stored(f"{_MOE}.switch_mlp.{name}_proj.weight") for name in _PROJECTIONS}

_GGUF = (
    gguf.DECODER
    | {name: replace(gguf.DECODER[name], interleaved=True) for name in ("attn.q", "attn.k")}
    | {"mlp.router": Stored("blk.{layer}.ffn_gate_inp.weight")}
)
_GGUF_SINGLE = {f"mlp.experts.{name}": Stored(f"blk.{{layer}}.ffn_{name}.{{expert}}.weight") for name in _PROJECTIONS}
_GGUF_MERGED = {f"mlp.experts.{name}": Stored(f"blk.{{layer}}.ffn_{name}_exps.weight") for name in _PROJECTIONS}


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields),
        num_experts=fields.integer("num_local_experts", _EXPERTS),
        experts_per_token=fields.integer("num_experts_per_tok", _USED),
    )


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file of Llama's architecture that has experts."""
    return gguf.decoder(
        fields,
        family="mixtral",
        num_experts=fields.integer(fields.key("expert_count")),
        experts_per_token=fields.integer(fields.key("expert_used_count")),
    )


FAMILY = Family(
    name="mixtral",
    from_huggingface=from_huggingface,
    huggingface=(
        Tensors(huggingface.ATTENTION | _FUSED, mark=".experts.gate_up_proj"),
        Tensors(huggingface.ATTENTION | _STACKED, mark=".switch_mlp."),
        Tensors(huggingface.ATTENTION | _SINGLE),
    ),
    gguf=(Tensors(_GGUF | _GGUF_MERGED, mark="_exps."), Tensors(_GGUF | _GGUF_SINGLE)),
)

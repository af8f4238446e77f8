"""SmolLM3: a Llama in which every fourth layer has no rotary positions (NoPE, 2501.18795)."""

from __future__ import annotations

from dataclasses import replace

from specdec.errors import ModelFormatError
from specdec.families import gguf, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig, check_layers
from specdec.model.layers import Layer, Rope

_DEFAULTS = huggingface.Defaults(
    context=32_768, rope=RopeDefaults(theta=2e6), kv_heads=4, tied=True, bias="all", mlp_bias=True
)
_INTERVAL = 4  # what the model class takes when config.json does not say, and the only one in GGUF files


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    turns = _turns(fields, fields.integer("num_hidden_layers"))
    config = huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields) if fields.flag("use_sliding_window", False) else None,
        sliding=lambda number: not turns[number],
    )
    return without_positions(config, turns)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    config = gguf.decoder(fields, family="smollm3", attention=gguf.biases(fields))
    return without_positions(config, [bool((number + 1) % _INTERVAL) for number in range(config.num_layers)])


def _turns(fields: Fields, count: int) -> list[bool]:
    """Whether each layer has rotary positions."""
    check_layers(count)
    stated, interval = fields.array("no_rope_layers"), fields.integer("no_rope_layer_interval", _INTERVAL)
    if stated and (len(stated) != count or not all(value in (0, 1) for value in stated)):
        raise ModelFormatError(f"{fields.where}: no_rope_layers must hold 0 or 1 for each of {count} layers")
    if interval <= 0:
        raise fields.wrong("no_rope_layer_interval", "a positive whole number")
    return [bool(value) for value in stated] or [bool((number + 1) % interval) for number in range(count)]


def without_positions(config: ModelConfig, turns: list[bool]) -> ModelConfig:
    """The same with rotary positions in some layers only."""

    def still(layer: Layer) -> Layer:
        return replace(layer, attention=replace(layer.attention, rope=Rope(kind="none")))

    layers = (layer if turned else still(layer) for layer, turned in zip(config.layers, turns, strict=True))
    return replace(config, layers=tuple(layers))


FAMILY = Family(
    name="smollm3",
    from_huggingface=from_huggingface,
    huggingface=huggingface.DENSE,
    gguf_name="smollm3",
    from_gguf=from_gguf,
    gguf=gguf.interleaved(gguf.DECODER),
)

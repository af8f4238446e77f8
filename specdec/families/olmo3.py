"""OLMo 3 (2512.13961): OLMo 2 with sliding windows in three of four layers. Its GGUF files call themselves OLMo 2."""

from __future__ import annotations

from specdec.families import huggingface, olmo2
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.rope_huggingface import RopeDefaults
from specdec.model.architecture import ModelConfig

_DEFAULTS = huggingface.Defaults(rope=RopeDefaults(theta=5e5, scales_local=False), eps=1e-5, bias="all")
_WINDOW = 4096  # what the model class takes when config.json does not mention one


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return huggingface.decoder(
        fields,
        defaults=_DEFAULTS,
        window=huggingface.stated_window(fields) if "sliding_window" in fields.values else _WINDOW,
        sliding=lambda number: number % 4 < 3,
        attention=olmo2.ATTENTION,
        layer=olmo2.LAYER,
    )


FAMILY = Family(name="olmo3", from_huggingface=from_huggingface, huggingface=olmo2.HUGGINGFACE)

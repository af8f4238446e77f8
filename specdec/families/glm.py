"""GLM-4-9B (2406.12793): GLM-4-0414 with norms before attention and MLP only. Its GGUF files are called ChatGLM."""

from __future__ import annotations

from specdec.families import gguf, glm4, huggingface
from specdec.families.base import Family
from specdec.families.fields import Fields
from specdec.families.gguf_fields import GgufFields
from specdec.model.architecture import ModelConfig


def from_huggingface(fields: Fields) -> ModelConfig:
    """The model of a config.json."""
    return huggingface.decoder(fields, defaults=glm4.DEFAULTS)


def from_gguf(fields: GgufFields) -> ModelConfig:
    """The model of a GGUF file."""
    return gguf.decoder(fields, family="glm", turns_part=True, attention=gguf.biases(fields))


FAMILY = Family(
    name="glm",
    from_huggingface=from_huggingface,
    huggingface=glm4.HUGGINGFACE,
    gguf_name="chatglm",
    from_gguf=from_gguf,
    gguf=glm4.GGUF,
)

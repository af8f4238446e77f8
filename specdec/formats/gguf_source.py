"""A GGUF file as a `Source`: metadata to `ModelConfig`, and which tensor is which matrix.

The tokenizer inside the file is rebuilt by `gguf_tokenizer`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from specdec.errors import ModelFormatError
from specdec.formats.fields import Fields
from specdec.formats.gguf_file import GGUFFile
from specdec.formats.gguf_tokenizer import tokenizer_files
from specdec.formats.rope import linear_factors
from specdec.formats.weights import FileSource, Origin, check_counts, check_tensors, stored_types
from specdec.model.architecture import ModelConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_EMBED, _HEAD, _ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"

# Keys that change the arithmetic in ways that no runtime here follows, with the value that leaves it as it is.
_NEUTRAL = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.temperature_scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "residual_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "router_logit_softcapping": 0.0,
}
_NEVER = ("attention.sliding_window_pattern", "attention.shared_kv_layers", "rope.dimension_sections")


def open_gguf(path: Path, *, dtype: str | None = None) -> FileSource:
    """A GGUF file.

    Args:
        path: the file.
        dtype: "float16", "bfloat16", or None for bfloat16 when most weights are stored as BF16, else float16.

    Raises:
        ModelFormatError: damaged, or of a kind that this version does not read.
    """
    file = GGUFFile(path)
    try:
        fields = Fields(file.metadata, file.label)
        config = _read_config(fields, file)
        check_counts(config, file)
        origins = _origins(config, file)
        check_tensors(file, origins, ignored={_ROPE_FACTORS})
        return FileSource(
            file,
            config,
            origins=origins,
            dtype=dtype,
            description={
                "kind": "gguf",
                "file": file.label,
                "name": fields.text("general.name", ""),
                "types": stored_types(file),
            },
            tokenizer_files=tokenizer_files(fields, vocab_size=config.vocab_size),
        )
    except BaseException:
        file.close()
        raise


def _read_config(fields: Fields, file: GGUFFile) -> ModelConfig:
    family = fields.text("general.architecture")
    if family not in ARCHITECTURES:
        raise ModelFormatError(
            f"{fields.where}: unknown architecture {family!r}: GGUF is read for {', '.join(ARCHITECTURES)}"
        )
    if "split.count" in fields and fields.integer("split.count") > 1:
        raise ModelFormatError(f"{fields.where} is one part of a split model: merge the parts into one file first")
    heads = _per_layer(fields, f"{family}.attention.head_count", None)
    hidden = fields.integer(f"{family}.embedding_length")
    if f"{family}.attention.key_length" not in fields and (heads <= 0 or hidden % heads):
        raise ModelFormatError(f"{fields.where}: embedding_length {hidden} must be a multiple of head_count {heads}")
    head_dim = fields.integer(f"{family}.attention.key_length", hidden // heads if heads > 0 else 0)
    _refuse_unsupported(fields, family, head_dim)
    experts = fields.integer(f"{family}.expert_count", 0)
    if experts and family != "llama":
        raise ModelFormatError(f"{fields.where}: experts are not supported for {family}")
    window = f"{family}.attention.sliding_window"
    return ModelConfig(
        architecture="mixtral" if experts else family,
        vocab_size=_vocab_size(file),
        hidden_size=hidden,
        intermediate_size=_per_layer(fields, f"{family}.feed_forward_length", None),
        num_layers=fields.integer(f"{family}.block_count"),
        num_heads=heads,
        num_kv_heads=_per_layer(fields, f"{family}.attention.head_count_kv", heads),
        head_dim=head_dim,
        # Stored as float32: its shortest decimal is the number that was meant, 1e-05 and not 9.99999974e-06.
        norm_eps=float(str(np.float32(fields.number(f"{family}.attention.layer_norm_rms_epsilon")))),
        rope_theta=fields.number(f"{family}.rope.freq_base", 1e4),
        max_context=fields.integer(f"{family}.context_length"),
        rope_factors=_rope_factors(fields, family, file, head_dim),
        sliding_window=(fields.integer(window) or None) if window in fields else None,
        tie_embeddings=_HEAD not in file.names(),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        num_experts=experts,
        experts_per_token=fields.integer(f"{family}.expert_used_count") if experts else 0,
    )


def _refuse_unsupported(fields: Fields, family: str, head_dim: int) -> None:
    for key, neutral in _NEUTRAL.items():
        if f"{family}.{key}" in fields and fields.values[f"{family}.{key}"] != neutral:
            raise ModelFormatError(f"{fields.where}: {family}.{key} must be {neutral}, other values are not supported")
    for key in _NEVER:
        if f"{family}.{key}" in fields:
            raise ModelFormatError(f"{fields.where}: {family}.{key} is not supported")
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(f"{family}.{key}", head_dim) != head_dim:
            raise ModelFormatError(f"{fields.where}: {family}.{key} must be the head size {head_dim}")
    scale = fields.number(f"{family}.attention.scale", 1 / math.sqrt(max(head_dim, 1)))
    if not math.isclose(scale, 1 / math.sqrt(max(head_dim, 1)), rel_tol=1e-6):  # stored as float32
        raise ModelFormatError(f"{fields.where}: {family}.attention.scale must be 1/sqrt({head_dim}), not {scale:.6g}")


def _per_layer(fields: Fields, key: str, default: int | None) -> int:
    """A number that may be given once or for each layer; all layers must agree."""
    values = fields.values.get(key)
    if not isinstance(values, list):
        return fields.integer(key, default)
    if len(set(values)) != 1:
        raise ModelFormatError(f"{fields.where}: {key} differs between layers, which is not supported")
    return Fields({key: values[0]}, fields.where).integer(key)


def _vocab_size(file: GGUFFile) -> int:
    if _EMBED not in file.names():
        raise ModelFormatError(f"{file.label} lacks tensor {_EMBED!r}")
    return file.shape(_EMBED)[0]


def _rope_factors(fields: Fields, family: str, file: GGUFFile, head_dim: int) -> tuple[float, ...] | None:
    """Divisors from the file's own tensor (Llama 3), or from linear scaling in the metadata."""
    rule = fields.text(f"{family}.rope.scaling.type", "none")
    if _ROPE_FACTORS in file.names():
        if file.shape(_ROPE_FACTORS) != (head_dim // 2,):
            raise ModelFormatError(f"{file.label}: tensor {_ROPE_FACTORS!r} must have shape ({head_dim // 2},)")
        factors = file.float32(_ROPE_FACTORS, 0, 1)[0]
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise ModelFormatError(f"{file.label}: tensor {_ROPE_FACTORS!r} must hold positive numbers")
        if rule != "none":
            raise ModelFormatError(f"{file.label}: rotary scaling {rule!r} together with tensor {_ROPE_FACTORS!r}")
        return tuple(float(x) for x in factors)
    if rule == "none":
        old = fields.number(f"{family}.rope.scale_linear", 1.0)
        return linear_factors(old, head_dim) if old != 1.0 else None
    if rule == "linear":
        return linear_factors(fields.number(f"{family}.rope.scaling.factor"), head_dim)
    raise ModelFormatError(f"{fields.where}: rotary scaling {rule!r} is not supported, only none and linear")


def _origins(config: ModelConfig, file: GGUFFile) -> dict[str, Origin]:
    shapes: dict[str, tuple[int, ...]] = {**config.matrices(), **config.tables()}
    shapes |= {name: (length,) for name, length in config.vectors().items()}
    merged = config.num_experts > 0 and any("_exps." in name for name in file.names())
    return {name: _origin(name, shape, config, merged) for name, shape in shapes.items()}


def _origin(name: str, shape: tuple[int, ...], config: ModelConfig, merged: bool) -> Origin:
    """Where the matrix or vector `name` lies; `merged` is the layout that keeps all experts in one tensor."""
    outside = {"embed": _EMBED, "head": _EMBED if config.tie_embeddings else _HEAD, "final_norm": "output_norm.weight"}
    if name in outside:
        return Origin(outside[name], shape)
    _, layer, *parts = name.split(".")
    base = f"blk.{layer}"
    match parts:
        case ["attn_norm"]:
            return Origin(f"{base}.attn_norm.weight", shape)
        case ["mlp_norm"]:
            return Origin(f"{base}.ffn_norm.weight", shape)
        case ["attn", "o"]:
            return Origin(f"{base}.attn_output.weight", shape)
        case ["attn", projection]:
            return Origin(f"{base}.attn_{projection}.weight", shape, interleaved_heads=_interleaved(projection, config))
        case ["attn", projection, "bias"]:
            return Origin(f"{base}.attn_{projection}.bias", shape)
        case ["mlp", "router"]:
            return Origin(f"{base}.ffn_gate_inp.weight", shape)
        case ["mlp", projection]:
            return Origin(f"{base}.ffn_{projection}.weight", shape)
        case ["mlp", "experts", expert, projection] if merged:
            whole = (config.num_experts, *shape)
            return Origin(f"{base}.ffn_{projection}_exps.weight", whole, first_row=int(expert) * shape[0])
        case ["mlp", "experts", expert, projection]:
            return Origin(f"{base}.ffn_{projection}.{expert}.weight", shape)
    raise ModelFormatError(f"no GGUF tensor is known for {name!r}")


def _interleaved(projection: str, config: ModelConfig) -> int:
    """Heads of a projection that the Llama family stores in the interleaved rotary layout."""
    if config.architecture not in ("llama", "mixtral"):
        return 0
    return {"q": config.num_heads, "k": config.num_kv_heads}.get(projection, 0)

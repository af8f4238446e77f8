"""From a model's description to the native runtime's: `_native.ModelShape`, whose fields are those of
`kernels/cpu/model/shape.h`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specdec.kernels.reference.layers import rotary_frequencies
from specdec.model.architecture import ModelConfig
from specdec.model.layers import Attention, Layer, Mlp

if TYPE_CHECKING:
    from specdec.runtimes.share import Part
    from specdec.store import Store


def shape_of(module: Any, store: Store, share: Part | None = None) -> Any:
    """The `_native.ModelShape` of a store's model and layout, or of a device's share of it."""
    config = store.config
    shape = module.ModelShape()
    _set(
        shape,
        vocab=config.vocab,
        hidden=config.hidden,
        layers=_layers(module, config) if share is None else _shared_layers(module, share),
        norm_eps=config.eps,
        embed_scale=config.embed_scale,
        logit_scale=config.logit_scale,
        logit_cap=config.logit_cap or 0.0,
        tie_embeddings=config.tied,
        bfloat16=store.dtype == "bfloat16",
        bucket_size=store.layout.bucket_size,
        tier_sizes=list(store.layout.tier_sizes),
    )
    if share is not None:
        tokens, hidden = share.tokens, share.hidden
        _set(
            shape,
            divided=True,
            own_hidden=hidden.stop - hidden.start,
            own_vocab=tokens.stop - tokens.start,
            first_token=tokens.start,
            staged=share.is_staged,
            embeds=share.embeds,
            scores=share.scores,
            single_cache=any(layer.mlp.experts for layer in share.whole.layers),
        )
    return shape


def _shared_layers(module: Any, share: Part) -> list[Any]:
    """A `_native.LayerShape` for each layer with the sizes of a device's share."""
    config, shapes = share.config, share.shapes()
    layers = []
    for number, layer in enumerate(config.layers):
        shape, names = _layer(module, config, number), config.mlp_names(number)
        heads, kv_heads, mlp = share.heads(number), share.kv_heads(number), layer.mlp
        _set(
            shape,
            heads=heads.stop - heads.start,
            kv_heads=kv_heads.stop - kv_heads.start,
            width=shapes[f"{names[0]}.gate"][0],
            shared_width=shapes[f"{names[-1]}.gate"][0] if mlp.shared_width else 0,
            all_heads=layer.attention.heads,
            all_kv_heads=layer.attention.kv_heads,
            first_head=heads.start,
            first_kv_head=kv_heads.start,
            all_width=mlp.width,
            all_shared_width=mlp.shared_width,
        )
        layers.append(shape)
    return layers


def _layers(module: Any, config: ModelConfig) -> list[Any]:
    """A `_native.LayerShape` for each layer; equal layers share one."""
    first = {layer: number for number, layer in reversed(list(enumerate(config.layers)))}
    shapes = {layer: _layer(module, config, number) for layer, number in first.items()}
    return [shapes[layer] for layer in config.layers]


def _layer(module: Any, config: ModelConfig, number: int) -> Any:
    layer, shape = config.layers[number], module.LayerShape()
    _set(
        shape,
        **_attention(layer.attention),
        **_mlp(layer.mlp),
        **_block(layer),
        frequencies=rotary_frequencies(config, number).tolist(),
        qk_norm=module.QkNorm[layer.attention.qk_norm],
        activation=module.Activation[layer.mlp.activation],
    )
    return shape


def _attention(attention: Attention) -> dict[str, Any]:
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "rotary_factor": attention.rope.attention_factor,
        "interleaved": attention.rope.kind == "interleaved",
        "window": attention.window or 0,
        "scale": attention.scale or 0.0,
        "softcap": attention.softcap or 0.0,
        "growth": attention.growth,
        "growth_span": attention.growth_span,
        "qkv_bias": attention.bias,
        "o_bias": attention.output_bias,
        "sinks": attention.sinks,
        "gate": attention.gate,
    }


def _mlp(mlp: Mlp) -> dict[str, Any]:
    # Shares of a softmax over all experts, divided by their sum, are a softmax over the chosen ones.
    return {
        "width": mlp.width,
        "mlp_bias": mlp.bias,
        "experts": mlp.experts,
        "experts_used": mlp.experts_used,
        "router_bias": mlp.router_bias,
        "softmax_over_all": mlp.router == "softmax-then-top" and not mlp.renormalise,
        "shared_width": mlp.shared_width,
    }


def _block(layer: Layer) -> dict[str, Any]:
    return {
        "pre_norms": layer.norms != "post",
        "post_norms": layer.norms != "pre",
        "residual_scale": layer.residual_scale,
    }


def _set(shape: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(shape, name, value)

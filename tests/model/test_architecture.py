"""Model descriptions: their laws, their JSON forms, names of tensors, and the features that runtimes must execute."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.model.architecture import ModelConfig
from specdec.model.features import Feature, features_of
from specdec.model.layers import Attention, Layer, Mlp, Rope
from specdec.model.rope_scaling import RopeScaling
from specdec.runtimes.features import check_missing, lack

# What stores of versions 1 to 3 hold of a model.
FLAT: dict[str, Any] = {
    "architecture": "qwen2", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_layers": 3,
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "norm_eps": 1e-06, "rope_theta": 1000000.0, "max_context": 512,
    "rope_factors": None, "sliding_window": None, "first_sliding_layer": 0, "tie_embeddings": True, "qkv_bias": True,
    "qk_norm": False, "num_experts": 0, "experts_per_token": 0,
}  # fmt: skip

# Descriptions have many parts: on a busy machine drawing them is slow.
drawn = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
sizes, flags = st.integers(1, 300), st.booleans()
positive = st.floats(1e-6, 1e6)
maybe = st.one_of(st.none(), positive)


@st.composite
def scalings(draw: st.DrawFn, pairs: int) -> RopeScaling:
    kind, original = draw(st.sampled_from(["dynamic", "longrope"])), draw(sizes)
    if kind == "dynamic":
        return RopeScaling(kind="dynamic", original=original, factor=draw(positive))
    factor = draw(positive)
    return RopeScaling(kind="longrope", original=original, short=(factor,) * pairs, long=(2 * factor,) * pairs)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    kv_heads, half = draw(st.integers(1, 4)), draw(st.sampled_from([2, 4, 8]))
    share = draw(st.sampled_from([0.5, 1.0]))
    count = int(half * share)
    rope = Rope(
        theta=draw(positive),
        factors=draw(st.one_of(st.none(), st.lists(positive, min_size=count, max_size=count).map(tuple))),
        share=share,
        kind=draw(st.sampled_from(["half", "interleaved", "none"])),
        attention_factor=draw(positive),
        scaling=draw(scalings(count)) if draw(flags) else None,
    )
    return Attention(
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=2 * half,
        rope=rope,
        window=draw(st.one_of(st.none(), sizes)),
        bias=draw(flags),
        output_bias=draw(flags),
        qk_norm=draw(st.sampled_from(["none", "head", "full"])),
        scale=draw(maybe),
        softcap=draw(maybe),
        sinks=draw(flags),
        gate=draw(flags),
        growth=(growth := draw(st.sampled_from([0.0, 0.1]))),
        growth_span=draw(sizes) if growth else 0,
    )


@st.composite
def mlps(draw: st.DrawFn) -> Mlp:
    experts = draw(st.sampled_from([0, 0, 3, 8]))
    router = draw(st.sampled_from(["softmax-then-top", "top-then-softmax"]))
    return Mlp(
        width=draw(sizes),
        activation=draw(st.sampled_from(["silu", "gelu_tanh", "clamped_swiglu"])),
        bias=draw(flags),
        experts=experts,
        experts_used=min(2, experts),
        router=router,
        renormalise=router == "top-then-softmax" or draw(flags),
        router_bias=experts > 0 and draw(flags),
        shared_width=draw(sizes) if experts and draw(flags) else 0,
    )


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    layer = st.builds(
        Layer,
        attention=attentions(),
        mlp=mlps(),
        norms=st.sampled_from(["pre", "post", "both"]),
        residual_scale=positive,
    )
    kinds = draw(st.lists(layer, min_size=1, max_size=3))
    context = draw(sizes)
    return ModelConfig(
        family=draw(st.text("abc3", min_size=1)),
        vocab=draw(sizes),
        hidden=draw(sizes),
        layers=tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))),
        eps=draw(positive),
        max_context=context,
        longest_context=draw(st.one_of(st.none(), st.integers(context, 1 << 20))),
        norm_offset=draw(st.sampled_from([0.0, 1.0])),
        embed_scale=draw(positive),
        logit_scale=draw(positive),
        logit_cap=draw(maybe),
        tied=draw(flags),
    )


@given(configs())
@drawn
def test_any_description_survives_json(config: ModelConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    again = ModelConfig.from_dict(values)
    assert again == config
    assert hash(again) == hash(config)
    assert len(values["kinds"]) == len(set(config.layers))
    assert again.to_dict() == values


@given(configs())
@drawn
def test_names_are_different_and_belong_to_one_kind_of_tensor(config: ModelConfig) -> None:
    names = [*config.matrices(), *config.tables(), *config.vectors()]
    assert len(names) == len(set(names))
    assert next(reversed(config.matrices())) == "head"
    assert (
        len(config.vectors())
        == sum(
            2 * (1 + (layer.norms == "both"))
            + 2 * (layer.attention.qk_norm != "none")
            + 3 * layer.attention.bias
            + layer.attention.output_bias
            + layer.mlp.router_bias
            + layer.attention.sinks
            + 3 * layer.mlp.bias * (max(1, layer.mlp.experts) + (layer.mlp.shared_width > 0))
            for layer in config.layers
        )
        + 1
    )


def test_equal_layers_are_one_object() -> None:
    config = ModelConfig.from_flat_dict(FLAT | {"num_layers": 80, "sliding_window": 8, "first_sliding_layer": 28})
    assert len({id(layer) for layer in config.layers}) == 2
    assert [config.window(layer) for layer in (0, 27, 28, 79)] == [None, None, 8, 8]
    assert len(json.dumps(config.to_dict())) < 1000
    loaded = ModelConfig.from_dict(config.to_dict())
    assert loaded.layers[0] is loaded.layers[27]


def test_what_is_the_default_is_not_written() -> None:
    assert ModelConfig.from_flat_dict(FLAT).to_dict() == {
        "family": "qwen2",
        "vocab": 320,
        "hidden": 64,
        "eps": 1e-06,
        "max_context": 512,
        "tied": True,
        "kinds": [
            {
                "attention": {"heads": 4, "kv_heads": 2, "head_dim": 16, "rope": {"theta": 1e6}, "bias": True},
                "mlp": {"width": 160},
            }
        ],
        "layers": [0, 0, 0],
    }


def test_flat_descriptions_of_older_stores() -> None:
    config = ModelConfig.from_flat_dict(FLAT | {"rope_factors": [2] * 8})
    assert config.family == "qwen2"
    assert (config.vocab_size, config.hidden_size, config.num_layers, config.max_context) == (320, 64, 3, 512)
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size) == (4, 2, 16, 160)
    assert (config.norm_eps, config.rope_theta, config.rope_factors) == (1e-6, 1e6, (2.0,) * 8)
    assert (config.tie_embeddings, config.qkv_bias, config.qk_norm) == (True, True, False)
    assert (config.num_experts, config.experts_per_token) == (0, 0)
    mixture = ModelConfig.from_flat_dict(FLAT | {"num_experts": 8, "experts_per_token": 2})
    assert (mixture.num_experts, mixture.experts_per_token) == (8, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "does not fit this version"),
        ({"vocab_size": "many"}, "vocab_size must be a positive whole number"),
        ({"vocab_size": True}, "vocab_size must be a positive whole number"),
        ({"num_layers": 0}, "num_layers must be a positive whole number"),
        ({"num_layers": 10**9}, "1000000000 layers; at most 4096"),
        ({"num_heads": 3}, "num_heads 3 must be a multiple of num_kv_heads 2"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"rope_factors": [1.0]}, "rope_factors must hold 8 numbers, not 1"),
        ({"rope_factors": [0.0] * 8}, "rope_factors must be positive"),
        ({"rope_factors": ["x"] * 8}, "does not fit this version"),
        ({"rope_theta": float("nan")}, "theta must be a positive number"),
        ({"norm_eps": 0}, "eps must be a positive number"),
        ({"sliding_window": 0}, "window must be a positive whole number"),
        ({"num_experts": 2, "experts_per_token": 3}, r"experts_per_token must be 1 to num_experts \(2\)"),
        ({"architecture": ""}, "must have a name"),
    ],
)
def test_flat_descriptions_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_flat_dict(FLAT | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(layers=[0, 1]), "numbers of the 1 kinds"),
        (lambda v: v.update(layers=[-1]), "numbers of the 1 kinds"),
        (lambda v: v.update(layers=3), "does not fit this version"),
        (lambda v: v.update(layers=[]), "num_layers must be"),
        (lambda v: v.update(kinds=[7]), "does not fit this version"),
        (lambda v: v.pop("kinds"), "does not fit this version"),
        (lambda v: v.update(news=1), "does not fit this version"),
        (lambda v: v.update(_hash=1), "does not fit this version"),
        (lambda v: v.update(tied=1), "tied must be true or false"),
        (lambda v: v.update(logit_cap=-1.0), "logit_cap must be a positive number"),
        (lambda v: v["kinds"][0].update(news=1), "does not fit this version"),
        (lambda v: v["kinds"][0].update(norms="none"), "norms must be one of pre, post, both"),
        (lambda v: v["kinds"][0]["attention"].update(qk_norm="some"), "qk_norm must be one of none, head, full"),
        (lambda v: v["kinds"][0]["attention"]["rope"].update(share=0.4), "even part of the head"),
        (lambda v: v["kinds"][0]["attention"]["rope"].update(share=2), "share must be at most 1"),
        (lambda v: v["kinds"][0]["attention"].update(growth=0.1), "growth_span must be a positive whole number"),
        (lambda v: v["kinds"][0]["attention"].update(growth_span=4), "growth must be a positive number"),
        (lambda v: v["kinds"][0]["mlp"].update(shared_width=4), "need experts"),
        (lambda v: v["kinds"][0]["mlp"].update(router_bias=True), "need experts"),
        (lambda v: v["kinds"][0]["mlp"].update(renormalise=False), "always normalised"),
        (lambda v: v["kinds"][0]["mlp"].update(experts=-1), "num_experts must be a whole number"),
    ],
)
def test_descriptions_out_of_range(change: Any, message: str) -> None:
    values = json.loads(json.dumps(ModelConfig.from_flat_dict(FLAT).to_dict()))
    change(values)
    with pytest.raises(ModelFormatError, match=message):
        ModelConfig.from_dict(values)


def test_a_flat_description_is_not_read_as_a_new_one() -> None:
    with pytest.raises(ModelFormatError, match="does not fit this version"):
        ModelConfig.from_dict(FLAT)
    with pytest.raises(ModelFormatError, match="does not fit this version"):
        ModelConfig.from_flat_dict(ModelConfig.from_flat_dict(FLAT).to_dict())


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"sliding_window": 8, "first_sliding_layer": 2},
        {"sliding_window": 8},
        {"rope_factors": (2.0,) * 8},
        {"qkv_bias": False, "qk_norm": True, "tie_embeddings": False},
        {"num_experts": 8, "experts_per_token": 2},
    ],
)
def test_flat_descriptions_survive(change: dict[str, Any]) -> None:
    assert ModelConfig.from_flat_dict(FLAT | change).to_flat_dict() == FLAT | change


@given(configs())
@drawn
def test_a_model_is_described_flatly_or_not_at_all(config: ModelConfig) -> None:
    flat = config.to_flat_dict()
    assert flat is None or ModelConfig.from_flat_dict(flat) == config


def test_what_a_flat_description_cannot_hold() -> None:
    config = ModelConfig.from_flat_dict(FLAT | {"sliding_window": 8, "first_sliding_layer": 1})
    first, second, third = config.layers
    assert dataclasses.replace(config, layers=(second, first, third)).to_flat_dict() is None
    assert dataclasses.replace(config, layers=(second, third, first)).to_flat_dict() is None
    assert dataclasses.replace(config, logit_cap=30.0).to_flat_dict() is None
    assert dataclasses.replace(config, norm_offset=1.0).to_flat_dict() is None


def test_properties_of_all_layers_refuse_models_whose_layers_differ() -> None:
    config = ModelConfig.from_flat_dict(FLAT)
    layer = config.layers[0]
    wide = dataclasses.replace(layer, mlp=Mlp(width=200))
    mixed = dataclasses.replace(config, layers=(layer, wide))
    assert mixed.num_heads == 4
    with pytest.raises(ModelFormatError, match="width differs between layers"):
        _ = mixed.intermediate_size
    assert mixed.matrices()["layers.1.mlp.down"] == (64, 200)
    assert mixed.matrices()["layers.0.mlp.down"] == (64, 160)


def test_names_of_a_model_with_everything() -> None:
    attention = Attention(
        heads=4, kv_heads=2, head_dim=8, bias=True, output_bias=True, qk_norm="full", sinks=True, gate=True
    )
    mlp = Mlp(width=10, bias=True, experts=2, experts_used=1, router_bias=True, shared_width=6)
    config = ModelConfig(
        family="x",
        vocab=11,
        hidden=12,
        layers=(Layer(attention=attention, mlp=mlp, norms="both"),),
        eps=1e-5,
        max_context=9,
    )
    assert list(config.matrices().items()) == [
        ("layers.0.attn.q", (32, 12)),
        ("layers.0.attn.k", (16, 12)),
        ("layers.0.attn.v", (16, 12)),
        ("layers.0.attn.gate", (32, 12)),
        ("layers.0.attn.o", (12, 32)),
        ("layers.0.mlp.experts.0.gate", (10, 12)),
        ("layers.0.mlp.experts.0.up", (10, 12)),
        ("layers.0.mlp.experts.0.down", (12, 10)),
        ("layers.0.mlp.experts.1.gate", (10, 12)),
        ("layers.0.mlp.experts.1.up", (10, 12)),
        ("layers.0.mlp.experts.1.down", (12, 10)),
        ("layers.0.mlp.shared.gate", (6, 12)),
        ("layers.0.mlp.shared.up", (6, 12)),
        ("layers.0.mlp.shared.down", (12, 6)),
        ("head", (11, 12)),
    ]
    assert config.tables() == {"embed": (11, 12), "layers.0.mlp.router": (2, 12)}
    vectors = config.vectors()
    assert vectors["layers.0.attn.q_norm"] == 32
    assert vectors["layers.0.attn.k_norm"] == 16
    assert vectors["layers.0.attn.sinks"] == 4
    assert vectors["layers.0.attn.o.bias"] == 12
    assert vectors["layers.0.mlp.router.bias"] == 2
    assert vectors["layers.0.mlp.shared.up.bias"] == 6
    assert vectors["layers.0.attn_post_norm"] == vectors["final_norm"] == 12


def _features(**changes: dict[str, Any]) -> set[str]:
    """Features of a plain model with changed attributes by part."""
    rope, attention = Rope(**changes.get("rope", {})), {"heads": 2, "kv_heads": 1, "head_dim": 8}
    layer = Layer(
        attention=Attention(rope=rope, **(attention | changes.get("attention", {}))),
        mlp=Mlp(**({"width": 8} | changes.get("mlp", {}))),
        **changes.get("layer", {}),
    )
    plain = {"family": "x", "vocab": 8, "hidden": 8, "layers": (layer,), "eps": 1e-5, "max_context": 8}
    return set(features_of(ModelConfig(**(plain | changes.get("model", {})))))


def test_every_feature_is_found_by_name() -> None:
    mixture = {"experts": 2, "experts_used": 1}
    cases: dict[Feature, dict[str, dict[str, Any]]] = {
        Feature.ROPE_FACTORS: {"rope": {"factors": (2.0,) * 4}},
        Feature.ROPE_SHARE: {"rope": {"share": 0.5}},
        Feature.ROPE_INTERLEAVED: {"rope": {"kind": "interleaved"}},
        Feature.ROPE_NONE: {"rope": {"kind": "none"}},
        Feature.ROPE_ATTENTION: {"rope": {"attention_factor": 1.2}},
        Feature.WINDOW: {"attention": {"window": 4}},
        Feature.QKV_BIAS: {"attention": {"bias": True}},
        Feature.OUTPUT_BIAS: {"attention": {"output_bias": True}},
        Feature.QK_NORM: {"attention": {"qk_norm": "head"}},
        Feature.QK_NORM_FULL: {"attention": {"qk_norm": "full"}},
        Feature.SCALE: {"attention": {"scale": 0.1}},
        Feature.SOFTCAP: {"attention": {"softcap": 50.0}},
        Feature.SINKS: {"attention": {"sinks": True}},
        Feature.GATE: {"attention": {"gate": True}},
        Feature.GROWTH: {"attention": {"growth": 0.1, "growth_span": 8}},
        Feature.GELU: {"mlp": {"activation": "gelu_tanh"}},
        Feature.CLAMPED: {"mlp": {"activation": "clamped_swiglu"}},
        Feature.MLP_BIAS: {"mlp": {"bias": True}},
        Feature.MIXTURE: {"mlp": mixture},
        Feature.POST_NORMS: {"layer": {"norms": "both"}},
        Feature.RESIDUAL_SCALE: {"layer": {"residual_scale": 0.5}},
        Feature.NORM_OFFSET: {"model": {"norm_offset": 1.0}},
        Feature.EMBED_SCALE: {"model": {"embed_scale": 8.0}},
        Feature.LOGIT_SCALE: {"model": {"logit_scale": 0.5}},
        Feature.LOGIT_CAP: {"model": {"logit_cap": 30.0}},
    }
    assert _features() == set()
    for feature, changes in cases.items():
        assert _features(**changes) == {feature}
    assert _features(mlp=mixture | {"router": "softmax-then-top"}) == {Feature.MIXTURE, Feature.ROUTER}
    assert _features(mlp=mixture | {"router_bias": True}) == {Feature.MIXTURE, Feature.ROUTER_BIAS}
    assert _features(mlp=mixture | {"shared_width": 4}) == {Feature.MIXTURE, Feature.SHARED}
    config = ModelConfig.from_flat_dict(FLAT)
    one, plain = config.layers[0], features_of(config)
    wide = dataclasses.replace(one, mlp=Mlp(width=8))
    turned = dataclasses.replace(one, attention=dataclasses.replace(one.attention, rope=Rope(theta=5.0)))
    assert features_of(dataclasses.replace(config, layers=(one, wide))) - plain == {Feature.MIXED_SHAPES}
    assert features_of(dataclasses.replace(config, layers=(one, turned))) - plain == {Feature.MIXED_ROPE}
    tested = {*cases, Feature.ROUTER, Feature.ROUTER_BIAS, Feature.SHARED, Feature.MIXED_SHAPES, Feature.MIXED_ROPE}
    assert tested == set(Feature)


def test_a_runtime_that_misses_something_says_so_in_one_sentence() -> None:
    assert lack("mlx", frozenset()) is None
    check_missing("mlx", frozenset())
    with pytest.raises(
        InvalidArgumentError,
        match=r"^the mlx runtime does not execute mixtures of experts, softcap of scores, which this model needs$",
    ):
        check_missing("mlx", frozenset({Feature.SOFTCAP, Feature.MIXTURE}))

"""Scaled rotary positions: logits of every rule against transformers, from folders, GGUF files and stores, and what a
model is loaded for."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run, says
from model_files import gguf_parts, tiny_weights, write_gguf, write_huggingface
from places import DATA
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import tiny_config

import specdec
from specdec.errors import InvalidArgumentError, ModelFormatError, RuntimeUnavailableError
from specdec.families.fields import Fields
from specdec.families.rope import yarn_factors
from specdec.families.rope_huggingface import RopeDefaults, rope_rules
from specdec.formats import Source, open_source
from specdec.model.architecture import ModelConfig
from specdec.model.effort import EffortSchedule
from specdec.model.rope_scaling import RopeScaling
from specdec.runtimes.base import forward_one
from specdec.store import Store, convert
from specdec.store.inspect import inspect_store
from specdec.weights.dtypes import to_float32

CASES = {case["name"]: case for case in json.loads((DATA / "golden_rope.json").read_text())}
# The golden run is in float32, frequencies included, and keeps five decimals; logits reach 5. Measured: 2.2e-5.
WITHIN = 8e-5
LISTS = ("short_factor", "long_factor")


def write_folder(folder: Path, case: dict[str, Any]) -> Path:
    tensors = {name: ("F16", value) for name, value in tiny_weights(case["checkpoint"]).items()}
    return write_huggingface(folder, case["fields"], tensors)


def difference(case: dict[str, Any], logits: np.ndarray) -> float:
    rows = case["logits"].items()
    return max(float(np.abs(logits[int(row), : len(wanted)] - np.array(wanted)).max()) for row, wanted in rows)


def dense_logits(source: Source, case: dict[str, Any], config: ModelConfig | None = None) -> np.ndarray:
    if config is None:
        config = source.config if case["context"] is None else source.config.for_context(case["context"])
    model = DenseTransformer(config, lambda name: to_float32(source.matrix(name), source.dtype), source.vector)
    return np.asarray(model.logits(case["ids"]))


def unscaled(config: ModelConfig) -> ModelConfig:
    """The model without its rule."""

    def changed(layer: Any) -> Any:
        rope = dataclasses.replace(layer.attention.rope, factors=None, attention_factor=1.0, scaling=None)
        return dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rope=rope))

    return dataclasses.replace(config, layers=tuple(map(changed, config.layers)))


@pytest.mark.parametrize("name", CASES)
def test_logits_of_folders_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    source = open_source(write_folder(tmp_path / "m", case))
    assert difference(case, dense_logits(source, case)) < WITHIN
    if name != "dynamic, short":  # within the original context that rule changes nothing
        assert difference(case, dense_logits(source, case, unscaled(source.config))) > 10 * WITHIN


@pytest.mark.parametrize("runtime", ["reference", "native", "mlx"])
@pytest.mark.parametrize(
    "name", ["yarn, attention_factor", "yarn, old keys", "dynamic, long", "longrope, long", "longrope, short"]
)
def test_runtimes_scale_frequencies_and_attention(tmp_path: Path, name: str, runtime: str) -> None:
    case = CASES[name]
    path = convert(open_source(write_folder(tmp_path / "m", case)), tmp_path / "store")
    try:
        model = specdec.load(path, runtime=runtime, context=case["context"])
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    logits = model.logits(case["ids"])
    # The other runtimes keep keys and values in 16 bits: 4.4e-3 measured over all cases with the native one.
    assert difference(case, logits) < (WITHIN if runtime == "reference" else 0.01)
    if case["context"] is not None:
        # Passes of one token, as when an answer grows: a cached key keeps its meaning.
        cache, effort = model.runtime.new_cache(len(case["ids"])), EffortSchedule()
        alone = [forward_one(model.runtime, [token], cache, effort=effort).logits[0] for token in case["ids"]]
        assert np.array_equal(np.stack(alone), logits)


def gguf_keys(case: dict[str, Any], family: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What converters write for a rule: metadata and tensors."""
    fields = case["fields"]
    rule = {**fields.get("rope_parameters", {}), **fields.get("rope_scaling", {})}
    kind = rule.get("rope_type", rule.get("type"))
    original = fields.get("original_max_position_embeddings", rule.get("original_max_position_embeddings"))
    found = {"type": kind, "original_context_length": original}
    if kind == "longrope":
        factor = rule.get("factor", fields["max_position_embeddings"] / original)
        found["attn_factor"] = rule.get("attention_factor", math.sqrt(1 + math.log(factor) / math.log(original)))
    else:
        found["factor"] = float(rule["factor"])
        found |= {f"yarn_{key}": float(rule[key]) for key in ("beta_fast", "beta_slow") if key in rule}
    metadata = {f"{family}.rope.scaling.{key}": value for key, value in found.items() if value is not None}
    metadata[f"{family}.context_length"] = fields["max_position_embeddings"]
    names = zip(("rope_factors_short.weight", "rope_factors_long.weight"), LISTS, strict=True)
    return metadata, {name: np.array(rule[key], np.float32) for name, key in names if key in rule}


@pytest.mark.parametrize(
    "name",
    ["yarn", "yarn, short text", "yarn, long text", "yarn, old keys", "yarn, original context of the model",
     "yarn, original context outside", "yarn, betas", "longrope, short", "longrope, one more", "longrope, long",
     "longrope, old keys", "longrope, attention_factor", "linear, beyond max_position_embeddings",
     "rope_scaling beside rope_parameters"],
)  # fmt: skip
def test_logits_of_gguf_files_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    metadata, tensors = gguf_parts(case["checkpoint"])
    keys, lists = gguf_keys(case, metadata["general.architecture"])
    source = open_source(write_gguf(tmp_path / "m.gguf", metadata | keys, {**tensors, **lists}))
    assert difference(case, dense_logits(source, case)) < WITHIN


def open_gguf(tmp_path: Path, changes: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> ModelConfig:
    metadata, own = gguf_parts("tiny-llama")
    changes = {f"llama.rope.{key}": value for key, value in changes.items()}
    return open_source(write_gguf(tmp_path / "m.gguf", metadata | changes, {**own, **(tensors or {})})).config


def test_gguf_without_a_type_scales_linearly(tmp_path: Path) -> None:
    assert open_gguf(tmp_path, {"scaling.factor": 4.0}).rope_factors == (4.0,) * 8
    assert open_gguf(tmp_path, {"scale_linear": 2.0}).rope_factors == (2.0,) * 8
    assert open_gguf(tmp_path, {"scaling.type": "none", "scaling.factor": 4.0}).rope_factors is None
    assert open_gguf(tmp_path, {"scaling.factor": 0.0}).rope_factors is None
    assert open_gguf(tmp_path, {"scaling.attn_factor": 1.5}).rope_attention_factor == 1.5


def test_gguf_divisors_and_a_rule_multiply(tmp_path: Path) -> None:
    divisors = np.arange(1, 9, dtype=np.float32)
    config = open_gguf(tmp_path, {"scaling.factor": 4.0}, {"rope_freqs.weight": divisors})
    assert config.rope_factors == tuple(4.0 * divisors)
    rule = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64}
    config = open_gguf(tmp_path, rule, {"rope_freqs.weight": divisors})
    expected = np.array(yarn_factors(theta=1e4, head_dim=16, factor=4.0, original_context=64)) * divisors
    np.testing.assert_allclose(config.rope_factors, expected)


def test_gguf_yarn_magnitudes(tmp_path: Path) -> None:
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64}
    usual = 1 + 0.1 * math.log(4)
    assert open_gguf(tmp_path, yarn).rope_attention_factor == pytest.approx(usual)
    assert open_gguf(tmp_path, yarn | {"scaling.attn_factor": 0.5}).rope_attention_factor == pytest.approx(usual / 2)
    assert open_gguf(tmp_path, yarn | {"scaling.yarn_log_multiplier": 1.0}).rope_attention_factor == pytest.approx(1)
    plain = open_gguf(tmp_path, yarn | {"scaling.yarn_ext_factor": 0.0})
    assert plain.rope_factors == pytest.approx((4.0,) * 8)
    assert plain.rope_attention_factor == 1
    with pytest.warns(
        UserWarning, match=r"yarn_attn_factor is 0\.7, which nothing reads: attention is scaled by 1\.13"
    ):
        open_gguf(tmp_path, yarn | {"scaling.yarn_attn_factor": 0.7})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_gguf(tmp_path, yarn | {"scaling.yarn_attn_factor": 1.0})


def test_gguf_longrope_says_what_is_missing(tmp_path: Path) -> None:
    lists = {
        name: np.arange(1, 9, dtype=np.float32) for name in ("rope_factors_long.weight", "rope_factors_short.weight")
    }
    rule = {"scaling.type": "longrope", "scaling.original_context_length": 64}
    with pytest.warns(UserWarning, match=r"llama\.rope\.scaling\.attn_factor is missing: attention is not scaled"):
        assert open_gguf(tmp_path, rule, lists).rope_attention_factor == 1
    lists.pop("rope_factors_short.weight")
    with pytest.raises(ModelFormatError, match=r"lacks tensor 'rope_factors_short\.weight'"):
        open_gguf(tmp_path, rule, lists)


@pytest.mark.parametrize(
    ("changes", "own", "longest"),
    [
        ({}, 512, 512),
        ({"rope_parameters": {"rope_type": "linear", "factor": 3.0}}, 512, 1536),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 512, 1024),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}}, 512, 512),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 512, 2**31 - 1),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64,
                              "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}}, 64, 512),
        ({"rope_parameters": {"rope_type": "su", "original_max_position_embeddings": 64, "factor": 16.0,
                              "short_factor": [1] * 8, "long_factor": [2] * 8}}, 64, 1024),
    ],
)  # fmt: skip
def test_contexts_that_a_model_can_be_loaded_for(
    tmp_path: Path, changes: dict[str, Any], own: int, longest: int
) -> None:
    fields = json.loads((DATA / "tiny-llama" / "config.json").read_text()) | changes
    config = open_source(write_folder(tmp_path / "m", {"checkpoint": "tiny-llama", "fields": fields})).config
    assert (config.max_context, config.longest_context or config.max_context) == (own, longest)
    for context in {1, own, longest}:
        assert config.for_context(context).max_context == context
        assert config.for_context(context).for_context(own) == config
    for wrong in (0, -1, longest + 1, 1.5, True):
        with pytest.raises(InvalidArgumentError, match="context must be"):
            config.for_context(wrong)  # type: ignore[arg-type]


def test_stores_keep_the_rule(tmp_path: Path) -> None:
    case = CASES["longrope, long"]
    source = open_source(write_folder(tmp_path / "m", case))
    path = convert(source, tmp_path / "store")
    assert Store.open(path).config == source.config
    long = Store.open(path, context=64)
    assert long.config.rope_factors == tuple(case["fields"]["rope_parameters"]["long_factor"])
    assert long.checksum == Store.open(path).checksum
    assert "context     16 tokens (up to 64 with --context)\n" in inspect_store(path).to_text()
    with pytest.raises(InvalidArgumentError, match="context must be at most 64 tokens for this model, not 65"):
        Store.open(path, context=65)
    values = json.loads(json.dumps(source.config.to_dict()))
    assert ModelConfig.from_dict(values) == source.config
    values["kinds"][0]["attention"]["rope"]["scaling"]["long"].pop()
    with pytest.raises(ModelFormatError, match=r"rope factors \(long\) must hold 8 numbers, not 7"):
        ModelConfig.from_dict(values)


def test_a_prompt_that_is_too_long_names_the_way_out(tmp_path: Path) -> None:
    path = convert(open_source(write_folder(tmp_path / "m", CASES["longrope, long"])), tmp_path / "store")
    with pytest.raises(InvalidArgumentError, match=r"context holds 16, .*load the model for a longer one \(context="):
        specdec.generate(specdec.load(path, runtime="reference"), list(range(3, 23)), max_tokens=2)
    model = specdec.load(path, runtime="reference", context=40)
    assert len(specdec.generate(model, list(range(3, 23)), max_tokens=4, seed=1).tokens) == 4


def test_a_draft_model_gets_the_same_context_as_far_as_it_goes(tmp_path: Path) -> None:
    names = {"short": "longrope, long", "long": "yarn, old keys"}  # up to 64 and 128 tokens
    paths = {
        key: convert(open_source(write_folder(tmp_path / key, CASES[name])), tmp_path / f"{key}.store")
        for key, name in names.items()
    }

    def contexts(context: int | None) -> dict[str, int]:
        load_other = specdec.load(paths["long"], runtime="reference", context=context).load_other
        assert load_other is not None
        return {key: load_other(str(path)).runtime.config.max_context for key, path in paths.items()}

    assert contexts(100) == {"short": 64, "long": 100}
    assert contexts(None) == {"short": 16, "long": 64}


def test_dynamic_factors_are_the_raised_base() -> None:
    rule = RopeScaling(kind="dynamic", original=64, factor=2.0)
    assert rule.factors_for(64, 8) is None
    theta, raised = 1e4, 1e4 * (2.0 * 200 / 64 - 1) ** (16 / 14)
    expected = [(raised / theta) ** (2 * j / 16) for j in range(8)]
    assert rule.factors_for(200, 8) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"rope_type": "yarn", "factor": -4.0}, "factor must be a positive number"),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
            "must be a positive whole number",
        ),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "rope_theta must be above 1 with YaRN, not 1"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": "x"}, "beta_fast must be a positive number"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "truncate must be true or false"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0}, "attention_factor must be a positive number"),
        ({"rope_type": "dynamic"}, "factor is missing"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 8}, "long_factor must be a list of 8 positive numbers"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 7}, "short_factor must be a list of 8 positive numbers"),
        ({"rope_type": "longrope", "short_factor": [True] * 8}, "short_factor must be a list of 8 positive numbers"),
        ({"rope_type": "ntk", "factor": 2.0}, "rotary scaling 'ntk' is not supported, only default, linear, dynamic"),
    ],
)
def test_senseless_rules_are_refused(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    fields = json.loads((DATA / "tiny-llama" / "config.json").read_text())
    case = {"checkpoint": "tiny-llama", "fields": fields | {"rope_parameters": rule}}
    with pytest.raises(ModelFormatError, match=message.replace("(", r"\(")):
        open_source(write_folder(tmp_path / "m", case))


def test_proportional_scaling_of_a_part_of_the_head_is_refused() -> None:
    """transformers pairs dimensions of the whole head there: logits would differ."""
    rule = {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}
    fields = Fields({"rope_parameters": rule}, "config.json")
    with pytest.raises(ModelFormatError, match=r"'proportional' is supported for whole heads only, and a part of 0\.5"):
        rope_rules(fields, RopeDefaults(share=1.0), head_dim=16, max_context=64)
    whole = Fields({"rope_parameters": {**rule, "partial_rotary_factor": 1.0}}, "config.json")
    assert rope_rules(whole, RopeDefaults(share=1.0), head_dim=16, max_context=64)[0].rope.factors == (2.0,) * 8


def test_the_table_of_angles_of_the_gpu_runtime() -> None:
    mx = pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    from specdec.runtimes.mlx.features import missing_features
    from specdec.runtimes.mlx.model import Transformer

    config = tiny_config(head_dim=16, rope_factors=(2.0,) * 8, rope_attention_factor=1.5)
    assert missing_features(config) == frozenset()
    model = Transformer(
        mx,
        Any,
        config,
        layers=[],
        final_norm=None,
        head=None,
        embeddings=None,
        tier_sizes=(),  # type: ignore[arg-type]
    )
    angles = np.arange(5)[:, None] * 1e4 ** (-np.arange(8) / 8) / 2
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * 1.5
    turning, growing = model.angles(5)
    assert growing == []
    assert np.array_equal(np.array(turning[0])[:5], expected.astype(np.float32))


def test_the_context_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = convert(open_source(write_folder(tmp_path / "m", CASES["dynamic, long"])), tmp_path / "store")
    loaded = list[specdec.Model]()
    load = specdec.load

    def watched(*arguments: Any, **named: Any) -> specdec.Model:
        loaded.append(load(*arguments, **named))
        return loaded[-1]

    monkeypatch.setattr(specdec, "load", watched)
    words = ("eval", path, "--measure", "text", "--text", "spec-bench", "--context")
    says(run(capsys, *words, "160"), "tokenizer")
    assert [model.config.max_context for model in loaded] == [160]
    says(run(capsys, *words, "0"), "context must be a whole number of at least 1, not 0")
    longrope = convert(open_source(write_folder(tmp_path / "l", CASES["longrope, long"])), tmp_path / "long")
    says(run(capsys, "bench", longrope, "--context", "65"), "context must be at most 64 tokens for this model, not 65")


def test_every_command_that_loads_a_model_obeys_the_context() -> None:
    folder = Path(specdec.__file__).parent / "cli"
    texts = {path.name: path.read_text() for path in folder.glob("*.py")}
    assert [name for name, text in texts.items() if re.search(r"specdec\.load\(|\bloaded import load\b", text)] == [
        "common.py"
    ]

"""Mixtures at efforts below 1: which experts a row keeps, the same on every runtime, whatever shares the pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specdec.kernels.reference import experts as rule
from specdec.kernels.reference.experts import choose_experts, kept_experts
from specdec.kernels.reference.selection import select_tiers
from specdec.kernels.reference.transformer import DenseTransformer
from synthetic import SyntheticSource, quantised_source

import specdec
from specdec.model.architecture import ModelConfig
from specdec.model.effort import EffortSchedule, resolve_efforts
from specdec.model.layers import Attention, Layer, Mlp
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows, forward_one, path_to
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert
from specdec.weights.dtypes import to_float32

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 47, 24)]
ROUTERS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "all": {"router": "softmax-then-top", "renormalise": False, "router_bias": True},
    "shared": {"shared_width": 256, "router": "softmax-then-top"},
}
RUNTIMES = ("reference", "native")


def mixture(name: str, hidden: int = 32) -> ModelConfig:
    """Two layers of 8 experts, 5 of a token."""
    mlp = Mlp(**({"width": hidden, "experts": 8, "experts_used": 5} | ROUTERS[name]))
    layer = Layer(attention=Attention(heads=4, kv_heads=2, head_dim=8), mlp=mlp)
    return ModelConfig(family="mixture", vocab=47, hidden=hidden, layers=(layer,) * 2, eps=1e-5, max_context=128)


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A store of a small mixture; each made once."""
    made: dict[tuple[str, bool], Store] = {}

    def build(name: str, *, quantised: bool = False) -> Store:
        if (name, quantised) not in made:
            path = tmp_path_factory.mktemp("stores") / "store"
            if quantised:
                convert(quantised_source(mixture(name, 256), "q8_0"), path, quantised="keep")
            else:
                convert(SyntheticSource(mixture(name)), path)
            made[name, quantised] = Store.open(path, verify=False)
        return made[name, quantised]

    return build


@pytest.fixture(params=RUNTIMES)
def runtime_of(request: pytest.FixtureRequest, store_of: Callable[..., Store]) -> Callable[..., Any]:
    """A runtime on such a store."""
    if request.param == "reference":
        pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    else:
        pytest.importorskip("specdec.kernels.cpu._native", reason="the native runtime is not built")
    return lambda name, **kind: create_runtime(request.param, store_of(name, **kind))


def expected_kept(logits: np.ndarray, used: int, effort: float) -> list[int]:
    """The rule, read aloud: one expert after the other, by falling logit and rising number, until their squared weights
    are 1 - (1 - effort)^5 of those of all that are used."""
    chosen = sorted(range(len(logits)), key=lambda expert: (-logits[expert], expert))[:used]
    powers = [float(np.exp(np.float64(logits[expert]) - np.float64(max(logits)))) ** 2 for expert in chosen]
    count = 1
    while count < used and sum(powers[:count]) < (1 - (1 - effort) ** 5) * sum(powers):
        count += 1
    return sorted(chosen[:count])


@given(
    logits=st.lists(st.integers(-12, 12), min_size=2, max_size=12),
    used=st.integers(1, 12),
    effort=st.floats(0.01, 1.0),
    all_of_them=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_fewest_experts_with_that_share_of_the_weights_are_kept(
    logits: list[int], used: int, effort: float, all_of_them: bool
) -> None:
    used = min(used, len(logits))
    router = {"router": "softmax-then-top", "renormalise": False} if all_of_them else {}
    mlp = Mlp(width=8, experts=len(logits), experts_used=used, **router)  # type: ignore[arg-type]
    values = np.array(logits, np.float32) / 4
    kept = kept_experts(values, mlp, effort=effort)
    assert kept.experts.tolist() == (expected_kept(values, used, effort) if effort < 1 else kept.experts.tolist())
    experts, weights = choose_experts(values, mlp)
    assert kept.weights.tolist() == weights[np.isin(experts, kept.experts)].tolist()
    assert kept.growth == used / len(kept.experts)
    # What is multiplied stays within the effort, or it is one expert.
    share = len(kept.experts) / used * min(1.0, effort * kept.growth)
    assert share <= effort * (1 + 1e-12)


def test_effort_one_keeps_all_of_them() -> None:
    mlp, logits = Mlp(width=8, experts=6, experts_used=4), np.array([0, 3, -1, 3, 99, 0.5], np.float32)
    kept = kept_experts(logits, mlp, effort=1.0)
    assert kept.experts.tolist() == [1, 3, 4, 5]
    assert kept.growth == 1
    assert kept_experts(logits, mlp, effort=0.999).experts.tolist() == [4]
    assert kept_experts(np.zeros(6, np.float32), mlp, effort=0.1).experts.tolist() == [0, 1]


def test_the_largest_effort_among_a_layers_experts_decides() -> None:
    config = mixture("shared")
    schedule = EffortSchedule(0.3, {"layers.1.mlp.experts.7.up": 0.6, "layers.*.mlp.shared.*": 0.9, "head": 1.0})
    assert resolve_efforts(schedule, config).of_mixtures(config) == (0.3, 0.6)
    assert resolve_efforts(1.0, config).of_mixtures(config) == (1.0, 1.0)
    dense = Layer(attention=config.layers[0].attention, mlp=Mlp(width=8))
    plain = ModelConfig(family="dense", vocab=47, hidden=32, layers=(dense,), eps=1e-5, max_context=8)
    assert resolve_efforts(0.3, plain).of_mixtures(plain) == (1.0,)


class KeptTransformer(DenseTransformer):
    """The float64 model whose rows keep experts by the rule as it is read aloud, and multiply by them at efforts that
    grow as it says."""

    effort, inner = 1.0, 1.0
    store: Store

    def _multiply(self, name: str, rows: np.ndarray, *, bias: bool = False) -> np.ndarray:
        if ".experts." not in name:
            return super()._multiply(name, rows, bias=bias)
        held, scores = self.store.exact(name), self.store.input_scores(name)
        taken = select_tiers(rows[0].astype(np.float32), scores, (1,), effort=self.inner)
        return ((rows[0] * taken) @ held.dequantise().T.astype(np.float64))[None]

    def _experts(self, entering: np.ndarray, layer: int) -> np.ndarray:
        names, mlp = self.config.mlp_names(layer), self.config.layers[layer].mlp
        routes = entering @ self.matrix(f"layers.{layer}.mlp.router").astype(np.float64).T
        if mlp.router_bias:
            routes = routes + self.vector(f"layers.{layer}.mlp.router.bias")
        mixed = np.zeros_like(entering)
        for row in range(len(entering)):
            kept = expected_kept(routes[row], mlp.experts_used, self.effort)
            self.inner = min(1.0, self.effort * mlp.experts_used / len(kept))
            for expert, weight in zip(*choose_experts(routes[row], mlp), strict=True):
                if expert in kept:
                    mixed[row] += weight * self._mlp(entering[row : row + 1], layer, names[expert])[0]
        return mixed + self._mlp(entering, layer, names[-1]) if mlp.shared_width else mixed


@pytest.mark.parametrize("effort", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("name", ROUTERS)
def test_a_runtime_multiplies_by_the_experts_that_the_rule_keeps(
    runtime_of: Callable[..., Any], store_of: Callable[..., Store], name: str, effort: float
) -> None:
    runtime, config = runtime_of(name), mixture(name)
    source = SyntheticSource(config)
    weights = {one: to_float32(source.matrix(one), source.dtype) for one in config.matrices() | config.tables()}
    model = KeptTransformer(config, weights.__getitem__, source.vector)
    model.effort, model.store = effort, store_of(name)
    wanted = np.concatenate([model.logits([token]) for token in TOKENS])
    schedule = EffortSchedule(1.0, {"layers.*.mlp.experts.*": effort})
    found = np.concatenate([forward_one(runtime, [t], runtime.new_cache(4), effort=schedule).logits for t in TOKENS])
    full = np.concatenate([forward_one(runtime, [token], runtime.new_cache(4)).logits for token in TOKENS])
    # Where scores nearly agree, roundings (the native cache is float16) take another tier; a wrong rule shows in all.
    assert np.median(np.abs(found - wanted).max(axis=1)) < 5e-3
    assert np.median(np.abs(found - full).max(axis=1)) > 0.05


@pytest.mark.parametrize("name", ROUTERS)
def test_rows_keep_their_experts_whatever_shares_their_pass(runtime_of: Callable[..., Any], name: str) -> None:
    """Trees, chunks and batches of rows at several efforts have the bits of single rows."""
    runtime, random = runtime_of(name), np.random.default_rng(1)
    tree = [-1, 0, 0, 1, -1, 2, 5, 4]
    for view in ("exact", "bucket", "int4"):
        batch, paths = [], []
        for effort in (0.3, 1.0, 0.55):
            efforts, history = resolve_efforts(effort, runtime.config), random.integers(0, 47, 5).tolist()
            nodes, cache = random.integers(0, 47, 8).tolist(), runtime.new_cache(64)
            forward_one(runtime, history, cache, effort=effort, view=view, logits="none")
            parents = tree if effort < 1 else None
            batch.append(Rows(cache, nodes, efforts, parents))
            own = [path_to(parents or range(-1, 7), row) for row in range(8)]
            paths.append([(effort, history + [nodes[node] for node in path]) for path in own])
        together = runtime.forward(batch, view=view)
        for result, wanted in zip(together, paths, strict=True):
            for logits, (effort, tokens) in zip(result.logits, wanted, strict=True):
                cache = runtime.new_cache(64)
                alone = [forward_one(runtime, [one], cache, effort=effort, view=view).logits for one in tokens]
                assert np.array_equal(logits, alone[-1][0])


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("verify_effort", [1.0, 0.5])
def test_speculation_with_fewer_experts_changes_no_token(
    runtime_of: Callable[..., Any], store_of: Callable[..., Store], quantised: bool, verify_effort: float
) -> None:
    runtime = runtime_of("shared", quantised=quantised)
    model = Model(runtime, store=store_of("shared", quantised=quantised))
    asked: dict[str, Any] = {"max_tokens": 24, "verify_effort": verify_effort, "ignore_eos": True}
    prompts = [[3, 1, 4], [15, 9], [2, 6, 5, 3]]
    plain = [specdec.generate(model, prompt, speculate=False, **asked).tokens for prompt in prompts]
    views = ("own", "int4") if quantised else ("bucket", "exact")
    for view in views:
        drafting: dict[str, Any] = {"policy": "fixed", "draft_len": 4, "draft_view": view, "draft_effort": 0.3}
        answers = specdec.generate(model, prompts, **drafting, **asked)
        assert [answer.tokens for answer in answers] == plain
        assert all(answer.stats.drafted > 0 for answer in answers)


def test_fewer_experts_are_fewer_bytes(runtime_of: Callable[..., Any]) -> None:
    runtime = runtime_of("chosen")
    read = {}
    for effort in (0.1, 1.0):
        cache, schedule = runtime.new_cache(32), EffortSchedule(1.0, {"layers.*.mlp.experts.*": effort})
        forward_one(runtime, TOKENS[:9], cache, effort=schedule)
        read[effort] = forward_one(runtime, TOKENS[9:10], cache, effort=schedule).bytes_read
    assert read[0.1] < 0.7 * read[1.0]


def test_the_native_runtime_follows_the_reference_inside_kept_experts(store_of: Callable[..., Store]) -> None:
    """Efforts that leave out inputs of the experts that are kept."""
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    pytest.importorskip("specdec.kernels.cpu._native", reason="the native runtime is not built")
    logits = []
    for name in RUNTIMES:
        runtime = create_runtime(name, store_of("shared"))
        alone = [forward_one(runtime, [token], runtime.new_cache(4), effort=0.5).logits[0] for token in range(47)]
        logits.append(np.stack(alone))
    # Where scores nearly agree the runtimes, which round differently, take another tier, and the row is off by more.
    far = np.abs(logits[0] - logits[1]).max(axis=1)
    assert np.median(far) < 5e-3


def test_the_reference_multiplies_at_the_grown_efforts(
    store_of: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
    from specdec.runtimes.reference import runtime as reference

    runtime = create_runtime("reference", store_of("chosen"))
    schedule = EffortSchedule(0.1, {"layers.*.mlp.experts.*.down": 0.2})
    growths: list[float] = []
    names = {id(operand): name for name, operand in runtime._exact.items()}
    original, kept = reference._Operand.multiply, rule.kept_experts

    def remember(*arguments: Any, **options: Any) -> Any:
        found = kept(*arguments, **options)
        assert options == {"effort": 0.2}
        growths.append(found.growth)
        return found

    def check(self: Any, rows: list[Any], efforts: list[float]) -> Any:
        own = schedule.of(names[id(self)])
        assert efforts == [min(1.0, own * (growths[-1] if ".experts." in names[id(self)] else 1.0))]
        return original(self, rows, efforts)

    monkeypatch.setattr("specdec.kernels.reference.mlx_transformer.kept_experts", remember)
    monkeypatch.setattr(reference._Operand, "multiply", check)
    cache = runtime.new_cache(16)
    for token in TOKENS[:6]:
        forward_one(runtime, [token], cache, effort=schedule)
    assert len(growths) == 12
    assert max(growths) > 1

"""Draft heads: which tokens a draft scores, that their logits are those of the whole layer but for rounding, and that
no answer depends on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime
from synthetic import SyntheticSource, quantised_config, quantised_source, tiny_config

import specdec
from specdec.drafters.frequent import frequent_tokens
from specdec.drafters.registry import create
from specdec.errors import InvalidArgumentError
from specdec.model.loaded import Model
from specdec.runtimes.base import Rows, Runtime, forward_one, resolve_efforts
from specdec.runtimes.choose import create_runtime
from specdec.store import Store, convert

pytest.importorskip("mlx.core", reason="needs MLX with a backend", exc_type=ImportError)
native = pytest.importorskip("specdec.runtimes.native.runtime", reason="the native runtime is not built")

VOCAB = 300
PROMPT = [5, 9, 2, 40, 11, 5, 9]
LISTED = (1, 5, 17, 64, 65, 130, 299)
MODELS: dict[str, Callable[[], SyntheticSource]] = {
    "16 bits": lambda: SyntheticSource(tiny_config(vocab_size=VOCAB)),
    "untied": lambda: SyntheticSource(tiny_config(vocab_size=VOCAB, tie_embeddings=False), dtype="bfloat16"),
    "q8_0": lambda: quantised_source(quantised_config(vocab_size=VOCAB), "q8_0"),
    "q6_k": lambda: quantised_source(quantised_config(vocab_size=VOCAB), "q4_k", "q6_k"),
    "capped": lambda: SyntheticSource(
        replace(tiny_config(vocab_size=VOCAB), logit_cap=2.0, logit_scale=1.5)  # what Gemma 2 and Granite do
    ),
}
RUNTIMES = ("native", "reference")


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Runtime]:
    """A runtime of a small random model, each made once."""

    @cache
    def store_of(model: str) -> Store:
        return Store.open(convert(MODELS[model](), tmp_path_factory.mktemp("stores") / "store", quantised="keep"))

    return cache(lambda name, model: create_runtime(name, store_of(model)))


def logits_of(runtime: Runtime, head: Any, *, view: str = "exact", effort: float = 1.0) -> np.ndarray:
    held = runtime.new_cache(16)
    forward_one(runtime, PROMPT[:-1], held, logits="none")
    return forward_one(runtime, PROMPT[-1:], held, view=view, effort=effort, head=head).logits[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RUNTIMES)
def test_listed_tokens_get_their_logits_and_no_other_does(
    runtime_of: Callable[[str, str], Runtime], name: str, model: str
) -> None:
    runtime = runtime_of(name, model)
    whole, found = logits_of(runtime, None), logits_of(runtime, runtime.draft_head(LISTED))
    assert set(np.flatnonzero(np.isfinite(found))) == set(LISTED)
    # 8 bits a weight and 14 an activation: within a few thousandths of what logits are made of.
    assert np.abs(found[list(LISTED)] - whole[list(LISTED)]).max() < 0.02 * np.abs(whole).max()
    if name == "reference":
        assert np.abs(found[list(LISTED)] - whole[list(LISTED)]).max() < 1e-5


@pytest.mark.parametrize("name", RUNTIMES)
def test_tokens_are_added_and_the_likely_ones_of_rows(runtime_of: Callable[[str, str], Runtime], name: str) -> None:
    runtime = runtime_of(name, "q8_0")
    head = runtime.draft_head(LISTED)
    head.add([7, 7, 5, 8])
    before = logits_of(runtime, head)
    assert set(np.flatnonzero(np.isfinite(before))) == {*LISTED, 7, 8}
    held = runtime.new_cache(16)
    shown = runtime.forward([Rows(held, PROMPT[:3], resolve_efforts(1.0, runtime.config), likely=8)])[0]
    head.add([token for row in shown.likely for token in row])
    after = logits_of(runtime, head)
    likely = {int(token) for row in shown.logits for token in np.argsort(row)[-8:]}
    assert set(np.flatnonzero(np.isfinite(after))) == {*LISTED, 7, 8} | likely
    assert np.array_equal(before[np.isfinite(before)], after[np.isfinite(before)])
    with pytest.raises(InvalidArgumentError, match="token id 300 is outside the vocabulary of 300"):
        head.add([300])
    with pytest.raises(InvalidArgumentError, match="token id -1 is outside the vocabulary of 300"):
        runtime.draft_head((3, -1))
    with pytest.raises(InvalidArgumentError, match="a draft head needs at least one token"):
        runtime.draft_head(())


def test_the_oldest_of_the_added_tokens_go(runtime_of: Callable[[str, str], Runtime]) -> None:
    runtime: Any = runtime_of("native", "q8_0")
    module, model = native.native_module(), runtime._model
    head = module.DraftHead(model, module.head_rows(model, np.array(LISTED, np.int32)), 4)
    for tokens in ([10, 11], [5, 10, 12, 13], [14], list(range(200, 210)), [11]):
        head.add(np.array(tokens, np.int32))
    assert list(head.tokens)[: len(LISTED)] == list(LISTED)
    assert sorted(head.tokens[len(LISTED) :]) == [11, 207, 208, 209]
    whole, found = logits_of(runtime, None), logits_of(runtime, native.NativeHead(head, VOCAB))
    kept = [11, 207, 208, 209]
    assert np.abs(found[kept] - whole[kept]).max() < 0.02 * np.abs(whole).max()


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("view", ["nested", "exact"])
def test_a_pass_of_several_heads_equals_its_parts(
    runtime_of: Callable[[str, str], Runtime], name: str, view: str
) -> None:
    runtime = runtime_of(name, "q8_0")
    efforts = resolve_efforts(1.0, runtime.config)
    heads = [runtime.draft_head(LISTED), None, runtime.draft_head(LISTED), runtime.draft_head((3, 4, 290)), None]
    heads[2].add([99])

    def rows() -> list[Rows]:
        found = []
        for number, head in enumerate(heads):
            held = runtime.new_cache(16)
            forward_one(runtime, [number, 3, 4], held, logits="none")
            tokens = [7 + number, 8][: 1 + number % 2]
            found.append(Rows(held, tokens, efforts, logits="all", head=head))
        return found

    together = runtime.forward(rows(), view=view)
    for one, expected in zip(together, [runtime.forward([one], view=view)[0] for one in rows()], strict=True):
        assert np.array_equal(one.logits, expected.logits)
    assert sum(one.bytes_read for one in together) > 0


@pytest.mark.parametrize("isa", native.native_module().supported_isas())
def test_instruction_sets_agree_on_whole_numbers(runtime_of: Callable[[str, str], Runtime], isa: str) -> None:
    store: Any = runtime_of("native", "q8_0")
    runtime = native.NativeRuntime(store._store, isa=isa)
    whole, found = logits_of(runtime, None), logits_of(runtime, runtime.draft_head(LISTED))
    assert np.abs(found[list(LISTED)] - whole[list(LISTED)]).max() < 0.02 * np.abs(whole).max()


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("options", [{}, {"temperature": 1, "seed": 3}, {"temperature": 0.7, "top_p": 0.9, "seed": 1}])
def test_answers_do_not_depend_on_the_head(
    runtime_of: Callable[[str, str], Runtime], name: str, options: dict[str, Any]
) -> None:
    model = Model(runtime_of(name, "q8_0"))
    plain = specdec.generate(model, PROMPT, max_tokens=24, speculate=False, **options)
    for drafter in ("effort:head=4", "effort:head=all", "chain:ngram,effort:head=16", "early-exit:1,head=8"):
        found = specdec.generate(model, PROMPT, max_tokens=24, policy="fixed:length=3", drafter=drafter, **options)
        assert found.tokens == plain.tokens
        assert found.stats.drafted > 0


def test_a_head_hardly_costs_acceptance_where_it_holds_the_text(
    runtime_of: Callable[[str, str], Runtime],
) -> None:
    """Tokens that the verifier ranked high are scored later: the answer's own would not do with random weights."""
    model = Model(runtime_of("native", "q8_0"))
    kept = {}
    for drafter in ("effort:head=4", "effort:head=all"):
        stats = specdec.generate(model, PROMPT, max_tokens=100, policy="fixed:length=3", drafter=drafter).stats
        kept[drafter] = stats.accepted / stats.drafted
    assert 0.3 * kept["effort:head=all"] < kept["effort:head=4"]


def test_rules_that_allow_none_of_the_listed_tokens_get_all_of_them(
    runtime_of: Callable[[str, str], Runtime],
) -> None:
    model = Model(runtime_of("native", "q8_0"))
    only = range(200, 210)

    def mask(tokens: np.ndarray, logits: np.ndarray) -> np.ndarray:
        shaped = np.full_like(logits, -np.inf)
        shaped[list(only)] = logits[list(only)]
        return shaped

    options: dict[str, Any] = {"max_tokens": 20, "logits_processors": [mask], "policy": "fixed:length=2"}
    plain = specdec.generate(model, PROMPT, speculate=False, max_tokens=20, logits_processors=[mask])
    found = specdec.generate(model, PROMPT, drafter="effort:head=2", **options)
    assert found.tokens == plain.tokens
    assert found.stats.drafted >= 10
    assert found.stats.accepted > 0


# --- which tokens ---


def test_frequent_tokens_of_a_vocabulary():
    pieces = [b"\xff", b"zzq", b" the", b"", b"ing", b"qqqq", b" of", b"the"]
    assert frequent_tokens(pieces, 8, 3) == (2, 4, 6)
    assert frequent_tokens(pieces, 8, 3, always=[5, 99]) == (2, 4, 5)
    assert frequent_tokens(pieces, 8, 8) == tuple(range(8))
    assert frequent_tokens(pieces, 5, 99) == tuple(range(5))
    assert 3 not in frequent_tokens(pieces, 8, 7)  # means nothing
    assert frequent_tokens((), 1000, 3) == (0, 1, 2)
    assert len(frequent_tokens(pieces, 1000, 600)) == 7  # ids beyond the tokenizer's are padding


def test_a_number_is_refused_where_drafts_score_all_tokens():
    from drafting import setup_of

    runtime = FakeRuntime()
    assert create("effort", setup_of(runtime)).head.rows is None
    assert create("effort:head=all", setup_of(runtime)).head.rows is None
    for spec, message in (
        ("effort:head=100", "drafter 'effort' cannot take head=100: the fake runtime scores all tokens in drafts"),
        ("effort:head=0", "drafter 'effort' needs a whole number from 1 to 1048576 as head (or auto, or all), not '0'"),
        ("effort:heads=1", "drafter 'effort' takes head=..., window=..., not 'heads=1'"),
    ):
        with pytest.raises(InvalidArgumentError, match=re.escape(message)):
            create(spec, setup_of(runtime))

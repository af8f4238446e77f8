"""The drafters: what each proposes, what it leaves in the cache, what it refuses; and that none changes an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drafting import EveryStep, context_of, draft_of, drafted, other_model, setup_of
from fake_runtime import ByteTokenizer, FakeRuntime, fake_config, fake_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import synthetic_source, tiny_config
from useful import useful

import specdec
from specdec.drafters.acceptance import ProposalBook
from specdec.drafters.base import Draft, Drafter, DrafterSetup, Extender, LoadedModel
from specdec.drafters.registry import create, names
from specdec.engine import decode
from specdec.engine.policy import DraftPlan
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.model.loaded import Model
from specdec.runtimes.choose import best_runtime, create_runtime
from specdec.store import Store, convert

SPECS = (
    "effort",
    "ngram",
    "ngram:min=1,max=1",
    "ngram:table={table}",
    "replay:{answer}",
    "early-exit:1",
    "model:other",
    "model:other,view=exact,effort=0.5",
    "chain:ngram:min=1,max=3,effort",
    "chain:effort,ngram:min=1",
    "recycle",
    "chain:ngram,recycle,effort",
    "chain:ngram,recycle",
    "chain:replay:{answer},model:other",
    "chain:early-exit:1,effort,ngram:min=1,replay:{answer}",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "table.txt").write_text("so much for the table, so much for the text")
    (folder / "answer.json").write_text(json.dumps([*b"so much for the answer"]))
    return {"table": folder / "table.txt", "answer": folder / "answer.json"}


# --- promise 1 ---


@pytest.mark.filterwarnings("ignore:draft effort:UserWarning")
@given(
    spec=st.sampled_from(SPECS),
    weights=st.integers(0, 1000),
    prompt=st.lists(st.integers(97, 100), min_size=1, max_size=12),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    draft_len=st.integers(1, 8),
    draft_effort=st.floats(0.05, 1.0),
    vocab_size=st.sampled_from([258, 120]),  # few tokens repeat, which is what lookup lives on
    context=st.sampled_from([512, 30]),
    verify_effort=st.sampled_from([1.0, 0.6]),
    policy=st.sampled_from(["fixed", "fixed", "heuristic", "confidence", "entropy"]),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_drafter_changes_an_answer(
    files,
    spec,
    weights,
    prompt,
    temperature,
    draft_len,
    draft_effort,
    vocab_size,
    context,
    verify_effort,
    policy,
):
    config = fake_config(vocab_size=vocab_size, max_context=context)
    model = fake_model(config=config, seed=weights, sharpness=4.0)
    model.load_other = lambda _name: other_model(
        config=fake_config(vocab_size=258, max_context=40), seed=weights, sharpness=4.0
    )
    options = {"max_tokens": 30, "temperature": temperature, "seed": 0, "verify_effort": verify_effort}
    plain = specdec.generate(model, prompt, speculate=False, **options)
    spec = spec.format(**files)
    drafting = useful({"drafter": spec, "policy": policy, "draft_len": draft_len, "draft_effort": draft_effort})
    drafted = specdec.generate(model, prompt, **drafting, **options)
    assert drafted.tokens == plain.tokens
    # Every pass over text that stays reads the exact view at the verify effort: the fake's logits show any other entry.
    assert drafted.text == plain.text


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("stores")
    stores = [
        Store.open(convert(synthetic_source(tiny_config(vocab_size=size, num_layers=2), seed), folder / str(seed)))
        for seed, size in enumerate((258, 270))
    ]
    models = [Model(create_runtime(best_runtime(), store), ByteTokenizer(), store=store) for store in stores]
    models[0].load_other = lambda _name: LoadedModel(models[1].runtime, models[1].tokenizer)
    return models[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_no_drafter_changes_an_answer_of_a_real_runtime(tiny_model, files, spec, temperature):
    options = {"max_tokens": 24, "temperature": temperature, "seed": 4}
    prompt = [1, 2, 3, 1, 2, 3, 1]
    plain = specdec.generate(tiny_model, prompt, speculate=False, **options)
    drafted = specdec.generate(
        tiny_model, prompt, drafter=spec.format(**files), policy="fixed", draft_effort=0.6, **options
    )
    assert drafted.tokens == plain.tokens


@pytest.mark.parametrize(("vocab_size", "length", "tokens"), [(120, 0, []), (121, 2, [120])])
def test_a_table_proposes_only_tokens_that_the_model_has(tmp_path, vocab_size, length, tokens):
    (tmp_path / "table").write_text("..abx")
    runtime = FakeRuntime(fake_config(vocab_size=vocab_size))
    drafter = create(f"ngram:table={tmp_path / 'table'}", setup_of(runtime))
    context = context_of(runtime, [97, 98])
    assert drafter.match_length(context) == length
    plan = DraftPlan(num_draft_tokens=1, effort=0.7)
    assert drafted(drafter.draft(plan, context, policy=EveryStep())).tokens == tokens


# --- stored answers ---


def test_replay_of_the_answer_itself_is_always_right(tmp_path):
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()), seed=3)
    plain = specdec.generate(model, [1, 2, 3], max_tokens=40, speculate=False)
    (tmp_path / "answer").write_text(json.dumps(plain.tokens))
    replayed = specdec.generate(
        model, [1, 2, 3], max_tokens=40, drafter=f"replay:{tmp_path / 'answer'}", policy="fixed", draft_len=7
    )
    assert replayed.tokens == plain.tokens
    assert (replayed.stats.rounds, replayed.stats.accepted) == (5, 35)


def test_replay_goes_by_position_and_ends_with_the_stored_answer(tmp_path):
    (tmp_path / "answer").write_text("[10, 11, 12, 13, 14]")
    spec, prompt = f"replay:{tmp_path / 'answer'}", [1, 2]
    assert draft_of(spec, prompt, 3, prompt_length=2).tokens == [10, 11, 12]
    assert draft_of(spec, [*prompt, 10, 99], 9, prompt_length=2).tokens == [12, 13, 14]
    assert draft_of(spec, [*prompt, 10, 11, 12, 13, 14], 9, prompt_length=2).tokens == []
    assert draft_of(spec, prompt, 9, prompt_length=2, end_tokens=frozenset({12})).tokens == [10, 11, 12]
    (tmp_path / "text").write_text("hello")
    assert draft_of(f"replay:{tmp_path / 'text'}", prompt, 3, prompt_length=2).tokens == [*b"hel"]


# --- drafters that run a model ---


def test_early_exit_runs_the_first_layers_only():
    runtime = FakeRuntime()
    seen: list[int | None] = []
    forward = runtime.forward

    def watched(batch: Any, **options: Any) -> Any:
        seen.extend(rows.layers for rows in batch)
        return forward(batch, **options)

    runtime.forward = watched  # type: ignore[method-assign]
    model = Model(runtime, ByteTokenizer(eos=frozenset()))
    specdec.generate(model, [1], max_tokens=9, drafter="early-exit:1", policy="fixed", draft_len=3)
    assert {None, 1} == set(seen)
    assert seen[:4] == [1, 1, 1, None]  # three drafts, then all layers for verification


def test_another_model_with_the_same_weights_is_always_right():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()), seed=3)
    model.load_other = lambda _name: other_model(seed=3)
    for temperature in (0.0, 1.0):
        drafter = "model:same,view=exact"
        result = specdec.generate(
            model, [1, 2], max_tokens=41, drafter=drafter, policy="fixed", draft_len=7, temperature=temperature
        )
        assert (result.stats.rounds, result.stats.accepted) == (6, 35)


def test_another_model_reads_the_text_once_and_rejected_tokens_are_cut_away():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()), seed=3)
    other = other_model(seed=4)
    model.load_other = lambda _name: other
    result = specdec.generate(model, [1] * 50, max_tokens=40, drafter="model:other", policy="fixed", draft_len=4)
    assert result.stats.accepted < result.stats.drafted
    passes = other.runtime.passes
    assert passes[0] == ("exact", 1.0, 0, 49)  # the prompt in one pass, through the view that batches
    # After that every round reads what was emitted, and its drafts: at most two tokens to catch up with, then one each.
    assert all(rows <= 2 for _, _, _, rows in passes[1:])
    assert sum(rows for *_, rows in passes) <= 50 + result.stats.drafted + 2 * result.stats.rounds


def test_a_model_is_loaded_once_for_all_generations():
    model, loaded = fake_model(), []
    model.load_other = lambda name: loaded.append(name) or other_model()  # type: ignore[func-returns-value]
    for _ in range(3):
        specdec.generate(model, [1], max_tokens=3, drafter="model:a,b=c", policy="fixed")
    assert loaded == ["a,b=c"]


def test_a_models_padding_is_never_proposed():
    """Logits layers of the same vocabulary may be padded differently; ids that only one model has mean nothing."""
    runtime = FakeRuntime(fake_config(vocab_size=100))
    wide = FakeRuntime(fake_config(vocab_size=4000), seed=5)
    setup = setup_of(runtime, load_model=lambda _name: LoadedModel(wide, ByteTokenizer()))
    drafter = create("model:wide", setup)
    plan = DraftPlan(num_draft_tokens=8, effort=0.5)
    for first in range(20):
        draft = drafted(drafter.draft(plan, context_of(runtime, [first]), policy=EveryStep()))
        assert max(draft.tokens) < 100


def test_a_model_with_a_short_context_stops_drafting_at_its_end():
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()))
    other = other_model(config=fake_config(max_context=20))
    model.load_other = lambda _name: other
    result = specdec.generate(model, [1] * 10, max_tokens=40, drafter="model:short", policy="fixed", draft_len=4)
    assert len(result.tokens) == 40
    assert max(start + rows for *_, start, rows in other.runtime.passes) <= 20


# --- chains ---


def test_a_chain_says_who_drafted_what_and_hands_the_cache_on_clean(files, monkeypatch):
    monkeypatch.setattr(ProposalBook, "rate", lambda _book, _kind: 0.1)
    runtime = FakeRuntime(seed=2)
    history = [1, 2, 3, 1, 2, 3, 1, 2]
    context = context_of(runtime, history)
    chain = create("chain:ngram,effort", setup_of(runtime))
    draft = drafted(chain.draft(DraftPlan(num_draft_tokens=5, effort=0.7), context, policy=EveryStep()))
    assert context.cache.length == len(history) - 1
    assert len(draft.sources) == len(draft.tokens) == len(draft.signals) == 5
    assert set(draft.sources) == {"effort"}
    assert {view for view, *_ in runtime.passes} == {"exact", "bucket"}


def test_a_chain_keeps_likely_proposals_unchecked_and_drops_others(monkeypatch):
    runtime = FakeRuntime(seed=2)
    history = [1, 2, 3, 1, 2, 3, 1, 2]
    for expected, sources in ((0.9, ["ngram"] * 4), (0.3, ["effort"] * 4)):
        monkeypatch.setattr(ProposalBook, "rate", lambda _book, _kind, rate=expected: rate)
        chain = create("chain:ngram,effort", setup_of(runtime))
        draft = drafted(
            chain.draft(DraftPlan(num_draft_tokens=4, effort=0.7), context_of(runtime, history), policy=EveryStep())
        )
        assert draft.sources == sources
        assert len(draft.signals) == (4 if sources[0] == "effort" else 0)


def test_a_level_without_a_model_adds_to_what_a_model_drafted(tmp_path):
    class StopsAtOnce(EveryStep):
        def next_step(self, _signals: Any) -> None:  # type: ignore[override]
            return None

    runtime, plan = FakeRuntime(seed=2), DraftPlan(num_draft_tokens=4, effort=0.7)
    own = drafted(
        create("effort", setup_of(runtime)).draft(plan, context_of(runtime, [4, 5]), policy=StopsAtOnce())
    ).tokens
    assert len(own) == 1
    (tmp_path / "answer").write_text("[20, 21, 22, 23, 24]")
    chain = create(f"chain:effort,replay:{tmp_path / 'answer'}", setup_of(runtime))
    draft = drafted(chain.draft(plan, context_of(runtime, [4, 5], prompt_length=2), policy=StopsAtOnce()))
    assert draft.tokens == [*own, 21, 22, 23]  # by position: the model's token stands where 20 would
    assert draft.sources == ["effort", "replay", "replay", "replay"]
    assert draft.signals == []  # not one for each token


def test_a_chain_offers_the_views_of_its_last_model():
    runtime = FakeRuntime()
    chain = create("chain:ngram,effort", setup_of(runtime))
    assert isinstance(chain, Drafter)
    assert (chain.views, chain.takes_effort) == (("bucket",), True)
    assert create("chain:ngram,replay:tests/drafters/test_drafters.py", setup_of(runtime)).views == ()


# --- refusals ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("effort:0.5", "drafter 'effort' takes head=..., window=..., not '0.5'"),
        ("recycle:2", "drafter 'recycle' takes no argument, not '2'"),
        ("ngram:3", "drafter 'ngram' takes min=..., max=..., table=..., not '3'"),
        ("ngram:min=", "drafter 'ngram' takes min=..., max=..., table=..., not 'min='"),
        ("ngram:size=3", "drafter 'ngram' takes min=..., max=..., table=..., not 'size=3'"),
        ("ngram:min=0", "drafter 'ngram' needs a whole number from 1 to 64 as min, not '0'"),
        ("ngram:max=2.5", "drafter 'ngram' needs a whole number from 1 to 64 as max, not '2.5'"),
        ("ngram:min=4,max=3", "drafter 'ngram' needs min <= max, not min=4,max=3"),
        ("ngram:min=2,min=3", "drafter 'ngram' was given min= twice: keep one"),
        ("ngram:table={tmp}/none", "drafter 'ngram' cannot read the table {tmp}/none: No such file or directory"),
        ("ngram:table={tmp}", "drafter 'ngram' cannot read {tmp}: Is a directory"),
        ("ngram:table={tmp}/empty", "drafter 'ngram' needs some text, and {tmp}/empty is empty"),
        ("ngram:table={tmp}/short", "drafter 'ngram' needs more than 2 tokens of text, and {tmp}/short holds 2"),
        ("ngram:table={tmp}/bytes", "drafter 'ngram' needs UTF-8 text, which {tmp}/bytes is not"),
        ("replay", "drafter 'replay' needs a file, as in replay:answer.json"),
        ("replay:{tmp}/none", "drafter 'replay' cannot read {tmp}/none: No such file or directory"),
        ("replay:{tmp}/ids", "drafter 'replay' needs a list of token ids from 0 to 257, and {tmp}/ids holds 258"),
        ("replay:{tmp}/words", "drafter 'replay' needs a list of token ids from 0 to 257, and {tmp}/words holds 'a'"),
        ("replay:{tmp}/no-ids", "drafter 'replay' needs at least one token id, and {tmp}/no-ids holds none"),
        ("early-exit", "drafter 'early-exit' needs a whole number from 1 to 1 as number of layers, not ''"),
        ("early-exit:2", "drafter 'early-exit' needs a whole number from 1 to 1 as number of layers, not '2'"),
        ("model", "drafter 'model' needs a model, as in model:qwen2.5-coder-0.5b"),
        ("model:,view=int4", "drafter 'model' needs a model, as in model:qwen2.5-coder-0.5b"),
        ("model:x,effort=full", "the effort of drafter 'model' must be a number, not 'full'"),
        ("model:x,effort=2", "the effort of drafter 'model' must be a number above 0 and at most 1, not 2.0"),
        ("model:x,view=int4,view=int4", "drafter 'model' was given view= twice: keep one"),
        ("model:x,view=int3", "unknown draft view 'int3': choose from auto, bucket, exact, int4"),
        ("chain:", "drafter 'chain' needs at least two drafters, as in chain:ngram,effort"),
        ("chain:ngram:min=2,max=3", "drafter 'chain' needs at least two drafters, as in chain:ngram,effort"),
        (
            "chain:ngram,oracle",
            "unknown drafter 'oracle': choose from chain, early-exit, effort, model, ngram, recycle, replay",
        ),
        ("chain:ngram,chain:ngram", "drafter 'chain' cannot be a level of a chain: name its levels themselves"),
        ("oracle", "unknown drafter 'oracle': choose from chain, early-exit, effort, model, ngram, recycle, replay"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(tmp_path, spec, message):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "short").write_text("ab")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "ids").write_text("[1, 258]")
    (tmp_path / "words").write_text('["a"]')
    (tmp_path / "no-ids").write_text("[]")
    with pytest.raises(InvalidArgumentError) as error:
        create(spec.format(tmp=tmp_path), setup_of(FakeRuntime()))
    assert str(error.value) == message.format(tmp=tmp_path)


def test_a_level_that_cannot_extend_is_refused(monkeypatch):
    class Starter:
        views, takes_effort = (), False

        def draft(self, _plan: Any, _context: Any, *, policy: Any) -> Draft:
            return Draft()

    from specdec.drafters import registry

    monkeypatch.setitem(registry._registry._own, "starter", lambda _argument, _setup: Starter())
    create("chain:starter,effort", setup_of(FakeRuntime()))
    with pytest.raises(InvalidArgumentError, match="'starter' can only come first in a chain: it has no method extend"):
        create("chain:ngram,starter", setup_of(FakeRuntime()))


def test_other_vocabularies_and_missing_tokenizers_are_refused():
    runtime = FakeRuntime()
    other = ByteTokenizer()
    other.fingerprint = "letters"  # type: ignore[misc]
    setup = setup_of(runtime, load_model=lambda _name: LoadedModel(runtime, other))
    with pytest.raises(
        InvalidArgumentError, match="cannot use big: its vocabulary differs, and a draft model must have"
    ):
        create("model:big", setup)
    for vocabulary, tokenizer in ((None, other), ("bytes", None)):
        load = lambda _name, tokenizer=tokenizer: LoadedModel(runtime, tokenizer)  # noqa: E731
        with pytest.raises(InvalidArgumentError, match="one of the two models has no tokenizer"):
            create("model:big", setup_of(runtime, vocabulary=vocabulary, load_model=load))
    with pytest.raises(InvalidArgumentError, match="needs a model that specdec"):
        create("model:big", setup_of(runtime, load_model=None))


def test_text_for_a_model_without_a_tokenizer_is_refused(files):
    for spec in ("ngram:table={table}", "replay:{table}"):
        with pytest.raises(InvalidArgumentError, match="as text: this model has no tokenizer"):
            create(spec.format(**files), setup_of(FakeRuntime(), tokenizer=None))


@pytest.mark.parametrize("failing", range(2, 9))
def test_an_interrupted_draft_leaves_another_models_cache_in_step(failing):
    """Whichever pass of the other model is cut short, the answer and the next drafts are as if nothing had happened."""
    model = fake_model(tokenizer=ByteTokenizer(eos=frozenset()), seed=3)
    other = other_model(seed=3)
    model.load_other = lambda _name: other
    stream = specdec.stream(
        model, [1, 2, 3], max_tokens=30, drafter="model:same,view=exact", policy="fixed", draft_len=3
    )
    engine = stream._answer.sequence
    decode.read_prompt(engine)
    other.runtime.fail_at_pass = failing
    interrupted, accepted = 0, []
    while len(engine.tokens) < 33:
        try:
            accepted.append(decode.step(engine).accepted)
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 1
    assert set(accepted[:-1]) == {3}
    assert engine.tokens == [1, 2, 3, *specdec.generate(model, [1, 2, 3], max_tokens=30, speculate=False).tokens]


def test_every_drafter_is_registered_and_keeps_to_the_protocol(files):
    assert {spec.partition(":")[0] for spec in SPECS} == set(names())
    for spec in SPECS:
        drafter = create(spec.format(**files), setup_of(FakeRuntime()))
        assert isinstance(drafter, Drafter)
        assert isinstance(drafter, Extender) == spec.startswith(("ngram", "recycle", "replay"))
        assert np.isscalar(drafter.takes_effort)
        assert all(view in ("bucket", "int4", "exact") for view in drafter.views)
    with pytest.raises(UnknownNameError, match="unknown draft view 'int3'"):
        create("effort", DrafterSetup(FakeRuntime(), "int3"))
    assert create("effort", DrafterSetup(FakeRuntime(), "int4, bucket")).views == ("int4", "bucket")
    assert create("effort", DrafterSetup(FakeRuntime(), "auto")).views == ("int4",)
    with pytest.raises(InvalidArgumentError, match="draft view 'int4' is asked for twice"):
        create("effort", DrafterSetup(FakeRuntime(), "auto,int4"))

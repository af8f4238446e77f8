"""Grammars and speculation together: masks at any place, the same tokens with and without drafts, texts that comply."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from fake_runtime import EOS
from grammars import LIST, allowed_after, constraint_of, grammar_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_schemas import schemas, values_of
from words import ENDING, VOCAB, WordTokenizer, word_model

import specdec
from specdec.drafters.base import Draft
from specdec.engine.chooser import NoTokenError
from specdec.engine.policy import DraftPlan

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "rose", "green"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
ASKED: dict[str, dict[str, Any]] = {
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}},
    "object": {"response_format": {"type": "json_object"}},
    "regex": {"regex": r"(ab|name|na){3,9}( [0-9]{2}){0,2}"},
    "lark": {"grammar": 'start: "x" ("name" | "né")+ END\nEND: /[.!]{2}/'},
    "gbnf": {"grammar": LIST},
    "free": {},
}


def complies(text: str, kind: str) -> bool:
    if kind == "schema":
        jsonschema.validate(json.loads(text), PERSON)
        return True
    if kind == "object":
        return isinstance(json.loads(text), dict)
    patterns = {
        "regex": ASKED["regex"]["regex"], "lark": r"x(name|né)+[.!]{2}", "gbnf": r"\[([a-c]+|name)(,([a-c]+|name))*\]",
    }  # fmt: skip
    return kind == "free" or re.fullmatch(patterns[kind], text) is not None


@pytest.mark.parametrize("kind", [kind for kind in ASKED if kind != "free"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_may_follow_depends_on_the_tokens_before_alone(kind: str, data: st.DataObject) -> None:
    """One constraint is asked about places in any order while its answer grows and is taken back; a fresh one, about
    each place alone."""
    grammar, answer = grammar_of(**ASKED[kind]), [1, 2, 3]
    asked = constraint_of(grammar, answer)
    for _ in range(data.draw(st.integers(1, 6))):
        drafted: list[int] = []
        for _ in range(data.draw(st.integers(0, 8))):
            fresh = constraint_of(grammar, [])
            fresh.begin([])
            found = allowed_after(asked, drafted)
            assert found == allowed_after(fresh, [*answer[3:], *drafted])
            if data.draw(st.booleans()):
                forced = asked.forced(drafted, data.draw(st.integers(1, 9)))
                assert asked.allowed(forced, drafted) == len(forced)
            if found == [EOS] or asked.is_complete(drafted):
                break
            drafted.append(data.draw(st.sampled_from([one for one in found if one != EOS])))
        kept = data.draw(st.integers(0, len(drafted)))
        answer += drafted[:kept]
        if data.draw(st.booleans()):
            asked.mask(np.zeros(VOCAB, np.float32), [])
            del answer[data.draw(st.integers(3, len(answer))) :]


class TreeDrafter:
    """Drafts a tree around the answer that is to come, wrong tokens and ones that break the grammar among them."""

    views: tuple[str, ...] = ()
    takes_effort = False

    def __init__(self, seed: int, answer: list[int], prompt_length: int) -> None:
        self.random, self.answer, self.start = np.random.default_rng(seed), answer, prompt_length

    def draft(self, plan: DraftPlan, context: Any, *, policy: Any) -> Draft:
        right = self.answer[len(context.history) - self.start :]
        tokens, parents, last = [], [], -1
        for token in right[: plan.num_draft_tokens // 3]:
            wrong = self.random.choice(VOCAB, 2, replace=False).tolist()
            siblings = list(dict.fromkeys([*wrong, token]))
            self.random.shuffle(siblings)
            tokens += siblings
            parents += [last] * len(siblings)
            last = len(tokens) - len(siblings) + siblings.index(token)
        return Draft(tokens, parents=parents)


class Long:
    """Asks for as long a draft as there may be."""

    def plan(self, state: Any) -> DraftPlan:
        return DraftPlan(num_draft_tokens=min(20, state.max_draft_tokens), effort=0.8)

    def next_step(self, _signals: Any) -> float:
        return 0.8

    def observe(self, outcome: Any) -> None:
        assert 0 <= outcome.accepted <= outcome.drafted
        assert len(outcome.signals) in (0, outcome.drafted)


DRAFTING: dict[str, dict[str, Any]] = {
    "auto": {},
    "fixed": {"policy": "fixed", "draft_effort": 0.9, "draft_len": 5},
    "lookup": {"policy": "fixed", "drafter": "ngram:min=1", "draft_len": 6},
    "recycle": {"policy": "fixed", "drafter": "recycle", "draft_len": 6},
    "chain": {"policy": "fixed", "drafter": "chain:ngram:min=1,effort", "draft_len": 6},
    "chain back": {"policy": "fixed", "drafter": "chain:effort,ngram:min=1", "draft_len": 6, "draft_effort": 0.8},
    "heuristic": {"policy": "heuristic:longest=6", "drafter": "ngram:min=1;effort"},
}


@given(
    kind=st.sampled_from(list(ASKED)),
    drafting=st.sampled_from([*DRAFTING, "tree"]),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 500),
    max_tokens=st.sampled_from([1, 2, 30, 90]),
    more=st.sampled_from([{}, {"repetition_penalty": 1.2}, {"top_k": 3}, {"logit_bias": {97: -100}}]),
    has_end=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_speculation_changes_no_token(
    kind: str, drafting: str, temperature: float, seed: int, max_tokens: int, more: dict[str, Any], has_end: bool
) -> None:
    if "top_k" in more and not temperature:
        more = {}
    model = word_model(seed=seed, eos=None if has_end else frozenset())
    more = more | {"logit_bias": ENDING | more.get("logit_bias", {})}
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "logprobs": 1, **ASKED[kind], **more}
    prompt = list(b'a "name" is')
    drafts = DRAFTING.get(drafting) or {}
    try:
        plain = specdec.generate(model, prompt, speculate=False, **options)
    except NoTokenError as error:  # a ban may leave no way to spell what must come
        with pytest.raises(NoTokenError, match=re.escape(str(error))):
            specdec.generate(model, prompt, **drafts, **options)
        return
    if drafting == "tree":
        drafts = {"policy": Long(), "drafter": TreeDrafter(seed, plain.tokens, len(prompt))}
    fast = specdec.generate(model, prompt, **drafts, **options)
    assert (fast.tokens, fast.text, fast.stopped_by) == (plain.tokens, plain.text, plain.stopped_by)
    assert fast.logprobs == plain.logprobs
    assert fast.stats.emitted + fast.stats.cut == fast.stats.accepted + fast.stats.rounds
    if plain.finish_reason == "stop":
        assert complies(plain.text, kind)


def test_eight_together_get_what_each_gets_alone() -> None:
    model = word_model(seed=4)
    asked = []
    for index, kind in enumerate([*ASKED, "schema", "regex"]):
        temperature = 0.8 * (index % 2)
        options = {"max_tokens": 60, "temperature": temperature, "seed": index, "logit_bias": ENDING, **ASKED[kind]}
        asked.append((kind, [*b"say", index], options))
    alone = [specdec.generate(word_model(seed=4), prompt, speculate=False, **options) for _, prompt, options in asked]
    with specdec.Batch(model) as batch:
        growing = [batch.submit(prompt, **options) for _, prompt, options in asked]
        for generation in growing:
            for _ in generation:
                pass
        together = [generation.result() for generation in growing]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert sum(one.finish_reason == "stop" for one in together) >= 4
    for one, (kind, *_) in zip(together, asked, strict=True):
        assert one.finish_reason != "stop" or complies(one.text, kind)


def test_what_the_grammar_forces_is_drafted_without_a_model() -> None:
    text = "name name name abc abc abc 12"
    model = word_model(seed=1)
    plain = specdec.generate(model, [1], regex=text, speculate=False)
    assert (plain.text, plain.stopped_by, plain.finish_reason) == (text, "grammar", "stop")
    assert plain.stats.rounds == len(plain.tokens)
    model.runtime.passes.clear()
    fast = specdec.generate(model, [1], regex=text, policy="fixed")
    assert fast.tokens == plain.tokens
    counts = fast.stats.by_drafter["grammar"]
    assert counts["accepted"] == counts["drafted"] > 0
    assert fast.stats.rounds < len(plain.tokens) / 3
    assert all(view == "exact" for view, *_ in model.runtime.passes)
    pieces = list(specdec.stream(model, [1], regex=text, policy="fixed"))
    labels = {origin.label for piece in pieces for origin in piece.origins}
    assert {"grammar"} <= labels <= {"grammar", "bonus"}


def test_forced_tokens_take_no_draft_steps_within_a_draft() -> None:
    """A choice, then a text without one: the drafter runs for the choices only, and sees what was forced."""
    model = word_model(seed=3)
    options = {"regex": r"([0-9]xyz,){8}", "max_tokens": 80}
    plain = specdec.generate(model, [1], speculate=False, **options)
    model.runtime.passes.clear()
    fast = specdec.generate(model, [1], policy="fixed", draft_len=4, draft_effort=1.0, draft_view="exact", **options)
    assert fast.tokens == plain.tokens
    assert fast.stats.by_drafter["effort"]["drafted"] <= 8
    assert fast.stats.acceptance_rate == 1.0
    assert fast.stats.by_drafter["grammar"]["accepted"] > 16
    assert fast.stats.rounds <= 3


def test_drafts_of_a_lookup_are_cut_at_what_the_grammar_refuses(tmp_path: Path) -> None:
    model, trace = word_model(seed=2), tmp_path / "trace"
    prompt = list(b"ab12 ab13 ab14 ab")
    drafting = {"policy": "fixed", "drafter": "ngram:min=1", "draft_len": 6}
    result = specdec.generate(model, prompt, regex=r"ab(1ab)+\.", max_tokens=30, trace=trace, **drafting)
    constraint, start = constraint_of(grammar_of(regex=r"ab(1ab)+\."), []), 0
    proposed = 0
    for line in map(json.loads, trace.read_text().splitlines()):
        said = result.tokens[:start]
        assert constraint.allowed(line["drafted"], said) == len(line["drafted"])
        start, proposed = start + line["emitted"], proposed + len(line["drafted"])
    assert proposed > 5


def test_drafts_follow_the_mask() -> None:
    model = word_model(seed=5)
    options = {"regex": r"[0-9]{40}", "policy": "fixed", "draft_effort": 0.95, "drafter": "effort"}
    result = specdec.generate(model, [1], **options)
    # Bare drafts would nearly never be digits.
    assert result.stats.by_drafter["effort"]["accepted"] > 0.5 * result.stats.by_drafter["effort"]["drafted"]


def test_trusted_drafts_comply(tmp_path: Path) -> None:
    class Astray(TreeDrafter):
        """A chain of whatever, with signals that say it is sure."""

        def draft(self, plan: DraftPlan, context: Any, *, policy: Any) -> Draft:
            return Draft(self.random.choice(VOCAB, 4).tolist())

    for drafting in ({"policy": "fixed", "draft_effort": 0.3}, {"policy": "fixed", "drafter": Astray(1, [], 1)}):
        model = word_model(seed=6)
        result = specdec.generate(model, [1], trust=50.0, regex=r"([0-9]{3} ){6}", **drafting)
        assert re.fullmatch(r"([0-9]{3} ){6}", result.text)
    assert result.identical_to == "dense"  # nothing was trusted: no signals


def test_policies_hear_of_their_own_tokens_alone() -> None:
    heard = []

    class Listening(Long):
        def observe(self, outcome: Any) -> None:
            super().observe(outcome)
            heard.append(outcome)

    result = specdec.generate(word_model(seed=3), [1], regex=r"([0-9]xyz,){8}", policy=Listening(), drafter="effort")
    assert sum(one.drafted for one in heard) == result.stats.by_drafter["effort"]["drafted"]
    assert sum(one.accepted for one in heard) == result.stats.by_drafter["effort"]["accepted"]
    assert sum(one.rows_beside for one in heard) == result.stats.by_drafter["grammar"]["drafted"]


@given(schema=schemas(), weights=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.0]), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_answers_to_random_schemas_are_valid(
    schema: Any, weights: int, temperature: float, data: st.DataObject
) -> None:
    asked = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}}
    model = word_model(seed=weights, sharpness=1.0)
    options = {"max_tokens": 400, "temperature": temperature, "seed": weights, "logit_bias": ENDING, **asked}
    result = specdec.generate(model, [1], policy="fixed", draft_effort=0.9, **options)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    if result.finish_reason == "stop":
        validator.validate(json.loads(result.text))
    else:
        assert len(result.tokens) == 400
    # What is valid can be said.
    value = data.draw(values_of(schema))
    assert validator.is_valid(value)
    ids = WordTokenizer().encode(json.dumps(value, ensure_ascii=False))
    assert constraint_of(grammar_of(**asked), []).allowed(ids) == len(ids)


def test_a_long_chain_of_rules_and_a_long_text_that_must_follow() -> None:
    chain = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(6000)) + '\nr6000: "ab"'
    assert specdec.generate(word_model(), [1], grammar=chain).text == "ab"
    text = specdec.generate(word_model(), [1], regex="[a-b](name ){4000}", max_tokens=100, policy="fixed")
    assert re.fullmatch("[ab](name ?)+(na?)?", text.text)
    assert text.stats.rounds < 20


@pytest.mark.parametrize("has_end", [True, False])
def test_ends(has_end: bool) -> None:
    model = word_model(seed=1, eos=None if has_end else frozenset())
    whole = specdec.generate(model, [1], regex="ab")
    assert (whole.text, whole.stopped_by) == ("ab", "grammar")
    cut = specdec.generate(model, [1], regex="[a-b]{50}", max_tokens=3)
    assert (cut.stopped_by, len(cut.tokens)) == ("max_tokens", 3)
    stopped = specdec.generate(model, [1], regex="a{5}b{5}", stop="bb")
    assert (stopped.text, stopped.stopped_by) == ("aaaaa", "stop string")
    if has_end:
        either = specdec.generate(model, [1], regex="a?", logit_bias={EOS: 100})
        assert (either.text, either.tokens, either.stopped_by) == ("", [EOS], "end token")

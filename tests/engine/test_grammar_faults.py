"""Grammars that cannot be used, leave no token, or exceed a limit; and those that are kept."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from fake_runtime import fake_model
from grammars import GRAMMARS, allowed_after, constraint_of, grammar_of
from llguidance import LLMatcher
from words import VOCAB, word_model

import specdec
from specdec.engine.constraint import GrammarConstraint
from specdec.engine.grammar import asked_grammar
from specdec.errors import GrammarError, OptionError, SpecdecError
from specdec.model.loaded import Model


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "keywords"),
    [
        ({"type": "array", "uniqueItems": True}, ("uniqueItems",)),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, ("not",)),
        ({"type": "integer", "minimum": 5, "maximum": 3}, ("minimum", "maximum")),
        ({"type": "string", "pattern": "^a$", "minLength": 3}, ("pattern", "minLength")),
        ({"type": "string", "pattern": "(?=a)b"}, ("pattern",)),
        ({"type": "string", "format": "foo"}, ("format",)),
        ({"enum": [1, 2], "type": "string"}, ("enum", "type")),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, ("allOf", "type")),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, ("oneOf",)),
        ({"type": "array", "items": {"anyOf": []}, "minItems": 1}, ("minItems", "anyOf")),
        ({"$ref": "https://example.com/x"}, ("$ref",)),
        ({"$ref": "#"}, ("$ref",)),
        ({"type": "nope"}, ("type",)),
        ({"x-guidance": {"lenient": True}, "not": {}}, ("not",)),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_by_its_keywords(schema: Any, keywords: tuple[str, ...]) -> None:
    with pytest.raises(GrammarError, match="response_format has a schema that cannot be used because of") as caught:
        specdec.generate(word_model(), [1], response_format={"type": "json_schema", "schema": schema})
    assert set(caught.value.keywords) == set(keywords)
    assert all(json.dumps(keyword) in str(caught.value) for keyword in keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"response_format": {"type": "json_schema", "schema": False}},
            "has the schema false, which nothing",
        ),
        ({"grammar": "start: foo"}, 'grammar cannot be used: at 1.*unknown name: "foo"'),
        ({"grammar": "root ::= x"}, "grammar is not valid GBNF: Rule 'x' not found"),
        ({"grammar": 'start: "a" <nope>'}, "grammar cannot be used: .*unknown special token"),
        ({"grammar": 'start: %json {"contains": 1}'}, "grammar cannot be used: .*contains"),
        ({"regex": "(a"}, "regex cannot be used: .*unclosed group"),
        ({"regex": "a(?!b)"}, "regex cannot be used: .*look-around"),
        ({"regex": "(" * 5000 + "a" + ")" * 5000}, "regex cannot be used: .*nest"),
        ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar cannot be used: .*too deeply nested"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "grammar is not valid GBNF: .*recursion"),
        ({"response_format": {"type": "json_schema", "schema": nested(300)}}, "cannot be read: recursion limit"),
    ],
)
def test_mistakes_in_grammars(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(GrammarError, match=told) as caught:
        specdec.generate(word_model(), [1], **asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"response_format": "json"}, 'response_format must have the "type"'),
        ({"response_format": {"type": "xml"}}, "unlike type 'xml'"),
        ({"response_format": {"type": "json_schema"}}, "needs a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}}, "needs a schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 3}}, "needs a schema"),
        ({"response_format": {"type": "json_schema", "schema": {"a": {1, 2}}}}, "a schema that JSON can hold"),
        ({"response_format": {"type": "json_schema", "schema": {}, "strict": "yes"}}, 'true or false as "strict"'),
        ({"grammar": ""}, "grammar must be text of at least one character, not ''"),
        ({"regex": 3}, "regex must be text of at least one character, not 3"),
        ({"regex": "a" * 100_001}, "regex has 100001 bytes: at most 100000 are allowed"),
        ({"regex": "\ud800"}, "regex is not valid Unicode: half a surrogate pair at position 0"),
        (
            {"response_format": {"type": "json_schema", "schema": {"enum": ["a" * 100_000]}}},
            "response_format has 100014 b",
        ),
        ({"regex": "a", "grammar": 'start: "a"'}, "regex cannot be combined with grammar"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex cannot be combined with response_format"),
    ],
)
def test_what_is_no_grammar(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        specdec.generate(word_model(), [1], **asked)


def test_plain_text_asks_for_nothing() -> None:
    assert asked_grammar({"type": "text"}, None, None) is None
    assert specdec.generate(Model(word_model().runtime), [1], max_tokens=2, response_format={"type": "text"}).tokens


def test_without_a_tokenizer_or_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="regex needs the text of the tokens, and this model has no tokenizer"):
        specdec.generate(Model(word_model().runtime), [1], regex="a")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(OptionError, match=r"regex needs llguidance: pip install 'specdec-mlx\[grammar\]'"):
        specdec.generate(word_model(), [1], regex="a")


def test_a_grammar_in_which_nothing_is_left_fails_and_not_the_drafts_alone() -> None:
    for speculate in (True, False):
        with pytest.raises(SpecdecError, match="no token can follow the first 3 of the answer: the banned tokens and"):
            specdec.generate(fake_model(), [1], regex="aaab", logit_bias={98: -100}, speculate=speculate)


class Strained:
    """A matcher that gives up on a token, for good."""

    def __init__(self, matcher: Any, limit: int) -> None:
        self._matcher, self._limit, self._failed = matcher, limit, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def deep_copy(self) -> Strained:
        return Strained(self._matcher.deep_copy(), self._limit)

    def try_consume_tokens(self, tokens: list[int]) -> int:
        self._failed = self._failed or self._limit in tokens
        return self._matcher.try_consume_tokens(tokens)

    def is_error(self) -> bool:
        return self._failed

    def get_error(self) -> str:
        return "too many items"


def test_a_matcher_that_gives_up_on_a_draft_is_replaced() -> None:
    """What happened on the way of a draft must not follow the answer around."""
    plain = constraint_of(grammar_of(regex="[a-c]+"), [])
    matcher = LLMatcher(GRAMMARS.tables.tokenizer, LLMatcher.grammar_from_regex("[a-c]+"))  # type: ignore[union-attr]
    constraint = GrammarConstraint(Strained(matcher, ord("c")), option="regex", vocab_size=VOCAB)  # type: ignore[arg-type]
    answer = [1]
    constraint.begin(answer)
    answer += b"ab"
    wanted = allowed_after(constraint, b"a")
    with pytest.raises(GrammarError, match="regex is too complex to continue with: too many items"):
        constraint.mask(np.zeros(VOCAB, np.float32), list(b"ac"))
    assert allowed_after(constraint, list(b"a")) == wanted == allowed_after(plain, list(b"aba"))


def test_compiled_grammars_are_kept_and_let_go() -> None:
    model = word_model()
    for index in range(40):
        specdec.generate(model, [1], regex=f"a{{{index + 1}}}", max_tokens=1)
    specdec.generate(model, [1], regex="a{40}", max_tokens=1)
    kept = [grammar.text for grammar in model.memory.grammars.compiled]
    assert len(kept) == 32
    assert kept[-2:] == ["a{39}", "a{40}"]
    assert model.memory.fresh().grammars is model.memory.grammars

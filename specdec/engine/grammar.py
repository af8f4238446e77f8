"""Grammars that an answer must follow: how they are asked for, and the tables that the answers of a model share.

The work is done by llguidance (Microsoft, github.com/guidance-ai/llguidance), which the extra `grammar` installs.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdec.engine.constraint import GrammarConstraint
from specdec.errors import GrammarError, InvalidArgumentError, OptionError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from specdec.tokenizers import Tokenizer

_KEPT = 32  # compiled grammars of a model
_MOST_TRIALS = 200  # schemas that are tried to find the keyword at fault
# Between the parts of JSON: nothing, a space, or a line's end and indentation (llama.cpp's rule `space`). JSON itself
# allows any number of spaces, with which a model that has lost its thread fills an answer.
_JSON_OPTIONS = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}", "lenient": False}
_UNKNOWN_KEYS = "Unimplemented keys: "
_COMBINING, _SCHEMA_MAPS = ("allOf", "anyOf", "oneOf"), ("properties", "patternProperties", "$defs", "definitions")
_SCHEMAS = ("items", "additionalProperties", "not", "contains", "propertyNames")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be.

    Attributes:
        option: that asked for it.
        text: JSON schema as JSON, Lark, GBNF, or a regular expression.
    """

    option: str
    text: str

    @property
    def schema(self) -> Any:
        """The JSON schema; None where it is something else."""
        return json.loads(self.text) if self.option == "response_format" else None


def asked_grammar(response_format: object, grammar: object, regex: object) -> Grammar | None:
    """The grammar that the three options ask for; None when none of them asks for any.

    Raises:
        OptionError: one of them is not what it should be, or there are two.
    """
    found = [] if response_format is None else _formats(response_format)
    for option, value in (("grammar", grammar), ("regex", regex)):
        if value is not None:
            if not isinstance(value, str) or not value:
                raise OptionError(option, f"must be text, not {value!r}")
            found.append(Grammar(option, value))
    if len(found) > 1:
        raise OptionError(found[1].option, f"cannot be combined with {found[0].option}: leave one of them out")
    return found[0] if found else None


def _formats(value: object) -> list[Grammar]:
    """One grammar, or none for plain text.

    Raises:
        OptionError: it is not a response format.
    """
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or kind not in ("text", "json_object", "json_schema"):
        shown = repr(value) if kind is None else f"type {kind!r}"
        raise OptionError(
            "response_format", f'must have the "type" "text", "json_object" or "json_schema", unlike {shown}'
        )
    if kind == "text":
        return []
    inner = value.get("json_schema", value)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if kind == "json_object" and schema is None:
        schema = {"type": "object"}
    if schema is False:
        raise GrammarError("response_format", "has the schema false, which nothing meets")
    schema = {} if schema is True else schema
    if not isinstance(schema, Mapping):
        raise OptionError(
            "response_format", 'of type "json_schema" needs a schema: {"json_schema": {"name": ..., "schema": {...}}}'
        )
    strict = inner.get("strict") if isinstance(inner, Mapping) else None
    if strict is not None and not isinstance(strict, bool):
        raise OptionError("response_format", f'must have true or false as "strict", not {strict!r}')
    try:
        return [Grammar("response_format", json.dumps(schema, allow_nan=False))]
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError("response_format", f"must have a schema that JSON can hold: {error}") from None


@dataclass(slots=True)
class Grammars:
    """What the grammars of a model's answers share. It may be used from any thread.

    Attributes:
        tables: of the model's vocabulary, once needed.
        compiled: matchers at their beginnings, by grammar, the least recently used first.
    """

    tables: _Tables | None = None
    compiled: OrderedDict[Grammar, LLMatcher] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def constraint(
        self, grammar: Grammar, tokenizer: Tokenizer | None, vocab_size: int, *, continues: bool
    ) -> GrammarConstraint:
        """A constraint for one answer.

        Args:
            grammar: what was asked for.
            tokenizer: of the model.
            vocab_size: V.
            continues: the answer goes on with the text of the prompt.

        Raises:
            GrammarError: the grammar has a mistake, cannot be met, or needs what is not supported.
            OptionError: the model has no tokenizer, or llguidance is not installed.
        """
        if tokenizer is None:
            raise OptionError(grammar.option, "needs the text of the tokens, and this model has no tokenizer")
        _check_installed(grammar.option)
        with self.lock:
            if self.tables is None:
                self.tables = _Tables.of(tokenizer, vocab_size)
            tables, matcher = self.tables, self.compiled.get(grammar)
        if matcher is None:
            matcher = _compiled(grammar, tables.tokenizer)
        with self.lock:
            self.compiled[grammar] = matcher
            self.compiled.move_to_end(grammar)
            while len(self.compiled) > _KEPT:
                self.compiled.popitem(last=False)
        return GrammarConstraint(
            matcher.deep_copy(),
            option=grammar.option,
            vocab_size=vocab_size,
            not_first=None if continues else tables.spaced,
            has_end=tables.has_end,
        )


@dataclass(frozen=True, slots=True)
class _Tables:
    """A vocabulary as llguidance reads it.

    Attributes:
        tokenizer: the vocabulary.
        spaced: ids whose text begins with a space, where the first space of an answer is not shown; else None.
        has_end: whether a token of the model ends an answer.
    """

    tokenizer: LLTokenizer
    spaced: NDArray[np.intp] | None
    has_end: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int) -> _Tables:
        """The tables of a tokenizer whose model has `vocab_size` tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        pieces = [*tokenizer.pieces[:vocab_size]]
        pieces += [b""] * (vocab_size - len(pieces))
        special = sorted(token for token in tokenizer.special_ids if token < vocab_size)
        ends = sorted(token for token in tokenizer.eos_ids if token < vocab_size)
        # llguidance needs a token that ends a text: where the model has none, one that it can never choose.
        vocabulary = _Vocabulary(tokenizer, [*pieces, b"<end>"], [*special, vocab_size], ends or [vocab_size])
        spaced = [token for token, piece in enumerate(pieces) if piece.startswith(b" ")]
        return cls(
            LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.ends),
            np.array(spaced, np.intp) if tokenizer.strips_first_space else None,
            bool(ends),
        )


class _Vocabulary:
    """What llguidance asks of a tokenizer: the bytes of every token, and the usual tokens of a text."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], special: list[int], ends: list[int]) -> None:
        self.tokens, self.special_token_ids, self.ends = pieces, special, ends
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_id
        self._tokenizer = tokenizer
        self._special = frozenset(special)
        self._ids = {piece: token for token, piece in enumerate(pieces) if piece and token not in self._special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """The ids of a piece of text, as it would be in the middle of one; their bytes are exactly those of `text`."""
        try:
            ids = self._tokenizer.encode(text.decode("utf-8"), add_bos=False)
        except (UnicodeDecodeError, InvalidArgumentError):
            ids = []
        joined = b"".join(self.tokens[token] for token in ids if token < len(self.tokens))
        if joined != text and joined == b" " + text and self.tokens[ids[0]] == b" ":
            return ids[1:]
        return ids if joined == text and not self._special.intersection(ids) else self._longest_ids(text)

    def _longest_ids(self, text: bytes) -> list[int]:
        """The longest token that the text begins with, and so on; bytes that no token begins with end it."""
        ids: list[int] = []
        while text:
            lengths = range(min(self._longest, len(text)), 0, -1)
            length = next((length for length in lengths if text[:length] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[text[:length]])
            text = text[length:]
        return ids


def _check_installed(option: str) -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise OptionError(option, "needs llguidance: pip install 'specdec-mlx[grammar]'") from None


def check_grammar(grammar: Grammar) -> None:
    """Refuse, before a model is loaded, what can be refused without its vocabulary.

    Raises:
        GrammarError: the grammar has a mistake, cannot be met, or needs what is not supported.
        OptionError: llguidance is not installed.
    """
    _check_installed(grammar.option)
    from llguidance import LLMatcher

    if said := LLMatcher.validate_grammar(_source(grammar)):
        raise _refusal(grammar, said)


def _compiled(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, _source(grammar), log_level=0)
    if matcher.is_error():
        raise _refusal(grammar, matcher.get_error())
    return matcher


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form.

    Raises:
        GrammarError: it is GBNF with a mistake.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if grammar.option == "response_format":
        try:
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
        except ValueError as error:  # such as one that is nested too deeply
            raise GrammarError(grammar.option, f"has a schema that cannot be read: {error}") from None
    if grammar.option == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if "::=" not in grammar.text:
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
    except Exception as error:  # the converter raises Exception itself
        raise GrammarError(grammar.option, f"is not valid GBNF: {error}") from None


def _refusal(grammar: Grammar, said: str) -> GrammarError:
    """What llguidance says of a grammar, in one sentence that names the keywords at fault."""
    lines = [line.strip() for line in said.splitlines()]
    reason = " ".join([lines[0], *(line for line in lines if line.startswith("error: "))]).replace("error: ", "")
    if grammar.option != "response_format":
        return GrammarError(grammar.option, f"cannot be used: {reason}")
    keywords = _at_fault(grammar.schema, reason)
    named = f" because of {' and '.join(map(json.dumps, keywords))}" if keywords else ""
    return GrammarError(grammar.option, f"has a schema that cannot be used{named}: {reason}", keywords=keywords)


def _at_fault(schema: Any, reason: str) -> tuple[str, ...]:
    """The keywords to blame: those that llguidance names, else those without any one of which the schema could be used;
    none where a single one does not do it."""
    from llguidance import LLMatcher

    if reason.startswith(_UNKNOWN_KEYS):
        return tuple(json.loads(reason.removeprefix(_UNKNOWN_KEYS)))
    found: list[tuple[str, ...]] = []
    for _, (place, path) in zip(range(_MOST_TRIALS), _keywords(schema, ()), strict=False):
        value = place.pop(path[-1])
        if not LLMatcher.validate_grammar(_source(Grammar("response_format", json.dumps(schema)))):
            found.append(path)
        place[path[-1]] = value
    # A keyword that only holds another one, and a type without which anything would do, are not to blame.
    deepest = [one for one in found if not any(one == other[: len(one)] != other for other in found)]
    found = [one for one in found if one in deepest or one[-1] in _COMBINING]
    names = dict.fromkeys(path[-1] for path in found)
    if "type" not in reason and len(names) > 1:
        names.pop("type", None)
    return tuple(names)


def _keywords(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Every keyword of a schema and of those in it: the mapping that it is in, and the way to it."""
    if not isinstance(schema, dict):
        return
    for keyword, value in list(schema.items()):
        yield schema, (*path, keyword)
        inner: Mapping[str, Any] = {"": value} if keyword in _SCHEMAS else {}
        if keyword in (*_COMBINING, "prefixItems") and isinstance(value, list):
            inner = {str(index): one for index, one in enumerate(value)}
        if keyword in _SCHEMA_MAPS and isinstance(value, dict):
            inner = value
        for name, one in inner.items():
            yield from _keywords(one, (*path, keyword, name))

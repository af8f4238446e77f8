"""Grammars that an answer must follow: how they are asked for, and compiling them.

The work is done by llguidance (Microsoft, github.com/guidance-ai/llguidance), which the extra `grammar` installs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from specdec.engine.grammar_faults import at_fault
from specdec.errors import GrammarError, OptionError
from specdec.interrupts import unless_signalled

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

T = TypeVar("T")

_MOST_BYTES = 100_000  # of a grammar: compiling takes seconds from there on
_MOST_SAID = 200  # characters of each part of what llguidance says
_STACK_BYTES = 128 << 20  # for rules that refer to rules, as many as fit into a grammar
# Between the parts of JSON: nothing, a space, or a line's end and indentation (llama.cpp's rule `space`). JSON itself
# allows any number of spaces, with which a model that has lost its thread fills an answer.
_JSON_OPTIONS = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}", "lenient": False}

_stack_size = threading.Lock()  # of the process's setting for new threads


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be.

    Attributes:
        option: that asked for it.
        text: JSON schema as JSON, Lark, GBNF, or a regular expression.

    Raises:
        OptionError: it is too long, or holds half a surrogate pair.
    """

    option: str
    text: str

    def __post_init__(self) -> None:
        try:
            size = len(self.text.encode("utf-8"))
        except UnicodeEncodeError as error:
            problem = f"is not valid Unicode: half a surrogate pair at position {error.start}"
            raise OptionError(self.option, problem) from None
        if size > _MOST_BYTES:
            raise OptionError(self.option, f"has {size} bytes: at most {_MOST_BYTES} are allowed")


def asked_grammar(response_format: object, grammar: object, regex: object) -> Grammar | None:
    """The grammar that the three options ask for; None when none of them asks for any.

    Raises:
        OptionError: one of them is not what it should be, or there are two.
    """
    found = [] if response_format is None else _formats(response_format)
    for option, value in (("grammar", grammar), ("regex", regex)):
        if value is not None:
            if not isinstance(value, str) or not value:
                raise OptionError(option, f"must be text of at least one character, not {value!r}")
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
        text = json.dumps(schema, allow_nan=False)
    except unless_signalled(TypeError, ValueError, RecursionError) as error:
        raise OptionError("response_format", f"must have a schema that JSON can hold: {error}") from None
    return [Grammar("response_format", text)]


def check_installed(option: str) -> None:
    """Refuse an option where llguidance is missing.

    Raises:
        OptionError: it is not installed.
    """
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
    check_installed(grammar.option)
    from llguidance import LLMatcher, LLParserLimits

    def problem(one: Grammar) -> str:
        source, limits = _source(one), LLParserLimits(verbose_errors=False)
        return _on_a_deep_stack(lambda: LLMatcher.validate_grammar(source, limits=limits))

    if said := problem(grammar):
        raise _refusal(grammar, said, problem)


def compiled(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of the grammar.

    Raises:
        GrammarError: see `check_grammar`.
    """
    matcher = _matcher(grammar, tokenizer)
    if matcher.is_error():
        raise _refusal(grammar, matcher.get_error(), lambda one: _matcher(one, tokenizer).get_error())
    return matcher


def _matcher(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher that has met its first mask, and its first difficulties."""
    from llguidance import LLMatcher, LLParserLimits
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

    source, limits = _source(grammar), LLParserLimits(verbose_errors=False)

    def work() -> LLMatcher:
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits)
        if not matcher.is_error():
            fill_next_token_bitmask(matcher, allocate_token_bitmask(1, tokenizer.vocab_size))
        return matcher

    return _on_a_deep_stack(work)


def _on_a_deep_stack(work: Callable[[], T]) -> T:
    """What `work` returns, in a thread whose stack is deep enough for it: llguidance follows rules by recursion."""
    found: list[T] = []
    with _stack_size:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=lambda: found.append(work()), name="specdec grammar")
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return found[0]


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form.

    Raises:
        GrammarError: it is nested too deeply, or is GBNF with a mistake.
    """
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if grammar.option == "response_format":
        try:
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
        except unless_signalled(ValueError) as error:
            raise GrammarError(grammar.option, f"has a schema that cannot be read: {error}") from None
    if grammar.option == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if "::=" not in grammar.text:
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
    except unless_signalled(Exception) as error:  # the converter raises Exception itself
        raise GrammarError(grammar.option, f"is not valid GBNF: {error}") from None


def reason_of(said: str) -> str:
    """What llguidance says, in one line."""
    lines = [line.strip() for line in said.replace("<non-verbose/>", "").splitlines()]
    if lines[0].startswith("NoExtension"):
        return "no text meets it"
    details = " ".join(line.removeprefix("error: ") for line in lines if line.startswith("error: "))
    return f"{lines[0][:_MOST_SAID]} {details[:_MOST_SAID]}".strip()


def _refusal(grammar: Grammar, said: str, problem: Callable[[Grammar], str]) -> GrammarError:
    """Why a grammar cannot be used, in one sentence that names the keywords at fault.

    Args:
        grammar: the grammar.
        said: what llguidance says of it.
        problem: what it says of another one; empty where that can be used.
    """
    reason = reason_of(said)
    if grammar.option != "response_format":
        return GrammarError(grammar.option, f"cannot be used: {reason}")
    keywords = at_fault(grammar.text, reason, lambda text: not problem(Grammar(grammar.option, text)))
    named = f" because of {' and '.join(map(json.dumps, keywords))}" if keywords else ""
    return GrammarError(grammar.option, f"has a schema that cannot be used{named}: {reason}", keywords=keywords)

"""Grammars over the vocabulary of words, and what they allow after tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from words import VOCAB, WordTokenizer

from specdec.engine.constraint import GrammarConstraint
from specdec.engine.grammar import Grammar, asked_grammar
from specdec.engine.grammar_tables import Grammars

LIST = 'root ::= "[" item ("," item)* "]"\nitem ::= [a-c]+ | "name"'
GRAMMARS = Grammars()


def grammar_of(**asked: Any) -> Grammar:
    grammar = asked_grammar(asked.get("response_format"), asked.get("grammar"), asked.get("regex"))
    assert grammar is not None
    return grammar


def constraint_of(grammar: Grammar, tokens: list[int]) -> GrammarConstraint:
    found = GRAMMARS.constraint(grammar, WordTokenizer(), VOCAB, continues=False)  # type: ignore[arg-type]
    found.begin(tokens)
    return found


def allowed_after(constraint: GrammarConstraint, drafted: Sequence[int]) -> list[int]:
    logits = np.zeros(VOCAB, np.float32)
    constraint.mask(logits, drafted)
    return np.flatnonzero(logits == 0).tolist()

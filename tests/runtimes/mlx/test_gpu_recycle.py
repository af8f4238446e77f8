"""Launches that draft for themselves, on a real GPU: their tokens are those of single steps, and their drafts are those
that the rule gives. Skipped where MLX has no GPU, saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from gpu_models import STEP_MODELS, needed_gpu, runtimes_of
from specdec.kernels.reference.recycle import Recycled

from specdec.model.effort import resolve_efforts
from specdec.runtimes.base import Recycling, Rows, Turn, forward_one

needed_gpu()


@pytest.fixture(scope="module")
def runtime_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return runtimes_of(STEP_MODELS, tmp_path_factory, needs=lambda runtime: runtime.info.recycles)


def text_of(runtime: Any, length: int) -> list[int]:
    """A text whose end has occurred before."""
    ids: list[int] = np.random.default_rng(length).integers(0, runtime.config.vocab_size, length).tolist()
    ids[-4:] = ids[length // 2 : length // 2 + 4]
    return ids


def cache_of(runtime: Any, text: Sequence[int]) -> Any:
    made = runtime.new_cache(500)
    forward_one(runtime, text[:-1], made, logits="none")
    return made


def plain(runtime: Any, text: Sequence[int], count: int) -> tuple[list[int], np.ndarray]:
    """Greedy tokens one by one, and the logits after all but the last."""
    held, found, efforts = cache_of(runtime, text), [text[-1]], resolve_efforts(1.0, runtime.config)
    for _ in range(count):
        logits = runtime.forward([Rows(held, found[-1:], efforts)])[0].logits[0]
        found.append(int(logits.argmax()))
    return found[1:], logits


def launch(
    runtime: Any, held: Any, text: Sequence[int], *, rows: int = 16, ahead: int = 0, **options: Any
) -> list[Turn]:
    limit = options.pop("limit", 500)
    wish = Recycling(text, rows, limit, options.pop("owner", None))
    asked = Rows(
        held, text[-1:], resolve_efforts(1.0, runtime.config), logits="choices", ahead=ahead, recycling=wish, **options
    )
    return list(runtime.forward([asked])[0].turns)


def tokens_of(turn: Turn) -> list[int]:
    return [choice.token for choice in turn.choices]


@pytest.mark.parametrize("name", STEP_MODELS)
@pytest.mark.parametrize(("length", "rows", "ahead"), [(40, 16, 15), (250, 16, 3), (33, 8, 15), (120, 5, 0)])
def test_tokens_are_those_of_single_steps(runtime_of, name, length, rows, ahead):
    runtime, count = runtime_of(name), 60
    text = text_of(runtime, length)
    wanted, _ = plain(runtime, text, count)
    held, grown = cache_of(runtime, text), list(text)
    while len(grown) < length + count:
        turns = launch(runtime, held, grown, rows=rows, ahead=ahead, limit=length + count)
        for turn in turns:
            assert tokens_of(turn)[:-1] == [turn.tokens[index] for index in turn.kept]
            grown += tokens_of(turn)
        assert held.length == len(grown) - 1
    assert grown[length:] == wanted
    # Keys and values are those of single steps, to the bit.
    after = forward_one(runtime, grown[-1:], held).logits
    again = cache_of(runtime, grown)
    assert np.array_equal(after, forward_one(runtime, grown[-1:], again).logits)


@pytest.mark.parametrize("name", STEP_MODELS)
@pytest.mark.parametrize("rows", [16, 6])
def test_drafts_are_those_of_the_rule(runtime_of, name, rows):
    runtime, efforts = runtime_of(name), resolve_efforts(1.0, runtime_of(name).config)
    text, rule, seen = text_of(runtime, 60), Recycled(), 0
    held = cache_of(runtime, text)
    for ahead in (0, 4, 15, 2):
        for turn in launch(runtime, held, text, rows=rows, ahead=ahead):
            tokens, parents = rule.draft(text, rows, 500)
            room = held.positions - len(text)  # for rows besides the pending token's
            tokens, parents = tokens[:room], parents[:room]
            assert (list(turn.tokens), list(turn.parents)) == (tokens, parents)
            tree = [text[-1], *tokens]
            check = cache_of(runtime, text)
            logits = runtime.forward([Rows(check, tree, efforts, [-1, *(one + 1 for one in parents)])])[0].logits
            likeliest = np.argsort(-logits, axis=1, kind="stable")[:, :8].tolist()
            path = [0, *(one + 1 for one in turn.kept)]
            for row in [*range(len(tree)), *path]:  # rows of the path last
                rule.learn([tree[row]], [likeliest[row]])
            assert tokens_of(turn) == [likeliest[row][0] for row in path]
            for choice, row in zip(turn.choices, path, strict=True):
                assert choice.highest == logits[row].max()
            text += tokens_of(turn)
            seen += len(tokens)
    assert seen > 40


def test_another_sequence_begins_with_nothing(runtime_of):
    """Even in the same cache."""
    runtime = runtime_of("float16")
    text = text_of(runtime, 60)
    alone = launch(runtime, cache_of(runtime, text), text, ahead=6)
    other = text_of(runtime, 90)
    launch(runtime, cache_of(runtime, other), other, ahead=6)
    assert launch(runtime, cache_of(runtime, text), text, ahead=6) == alone
    assert launch(runtime, cache_of(runtime, text), list(text), ahead=6) == alone


def test_a_text_of_the_same_owner_begins_with_what_the_last_one_taught(runtime_of):
    runtime = runtime_of("float16")
    text, other = text_of(runtime, 60), text_of(runtime, 90)

    def drafted(owner: str | None) -> list[Turn]:
        return launch(runtime, cache_of(runtime, text), list(text), ahead=6, owner=owner)

    def after(owner: str | None) -> None:
        launch(runtime, cache_of(runtime, other), list(other), ahead=15, owner="a")
        launch(runtime, cache_of(runtime, text), list(text), ahead=15, owner=owner)

    cold = drafted(None)
    after("a")
    warm = drafted("a")
    assert [turn.tokens for turn in warm] != [turn.tokens for turn in cold]
    assert [token for turn in warm for token in tokens_of(turn)][:7] == [
        token for turn in cold for token in tokens_of(turn)
    ][:7]
    for owner in (None, "b"):
        after("a")
        assert drafted(owner) == cold
    after(None)
    assert drafted("a") == cold


def test_it_ends_at_an_end_token_and_at_the_limit(runtime_of):
    runtime = runtime_of("float16")
    text = text_of(runtime, 60)
    wanted, _ = plain(runtime, text, 12)
    end = wanted[5]
    turns = launch(runtime, cache_of(runtime, text), text, ahead=15, ends=frozenset({end}))
    found = [token for turn in turns for token in tokens_of(turn)]
    assert found == wanted[: len(found)]
    assert end in tokens_of(turns[-1])
    assert not any(end in tokens_of(turn) for turn in turns[:-1])
    turns = launch(runtime, cache_of(runtime, text), text, ahead=15, limit=67)
    assert [token for turn in turns for token in tokens_of(turn)] == wanted[:7]


def test_other_passes_may_come_between(runtime_of):
    runtime, efforts = runtime_of("quantised"), resolve_efforts(1.0, runtime_of("quantised").config)
    text = text_of(runtime, 60)
    wanted, _ = plain(runtime, text, 40)
    held, grown = cache_of(runtime, text), list(text)
    while len(grown) < 100:
        for turn in launch(runtime, held, grown, ahead=2, limit=100):
            grown += tokens_of(turn)
        if len(grown) < 100:
            grown.append(runtime.forward([Rows(held, grown[-1:], efforts, logits="choices")])[0].choices[0].token)
    assert grown[60:] == wanted


@pytest.mark.parametrize("name", STEP_MODELS)
def test_a_survey_says_what_rows_alone_do_and_texts_begin_with_it(runtime_of, name):
    runtime, efforts = runtime_of(name), resolve_efforts(1.0, runtime_of(name).config)
    text, tokens = text_of(runtime, 60), list(range(40))
    found = runtime.survey(text, tokens)
    held = cache_of(runtime, text)
    for token in tokens[::7]:
        logits = runtime.forward([Rows(held, [text[-1], token], efforts)])[0].logits
        held.trim(len(text) - 1)
        assert found[token].tolist() == np.argsort(-logits[1], kind="stable")[:8].tolist()
    try:
        runtime.use_successors(np.array(tokens, np.int32), found)
        turn = launch(runtime, cache_of(runtime, text), text)[0]
        known = dict(zip(tokens, found.tolist(), strict=True))
        assert (list(turn.tokens), list(turn.parents)) == Recycled(known).draft(text, runtime.info.recycles, 500)
    finally:
        runtime.use_successors(np.zeros(0, np.int32), np.zeros((0, 8), np.int32))

"""Text: stop strings however the text is cut, prompts of every kind, and what a wrong prompt is told."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from fake_runtime import BOS, EOS, ByteTokenizer, FakeRuntime, fake_config, fake_model
from hypothesis import given
from hypothesis import strategies as st

import specdec
from specdec.engine.prompt import encode_prompt
from specdec.engine.stops import StopStrings
from specdec.errors import InvalidArgumentError
from specdec.model.loaded import Model

few_letters = st.text(alphabet="abc", max_size=30)


def shown_by_definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read one character at a time; the first stop string that the text so far ends with, the longest of several."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    text=few_letters,
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 30)),
)
def test_stop_strings_however_the_text_is_cut(text, stops, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    watch, shown = StopStrings(stops), ""
    expected, found = shown_by_definition(text, stops)
    for start, end in pairwise(edges):
        shown += watch.feed(text[start:end])
        assert expected.startswith(shown)  # nothing of a stop string is ever shown, not even for a moment
    if watch.found is None:
        shown += watch.flush()
    assert (shown, watch.found) == (expected, found)


def test_nothing_is_shown_after_a_stop_string():
    watch = StopStrings(["x"])
    assert (watch.feed("axb"), watch.feed("c"), watch.flush()) == ("a", "", "")


def test_text_is_held_back_only_while_it_may_begin_a_stop_string():
    watch = StopStrings(["abcd"])
    assert [watch.feed(piece) for piece in ("xa", "b", "c", "x")] == ["x", "", "", "abcx"]


class SpellingRuntime(FakeRuntime):
    """Greedily spells out a text whatever came before; drafts are right but for every third byte."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.spelled = [*text.encode(), EOS]

    def _row(self, seen, _kind, view, _effort):
        token = self.spelled[min(len(seen) - 1, len(self.spelled) - 1)]
        row = np.zeros(self.config.vocab_size, np.float32)
        row[5 if view != "exact" and len(seen) % 3 == 0 else token] = 1
        return row


def spell(text: str, **options) -> specdec.Result:
    """The answer of a model that says `text` to a prompt of one token."""
    return specdec.generate(Model(SpellingRuntime(text), ByteTokenizer()), [BOS], **options)


def test_text_tokens_and_reason_at_an_end_token():
    result = spell("naïve café 東京 🙂")
    assert result.text == "naïve café 東京 🙂"
    assert result.tokens == [*result.text.encode(), EOS]
    assert (result.finish_reason, result.stopped_by) == ("stop", "end token")


def test_characters_arrive_whole():
    stream = specdec.stream(Model(SpellingRuntime("a東🙂b"), ByteTokenizer()), [BOS], policy="fixed", draft_len=2)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.result().text == "a東🙂b"
    assert [token for piece in pieces for token in piece.tokens] == stream.result().tokens
    assert not any("�" in piece.text for piece in pieces)


def test_an_incomplete_character_at_the_end_is_shown_as_such():
    assert spell("ab東", max_tokens=4).text == "ab�"


@pytest.mark.parametrize("draft_len", [1, 2, 5, 8])
def test_stop_string_across_tokens(draft_len):
    result = spell("One. Two. Three.", stop=[". T"], policy="fixed", draft_len=draft_len)
    assert (result.text, result.finish_reason, result.stopped_by) == ("One", "stop", "stop string")
    assert result.stop_string == ". T"
    assert result.tokens == list(b"One. T")


def test_one_stop_string_may_be_given_as_text():
    assert spell("say stop now", stop="stop").text == "say "


def test_the_beginning_of_a_stop_string_is_shown_when_the_answer_ends_there():
    assert spell("abc", stop="cd").text == "abc"
    assert spell("abc", stop="bcd", max_tokens=3).text == "abc"


def test_a_stop_string_that_the_last_flush_completes():
    result = spell("a東", stop="�", max_tokens=3)
    assert (result.text, result.stopped_by) == ("a", "stop string")


def test_a_control_token_given_as_stop_string_ends_the_answer():
    model = Model(SpellingRuntime("hello"), ByteTokenizer(eos=frozenset()))
    result = specdec.generate(model, [BOS], stop="<end>", max_tokens=20)
    assert (result.text, result.tokens[-1], result.finish_reason) == ("hello", EOS, "stop")
    assert result.stop_string == "<end>"


def test_prompt_as_text_ids_and_messages():
    config = fake_config()
    plain, chatty = ByteTokenizer(add_bos=True), ByteTokenizer(add_bos=True, has_chat_template=True)
    assert encode_prompt("hi", plain, config) == ([BOS, *b"hi"], True)
    assert encode_prompt("hi", chatty, config) == (list(b"<user>hi\n<assistant>"), False)
    assert encode_prompt("hi", chatty, config, chat=False) == ([BOS, *b"hi"], True)
    assert encode_prompt(np.array([4, 5]), None, config) == ([4, 5], True)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert encode_prompt(messages, chatty, config) == (list(b"<system>be brief\n<user>hi\n<assistant>"), False)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        (7, {}, "text, token ids, or chat messages, not 7"),
        ({"role": "user", "content": "x"}, {}, "text, token ids, or chat messages, not .*: put a message into a list"),
        ({3, 1, 2}, {}, "text, token ids, or chat messages, not {1, 2, 3}"),
        ([1, "a"], {}, "a token id must be a whole number, not 'a'"),
        ([1.5], {}, "a token id must be a whole number"),
        ([True], {}, "a token id must be a whole number"),
        ([258], {}, "token id 258 is outside the vocabulary of 258"),
        ([-1], {}, "token id -1 is outside"),
        ([1] * 512, {}, "the prompt has 512 tokens and the model's context holds 512"),
        ([{"role": "user", "content": "x"}], {}, "no chat template"),
        ([{"role": "user", "content": "x"}], {"chat": False}, "chat messages need the chat template"),
    ],
)
def test_wrong_prompts(prompt, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        specdec.generate(fake_model(), prompt, **options)


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}, "text"])
def test_wrong_messages(message):
    prompt = [{"role": "user", "content": "x"}, message]
    with pytest.raises(InvalidArgumentError, match="chat message 1 must have a 'role' and a 'content', both text"):
        specdec.generate(fake_model(tokenizer=ByteTokenizer(has_chat_template=True)), prompt)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_not_token_ids(kind):
    with pytest.raises(InvalidArgumentError, match="a prompt must be text, token ids, or chat messages, not "):
        specdec.generate(fake_model(), kind(b"abc"))


@pytest.mark.parametrize("name", ["speculate", "chat", "literal", "ignore_eos"])
def test_switches(name):
    for value in ("no", None, 2, 0.5):
        with pytest.raises(InvalidArgumentError, match=f"{name} must be True or False, not {value!r}"):
            specdec.generate(fake_model(), "ab", **{name: value})
    for value in (True, 0, np.True_, np.int64(1)):
        assert specdec.generate(fake_model(), "ab", max_tokens=4, **{name: value}).tokens


def test_numbers_of_numpy():
    options = {"max_tokens": np.int64(4), "draft_len": np.uint8(2), "seed": np.uint64(2**63), "logprobs": np.int8(1)}
    given = specdec.generate(fake_model(), "ab", temperature=np.float32(0.5), policy="fixed", **options)
    same = specdec.generate(
        fake_model(), "ab", temperature=0.5, max_tokens=4, draft_len=2, seed=2**63, logprobs=1, policy="fixed"
    )
    assert given.tokens == same.tokens
    assert json.loads(json.dumps(given.to_dict()))["seed"] == 2**63


def test_numbers_of_numpy_as_limits_and_efforts():
    model = fake_model()
    limits = {"max_sequences": 2, "max_rows": 8, "cache_bytes": 1 << 24, "queue": 3}
    with specdec.Batch(model, **{name: np.int64(value) for name, value in limits.items()}) as batch:
        assert json.loads(json.dumps(asdict(batch.status())))["max_sequences"] == 2
    assert type(specdec.PromptCache(np.int64(1000)).max_bytes) is int
    assert np.array_equal(model.logits([1, 2], effort=np.float32(0.5)), model.logits([1, 2], effort=0.5))


def test_prompts_in_arrays():
    model, texts = fake_model(), [[1, 2, 3], [4, 5, 6]]
    expected = [specdec.generate(model, text, max_tokens=4).tokens for text in texts]
    for prompts in (np.array(texts), [np.array(text) for text in texts], [np.array(texts[0]), texts[1]]):
        assert [answer.tokens for answer in specdec.generate(model, prompts, max_tokens=4)] == expected
    with pytest.raises(InvalidArgumentError, match=r"a token id must be a whole number, not 1\.5"):
        specdec.generate(model, np.array([1.5]))
    for ids in (None, 5, b"ab"):
        with pytest.raises(InvalidArgumentError, match=f"token ids must be a sequence of whole numbers, not {ids!r}"):
            model.logits(ids)


@pytest.mark.parametrize("call", [specdec.generate, specdec.stream])
def test_a_name_in_place_of_a_model(call):
    told = f"{call.__name__} needs a model that specdec.load returned, not 'm'"
    with pytest.raises(InvalidArgumentError, match=told):
        call("m", "Why?")


def test_a_model_without_a_tokenizer_takes_ids_and_gives_ids():
    model = Model(FakeRuntime(), None)
    result = specdec.generate(model, [1, 2], max_tokens=5)
    assert (len(result.tokens), result.text) == (5, "")
    with pytest.raises(InvalidArgumentError, match="no tokenizer: give the prompt as token ids"):
        specdec.generate(model, "hi")
    with pytest.raises(InvalidArgumentError, match="no tokenizer: stop strings need one"):
        specdec.generate(model, [1], stop="x")


def test_the_longest_prompt_leaves_room_for_one_token():
    result = specdec.generate(fake_model(), [1] * 511, max_tokens=5)
    assert (len(result.tokens), result.finish_reason, result.stopped_by) == (1, "length", "context")


def test_a_stop_string_with_a_control_token():
    model = Model(SpellingRuntime("Hq"), ByteTokenizer(eos=frozenset()))
    for stop, text in (("q<end>", "H"), ("<end>", "Hq"), ("<end><end>", "Hq"), ("q<end>x", "Hq")):
        result = specdec.generate(model, [BOS], stop=stop, max_tokens=8)
        assert result.text == text, stop
        assert (result.finish_reason == "length") == (stop == "q<end>x")


pieces = st.lists(st.tuples(st.text(alphabet="ab", max_size=3), st.sampled_from(["", "", "<>", "<a>"])), max_size=8)


@given(pieces, st.lists(st.text(alphabet="ab<>", min_size=1, max_size=4), max_size=3))
def test_stop_strings_among_control_tokens(pieces, mixed):
    """What is shown is the text before the first stop string of the text with the tokens' names in it."""
    whole = "".join(text + control for text, control in pieces)
    before, found = shown_by_definition(whole, mixed)
    hidden = {i for start, control in starts_of_controls(pieces) for i in range(start, start + len(control))}
    watch = StopStrings((), mixed)
    shown = "".join(watch.feed(text, control=control) for text, control in pieces)
    if watch.found is None:
        shown += watch.flush()
    if mixed:
        assert (shown, watch.found) == ("".join(c for i, c in enumerate(before) if i not in hidden), found)


def starts_of_controls(pieces):
    start = 0
    for text, control in pieces:
        yield start + len(text), control
        start += len(text) + len(control)


def test_plain_and_mixed_stop_strings_together():
    watch = StopStrings(["user"], ["<|x|>us"])
    shown = [watch.feed("a"), watch.feed("", control="<|y|>"), watch.feed("us"), watch.feed("", control="<|x|>")]
    shown += [watch.feed("er, b")]
    # Control tokens are not shown, so a stop string of text goes on across them; the mixed one ended before.
    assert ("".join(shown), watch.found) == ("a", "user")
    watch = StopStrings(["user"], ["<|x|>us"])
    assert [watch.feed("a", control="<|x|>"), watch.feed("user")] == ["a", ""]
    assert watch.found == "<|x|>us"


def test_a_prompt_with_a_token_that_the_model_has_no_row_for():
    class Wide(ByteTokenizer):
        def encode(self, text, *, add_bos=None, fit=None):
            return [258]

    with pytest.raises(InvalidArgumentError, match="holds token 258, and the model has rows for 258 tokens only"):
        encode_prompt("x", Wide(), fake_config())

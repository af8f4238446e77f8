"""GGUF tokenizers whose metadata is missing, unusual or wrong: the same tokens and ends as in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizer_files import (
    CHATML,
    SPECIAL,
    bpe_metadata,
    gguf_files,
    gguf_tokenizer,
    saved,
    sentencepiece_metadata,
    trained_bpe,
    trained_sentencepiece,
)

from specdec.errors import ModelFormatError
from specdec.families.fields import Fields
from specdec.formats.gguf_tokenizer import tokenizer_files
from specdec.tokenizers.markers import AMBIGUOUS, END_MARKERS
from specdec.tokenizers.pretokenizers import RULES, build_byte_level, rule

HI = [{"role": "user", "content": "hi"}]
SAMPLE = "It's 12345 caféTeX, don'T!\n\n  x 東京"
CUTS = {
    "default": ["It", "'", "s", " ", "123", "45", " caféTeX", ",", " don", "'", "T", "!", "\n\n ", " x", " 東京"],
    "gpt-2": ["It", "'s", " 12345", " caféTeX", ",", " don", "'", "T", "!", "\n\n ", " x", " 東京"],
    "olmo": ["It", "'s", " 12345", " caféTeX", ",", " don", "'", "T", "!", "\n\n ", " x", " 東京"],
    "command-r": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'", "T", "!", "\n\n ", " x", " 東京"],
    "smollm": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'", "T", "!", "\n\n ", " x", " 東京"],
    "qwen2": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "qwen35": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "llama-bpe": ["It", "'s", " ", "123", "45", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "dbrx": ["It", "'s", " ", "123", "45", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "glm4": ["It", "'s", " ", "123", "45", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "minicpm5": ["It", "'s", " ", "123", "45", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "tekken": ["It", "'s", " ", *"12345", " café", "Te", "X", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "gpt-4o": ["It's", " ", "123", "45", " café", "Te", "X", ",", " don'T", "!\n\n", " ", " x", " 東京"],
    "tiny_aya": ["It's", " ", "12", "345", " café", "Te", "X", ",", " don'T", "!\n\n", " ", " x", " 東京"],
    "deepseek-llm": [
        "It", "'", "s", " ", *"12345", " caf", "é", "TeX", ",", " don", "'", "T", "!", *"\n\n", " ", " x", " ", "東京",
    ],
    "deepseek-coder": [
        "It", "'", "s", " ", *"12345", " caféTeX", ",", " don", "'", "T", "!", *"\n\n", " ", " x", " ", "東京",
    ],
    "deepseek-v3": ["It", "'s", " ", "123", "45", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " ", "東京"],
    "falcon": ["It", "'", "s", " ", "123", "45", " caféTeX", ",", " don", "'", "T", "!", "\n\n ", " x", " 東京"],
    "poro-chat": ["It's", " 12345", " caféTeX", ",", " don'T", "!\n\n ", " x", " 東京"],
    "viking": ["It's", " ", *"12345", " caféTeX", ",", " don'T", "!\n\n ", " x", " 東京"],
    "superbpe": ["It's ", "12", "345", " caféTeX, don'T!\n\n  x 東京"],
    "bailingmoe": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
    "seed-coder": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'T", "!", "\n\n", " ", " x", " 東京"],
    "ufakzeka": ["It", "'s", " ", *"12345", " caféTeX", ",", " don", "'T", "!\n\n", " ", " x", " 東京"],
}  # fmt: skip
SAME = {
    "gpt-2": "gpt2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 "
    "mellum modern-bert exaone4 jais trillion granite-docling",
    "smollm": "starcoder refact codeshell exaone minerva-7b mellum2",
    "olmo": "mpt",
    "qwen2": "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe chatglm-bpe",
    "glm4": "glm5",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "poro-chat": "bloom gpt3-finnish",
    "bailingmoe": "bailingmoe2 llada-moe",
    "tiny_aya": "cohere2moe",
}


def renamed(metadata: dict[str, Any], *texts: str, kind: int = 3) -> dict[str, Any]:
    """The metadata with its last tokens called so, of this type."""
    tokens, types = (list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type"))
    tokens[-len(texts) :], types[-len(texts) :] = texts, [kind] * len(texts)
    return metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}


def without(metadata: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key.removeprefix("tokenizer.ggml.") not in names}


def test_the_table_of_rules_is_all_tested() -> None:
    names = set(CUTS) | {name for others in SAME.values() for name in others.split()}
    assert names == set(RULES)


@pytest.mark.parametrize("name", CUTS)
def test_how_each_rule_cuts_text(name: str) -> None:
    backend = build_byte_level(trained_bpe()["vocab"], [], rule=rule(name))
    parts = [SAMPLE[start:stop] for _, (start, stop) in backend.pre_tokenizer.pre_tokenize_str(SAMPLE)]
    assert parts == CUTS[name]


@pytest.mark.parametrize(("name", "others"), SAME.items())
def test_other_names_of_a_rule(name: str, others: str) -> None:
    assert all(rule(other) is rule(name) for other in others.split())


@pytest.mark.parametrize(("name", "adds"), [("llama3", True), ("tekken", True), ("qwen2", False), ("smaug-bpe", False)])
def test_families_that_begin_with_a_token(tmp_path: Path, name: str, adds: bool) -> None:
    assert gguf_tokenizer(without(bpe_metadata(name), "add_bos_token"), tmp_path).add_bos == adds


@pytest.mark.parametrize("value", [512, 2**32 - 1])
@pytest.mark.parametrize("name", ["padding", "unknown", "eot", "seperator"])
def test_ids_outside_the_vocabulary_are_left_out(tmp_path: Path, name: str, value: int) -> None:
    with pytest.warns(UserWarning, match=f"{name}_token_id is {value}, but the vocabulary has 512 tokens: it is left"):
        tokenizer = gguf_tokenizer(bpe_metadata(**{f"{name}_token_id": value}), tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {0, 2})


def test_ids_that_sentencepiece_files_do_not_name(tmp_path: Path) -> None:
    metadata = without(sentencepiece_metadata(trained_sentencepiece()), *(f"{x}_token_id" for x in ("bos", "eos")))
    tokenizer = gguf_tokenizer(metadata, tmp_path / "none")
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (1, {2}, True)
    with pytest.warns(UserWarning, match="bos_token_id is 4294967295, but the vocabulary has 400 tokens: 1 holds"):
        tokenizer = gguf_tokenizer(metadata | {"tokenizer.ggml.bos_token_id": 2**32 - 1}, tmp_path / "wrong")
    assert tokenizer.encode("the")[0] == tokenizer.bos_id == 1


def test_a_file_that_names_no_end(tmp_path: Path) -> None:
    metadata = without(bpe_metadata(), "eos_token_id")
    metadata["tokenizer.ggml.tokens"] = ["<one>" if x in ("<|endoftext|>", "<|im_end|>") else x for x in SPECIAL] + [
        *metadata["tokenizer.ggml.tokens"][len(SPECIAL) :]
    ]
    metadata["tokenizer.ggml.tokens"][2] = "<two>"
    with pytest.warns(UserWarning, match="names no token that ends an answer"):
        assert gguf_tokenizer(metadata, tmp_path).eos_ids == set()


@pytest.mark.parametrize("marker", END_MARKERS)
def test_every_end_marker_ends_whatever_its_type(tmp_path: Path, marker: str) -> None:
    metadata = bpe_metadata() if marker in SPECIAL else renamed(bpe_metadata(), marker, kind=1)
    metadata["tokenizer.ggml.token_type"] = [1] * len(metadata["tokenizer.ggml.tokens"])
    tokenizer, token = gguf_tokenizer(metadata, tmp_path), metadata["tokenizer.ggml.tokens"].index(marker)
    assert token in tokenizer.eos_ids
    assert tokenizer.decode([token], skip_special=True) == ""
    # Text becomes such a token, except by a name that is also ordinary text, of HTML for example.
    assert (tokenizer.encode(marker) == [token]) == (marker not in AMBIGUOUS)
    metadata["tokenizer.chat_template"] = CHATML + marker
    assert gguf_tokenizer(metadata, tmp_path / "written").encode(marker) == [token]
    untyped = gguf_tokenizer(
        without(metadata, "token_type") | {"tokenizer.chat_template": CHATML}, tmp_path / "untyped"
    )
    assert untyped.encode(marker) == [token]


@pytest.mark.parametrize("kind", [1, 4, 5, 6])
def test_turn_marks_of_a_wrong_type(tmp_path: Path, kind: int) -> None:
    metadata = bpe_metadata(eos_token_id=0)
    metadata["tokenizer.ggml.token_type"][1:3] = [kind, kind]
    tokenizer = gguf_tokenizer(metadata, tmp_path)
    right = gguf_tokenizer(bpe_metadata(), tmp_path / "right")
    assert tokenizer.encode_chat(HI) == right.encode_chat(HI)
    assert tokenizer.eos_ids == {0, 2}


@pytest.mark.parametrize("kind", [1, 5])
def test_a_first_and_last_token_that_are_marked_as_unused(tmp_path: Path, kind: int) -> None:
    metadata = renamed(bpe_metadata(), "<a>", "<b>", kind=kind) | {"tokenizer.ggml.bos_token_id": 510}
    tokenizer = gguf_tokenizer(metadata | {"tokenizer.ggml.eos_token_id": 511}, tmp_path)
    assert tokenizer.encode("<a>the<b>")[:: len(tokenizer.encode("the")) + 1] == [510, 511]
    assert tokenizer.decode([510, 511], skip_special=True) == ""


def test_a_file_without_types(tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer(without(bpe_metadata(), "token_type"), tmp_path / "bpe")
    right = gguf_tokenizer(bpe_metadata(), tmp_path / "right")
    assert tokenizer.encode_chat(HI) == right.encode_chat(HI)
    assert tokenizer.eos_ids == right.eos_ids
    metadata = sentencepiece_metadata(trained_sentencepiece())
    tokenizer = gguf_tokenizer(without(metadata, "token_type"), tmp_path / "sp")
    right = gguf_tokenizer(metadata, tmp_path / "sp-right")
    for text in ("the dog", "東京 🙂", "<s>the</s>"):
        assert tokenizer.encode(text) == right.encode(text)


def test_ends_of_a_finetune_and_of_its_base(tmp_path: Path) -> None:
    metadata = renamed(sentencepiece_metadata(trained_sentencepiece()), "<|im_end|>", "<|im_start|>")
    metadata |= {"tokenizer.ggml.eos_token_id": 398, "tokenizer.chat_template": CHATML}
    assert gguf_tokenizer(metadata, tmp_path).eos_ids == {2, 398}


def test_ends_that_are_named_by_id(tmp_path: Path) -> None:
    metadata = renamed(bpe_metadata(), "<a>", "<b>", "<c>")
    named = {f"tokenizer.ggml.{name}_token_id": 509 + n for n, name in enumerate(("eot", "eom", "fim_pad"))}
    assert gguf_tokenizer(metadata | named, tmp_path).eos_ids == {0, 2, 509, 510, 511}


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (("<|return|>", "<|call|>", "<|end|>"), {"<|return|>", "<|call|>"}),
        (("<|flush|>", "<|calls|>", "<|end|>"), {"<|flush|>", "<|calls|>"}),
        (("<|return|>", "<|end|>"), {"<|return|>", "<|end|>"}),
        (("<|tool_response>", "</s>"), {"<|tool_response>"}),
    ],
)
def test_marks_that_end_only_in_other_models(tmp_path: Path, texts: tuple[str, ...], ends: set[str]) -> None:
    tokenizer = gguf_tokenizer(renamed(bpe_metadata(), *texts), tmp_path)
    assert {tokenizer.decode([token]) for token in tokenizer.eos_ids - {0, 2}} == ends


ROLES = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"


@pytest.mark.parametrize(("first", "add"), [("", True), ("{{ bos_token }}", True), ("<s>", True), ("", False)])
def test_a_chat_begins_with_one_first_token(tmp_path: Path, first: str, add: bool) -> None:
    metadata = sentencepiece_metadata(trained_sentencepiece(), add_bos_token=add)
    tokenizer = gguf_tokenizer(metadata | {"tokenizer.chat_template": first + ROLES}, tmp_path)
    ids = tokenizer.encode_chat(HI)
    assert ids.count(1) == add
    assert (ids[0] == 1) == add


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="chat_template is not text"):
        tokenizer = gguf_tokenizer(bpe_metadata() | {"tokenizer.chat_template": 3}, tmp_path)
    assert not tokenizer.has_chat_template


def test_sentencepiece_without_scores(tmp_path: Path) -> None:
    metadata = without(sentencepiece_metadata(trained_sentencepiece()), "scores")
    with pytest.warns(UserWarning, match="scores is missing"):
        tokenizer = gguf_tokenizer(metadata, tmp_path)
    assert tokenizer.decode(tokenizer.encode("the dog", add_bos=False)) == "the dog"


def test_several_unknown_tokens(tmp_path: Path) -> None:
    metadata = renamed(sentencepiece_metadata(trained_sentencepiece()), "<a>", "<b>", kind=2)
    tokenizer = gguf_tokenizer(metadata, tmp_path)
    assert tokenizer.encode("<a><b>", add_bos=False) == [398, 399]
    assert tokenizer.decode([398], skip_special=True) == ""


def test_tokens_without_text(tmp_path: Path) -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.tokens"][-2:] = ["", ""]
    metadata["tokenizer.ggml.token_type"][-2:] = [1, 1]
    assert gguf_tokenizer(metadata, tmp_path).decode([511, 510]) == ""


def test_byte_level_without_merges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="text cannot become tokens: its conversion failed"):
        gguf_files(without(bpe_metadata(), "merges"), tmp_path)


def test_runs_of_spaces_that_are_tokens_are_found_in_text(tmp_path: Path) -> None:
    """Gemma's: converters write the spaces of user-defined tokens as spaces."""
    model = trained_sentencepiece("\u2581\u2581", "\u2581" * 4, "\n\n", "\t", "<b>", prefix=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    metadata = sentencepiece_metadata(model, add_space_prefix=False)
    tokens, types = (list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type"))
    for text in ("\u2581\u2581", "\u2581" * 4, "\n\n", "\t", "<b>"):
        index = tokens.index(text)
        tokens[index], types[index] = text.replace("\u2581", " "), 4
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    tokenizer = gguf_tokenizer(metadata, tmp_path)
    for text in ("the  other", "    the", " a   b\n\n\tc  ", "x<b>  y<b>", "a \u2581 b", "     \n\n\n"):
        assert tokenizer.encode(text, add_bos=False) == processor.encode(text)
        assert tokenizer.decode(processor.encode(text)) == text.replace("\u2581", " ")


@pytest.mark.parametrize(
    ("kind", "mark", "keeps"), [("bpe", "<|im_end|>", "<|endoftext|>"), ("llama", "[INST]", "<s>")]
)
def test_control_tokens_of_phi3_take_the_spaces_after_them(tmp_path: Path, kind: str, mark: str, keeps: str) -> None:
    metadata = bpe_metadata("gpt-4o") if kind == "bpe" else sentencepiece_metadata(trained_sentencepiece(prefix=False))
    metadata |= {"tokenizer.ggml.add_space_prefix": False}

    def ids(architecture: str, text: str) -> list[int]:
        fields = Fields(metadata | {"general.architecture": architecture}, "m.gguf")
        tokenizer = saved(tokenizer_files(fields, vocab_size=512), tmp_path / f"{architecture}-{kind}")
        return tokenizer.encode(text, add_bos=False)

    assert ids("phi3", f"{mark} \n the") == ids("phi3", f"{mark}the") == ids("qwen2", f"{mark}the")
    assert ids("qwen2", f"{mark} \n the") != ids("qwen2", f"{mark}the")
    assert ids("phi3", f"{keeps} the") == ids("qwen2", f"{keeps} the") != ids("qwen2", f"{keeps}the")


def test_html_in_the_vocabulary_of_gemma_ends_no_answer(tmp_path: Path) -> None:
    metadata = renamed(bpe_metadata(), "<eos>", "<end_of_turn>", "</s>", kind=4)
    tokens, ends = metadata["tokenizer.ggml.tokens"], gguf_tokenizer(metadata, tmp_path).eos_ids
    assert {tokens.index("<eos>"), tokens.index("<end_of_turn>")} <= ends
    assert tokens.index("</s>") not in ends

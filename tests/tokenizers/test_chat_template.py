"""Chat templates: rendered as Hugging Face renders them, in a sandbox, with one sentence for each failure."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import bpe_metadata, gguf_tokenizer

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.tokenizers.chat_template import ChatTemplate

HI = [{"role": "user", "content": "hi"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source: str, messages: Any = HI, **options: Any) -> str:
    return ChatTemplate(source, SPECIAL).render(messages, **options)


def test_whitespace_is_trimmed_around_blocks() -> None:
    body = "    {% if true %}\n{{ m.role }}: {{ m['content'] }}\n    {% endif %}\n"
    source = "{{ bos_token }}\n{% for m in messages %}\n" + body + "{% endfor %}\nend"
    assert render(source) == "<s>\nuser: hi\nend"


def test_generation_prompt() -> None:
    source = "{% if add_generation_prompt %}go{% else %}stop{% endif %}"
    assert render(source) == "go"
    assert render(source, add_generation_prompt=False) == "stop"


def test_tools_and_documents_are_none() -> None:
    assert render("{{ tools is none }} {{ documents is none }} {{ custom is defined }}") == "True True False"


def test_json_is_not_escaped_for_html() -> None:
    messages = [{"role": "user", "content": "<a> & 'é' \"q\""}]
    assert render("{{ messages[0].content | tojson }}", messages) == '"<a> & \'é\' \\"q\\""'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}") == '{\n "b": 1,\n "a": 2\n}'


def test_loop_controls_and_generation_tag() -> None:
    body = "{% if x == 3 %}{% break %}{% endif %}{% generation %}{{ x }}{% endgeneration %}"
    assert render("{% for x in [1, 2, 3] %}" + body + "{% endfor %}") == "12"


def test_date() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year), str(datetime.now().year - 1)}


def test_template_refuses() -> None:
    source = "{{ raise_exception('roles must\nalternate') }}"
    with pytest.raises(InvalidArgumentError, match="refuses these messages: roles must alternate"):
        render(source)


@pytest.mark.parametrize("source", ["{% if %}", "{{ messages", "{% unknown %}", "{{ x | nofilter }}"])
def test_unreadable_template(source: str) -> None:
    with pytest.raises(ModelFormatError, match="chat template cannot be read: ") as caught:
        ChatTemplate(source, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% for x in range(10**9) %}{% endfor %}",
    ],
)
def test_template_that_fails_or_reaches_out(source: str) -> None:
    with pytest.raises(ModelFormatError, match="chat template fails: ") as caught:
        render(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", ["hi", [1], [{"role": "user"}], [{"role": "user", "content": 3}], [["role"]]])
def test_malformed_messages(messages: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="chat message 0 must have a 'role' and a 'content', both text"):
        render("x", messages)


def test_no_messages() -> None:
    with pytest.raises(InvalidArgumentError, match="at least one message"):
        render("x", [])


def test_models_with_a_broken_template_or_none(tmp_path: Path) -> None:
    metadata = bpe_metadata() | {"tokenizer.chat_template": "{% broken"}
    tokenizer = gguf_tokenizer(metadata, tmp_path / "broken")
    # The model still works on raw prompts.
    assert tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    with pytest.raises(ModelFormatError, match="chat template cannot be read"):
        tokenizer.apply_chat_template(HI)
    del metadata["tokenizer.chat_template"]
    with pytest.raises(InvalidArgumentError, match="has no chat template: give a raw prompt"):
        gguf_tokenizer(metadata, tmp_path / "none").apply_chat_template(HI)

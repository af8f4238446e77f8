"""Chat templates with bounded work: what would run on, or fill the memory, is refused; usual templates are not."""

from __future__ import annotations

import time

import pytest

from specdec.errors import InvalidArgumentError, ModelFormatError
from specdec.tokenizers.chat_template import ChatTemplate

GROW = "{% set n = namespace(x=START) %}{% for i in range(60) %}{% set n.x = MORE %}{% endfor %}{{ n.x }}"
LOOP = "{% for a in range(100000) %}"
HOSTILE = {
    "repeated text": "{{ 'a' * 1000000000 }}",
    "repeated list": "{{ ([1] * 1000000000) | length }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "product": "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "nested loops": LOOP * 6 + "x" + "{% endfor %}" * 6,
    "deep loops": LOOP * 25 + "x" + "{% endfor %}" * 25,
    "long range": "{% for i in range(10000000000) %}x{% endfor %}",
    "macro that calls itself twice": "{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(900) }}",
    "branching macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "doubling by ~": GROW.replace("START", "'ab'").replace("MORE", "n.x ~ n.x"),
    "doubling by +": GROW.replace("START", "'ab'").replace("MORE", "n.x + n.x"),
    "doubling list": GROW.replace("START", "[1]").replace("MORE", "n.x + n.x"),
    "doubling in a block": "{% set x %}ab{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40,
    "list of itself": GROW.replace("START", "[1]").replace("MORE", "[n.x, n.x]"),
    "comparison": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
    "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "sharing by batch": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [1] | batch(3, n.x) | list %}{% set n.y = [1] | batch(3, n.y) | list %}{% endfor %}{{ n.x == n.y }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "join filter": "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "center": "{{ 'a' | center(2000000000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "format": "{{ '{:2000000000}'.format(1) }}",
    "format by star": "{{ '%*d' % (2000000000, 1) }}",
    "percent": "{{ '%2000000000d' % 1 }}",
    "format filter": "{{ '%2000000000d' | format(1) }}",
    "indent": "{{ 'a\n' | indent(2000000000) }}",
    "batch": "{{ [1] | batch(2000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(2000000000) | list }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
    "map": "{{ range(100000) | map('string') | map('center', 100000) | list }}",
    "digits": "{{ " + "9" * 5000 + " }}",
    "break outside": "{% break %}",
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "minus": "{{ " + "-" * 20000 + "1 }}",
    "not": "{{ " + "not " * 20000 + "1 }}",
    "many elifs": "{% if 0 %}" + "{% elif 0 %}" * 20000 + "{% endif %}",
    "long sum": "{{ 1" + "+1" * 20000 + " }}",
    "surrogate": "{{ '\\ud800' }}",
    "unicode escape": "{{ '\\N{' }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "dictsort": "{{ {1: 2, 'a': 3} | dictsort }}",
    "zero": "{{ 1 // 0 }}",
    "caller": "{% call nosuch() %}{% endcall %}",
    "too long": "x" * ((1 << 17) + 1),
}  # fmt: skip


def render(source: str, messages: list[dict[str, str]]) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_soon_in_an_error_of_ours_or_small_text(name: str) -> None:
    began_s = time.process_time()
    try:
        text = render(HOSTILE[name], [{"role": "user", "content": "hello"}])
    except (ModelFormatError, InvalidArgumentError) as error:
        text = str(error)
    assert len(text) <= 16 << 20
    assert time.process_time() - began_s < 30


def test_what_multiplies_is_refused_and_not_only_slow() -> None:
    for name in ("repeated text", "nested loops", "replace", "join filter", "center", "percent", "branching macro"):
        with pytest.raises(ModelFormatError, match=r"too much work|cannot be read|fails"):
            render(HOSTILE[name], [{"role": "user", "content": "hello"}])


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' + '\n' }}"
    "{% if loop.index0 == messages | length - 1 and loop.last %}{{ '=' * 20 }}{% endif %}{% endfor %}"
)


def test_a_long_chat_is_within_the_bounds() -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 400} for i in range(1000)]
    text = render(CHATML, messages)
    assert text.count("<|im_start|>") == 1000
    assert text.endswith("=" * 20)
    assert render(CHATML, messages) == text  # every rendering has the whole budget


def test_the_bounds_grow_with_the_messages() -> None:
    text = render(CHATML, [{"role": "user", "content": "word " * 1_000_000}])
    assert len(text) > 5_000_000
    with pytest.raises(InvalidArgumentError, match="the chat has 9000015 characters: at most 8388608 are read"):
        render(CHATML, [{"role": "user", "content": "a" * 9_000_000}])
    with pytest.raises(ModelFormatError, match="too much work"):
        render("{{ messages[0].content * 20 }}", [{"role": "user", "content": "a" * 1_000_000}])


def test_macros_loops_and_filters_work_as_ever() -> None:
    source = (
        "{% macro show(x) %}[{{ x }}]{% endmacro %}{% set ns = namespace(n=0) %}"
        "{% for m in messages if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{{ show(m.content | upper) }}"
        "{{ loop.index }}/{{ loop.length }}{% endfor %}{{ ns.n }}{{ {'a': 1} | tojson }}{{ 'x' ~ 2 }}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}"
        "{{ '%s-%d' % ('a', 3) }}{{ 'a,b'.split(',') | length }}{% for i in range(3) %}{{ i }}{% endfor %}"
    )
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert render(source, messages) == '[A]1/2[C]2/22{"a": 1}x2a1user,assistant,usera-32012'

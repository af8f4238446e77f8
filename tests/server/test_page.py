"""The chat page in a headless Chromium: a server of a tiny model, or answers that a test makes up."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("starlette", reason="needs the extra `serve`")

from http_server import NAME, Running, serving  # noqa: E402

import specdec  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
KEY = "sesame"


@pytest.fixture(scope="module")
def model(text_model: Path) -> specdec.Model:
    return specdec.load(text_model, runtime="reference")


@pytest.fixture(scope="module")
def server(model: specdec.Model) -> Iterator[Running]:
    with serving(model) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Tab:
    """A page that is open, what its console said, and what it asked of other servers."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, url))
        self.page.goto(url)

    def _note(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:")):
            self.outside.append(asked)

    def ready(self) -> Tab:
        self.until("document.getElementById('model').textContent")
        return self

    def until(self, script: str) -> None:
        """Wait for a true value; Playwright's own waiting evaluates text in the page, which its policy forbids."""
        end_s = time.monotonic() + 20
        while not self.page.evaluate(script):
            assert time.monotonic() < end_s, script
            self.page.wait_for_timeout(50)

    def ask(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def done(self) -> None:
        self.page.wait_for_selector("#stop", state="hidden")

    def texts(self, role: str = "assistant") -> list[str]:
        return [one.inner_text() for one in self.page.query_selector_all(f".message.{role} .text")]

    def answers_with(self, *deltas: dict[str, Any], tokens: list[dict[str, str]] | None = None) -> None:
        """Let the server's next answers be these deltas."""
        lines = []
        for delta in deltas:
            choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
            if tokens is not None:
                choice["specdec"] = {"tokens": tokens}
            lines.append({"choices": [choice]})
        lines.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        body = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
        self.page.unroute("**/v1/chat/completions")
        self.page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body),
        )

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []  # a breach of the content policy is told there, too
        assert self.outside == []


@pytest.fixture
def tab(browser: Any, server: Running) -> Iterator[Tab]:
    tab = Tab(browser, server.url).ready()
    yield tab
    tab.close()


def test_an_answer_streams_and_survives_a_reload(tab: Tab, server: Running) -> None:
    tab.page.click("#open-settings")
    for field, value in (("#max-tokens", "12"), ("#seed", "3"), ("#system", "Be brief.")):
        tab.page.fill(field, value)
    tab.ask("Name a river.")
    tab.done()
    expected = specdec.generate(
        server.model,
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a river."}],
        max_tokens=12, temperature=0.7, seed=3, speculate=False,
    )  # fmt: skip
    assert tab.texts("user") == ["Name a river."]
    assert tab.page.inner_text(".message.assistant .facts").split(" · ")[1] == "12 tokens"
    (shown,) = (one.text_content() for one in tab.page.query_selector_all(".message.assistant .text"))
    assert shown == expected.text
    tab.page.reload()
    tab.ready()
    assert tab.texts("user") == ["Name a river."]
    assert tab.page.text_content(".message.assistant .text") == expected.text
    assert tab.page.input_value("#max-tokens") == "12"


def test_stop_ends_the_answer_and_the_sequence(tab: Tab, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = server.model.runtime.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(server.model.runtime, "forward", slow)
    monkeypatch.setattr("specdec.engine.begin._end_tokens", lambda *_: frozenset())  # no answer ends by itself
    tab.ask("Tell me everything.")
    tab.page.wait_for_selector(".message.assistant .token", state="attached")  # line ends are there, but not visible
    tab.page.press("#prompt", "Escape")
    tab.done()
    assert "Stopped." in tab.page.inner_text(".message.assistant .facts")
    assert tab.page.evaluate("document.activeElement.id") == "prompt"
    tab.until("fetch('/metrics').then(r => r.text()).then(t => /num_requests_running\\S* 0\\.0/.test(t))")


def test_markup_in_answers_and_questions_stays_text(tab: Tab) -> None:
    markup = "<img src=x onerror=alert(1)><script>alert(2)</script> **bold** <b>no</b> &amp;"
    tab.answers_with({"content": markup})
    tab.ask(f"Say {markup}")
    tab.done()
    assert tab.texts() == [markup]
    assert tab.texts("user") == [f"Say {markup}"]
    assert tab.page.query_selector(".message img, .message script, .message b") is None


def test_code_has_a_block_and_text_after_it_does_not(tab: Tab) -> None:
    parts = ["Look:\n``", "`python\nprint('<a>')\n", "```\nthen `this` and ``", " end"]
    tab.answers_with(*({"content": part} for part in parts))
    tab.ask("Code, please.")
    tab.done()
    assert tab.page.text_content(".message pre code") == "print('<a>')\n"
    assert tab.page.text_content(".message.assistant .text") == "Look:\nprint('<a>')\nthen `this` and `` end"


def test_origins_are_shown_by_more_than_colour(tab: Tab) -> None:
    tokens = [
        {"text": "one ", "origin": "verifier"},
        {"text": "two ", "origin": "ngram"},
        {"text": "three ", "origin": "effort@0.5"},
        {"text": "four", "origin": "grammar"},
    ]
    tab.answers_with({"content": "one two three four"}, tokens=tokens)
    tab.ask("Count.")
    tab.done()
    shown = tab.page.query_selector_all(".message.assistant .token")
    assert [one.get_attribute("title") for one in shown] == [one["origin"] for one in tokens]
    tab.page.click("#show-origins")
    assert tab.page.get_attribute("#show-origins", "aria-pressed") == "true"
    style = "e => getComputedStyle(e).textDecorationLine + ' ' + getComputedStyle(e).textDecorationStyle"
    styles = [one.evaluate(style) for one in shown]
    assert styles[0].startswith("none")
    assert len(set(styles)) == len(styles)


def test_a_long_answer_stays_a_short_document(tab: Tab) -> None:
    tab.answers_with(*({"content": f"word{n} "} for n in range(3000)))
    tab.ask("Much.")
    tab.done()
    assert len(tab.page.text_content(".message.assistant .text")) == sum(len(f"word{n} ") for n in range(3000))
    assert tab.page.evaluate("document.querySelectorAll('*').length") < 200
    tab.until("chat.scrollHeight - chat.scrollTop - chat.clientHeight < 5")  # the end is in view


def test_the_keyboard_is_enough(tab: Tab) -> None:
    tab.answers_with({"reasoning_content": "Hm."}, {"content": "Yes."})
    tab.page.keyboard.type("first line")
    tab.page.keyboard.press("Shift+Enter")
    tab.page.keyboard.type("second line")
    tab.page.keyboard.press("Enter")
    tab.done()
    assert tab.texts("user") == ["first line\nsecond line"]
    assert tab.texts() == ["Yes."]
    assert tab.page.text_content("details.reasoning .thought") == "Hm."
    reached = set()
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        reached.add(tab.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"show-origins", "open-settings", "new-chat", "chat", "Copy", "Answer again", "send"} <= reached


def test_answer_again_and_new_chat(tab: Tab) -> None:
    tab.answers_with({"content": "A."})
    tab.ask("Q")
    tab.done()
    tab.answers_with({"content": "B."})
    tab.page.click("text=Answer again")
    tab.done()
    assert tab.texts() == ["B."]
    tab.page.click("#new-chat")
    assert tab.texts() == []
    tab.page.reload()
    tab.ready()
    assert tab.texts("user") == []


def test_an_error_of_the_server_is_told_and_the_words_are_not_lost(tab: Tab) -> None:
    tab.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=429, headers={"Retry-After": "7"}, json={"error": {"message": "Too many wait.", "code": "full"}}
        ),
    )
    tab.ask("Q")
    tab.page.wait_for_selector("#error:not([hidden])")
    assert tab.page.inner_text("#error") == "Too many wait. Try again in 7 s."
    assert tab.texts("user") == ["Q"]
    assert tab.texts() == []
    tab.answers_with({"content": "A."})
    tab.ask("again")
    tab.done()
    assert tab.texts("user") == ["Q\n\nagain"]
    assert tab.page.is_hidden("#error")
    tab.complaints = [one for one in tab.complaints if "429" not in one]  # the browser's own note


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Any, model: specdec.Model) -> None:
    with serving(model, api_keys=(KEY,)) as running:
        tab = Tab(browser, running.url)
        tab.page.wait_for_selector("#key-form:not([hidden])")
        tab.page.keyboard.type(KEY)
        tab.page.keyboard.press("Enter")
        tab.ready()
        assert tab.page.inner_text("#model") == NAME
        assert KEY not in tab.page.evaluate("JSON.stringify(localStorage)")
        tab.complaints = [one for one in tab.complaints if "401" not in one]
        tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_told_from_their_ground(browser: Any, server: Running, scheme: str) -> None:
    tab = Tab(browser, server.url, color_scheme=scheme, viewport={"width": 390, "height": 780}).ready()
    names = ("ink", "quiet", "error", "verifier", "lookup", "effort", "grammar", "other", "accent")
    read = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    for ground in ("ground", "panel"):
        for name in names:
            assert contrast(tab.page.evaluate(read, name), tab.page.evaluate(read, ground)) >= 4.5, (name, ground)
    assert tab.page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )  # a phone needs no sideways scrolling
    tab.page.click("#open-settings")
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    unnamed = "[...document.querySelectorAll('input, textarea, select')].filter(e => !e.labels.length).map(e => e.id)"
    assert tab.page.evaluate(unnamed) == []
    tab.close()


def contrast(one: str, other: str) -> float:
    """Ratio of relative luminances (WCAG 2.2, success criterion 1.4.3) of two colours as #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(part, 16) / 255 for part in re.findall(r"[0-9a-f]{2}", colour)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

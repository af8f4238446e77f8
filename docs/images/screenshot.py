"""Takes the picture of the chat page in README.md: `python docs/images/screenshot.py qwen2.5-coder-1.5b`.

Needs Chromium and the extras `serve` and `test`. The model answers one question; token origins are shown.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parent / "chat.png"
QUESTION = "Write a Python class Stack with push, pop and peek, then the class again with type hints. Code only."
PATIENCE_S = 300.0


def main(model: str) -> None:
    """Serve a model, ask it `QUESTION` in a browser, and write `PICTURE`."""
    command = [sys.executable, "-m", "specdec", "serve", model, "--port", "0", "--log-level", "error"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            photograph(address_of(server))
        finally:
            server.terminate()


def address_of(server: subprocess.Popen[str]) -> str:
    """The address that a server prints when it is ready."""
    assert server.stderr is not None
    for line in server.stderr:
        if " at http" in line:
            return line.rsplit(" ", 1)[1].strip()
    raise SystemExit("the server ended before it was ready")


def photograph(address: str) -> None:
    """Ask, wait for the answer, take the picture."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 640})
        page.goto(address)
        end_s = time.monotonic() + PATIENCE_S
        while not page.evaluate("document.getElementById('model').textContent"):
            assert time.monotonic() < end_s, "the page does not load"
            page.wait_for_timeout(100)
        page.click("#show-origins")
        page.click("#open-settings")
        page.fill("#max-tokens", "200")
        page.click("#open-settings")
        page.fill("#prompt", QUESTION)
        page.press("#prompt", "Enter")
        page.wait_for_selector("#stop:not([hidden])")
        page.wait_for_selector("#stop", state="hidden", timeout=PATIENCE_S * 1000)
        page.evaluate("document.getElementById('chat').scrollTop = 0")
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

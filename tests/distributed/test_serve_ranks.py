"""A server whose model several processes divide: answers equal one process's, also side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from http_requests import other_process

import specdec
from specdec.errors import RuntimeUnavailableError
from specdec.runtimes.native.runtime import native_module

mlx = pytest.importorskip("mlx.core", reason="needs MLX", exc_type=ImportError)
pytest.importorskip("uvicorn", reason="needs the server's dependencies")
pytestmark = [pytest.mark.skipif(not mlx.distributed.is_available("ring"), reason="needs MLX's ring")]
try:
    native_module()
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

PROMPTS = ("hello", "the water is blue", "a b c a b c a")


def test_a_server_of_two_ranks_answers_as_one_process(text_model: Path) -> None:
    model = specdec.load(text_model, runtime="native", threads=1)
    alone = [specdec.generate(model, text, max_tokens=12, temperature=0, chat=False).text for text in PROMPTS]
    with other_process(text_model, "--ranks", 2, "--runtime", "native", "--threads", 1) as served:

        def answer(text: str) -> str:
            body = {"model": served_name, "prompt": text, "max_tokens": 12, "temperature": 0}
            response = served.client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            found: str = response.json()["choices"][0]["text"]
            return found

        served_name = served.client.get("/v1/models").json()["data"][0]["id"]
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            together = list(pool.map(answer, PROMPTS))
        assert together == alone
        assert [answer(text) for text in PROMPTS] == alone
    assert served.process.returncode == 0

"""Plain decoding of chat requests by the library, one after another: the reference of `serve_identity.py`.

It reads a request's body on each line of stdin, and writes its answer's outcome as a line of JSON. No server runs, no
pass is shared, nothing is drafted, and nothing that was read for one request serves another one.

    python benchmarks/serve_alone.py MODEL < requests.jsonl > answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from serving import Answer

import specdec
from specdec.engine.prompt import encode_prompt
from specdec.model.loaded import Model
from specdec.server.answer_form import AnswerForm
from specdec.server.chat_format import Collected
from specdec.server.chat_reader import FormReader
from specdec.server.chat_request import read_chat
from specdec.server.logprobs import describer
from specdec.server.settings import ServerSettings

_END_TOKENS = 32  # of a prompt, in which the template's last marker is


def answer_alone(model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a request, see `Answer.outcome`."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    request, chat_form = read_chat(body, model.config, ServerSettings(name="model"), owner="")
    form = AnswerForm.of(tokenizer)
    messages, variables = form.prompt(request)
    asked = dict(request.options)
    variables = {**asked.pop("chat_template_kwargs", {}), "add_generation_prompt": True, **variables}
    prompt = encode_prompt(messages, tokenizer, model.config, variables=variables)
    last = tokenizer.decode(prompt.ids[-_END_TOKENS:], continues=True)
    reader = FormReader(form.parser(request, last), tokenizer.detokenizer().control, describer(tokenizer))
    options = {**asked, **form.options(request, last), "speculate": False}
    collected = Collected()
    with specdec.stream(model, prompt, **options) as generation:
        for piece in generation:
            for event in reader.read(piece):
                collected.add(event)
        result = generation.result()
    for event in reader.finish(result):
        collected.add(event)
    called = reader.has_called and result.finish_reason == "stop"
    return Answer(
        content="".join(collected.text),
        calls=[{"name": call["name"], "arguments": call["arguments"]} for _, call in sorted(collected.calls.items())],
        reason="tool_calls" if called else result.finish_reason,
        logprobs=[(one.text, one.logprob) for one in collected.logprobs] if chat_form.logprobs else [],
        prompt_tokens=len(prompt.ids),
        tokens=len(result.tokens),
    ).outcome()


def main() -> None:
    """Answer the requests on stdin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for `specdec serve`")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: the runtime's choice)")
    options = parser.parse_args()
    model = specdec.load(options.model, threads=options.threads)
    for line in sys.stdin:
        print(json.dumps(answer_alone(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

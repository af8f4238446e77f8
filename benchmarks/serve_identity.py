"""Identity under load: every answer of a busy server is that of plain decoding of its request alone.

Clients send chats over the bundled prompts at once: greedy and sampled with seeds, penalties, biases and stop strings,
JSON schemas, regular expressions, tools, with and without log-probabilities, as whole answers and as streams, some of
which they leave in the middle. The server speculates and shares passes. `serve_alone.py` then decodes each request
alone, plainly, with the library in another process, the first ones in a fresh process each. Text, calls, counts of
tokens, `finish_reason` and log-probabilities must be equal, bit for bit; the text of an answer that was left must be a
beginning. The exit code is 1 at a difference.

    python benchmarks/serve_identity.py MODEL --requests 2000 --clients 32 --json identity.json
    python benchmarks/serve_identity.py MODEL --url http://127.0.0.1:8080 --requests 100
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import add_json_option, print_machine, print_table, write_json
from serving import Answer, chat, client, free_port, metric, packaged_prompts, running, specdec_command, stream_chat

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "tags": {"type": "array", "items": {"enum": ["fact", "code", "story", "sum"]}, "maxItems": 3},
        "done": {"type": "boolean"},
    },
    "required": ["title", "score"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": described, "parameters": SCHEMA}}
    for name, described in (("save_note", "Keeps a note."), ("rate_text", "Rates a text."))
]
KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "note", "schema": SCHEMA}}},
    "json object": {"response_format": {"type": "json_object"}},
    "regex": {"regex": "[A-Z][a-z]{2,12}( [a-z]{1,12}){2,9}[.!?]"},
    "tools, required": {"tools": TOOLS, "tool_choice": "required"},
    "tools, named": {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "rate_text"}}},
    "tools, auto": {"tools": TOOLS},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    "repetition": {"repetition_penalty": 1.2},
    "bias": {"logit_bias": {"198": -100, "260": 4}},
    "stop": {"stop": ["\n\n", ". The"]},
}
WEIGHTS = (6, *[1] * (len(KINDS) - 1))
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 40, "min_p": 0.02},
)
HOWS, HOW_WEIGHTS = ("whole", "stream", "left"), (4, 4, 2)
LONGEST_PROMPT = 2000  # characters
SHOWN = 5  # differences


def make_requests(count: int, seed: int, max_tokens: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, way of asking and body of every request; each has a seed of its own."""
    rng, prompts = random.Random(seed), [prompt[:LONGEST_PROMPT] for prompt in packaged_prompts()]
    made = []
    for number in range(count):
        kind = rng.choices(list(KINDS), WEIGHTS)[0]
        messages = [{"role": "user", "content": rng.choice(prompts)}]
        if rng.random() < 0.3:
            messages.insert(0, {"role": "system", "content": "You answer in few words."})
        body = {"messages": messages, "seed": number, "max_tokens": rng.randint(1, max_tokens)}
        body |= {**rng.choice(SAMPLING), **KINDS[kind]}
        if "tools" not in body and rng.random() < 0.3:
            body["logprobs"] = True
        made.append((kind, rng.choices(HOWS, HOW_WEIGHTS)[0], body))
    return made


def ask(url: str, how: str, body: dict[str, Any], number: int) -> Answer:
    """A request's answer, over a connection of its own."""
    with client(url) as asking:
        if how == "whole":
            return chat(asking, body)
        return stream_chat(asking, body, leave_after=number % 12 if how == "left" else None)


def answers_of(url: str, made: Sequence[tuple[str, str, dict[str, Any]]], clients: int) -> list[Answer]:
    """The server's answers."""
    with ThreadPoolExecutor(clients) as pool:
        waiting = [pool.submit(ask, url, how, body, number) for number, (_, how, body) in enumerate(made)]
        found = []
        try:
            for number, one in enumerate(waiting, start=1):
                found.append(one.result())
                if number % 100 == 0:
                    print(f"  {number} of {len(made)} answers", file=sys.stderr)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def plain_answers(model: str, bodies: Sequence[dict[str, Any]], threads: int | None) -> list[dict[str, Any]]:
    """The outcomes of requests, decoded one after another in another process.

    Raises:
        SystemExit: the process failed.
    """
    command = [sys.executable, str(Path(__file__).with_name("serve_alone.py")), model]
    if threads is not None:
        command += ["--threads", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    found = []
    with process:
        for number, body in enumerate(bodies, start=1):
            try:
                process.stdin.write(json.dumps(body) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                break
            line = process.stdout.readline()
            if not line:
                break
            found.append(json.loads(line))
            if number % 100 == 0:
                print(f"  {number} of {len(bodies)} decoded alone", file=sys.stderr)
        process.stdin.close()
    if len(found) < len(bodies):
        sys.exit(f"plain decoding of request {len(found)} failed: {json.dumps(bodies[len(found)])[:500]}")
    return found


def difference(how: str, got: Answer, wanted: dict[str, Any]) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if how == "left" and got.reason is None:
        begun = wanted["content"].startswith(got.content) and len(got.calls) <= len(wanted["calls"])
        pairs = list(zip(got.calls, wanted["calls"], strict=False))
        begun = begun and all(call["arguments"] == full["arguments"] for call, full in pairs[:-1])
        begun = begun and all(full["arguments"].startswith(call["arguments"]) for call, full in pairs[-1:])
        begun = begun and all(call["name"] == full["name"] for call, full in pairs)
        begun = begun and json.loads(json.dumps(got.logprobs)) == wanted["logprobs"][: len(got.logprobs)]
        return None if begun else f"{got.outcome()} is not a beginning of {wanted}"
    outcome = got.outcome()
    if how == "left" and not got.tokens:  # left before the usage came
        del outcome["tokens"], outcome["prompt_tokens"]
    wrong = [name for name in outcome if outcome[name] != wanted[name]]
    return "; ".join(f"{name}: {outcome[name]!r}, alone {wanted[name]!r}" for name in wrong) or None


def compare(
    made: Sequence[tuple[str, str, dict[str, Any]]], found: Sequence[Answer], plain: Sequence[dict[str, Any]]
) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """A row of counts for each kind, and the differences."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wrong = []
    for number, ((kind, how, body), got, wanted) in enumerate(zip(made, found, plain, strict=True)):
        counts[kind].update({"answers": 1, "tokens": wanted["tokens"], "left": int(got.reason is None)})
        counts[kind]["sampled"] += body["temperature"] > 0
        told = difference(how, got, wanted)
        if told is not None:
            counts[kind]["different"] += 1
            wrong.append({"number": number, "kind": kind, "how": how, "request": body, "difference": told})
    names = ("answers", "sampled", "left", "tokens", "different")
    rows = [[kind, *(count[name] for name in names)] for kind, count in counts.items()]
    return [*rows, ["all", *(sum(count[name] for count in counts.values()) for name in names)]], wrong


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for `specdec serve`")
    parser.add_argument("--url", help="of a server of this model that runs already (default: one is started)")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--fresh", type=int, default=30, help="requests decoded in a process of their own")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer; each draws its own up to it")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of requests")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: the runtime's choice)")
    add_json_option(parser)
    return parser.parse_args()


def main() -> None:
    """Ask, decode alone, compare."""
    options = arguments()
    print_machine()
    made = make_requests(options.requests, options.seed, options.max_tokens)
    with ExitStack() as stack:
        url = options.url
        if url is None:
            port = free_port()
            threads = [] if options.threads is None else ["--threads", options.threads]
            command = specdec_command(options.model, port, "--queue", 2 * options.clients, *threads)
            stack.enter_context(running(command, port))
            url = f"http://127.0.0.1:{port}"
        asking = stack.enter_context(client(url))
        before = metric(asking, "spec_decode_num_accepted_tokens_total")
        begun = time.perf_counter()
        found = answers_of(url, made, options.clients)
        seconds = time.perf_counter() - begun
        accepted = metric(asking, "spec_decode_num_accepted_tokens_total") - before
    bodies = [body for _, _, body in made]
    fresh = [plain_answers(options.model, [body], options.threads)[0] for body in bodies[: options.fresh]]
    plain = fresh + plain_answers(options.model, bodies[len(fresh) :], options.threads)
    rows, wrong = compare(made, found, plain)
    header = ["kind", "answers", "sampled", "left", "tokens", "different"]
    print_table(header, rows)
    print(
        f"{len(made)} requests of {options.clients} clients in {seconds:.0f} s, {accepted:.0f} tokens from accepted "
        f"drafts; {len(fresh)} decoded in fresh processes; {len(wrong)} answers differ from plain decoding alone"
    )
    for one in wrong[:SHOWN]:
        print(f"request {one['number']} ({one['kind']}, {one['how']}): {one['difference'][:1500]}")
    counts = [dict(zip(header, row, strict=True)) for row in rows]
    results = {"counts": counts, "accepted": accepted, "fresh": len(fresh), "seconds": seconds, "differences": wrong}
    write_json(options.json, results, benchmark="serve_identity")
    if accepted == 0:
        sys.exit("the server accepted no drafts: the comparison says nothing about speculation")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

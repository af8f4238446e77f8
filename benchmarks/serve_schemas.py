"""Structured output from a busy server: random JSON schemas, with speculation, many requests at once.

Every answer must be JSON that is valid by the package `jsonschema`, formats included, or have ended at `max_tokens`; a
schema that is not supported or cannot be met must be a 400 that names one of its keywords. The exit code is 1
otherwise, or when fewer than `--least` of the requests finish. Then accepted schemas are asked for again, in turn with
requests for as many tokens of text without a schema: the ratio of tokens a second, a median over blocks.

    python benchmarks/serve_schemas.py MODEL --count 500 --json schemas.json
    python benchmarks/serve_schemas.py MODEL --suite JSON-Schema-Test-Suite/tests/draft2020-12

The test suite is in the source package of `jsonschema`: `pip download --no-deps --no-binary jsonschema jsonschema`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
from common import add_json_option, print_machine, print_table, write_json
from schema_sources import random_schemas, suite_schemas
from serving import client, free_port, metric, running, specdec_command

CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER
SHOWN = 8  # faults


def request_of(schema: dict[str, Any], number: int, max_tokens: int) -> dict[str, Any]:
    """A chat whose answer has to follow a schema: greedy, or sampled with a seed."""
    text = json.dumps(schema, ensure_ascii=False)[:1500]
    return {
        "messages": [{"role": "user", "content": f"Give a short example in JSON for this schema:\n{text}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        "max_tokens": max_tokens,
        "temperature": (0, 0.7, 1.0)[number % 3],
        "seed": number,
    }


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Status, and the answer or the error."""
    with client(url) as asking:
        response = asking.post("/v1/chat/completions", json=body)
    told = response.json()
    if response.status_code != 200:
        return {"status": response.status_code, "error": told["error"]}
    choice = told["choices"][0]
    kept = {"status": 200, "content": choice["message"]["content"], "reason": choice["finish_reason"]}
    return kept | {"tokens": told["usage"]["completion_tokens"]}


def keywords_of(schema: Any) -> set[str]:
    """The names in a schema, its keywords among them."""
    if isinstance(schema, dict):
        return set(schema).union(*map(keywords_of, schema.values()))
    return set().union(*map(keywords_of, schema)) if isinstance(schema, list) else set()


def verdict(schema: dict[str, Any], answer: dict[str, Any]) -> tuple[str, str]:
    """What became of a request ("valid", "length", "refused", or a fault), and the details."""
    if answer["status"] == 400:
        message = answer["error"]["message"]
        named = keywords_of(schema) & set(re.findall(r"[$\w-]+", message))
        return ("refused", ", ".join(sorted(named))) if named else ("unnamed refusal", message)
    if answer["status"] != 200:
        return f"status {answer['status']}", answer["error"]["message"]
    if answer["reason"] == "length":
        return "length", ""
    try:
        value = json.loads(answer["content"])
        jsonschema.Draft202012Validator(schema, format_checker=CHECKER).validate(value)
    except ValueError as error:
        return "not JSON", f"{error}: {answer['content'][:300]}"
    except jsonschema.ValidationError as error:
        return "invalid", f"{error.message[:300]}: {answer['content'][:300]}"
    return "valid", ""


def check(url: str, schemas: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Ask for all, and judge."""
    bodies = [request_of(schema, number, options.max_tokens) for number, schema in enumerate(schemas)]
    with ThreadPoolExecutor(options.clients) as pool:
        answers = list(pool.map(lambda body: ask(url, body), bodies))
    verdicts = [verdict(schema, answer) for schema, answer in zip(schemas, answers, strict=True)]
    faults = [
        {"number": number, "schema": schemas[number], "fault": kind, "details": details}
        for number, (kind, details) in enumerate(verdicts)
        if kind not in ("valid", "length", "refused")
    ]
    accepted = [
        (body, answer["tokens"])
        for body, answer, (kind, _) in zip(bodies, answers, verdicts, strict=True)
        if kind in ("valid", "length")
    ]
    return {
        "counts": Counter(kind for kind, _ in verdicts),
        "refused_for": Counter(details for kind, details in verdicts if kind == "refused"),
        "refusals": Counter(
            answer["error"]["message"][:160] for answer in answers if answer["status"] == 400
        ).most_common(SHOWN),
        "faults": faults,
        "accepted": accepted,
    }


def speed(
    url: str, accepted: Sequence[tuple[dict[str, Any], int]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Tokens a second with schemas and without, block by block in turn."""
    blocks = []
    size = min(len(accepted), 2 * options.clients)
    for number in range(options.blocks if size else 0):
        chosen = [accepted[index % len(accepted)] for index in range(number * size, (number + 1) * size)]
        cases = {"constrained": [body for body, _ in chosen]}
        cases["free"] = [_without_schema(body, tokens) for body, tokens in chosen]
        block: dict[str, Any] = {}
        for name in sorted(cases, reverse=bool(number % 2)):
            begun = time.perf_counter()
            with ThreadPoolExecutor(options.clients) as pool:
                tokens = sum(answer["tokens"] for answer in pool.map(lambda body: ask(url, body), cases[name]))
            block[name] = tokens / (time.perf_counter() - begun)
        blocks.append(block | {"ratio": block["constrained"] / block["free"]})
        print(f"  block {number + 1}: {block}", file=sys.stderr)
    return blocks


def _without_schema(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "response_format"} | {"max_tokens": tokens}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for `specdec serve`")
    parser.add_argument("--url", help="of a server of this model that runs already (default: one is started)")
    parser.add_argument("--count", type=int, default=500, help="schemas")
    parser.add_argument("--suite", type=Path, metavar="FOLDER", help="take those of the JSON Schema test suite instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--least", type=float, default=0.8, help="share of the requests that must finish")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of the measurement of speed")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: the runtime's choice)")
    add_json_option(parser)
    return parser.parse_args()


def main() -> None:
    """Ask, judge, measure."""
    options = arguments()
    print_machine()
    schemas = suite_schemas(options.suite) if options.suite else random_schemas(options.count, options.seed)
    with ExitStack() as stack:
        url = options.url
        if url is None:
            port = free_port()
            threads = [] if options.threads is None else ["--threads", options.threads]
            stack.enter_context(running(specdec_command(options.model, port, *threads), port))
            url = f"http://127.0.0.1:{port}"
        found = check(url, schemas, options)
        accepted = found.pop("accepted")
        with client(url) as asking:
            drafts = metric(asking, "spec_decode_num_accepted_tokens_total")
        blocks = speed(url, accepted, options)
    counts = found["counts"]
    print_table(["outcome", "requests"], [*counts.items(), ("all", len(schemas))])
    print("refused because of: " + (", ".join(f"{name} ({n})" for name, n in found["refused_for"].items()) or "none"))
    for message, times in found["refusals"]:
        print(f"    {times} times: {message}")
    for one in found["faults"][:SHOWN]:
        print(f"schema {one['number']}: {one['fault']}: {one['details']}\n    {json.dumps(one['schema'])[:400]}")
    finished = counts["valid"]
    print(f"{finished} of {len(schemas)} finished and valid, {drafts:.0f} tokens from accepted drafts")
    ratio = statistics.median(block["ratio"] for block in blocks) if blocks else None
    print(f"speed: {ratio} of unconstrained, the median of {len(blocks)} blocks")
    results = {**found, "requests": len(schemas), "accepted_drafts": drafts, "blocks": blocks, "ratio": ratio}
    write_json(options.json, results, benchmark="serve_schemas")
    least = 0 if options.suite else options.least * len(schemas)
    sys.exit(1 if found["faults"] or finished < least else 0)


if __name__ == "__main__":
    main()

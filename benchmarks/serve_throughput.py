"""Throughput of specdec's server and of llama-server, with the same model file, threads, slots and client.

At every level of concurrency, both servers start with that many slots (`--max-sequences`, `-np`). A round sends some of
the bundled prompts to each contender at that concurrency: specdec with speculation, specdec without, and llama-server.
The order rotates from round to round; a signal stops the servers that are not being measured. Decoding is greedy. No
request reuses the prompt of another: with specdec each has its own API key, with llama-server `cache_prompt` is false.
`--prompt-cache on` allows both servers their caches. In every round specdec's answers with and without speculation must
be equal, and both servers must count the same prompt tokens; otherwise the measurement stops.

Rates are tokens over the time of a round, prompts included. Ratios are medians over rounds. Time to first token is from
the request to the first text. Results are written after every round; Ctrl-C and `--budget-s` end with those so far.

    python benchmarks/serve_throughput.py model.gguf --llama-server build/bin/llama-server --cpus 0,1 --json serve.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import httpx
from common import add_json_option, print_machine, print_table, write_json
from serving import Answer, client, free_port, packaged_prompts, running, specdec_command, stream_chat

SPECULATING, PLAIN, LLAMA = "specdec, speculation", "specdec, plain", "llama-server"
LONGEST_PROMPT = 4000  # characters


@dataclass
class Contender:
    """Who answers.

    Attributes:
        name: in tables.
        process: of its server.
        url: of it.
        fields: of its requests, beside those that all have.
        key: names the API key of the next request.
    """

    name: str
    process: subprocess.Popen[bytes]
    url: str
    fields: dict[str, Any]
    key: Callable[[], str]


@dataclass
class Tally:
    """What one contender did at one level, a number for each round."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)  # one for each request

    @property
    def rates(self) -> list[float]:
        """Tokens a second, of each round."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]


def llama_command(options: argparse.Namespace, port: int, places: int) -> list[str]:
    """The command line of llama-server."""
    words = [
        options.llama_server, "-m", options.model, "--host", "127.0.0.1", "--port", port, "-np", places,
        "-c", places * options.context, "-t", options.threads, "-tb", options.threads, "--jinja",
        *options.llama_options,
    ]  # fmt: skip
    return [str(word) for word in words]


@contextmanager
def contenders(options: argparse.Namespace, places: int, keys: int) -> Iterator[list[Contender]]:
    """All contenders at one level, their servers stopped; specdec accepts `keys` API keys."""
    with ExitStack() as stack:
        port, numbers = free_port(), count()
        os.environ["SPECDEC_API_KEY"] = ",".join(f"key{number}" for number in range(keys))
        ours = specdec_command(
            options.store or options.model, port, "--threads", options.threads, "--max-sequences", places,
            "--context", options.context,
        )  # fmt: skip
        process = stack.enter_context(running(ours, port, cpus=options.cpus))
        cached = options.prompt_cache == "on"
        found = [
            Contender(
                name,
                process,
                f"http://127.0.0.1:{port}",
                fields,
                (lambda fixed=number: f"key{fixed}") if cached else (lambda: f"key{next(numbers)}"),
            )
            for number, (name, fields) in enumerate({SPECULATING: {}, PLAIN: {"speculate": False}}.items())
        ]
        pause(process)
        if options.llama_server is not None:
            port = free_port()
            process = stack.enter_context(running(llama_command(options, port, places), port, cpus=options.cpus))
            fields = {"cache_prompt": cached}
            found.append(Contender(LLAMA, process, f"http://127.0.0.1:{port}", fields, lambda: "none"))
            pause(process)
        for each in {one.process.pid: one.process for one in found}.values():
            stack.callback(resume, each)
        yield found


def pause(process: subprocess.Popen[bytes]) -> None:
    """Stop a process where it is."""
    process.send_signal(signal.SIGSTOP)


def resume(process: subprocess.Popen[bytes]) -> None:
    """Let it go on."""
    process.send_signal(signal.SIGCONT)


def answers_of(contender: Contender, prompts: Sequence[str], level: int, max_tokens: int) -> tuple[list[Answer], float]:
    """The answers to prompts, `level` at a time, and seconds in all."""

    def ask(asking: httpx.Client, prompt: str) -> Answer:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}
        asking.headers["Authorization"] = f"Bearer {contender.key()}"
        return stream_chat(asking, body | contender.fields)

    resume(contender.process)
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(level))
            free = [stack.enter_context(client(contender.url)) for _ in range(level)]

            def one(prompt: str) -> Answer:
                asking = free.pop()
                try:
                    return ask(asking, prompt)
                finally:
                    free.append(asking)

            begun = time.perf_counter()
            found = list(pool.map(one, prompts))
            return found, time.perf_counter() - begun
    finally:
        pause(contender.process)


def check_round(found: dict[str, list[Answer]]) -> None:
    """Refuse to go on where the contenders did not do the same work.

    Raises:
        SystemExit: speculation changed an answer, or prompts have different numbers of tokens.
    """
    for number, (one, other) in enumerate(zip(found[SPECULATING], found[PLAIN], strict=True)):
        if one.outcome() != other.outcome():
            sys.exit(f"speculation changed answer {number}: {one.outcome()}, plainly {other.outcome()}")
    for number, (one, other) in enumerate(zip(found[PLAIN], found.get(LLAMA, found[PLAIN]), strict=True)):
        if one.prompt_tokens != other.prompt_tokens:
            sys.exit(f"prompt {number} has {one.prompt_tokens} tokens with us, {other.prompt_tokens} with {LLAMA}")


def measure_level(
    options: argparse.Namespace, level: int, end_s: float, told: Callable[[dict[str, Tally], list[float]], None]
) -> None:
    """Rounds at one level until the prompts or the time are used up; `told` gets the tallies after each.

    `told` also gets the share of answers in each round that begin as llama-server's do.
    """
    size = options.round_size or max(4, 2 * level)
    prompts = [prompt[:LONGEST_PROMPT] for prompt in packaged_prompts()]
    rounds = options.rounds or max(1, len(prompts) // size)
    with contenders(options, level, 2 * (level + rounds * size)) as names:
        for contender in names:  # pages are touched, views built, costs measured
            answers_of(contender, prompts[:level], level, options.max_tokens)
        tallies, alike = {one.name: Tally() for one in names}, list[float]()
        for number in range(rounds):
            if number and time.monotonic() > end_s:
                break
            chosen = list(islice(cycle(prompts), number * size, (number + 1) * size))
            found = {}
            for contender in names[number % len(names) :] + names[: number % len(names)]:
                answers, seconds = answers_of(contender, chosen, level, options.max_tokens)
                found[contender.name] = answers
                tally = tallies[contender.name]
                tally.tokens.append(sum(one.tokens for one in answers))
                tally.seconds.append(seconds)
                tally.first_s += [one.first_s for one in answers if one.first_s is not None]
            check_round(found)
            pairs = list(zip(found[PLAIN], found.get(LLAMA, ()), strict=False))
            alike += [float(one.content[:40] == other.content[:40]) for one, other in pairs]
            told(tallies, alike)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def rows_of(level: int, tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    """A row for each contender at one level."""
    rows = []
    for name, tally in tallies.items():
        row: dict[str, Any] = {"concurrent": level, "contender": name, "rounds": len(tally.tokens)}
        row |= {"tokens": sum(tally.tokens), "tok_per_s": sum(tally.tokens) / sum(tally.seconds)}
        row |= {"first_p50_s": percentile(tally.first_s, 0.5), "first_p95_s": percentile(tally.first_s, 0.95)}
        for key, base in (("to_llama", LLAMA), ("to_plain", PLAIN)):
            if base in tallies and not (key == "to_plain" and name == LLAMA):
                ratios = [own / its for own, its in zip(tally.rates, tallies[base].rates, strict=True)]
                row |= {key: statistics.median(ratios), f"{key}_range": [min(ratios), max(ratios)]}
        rows.append(row)
    return rows


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The table."""
    names = (
        "concurrent",
        "contender",
        "rounds",
        "tokens",
        "tok_per_s",
        "first_p50_s",
        "first_p95_s",
        "to_llama",
        "to_plain",
    )
    print_table(names, [[row.get(name, "") for name in names] for row in rows])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help=".gguf file that both servers run")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM", help="llama-server (default: specdec only)")
    parser.add_argument("--llama-options", nargs=argparse.REMAINDER, default=[], help="more options of it; last")
    parser.add_argument(
        "--store", type=Path, help="converted model for specdec (default: converted from the file by `serve`)"
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16], help="concurrent requests")
    parser.add_argument("--rounds", type=int, help="most rounds at each level (default: all prompts once)")
    parser.add_argument("--round-size", type=int, help="prompts of a round (default: twice the level, at least 4)")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=2048, help="tokens of a place")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpus", metavar="LIST", help="processors for the servers, such as 0,1 (with taskset)")
    parser.add_argument("--prompt-cache", choices=("off", "on"), default="off")
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="begin no round after so long")
    add_json_option(parser)
    options = parser.parse_args()
    for name in ("model", "llama_server", "store"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
    return options


def llama_version(program: Path) -> str:
    """What llama-server says of itself."""
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line for line in lines if line.startswith("version")), "version unknown")


def main() -> None:
    """Measure every level."""
    options = arguments()
    print_machine()
    results: dict[str, Any] = {"model": options.model.name, "levels": {}, "complete": False}
    if options.llama_server is not None:
        results["llama_server"] = llama_version(options.llama_server)
        print(f"llama-server {results['llama_server']}")
    begun, levels = time.monotonic(), list(options.levels)
    try:
        for number, level in enumerate(levels):
            now = time.monotonic()
            end_s = now + (begun + options.budget_s - now) / (len(levels) - number)

            def told(tallies: dict[str, Tally], alike: list[float], level: int = level) -> None:
                rows = rows_of(level, tallies)
                alike_share = statistics.fmean(alike) if alike else None
                results["levels"][str(level)] = {"rows": rows, "begin_as_llama": alike_share}
                rates = ", ".join(f"{row['contender']} {row['tok_per_s']:.1f} tok/s" for row in rows)
                print(f"  {level} concurrent, round {rows[0]['rounds']}: {rates}", file=sys.stderr)
                write_json(options.json, results, benchmark="serve_throughput")

            measure_level(options, level, end_s, told)
        results["complete"] = True
    except KeyboardInterrupt:
        print("interrupted: these are the rounds so far", file=sys.stderr)
    print_rows([row for one in results["levels"].values() for row in one["rows"]])
    shares = {level: one["begin_as_llama"] for level, one in results["levels"].items()}
    print(f"share of answers that begin as {LLAMA}'s: {json.dumps(shares)}")
    write_json(options.json, results, benchmark="serve_throughput")


if __name__ == "__main__":
    main()

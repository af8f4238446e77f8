"""The host's time for answers outside of passes, plain and by `auto`, on whatever runtime: what Python takes.

    python benchmarks/host_time.py MODEL --tokens 1 8 30 128 --together 1 16

Of each answer: before its first pass (`begin`), in its first round, in a later round, in all rounds by token, and at
its end. A round's time is the clock's, less the time of its passes. `first plan` and `plan` are the parts of it that
the policy takes to decide, and to learn before that. All are medians, the two ways taking turns. Answers that run
together share rounds, whose times are theirs together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from common import PROMPTS, add_json_option, print_machine, print_table, write_json

import specdec
from specdec.engine import decode
from specdec.engine.answer import Answer
from specdec.engine.begin import begin
from specdec.engine.scheduler import Scheduler
from specdec.engine.together import apply

WAYS: dict[str, dict[str, Any]] = {"plain": {"speculate": False}, "auto": {}}
WARM_UP = 3  # answers of each way
Times = dict[str, list[float]]  # seconds by what they were spent on


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 30, 128], metavar="N", help="of an answer")
    parser.add_argument("--together", type=int, nargs="+", default=[1], metavar="N", help="answers at the same time")
    parser.add_argument(
        "--repeats", type=int, default=20, metavar="N", help="answers of each way (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with")
    add_json_option(parser)
    args = parser.parse_args()
    model = specdec.load(args.model, threads=args.threads)
    model.prompt_cache = None
    passes = Passes(model)
    rows = []
    for together in args.together:
        for tokens in args.tokens:
            for way, times in measured(model, passes, tokens, together, args.repeats).items():
                rows.append([together, tokens, way, *summed_up(times)])
    print_machine()
    header = ["together", "tokens", "way", "begin", "first round", "round", "a token", "end", "first plan", "plan"]
    print("milliseconds")
    print_table(header, rows)
    write_json(args.json, [dict(zip(header, row, strict=True)) for row in rows], benchmark="host_time")


class Passes:
    """Adds up the seconds of a model's passes."""

    def __init__(self, model: specdec.Model) -> None:
        self.seconds = 0.0
        forward = model.runtime.forward

        def timed(*arguments: Any, **options: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return forward(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start_s

        model.runtime.forward = timed  # type: ignore[method-assign]


def measured(model: specdec.Model, passes: Passes, tokens: int, together: int, repeats: int) -> dict[str, Times]:
    """Seconds by way, from answers to the prompts in turn."""
    found: dict[str, Times] = {way: defaultdict(list) for way in WAYS}
    for number in range(-WARM_UP, repeats):
        for way, options in WAYS.items():
            times = found[way] if number >= 0 else defaultdict(list)
            prompts = [PROMPTS[(number + one) % len(PROMPTS)] for one in range(together)]
            answer_all(model, passes, prompts, times, max_tokens=tokens, ignore_eos=True, **options)
    return found


def answer_all(model: specdec.Model, passes: Passes, prompts: Sequence[str], times: Times, **options: Any) -> None:
    """Answer prompts together, and note what the host took."""
    answers, start_s = [], time.perf_counter()
    for prompt in prompts:
        passes.seconds = 0.0
        answers.append(begin(model, prompt, options, caller="generate"))
        times["begin"].append(time.perf_counter() - start_s - passes.seconds)
        start_s = time.perf_counter()
    for answer in answers:
        time_planning(answer, times)
    rounds: list[float] = []
    step = steps_alone(answers[0]) if len(answers) == 1 else steps_together(model, answers)
    while any(answer.stopped_by is None for answer in answers):
        passes.seconds, start_s = 0.0, time.perf_counter()
        step()
        rounds.append(time.perf_counter() - start_s - passes.seconds)
    times["first"].append(rounds[0])
    times["round"] += rounds[1:]
    times["token"].append(sum(rounds) / sum(answer.stats.emitted for answer in answers))
    for answer in answers:
        start_s = time.perf_counter()
        answer.close()
        answer.result()
        times["end"].append(time.perf_counter() - start_s)


def steps_alone(answer: Answer) -> Callable[[], None]:
    """A function that runs the next round of an answer."""
    assert answer.sequence is not None
    sequence = answer.sequence
    decode.read_prompt(sequence)

    def step() -> None:
        answer.take(decode.step(sequence))

    return step


def steps_together(model: specdec.Model, answers: Sequence[Answer]) -> Callable[[], None]:
    """A function that runs the next step of answers that share passes, those over their prompts included."""
    scheduler = Scheduler(model.runtime, costs=model.memory.passes)
    by_sequence = {}
    for answer in answers:
        assert answer.sequence is not None
        scheduler.add(answer.sequence)
        by_sequence[id(answer.sequence)] = answer

    def step() -> None:
        for event in scheduler.step():
            answer = by_sequence[id(event.sequence)]
            apply(event, answer)
            if answer.stopped_by is not None:
                scheduler.remove(event.sequence)

    return step


def time_planning(answer: Answer, times: Times) -> None:
    """Note what an answer's policy takes for each decision."""
    if answer.sequence is None or answer.sequence.speculation is None:
        return
    policy: Any = answer.sequence.speculation.policy
    plan, observe, learnt_s = policy.plan, policy.observe, [0.0]
    kinds = iter(["first plan"])

    def timed_plan(state: Any) -> Any:
        start_s = time.perf_counter()
        found = plan(state)
        times[next(kinds, "plan")].append(time.perf_counter() - start_s + learnt_s[0])
        learnt_s[0] = 0.0
        return found

    def timed_observe(outcome: Any) -> None:
        start_s = time.perf_counter()
        observe(outcome)
        learnt_s[0] += time.perf_counter() - start_s

    policy.plan, policy.observe = timed_plan, timed_observe


def summed_up(times: Times) -> list[float | str]:
    """Medians in milliseconds; empty where there is nothing."""
    names = ("begin", "first", "round", "token", "end", "first plan", "plan")
    return [statistics.median(times[name]) * 1e3 if times[name] else "" for name in names]


if __name__ == "__main__":
    main()

"""What lookups gain: rounds over recorded greedy answers, at fixed costs of rows. No pass is timed.

python benchmarks/lookup_replay.py MODEL --answers answers.jsonl [--prompts 6] [--drafters ngram recycle] [--earlier]

The model answers `--prompts` prompts of each of seven kinds and keeps the tokens in the file, which a later run reads.
The drafters and the default policy then go through these answers as the engine would; a draft token is kept where the
answer has the same one. So the result depends on drafters and policy only, not on how busy the machine is. `--earlier`
counts all answers as those of one owner. `recycle` learns nothing from the verifier's logits here.

--turns 4:1.28 8:1.36 16:1.58 --launch 0.2

replays a GPU that drafts and verifies by itself, where a turn of so many rows costs so many dense steps and every
launch a host's time: what each kind of prompt gets of plain decoding, both going ahead as the engine has them. The
trees learn only from rows that were kept, since the model is not asked about others. A second table has the tokens of
a turn if every round were one, with the successors of tokens and by the matches alone. With `--survey FILE` texts begin
with what the model says after its frequent tokens, which the file keeps (minutes on a processor). `--ends 1 2 4 8`
replays answers that end after so many tokens instead, by the length of their prompts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table
from specdec.kernels.reference.recycle import TOP, Recycled
from specdec.policies.goodput.policy import GoodputPolicy
from specdec.policies.goodput.turn_results import LONG_PROMPT

import specdec
from specdec.drafters.base import DraftContext, DrafterMemory, DrafterSetup
from specdec.drafters.hindsight import Hindsight
from specdec.drafters.registry import create
from specdec.drafters.text_match import TextMatch
from specdec.engine.drafter_guard import options_of
from specdec.engine.policy import CostTable, DraftOption, DraftPlan, Knowledge, RoundOutcome, RoundState
from specdec.engine.successors import survey_prefix, surveyed_tokens
from specdec.lab.bench.prompts import load_prompts
from specdec.model.effort import resolve_efforts
from specdec.model.loaded import Model
from specdec.runtimes.base import MAX_TREE_ROWS, Rows, forward_one

# Cost of a verify pass by rows, in dense steps, then that of each further row.
COSTS: dict[str, tuple[Sequence[float], float]] = {
    "small CPU, cheap first rows": ((1, 1.05, 1.12, 1.25, 1.4, 1.55, 1.8, 2.1, 2.4), 0.3),
    "small CPU": ((1, 1.15, 1.2, 1.25, 1.3, 1.5, 1.65, 1.8, 1.9), 0.1),
    "GPU, 0.02 a row": ((1,), 0.02),
    "0.25 a row": ((1,), 0.25),
}
LOOKUP = 0.002  # dense steps of a lookup
TURN_HEADER = ("kind", "tokens/turn", "turns", "least", "speed over plain")


def main() -> None:
    """Record what is missing, replay, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="keep the answers here")
    parser.add_argument("--prompts", type=int, default=6, metavar="N", help="prompts a kind (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="of an answer (default %(default)s)")
    parser.add_argument("--drafters", nargs="+", default=["ngram", "recycle"], metavar="NAME")
    parser.add_argument("--turns", nargs="+", type=_point, metavar="ROWS:COST", help="of the runtime's own turns")
    parser.add_argument("--launch", type=float, default=0.2, metavar="STEPS", help="host's time of a launch")
    parser.add_argument(
        "--ends", type=int, nargs="+", default=[], metavar="N", help="of answers that end after N tokens"
    )
    parser.add_argument("--survey", type=Path, metavar="FILE", help="begin with likely successors of frequent tokens")
    parser.add_argument("--earlier", action="store_true", help="look up earlier answers, too")
    args = parser.parse_args()
    model = specdec.load(args.model)
    if not args.answers.exists():
        record(model, args.answers, args.prompts, args.max_tokens)
    answers = read_answers(args.answers)
    if args.ends:
        answers = [cut for count in args.ends for answer in answers if (cut := ended(answer, count)) is not None]
    if args.turns:
        known = surveyed(model, args.survey) if args.survey else {}
        print_table(TURN_HEADER, turn_rows(answers, dict(args.turns), args.launch, known, args.max_tokens))
        kinds = list(dict.fromkeys(answer["task"] for answer in answers))
        rows = [always(answers, width, kinds, known) for width, _ in args.turns]
        print_table(["rows", "all", "matches alone", *kinds], rows)
        return
    rows = [[name, *replay(model, answers, args.drafters, name, earlier=args.earlier)] for name in COSTS]
    print_table(["a row costs", "tokens/round", "drafted", "kept", "speed over plain"], rows)


def ended(answer: dict[str, Any], count: int) -> dict[str, Any] | None:
    """The answer, ended after that many tokens, which the policy does not know beforehand; None for a shorter one."""
    tokens = answer["tokens"]
    if len(tokens) < count:
        return None
    kind = f"{count} tokens after {'long' if len(answer['prompt']) >= LONG_PROMPT else 'short'} prompts"
    return {**answer, "tokens": tokens[:count], "task": kind}


def record(model: Model, path: Path, prompts: int, most: int) -> None:
    """Answer the bundled prompts greedily."""
    with path.open("w") as file:
        for prompt in load_prompts(["spec-bench", "humaneval"], per_task=prompts):
            messages = [{"role": "user", "content": prompt.content}]
            ids = list(model.tokenizer.encode(model.tokenizer.apply_chat_template(messages), add_bos=False))
            tokens, likeliest = _answered(model, ids, most)
            answer = {"task": prompt.task, "prompt": ids, "tokens": tokens, "top": likeliest}
            file.write(json.dumps(answer) + "\n")


def read_answers(path: Path) -> list[dict[str, Any]]:
    """What `record` has kept in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _answered(model: Model, ids: list[int], most: int) -> tuple[list[int], list[list[int]]]:
    """A greedy answer, and the likeliest tokens at each of its places."""
    held, tokens, likeliest = model.runtime.new_cache(len(ids) + most), list[int](), list[list[int]]()
    for first in range(0, len(ids), 256):
        logits = forward_one(model.runtime, ids[first : first + 256], held, logits="last").logits
    while True:
        likeliest.append(np.argsort(-logits[-1], kind="stable")[:TOP].tolist())
        tokens.append(likeliest[-1][0])
        if len(tokens) == most or tokens[-1] in model.tokenizer.eos_ids:
            return tokens, likeliest
        logits = forward_one(model.runtime, tokens[-1:], held).logits


def surveyed(model: Model, path: Path) -> dict[int, list[int]]:
    """What the model says after each of its frequent tokens, from the file or for it."""
    if not path.exists():
        prefix, tokens, found = survey_prefix(model), surveyed_tokens(model), dict[int, list[int]]()
        held = model.runtime.new_cache(len(prefix) + MAX_TREE_ROWS)
        forward_one(model.runtime, prefix, held, logits="none")
        efforts = resolve_efforts(1.0, model.config)
        for first in range(0, len(tokens), MAX_TREE_ROWS):
            asked = tokens[first : first + MAX_TREE_ROWS]
            logits = model.runtime.forward([Rows(held, asked, efforts, [-1] * len(asked))])[0].logits
            held.trim(len(prefix))
            for token, row in zip(asked, logits, strict=True):
                best = np.argpartition(-row, TOP)[:TOP]
                found[token] = best[np.argsort(-row[best], kind="stable")].tolist()
        path.write_text(json.dumps(found))
    return read_survey(path)


def read_survey(path: Path) -> dict[int, list[int]]:
    """What `surveyed` has kept in a file: for frequent tokens, their likely successors."""
    return {int(token): line for token, line in json.loads(path.read_text()).items()}


def replay(
    model: Model, answers: Sequence[dict[str, Any]], names: Sequence[str], costs: str, *, earlier: bool
) -> list[str]:
    """Tokens a round, tokens drafted and kept, and the speed over plain decoding."""
    known, step = COSTS[costs]
    verify = [0.0, *known, *(known[-1] + step * more for more in range(1, 80))]
    table = CostTable(verify_s={rows: 0.01 * verify[rows] for rows in (1, 3, 5, 9)})
    drafters, learnt = DrafterMemory(), dict[Any, Any]()
    tokens = rounds = drafted = kept = 0
    spent = 0.0
    for answer in answers:
        setup = DrafterSetup(model.runtime, "auto", memory=drafters, owner="replay" if earlier else None)
        asked = {name: create(name, setup) for name in names}
        options = tuple(one for name, drafter in asked.items() for one in options_of(name, drafter))
        policy = GoodputPolicy()
        policy.begin(Knowledge(costs=table, memory=learnt))
        text, history, count = [*answer["prompt"], *answer["tokens"]], list(answer["prompt"]), 0
        context = DraftContext(history, None, None, None, prompt_length=len(history))  # type: ignore[arg-type]
        while len(history) < len(text):
            state = RoundState(
                round_index=count, position=len(history), max_draft_tokens=len(text) - len(history) - 1, draft_len=4,
                draft_effort=1.0, verify_effort=1.0, options=options, is_effort_asked=False,
                matches={name: drafter.match_length(context) for name, drafter in asked.items()},
            )  # fmt: skip
            plan = policy.plan(state)
            length, name = min(plan.num_draft_tokens, state.max_draft_tokens), plan.drafter or names[0]
            found = asked[name].draft(plan, context, policy=policy).tokens[:length] if length else []
            came = text[len(history) :]
            right = next((n for n, token in enumerate(found) if token != came[n]), len(found))
            cost = verify[len(found) + 1]
            policy.observe(
                RoundOutcome(
                    drafted=len(found), accepted=right, signals=(), drafter=name if length else None, view=None,
                    context_length=len(history) - 1, draft_s=0.01 * LOOKUP * bool(length), verify_s=0.01 * cost,
                    round_s=0.01 * (cost + LOOKUP * bool(length)),
                )
            )  # fmt: skip
            history += came[: right + 1]
            count += 1
            drafted, kept, spent = drafted + len(found), kept + right, spent + cost + LOOKUP * bool(length)
        for drafter in asked.values():
            drafter.ended(context)
        policy.summary()
        tokens, rounds = tokens + len(answer["tokens"]), rounds + count
    return [f"{tokens / rounds:.3f}", str(drafted), str(kept), f"{tokens / spent:.3f}"]


def turn_rows(
    answers: Sequence[dict[str, Any]],
    costs: Mapping[int, float],
    launch: float,
    known: Mapping[int, Sequence[int]],
    most: int = 128,
) -> list[list[str]]:
    """For each kind of prompts tokens of a turn, turns, the least speed over plain decoding, and the speed of all.

    Args:
        answers: as `record` leaves them.
        costs: of a turn by rows, in plain steps.
        launch: the host's time of a launch, in plain steps.
        known: likely successors of tokens before anything was decoded.
        most: tokens that answers may have, as far as the policy knows.
    """
    kinds: dict[str, list[Launches]] = {}
    for answer in answers:
        kinds.setdefault(answer["task"], []).append(launches_of(answer, costs, launch, known, most))
    rows = []
    for kind, found in kinds.items():
        turns, kept = sum(one.turns for one in found), sum(one.kept for one in found)
        least = min(one.plain / one.cost for one in found)
        speed = sum(one.plain for one in found) / sum(one.cost for one in found)
        rows.append([kind, f"{1 + kept / max(1, turns):.2f}", str(turns), f"{least:.3f}", f"{speed:.3f}"])
    every = [one for found in kinds.values() for one in found]
    speeds = [float(row[-1]) for row in rows]
    rows.append(
        [
            "mean",
            f"{1 + sum(one.kept for one in every) / max(1, sum(one.turns for one in every)):.2f}",
            str(sum(one.turns for one in every)),
            f"{min(float(row[-2]) for row in rows):.3f}",
            f"{statistics.fmean(speeds):.3f}",
        ]
    )
    return rows


def always(
    answers: Sequence[dict[str, Any]], width: int, kinds: Sequence[str], known: Mapping[int, Sequence[int]]
) -> list[str]:
    """Tokens of a turn where every round is one: of all answers, by matches alone, and of each kind."""
    tokens: dict[tuple[str, bool], int] = {}
    turns: dict[tuple[str, bool], int] = {}
    for answer in answers:
        text = [*answer["prompt"], *answer["tokens"]]
        for learns in (True, False):
            rule, at, count = Recycled(known if learns else None), len(answer["prompt"]), 0
            while at < len(text):
                at += 1 + _turn(rule, answer, text, at, width, len(text))
                count += 1
                if not learns:
                    rule.successors.clear()
            for kind in (answer["task"], ""):
                key = kind, learns
                tokens[key] = tokens.get(key, 0) + len(answer["tokens"])
                turns[key] = turns.get(key, 0) + count
    wanted = [("", True), ("", False), *((kind, True) for kind in kinds)]
    return [str(width), *(f"{tokens[key] / turns[key]:.2f}" for key in wanted)]


@dataclass
class Launches:
    """One answer in launches of a GPU: what they cost in dense steps, and what plain decoding does."""

    cost: float = 0.0
    plain: float = 0.0
    turns: int = 0
    kept: int = 0


def launches_of(
    answer: dict[str, Any], costs: Mapping[int, float], launch: float, known: Mapping[int, Sequence[int]], most: int
) -> Launches:
    """The default policy over an answer, with turns of the runtime's own, and plain steps that go ahead."""
    done, policy, rule, step_s = Launches(), GoodputPolicy(), Recycled(known), 0.001
    turn_s = {1: step_s * (1 + launch / 16)} | {rows: step_s * (cost + launch / 8) for rows, cost in costs.items()}
    verify_s = {rows: step_s * (cost + launch) for rows, cost in ((1, 1.0), (3, 1.3), (5, 1.5), (9, 2.1))}
    table = CostTable(verify_s=verify_s, turn_s=turn_s)
    policy.begin(Knowledge(costs=table, memory={}))
    option = DraftOption("recycle", None, takes_effort=False, turn_rows=max(costs))
    prompt, text = answer["prompt"], [*answer["prompt"], *answer["tokens"]]
    at, run, rounds, lookup, hindsight = len(prompt), 0, 0, TextMatch(), Hindsight(len(prompt), known)
    limit = len(prompt) + max(most, len(answer["tokens"]))
    while at < len(text):
        is_quiet = rounds < policy.quiet_rounds
        plan = DraftPlan(num_draft_tokens=0, effort=1.0)
        if not is_quiet:
            state = RoundState(
                round_index=rounds, position=at, max_draft_tokens=limit - at - 1, draft_len=4, draft_effort=1.0,
                verify_effort=1.0, options=(option,), is_effort_asked=False,
                matches={"recycle": lookup.length(text[:at])}, missed=hindsight.kept(text[:at]),
            )  # fmt: skip
            plan = policy.plan(state)
        kept: list[int] = []
        ahead = 0
        if plan.num_draft_tokens:
            width = max((one for one in costs if one <= plan.num_draft_tokens + 1), default=min(costs))
            for _ in range(plan.turns):
                count = _turn(rule, answer, text, at, width, limit)
                kept.append(count)
                at += count + 1
                if at >= len(text):
                    break
            cost = launch + costs[width] * len(kept)
            done.turns, done.kept = done.turns + len(kept), done.kept + sum(kept)
            seconds = step_s * cost
        else:
            ahead = min(15, run, len(text) - at - 1)
            run, cost = run + 1 + ahead, launch + 1.0 + ahead
            at += 1 + ahead
            seconds = step_s * cost / (1 + ahead)
        outcome = RoundOutcome(
            drafted=plan.num_draft_tokens * max(1, len(kept)) if kept else 0, accepted=sum(kept), signals=(),
            drafter=plan.drafter if kept else None, view=None, context_length=at, draft_s=0.0, verify_s=seconds,
            round_s=seconds, turns=tuple(kept), ahead=ahead,
        )  # fmt: skip
        if not is_quiet:
            policy.observe(outcome)
        done.cost, rounds = done.cost + cost, rounds + 1
    run, left = 0, len(answer["tokens"])
    while left:
        count = min(16, run + 1, left)
        done.plain, run, left = done.plain + launch + count, run + count, left - count
    return done


def _turn(rule: Recycled, answer: dict[str, Any], text: list[int], at: int, width: int, limit: int) -> int:
    """Tokens that a turn after `at` tokens keeps; the rule learns from the rows that were kept."""
    tokens, parents = rule.draft(text[:at], width, limit)
    kept, last = 0, -1
    for number, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        if parent == last and at + kept + 1 < len(text) and token == text[at + kept]:
            kept, last = kept + 1, number
    first = at - len(answer["prompt"])
    rule.learn(text[at - 1 : at + kept], answer["top"][first : first + kept + 1])
    return kept


def _point(text: str) -> tuple[int, float]:
    rows, _, cost = text.partition(":")
    return int(rows), float(cost)


if __name__ == "__main__":
    main()

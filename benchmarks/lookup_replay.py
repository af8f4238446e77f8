"""What lookups gain: rounds over recorded greedy answers, at fixed costs of rows. No pass is timed.

python benchmarks/lookup_replay.py MODEL --answers answers.jsonl [--prompts 6] [--drafters ngram recycle] [--earlier]

The model answers `--prompts` prompts of each of seven kinds and keeps the tokens in the file, which a later run reads.
The drafters and the default policy then go through these answers as the engine would; a draft token is kept where the
answer has the same one. So the result depends on drafters and policy only, not on how busy the machine is. `--earlier`
counts all answers as those of one owner. `recycle` learns nothing from the verifier's logits here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import print_table
from specdec.policies.goodput.policy import GoodputPolicy

import specdec
from specdec.drafters.base import DraftContext, DrafterMemory, DrafterSetup
from specdec.drafters.registry import create
from specdec.engine.drafter_guard import options_of
from specdec.engine.policy import CostTable, Knowledge, RoundOutcome, RoundState
from specdec.lab.bench.prompts import load_prompts
from specdec.model.loaded import Model

# Cost of a verify pass by rows, in dense steps, then that of each further row.
COSTS: dict[str, tuple[Sequence[float], float]] = {
    "small CPU, cheap first rows": ((1, 1.05, 1.12, 1.25, 1.4, 1.55, 1.8, 2.1, 2.4), 0.3),
    "small CPU": ((1, 1.15, 1.2, 1.25, 1.3, 1.5, 1.65, 1.8, 1.9), 0.1),
    "GPU, 0.02 a row": ((1,), 0.02),
    "0.25 a row": ((1,), 0.25),
}
LOOKUP = 0.002  # dense steps of a lookup


def main() -> None:
    """Record what is missing, replay, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help="keep the answers here")
    parser.add_argument("--prompts", type=int, default=6, metavar="N", help="prompts a kind (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="of an answer (default %(default)s)")
    parser.add_argument("--drafters", nargs="+", default=["ngram", "recycle"], metavar="NAME")
    parser.add_argument("--earlier", action="store_true", help="look up earlier answers, too")
    args = parser.parse_args()
    model = specdec.load(args.model)
    if not args.answers.exists():
        record(model, args.answers, args.prompts, args.max_tokens)
    answers = [json.loads(line) for line in args.answers.read_text().splitlines()]
    rows = [[name, *replay(model, answers, args.drafters, name, earlier=args.earlier)] for name in COSTS]
    print_table(["a row costs", "tokens/round", "drafted", "kept", "speed over plain"], rows)


def record(model: Model, path: Path, prompts: int, most: int) -> None:
    """Answer the bundled prompts greedily."""
    with path.open("w") as file:
        for prompt in load_prompts(["spec-bench", "humaneval"], per_task=prompts):
            messages = [{"role": "user", "content": prompt.content}]
            ids = list(model.tokenizer.encode(model.tokenizer.apply_chat_template(messages), add_bos=False))
            result = specdec.generate(model, ids, max_tokens=most, temperature=0)
            file.write(json.dumps({"task": prompt.task, "prompt": ids, "tokens": list(result.tokens)}) + "\n")


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


if __name__ == "__main__":
    main()

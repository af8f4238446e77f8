"""Drafts of a mixture that use fewer experts, against drafts that use all of them, at the same effort.

python benchmarks/mixture_drafts.py MIXTURE [--dense MODEL] [--efforts 0.25,0.5,0.75] [--view bucket]

The native runtime leaves out experts below effort 1; "all experts" is the same runtime, set to keep them. For each:

- agreement: share of the positions of greedy answers at which the draft's likeliest token is the model's, over the
  exact history, and the mean KL divergence there. Exact: no time is in it.
- bytes: what a draft step reads, over what a step of plain decoding reads.
- step: the time of a draft step over that of a plain step; median of passes that take turns.
- acceptance and speed of whole answers that the policy `fixed` drafts for; speed over plain decoding in the same turn,
  median over turns and prompts.

`--dense` names the model that the mixture was made of, and adds how often the two agree.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from common import PROMPTS, add_json_option, log_softmax, print_machine, print_table, write_json

import specdec
from specdec.model.loaded import Model
from specdec.runtimes.base import forward_one
from specdec.runtimes.native import shape
from specdec.runtimes.timing import timed

STEPS = 6  # timed steps of each kind and prompt


@dataclass
class Measured:
    """What one kind of draft did."""

    agree: list[bool] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    speed: list[float] = field(default_factory=list)


@contextmanager
def keeping_all_experts() -> Iterator[None]:
    """Native runtimes that are made within it keep every chosen expert at every effort."""
    usual = shape._mlp
    shape._mlp = lambda mlp: usual(mlp) | {"fewer_experts": False}
    try:
        yield
    finally:
        shape._mlp = usual


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="mixture: store or folder")
    parser.add_argument("--dense", help="the model that it was made of")
    parser.add_argument("--view", default="bucket", help="draft view (default bucket)")
    parser.add_argument("--efforts", default="0.25,0.5,0.75", help="draft efforts (default 0.25,0.5,0.75)")
    parser.add_argument("--draft-len", type=int, default=3, help="tokens a draft (default 3)")
    parser.add_argument("--max-tokens", type=int, default=64, help="length of the answers (default 64)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of answers and steps (default 3)")
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    args = parser.parse_args()
    print_machine()
    fewer = specdec.load(args.model, runtime="native", threads=args.threads)
    with keeping_all_experts():
        models = {"all": specdec.load(args.model, runtime="native", threads=args.threads), "fewer": fewer}
    texts = answers(fewer, args.max_tokens)
    found = {(kind, float(e)): Measured() for e in args.efforts.split(",") for kind in models}
    for text in texts:
        compare(models, text, args.view, found)
    for _ in range(args.repeats):
        for text in texts:
            speeds(models, text, args, found)
    rows = [row(kind, effort, one) for (kind, effort), one in found.items()]
    header = list(rows[0])
    print_table(header, [[one[key] for key in header] for one in rows])
    settings = {"view": args.view, "draft_len": args.draft_len, "max_tokens": args.max_tokens}
    settings |= {"repeats": args.repeats, "threads": args.threads, "made_mixture": True}
    if args.dense is not None:
        settings["agreement_with_dense"] = agreement_with(args.dense, texts, args.threads)
        print(
            f"the mixture's greedy tokens are the dense model's at {settings['agreement_with_dense']:.3f} of positions"
        )
    write_json(args.json, {"settings": settings, "rows": rows}, benchmark="mixture_drafts")


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the mixture's greedy answer, in token ids."""

    prompt: list[int]
    answer: list[int]


def answers(model: Model, max_tokens: int) -> list[Text]:
    """The prompts of all benchmarks with their answers."""
    assert model.tokenizer is not None
    prompts = [
        model.tokenizer.encode(model.tokenizer.apply_chat_template([{"role": "user", "content": prompt}]))
        for prompt in PROMPTS
    ]
    found = specdec.generate(model, prompts, max_tokens=max_tokens, speculate=False)
    return [Text(prompt, list(one.tokens)) for prompt, one in zip(prompts, found, strict=True)]


def taught(model: Model, text: Text, *, effort: float = 1.0, view: str = "exact") -> np.ndarray:
    """Logits at every position of an answer, (T, V), over the history that effort 1.0 makes of the prompt."""
    cache = model.runtime.new_cache(len(text.prompt) + len(text.answer))
    forward_one(model.runtime, text.prompt[:-1], cache, logits="none")
    rows = [text.prompt[-1], *text.answer[:-1]]
    return forward_one(model.runtime, rows, cache, effort=effort, view=view).logits


def compare(models: dict[str, Model], text: Text, view: str, found: dict[tuple[str, float], Measured]) -> None:
    """Agreement, bytes and step times on one answer."""
    model = models["fewer"]
    exact = taught(model, text)
    known = log_softmax(exact)
    for (kind, effort), one in found.items():
        logits = taught(models[kind], text, effort=effort, view=view)
        one.agree += (logits.argmax(axis=1) == exact.argmax(axis=1)).tolist()
        one.kl += (np.exp(known) * (known - log_softmax(logits))).sum(axis=1).tolist()
    caches = {kind: one.runtime.new_cache(len(text.prompt) + 1) for kind, one in models.items()}
    for kind, one in models.items():
        forward_one(one.runtime, text.prompt, caches[kind], logits="none")
    for token in text.answer[:STEPS]:
        plain, plain_s = timed(model.runtime, [token], caches["fewer"], effort=1.0)
        for (kind, effort), one in found.items():
            draft, draft_s = timed(models[kind].runtime, [token], caches[kind], effort=effort, view=view)
            one.bytes.append(draft.bytes_read / plain.bytes_read)
            one.step.append(draft_s / plain_s)


def speeds(
    models: dict[str, Model], text: Text, args: argparse.Namespace, found: dict[tuple[str, float], Measured]
) -> None:
    """Whole answers, drafted and plain, one after the other."""
    plain = specdec.generate(models["fewer"], text.prompt, max_tokens=args.max_tokens, speculate=False)
    for (kind, effort), one in found.items():
        drafted = specdec.generate(
            models[kind],
            text.prompt,
            max_tokens=args.max_tokens,
            policy="fixed",
            drafter="effort",
            draft_len=args.draft_len,
            draft_view=args.view,
            draft_effort=effort,
        )
        if drafted.tokens != plain.tokens:
            raise SystemExit(f"mixture_drafts: drafts at {effort} with {kind} experts changed the answer")
        one.drafted += drafted.stats.drafted
        one.accepted += drafted.stats.accepted
        one.speed.append(drafted.stats.tok_per_s / plain.stats.tok_per_s)


def row(kind: str, effort: float, one: Measured) -> dict[str, float | str]:
    """A row of the table."""
    return {
        "experts": kind,
        "effort": effort,
        "agreement": float(np.mean(one.agree)),
        "kl": float(np.mean(one.kl)),
        "positions": len(one.agree),
        "bytes": float(np.mean(one.bytes)),
        "step": statistics.median(one.step),
        "acceptance": one.accepted / max(1, one.drafted),
        "speed": statistics.median(one.speed) if one.speed else 0.0,
    }


def agreement_with(dense: str, texts: Sequence[Text], threads: int) -> float:
    """Share of the positions at which the dense model's likeliest token is the mixture's."""
    model = specdec.load(dense, runtime="native", threads=threads)
    same = [
        int(row.argmax()) == token
        for text in texts
        for row, token in zip(taught(model, text), text.answer, strict=True)
    ]
    return float(np.mean(same))


if __name__ == "__main__":
    main()

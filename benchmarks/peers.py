"""Compare specdec with other programs: same prompts, model files and settings, taking turns after every answer.

    python benchmarks/peers.py smollm2-135m.gguf --twin smollm2-135m-dithered.store --json peers.json
    python benchmarks/peers.py model.gguf --blocks model.store --peers llama.cpp --draft small.gguf

With `--blocks` specdec runs a store that keeps the file's own blocks, and llama.cpp the file alone.

Peers are llama.cpp (plain, with a draft model, with n-gram lookup), transformers (plain, assisted, prompt lookup) and
mlx-lm (plain, with a draft model), each built or installed below `--work` into an environment of its own; one that
cannot run here is left out, and why is said. Every contender answers a prompt before the next prompt begins, so that a
machine that slows down slows all of them. Decoding is greedy; rates are tokens over decoding time, without the prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import add_json_option, print_machine, print_table, write_json
from gguf_forms import quantised, with_weights_of
from huggingface_form import as_folder
from peer_llama import LlamaContender, PeerMissingError, programs, version
from peer_python import Worker, environment

import specdec
from specdec import paths
from specdec.engine.prompt_cache import PromptCache
from specdec.lab.bench.prompts import TaskPrompt, load_prompts
from specdec.model.loaded import Model

# Text and ids of a prompt in, tokens and seconds (and what was drafted and accepted) out.
Answer = Callable[[str, list[int]], dict[str, Any]]
PEERS = ("llama.cpp", "transformers", "mlx-lm")


@dataclass
class Tally:
    """One contender on one task."""

    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    rates: list[float] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        """Count one answer; one of a single token has no decoding time and does not count."""
        if found["tokens"] < 1 or found["seconds"] <= 0:
            return
        self.tokens, self.seconds = self.tokens + found["tokens"], self.seconds + found["seconds"]
        self.drafted, self.accepted = self.drafted + found["drafted"], self.accepted + found["accepted"]
        self.rates.append(found["tokens"] / found["seconds"])


@dataclass
class Files:
    """The forms of the model: by label, and the one with the weights that specdec runs, in 16 bits."""

    by_label: dict[str, Path]
    same: str


class Contenders:
    """Everything that answers, in order, and what is known of it."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.versions: dict[str, str] = {}
        self.skipped: dict[str, str] = {}

    @contextmanager
    def peer(self, name: str) -> Iterator[None]:
        """Add a peer's contenders, or note why it is left out."""
        before = set(self.answers)
        try:
            yield
        except PeerMissingError as error:
            for added in set(self.answers) - before:
                del self.answers[added]
            self.skipped[name] = " ".join(str(error).split())
            print(f"{name} is left out: {self.skipped[name]}", file=sys.stderr)


def check_identity(found: dict[str, dict[str, Any]]) -> None:
    """Refuse to go on when specdec's speculation and its plain decoding answered a prompt differently."""
    plain = found["specdec plain"]["ids"]
    for name, answer in found.items():
        if name.startswith("specdec ") and answer["ids"] != plain:
            raise SystemExit(f"{name} did not give the tokens of plain decoding: nothing is reported")


def specdec_answer(model: Model, options: dict[str, Any], max_tokens: int) -> Answer:
    """Answer with specdec; its first token belongs to the prompt, as with the others."""
    memory = model.memory.fresh()

    def answer(text: str, ids: list[int]) -> dict[str, Any]:  # noqa: ARG001
        model.memory = memory
        result = specdec.generate(model, ids, max_tokens=max_tokens, **options)
        stats = result.stats
        counts = {"tokens": stats.emitted, "drafted": stats.drafted, "accepted": stats.accepted}
        return counts | {"seconds": stats.decode_s, "ids": result.tokens}

    answer("", [1])  # views are built, pages touched, threads awake
    return answer


def model_files(args: argparse.Namespace, quantize: Path) -> Files:
    """The original file, its 16-bit form, the twin's, and the 8-bit form of the one that specdec runs.

    With `--blocks` the original file alone.
    """
    if args.blocks is not None:
        return Files({args.model.stem: args.model}, args.model.stem)
    files = {"original": args.model, "F16": quantised(args.model, "F16", args.work, quantize)}
    same = "F16"
    if args.twin is not None:
        same = "dithered F16"
        files[same] = with_weights_of(args.twin, files["F16"], args.work)
    files["Q8_0"] = quantised(files[same], "Q8_0", args.work, quantize)
    return Files(files, same)


def add_llama(contenders: Contenders, args: argparse.Namespace, folder: Path, files: Files) -> None:
    """llama.cpp on every file, and its own speculation on the same weights as specdec's and on the original."""
    contenders.versions["llama.cpp"] = version(folder)

    def add(label: str, name: str, draft: str | Path) -> None:
        one = LlamaContender(
            folder, files.by_label[label], draft=draft, threads=args.threads, num_draft_tokens=args.num_draft_tokens
        )
        contenders.answers[f"llama.cpp {label}{name}"] = lambda text, ids: one.answer(text, args.max_tokens)  # noqa: ARG005

    for label in files.by_label:
        add(label, "", "")
    for label in dict.fromkeys((files.same, *(["original"] if "original" in files.by_label else []))):
        add(label, ", lookup", "lookup")
        if args.draft is not None:
            add(label, f", draft {args.draft.stem}", args.draft)


def add_worker(
    contenders: Contenders, name: str, worker: Worker, modes: dict[str, str], args: argparse.Namespace
) -> None:
    """The modes of a worker as contenders."""
    contenders.versions[name] = worker.version
    for label, mode in modes.items():

        def answer(text: str, ids: list[int], mode: str = mode) -> dict[str, Any]:  # noqa: ARG001
            settings = {"max_tokens": args.max_tokens, "num_draft_tokens": args.num_draft_tokens}
            return worker.ask({"ids": ids, "mode": mode, **settings})

        contenders.answers[f"{name} {label}"] = answer


def add_transformers(contenders: Contenders, args: argparse.Namespace, stack: ExitStack) -> None:
    """transformers in bfloat16 on the weights that specdec runs."""
    python = environment("transformers", [args.torch, "transformers>=5", "accelerate"], args.work)
    folder = as_folder(args.twin or args.model, args.work)
    draft = "-" if args.draft is None else as_folder(args.draft, args.work)
    worker = Worker(python, "peer_transformers.py", [folder, draft, str(args.threads)])
    stack.callback(worker.close)
    modes = {"bfloat16": "plain", "bfloat16, lookup": "lookup"}
    if args.draft is not None:
        modes[f"bfloat16, draft {args.draft.stem}"] = "assisted"
    add_worker(contenders, "transformers", worker, modes, args)


def add_mlx(contenders: Contenders, args: argparse.Namespace, stack: ExitStack) -> None:
    """mlx-lm in float16 on the weights that specdec runs."""
    packages = ["mlx-lm", "mlx[cpu]"] if sys.platform == "linux" else ["mlx-lm"]
    python = environment("mlx-lm", packages, args.work)
    draft = "-" if args.draft is None else as_folder(args.draft, args.work)
    worker = Worker(python, "peer_mlx_lm.py", [as_folder(args.twin or args.model, args.work), draft])
    stack.callback(worker.close)
    modes = {"float16": "plain"} | ({} if args.draft is None else {f"float16, draft {args.draft.stem}": "draft"})
    add_worker(contenders, "mlx-lm", worker, modes, args)


def gather(args: argparse.Namespace, model: Model, stack: ExitStack) -> Contenders:
    """specdec and all peers that can run."""
    contenders = Contenders()
    contenders.answers["specdec plain"] = specdec_answer(model, {"speculate": False}, args.max_tokens)
    contenders.answers["specdec auto"] = specdec_answer(model, {}, args.max_tokens)
    if "llama.cpp" in args.peers:
        with contenders.peer("llama.cpp"):
            folder = programs(args.llama, args.work)
            add_llama(contenders, args, folder, model_files(args, folder / "llama-quantize"))
    if "transformers" in args.peers:
        with contenders.peer("transformers"):
            add_transformers(contenders, args, stack)
    if "mlx-lm" in args.peers:
        with contenders.peer("mlx-lm"):
            add_mlx(contenders, args, stack)
    return contenders


def measure(model: Model, contenders: Contenders, prompts: list[TaskPrompt]) -> dict[tuple[str, str], Tally]:
    """Tallies by contender and task; a peer that breaks down on the way is taken out of all of them."""
    assert model.tokenizer is not None
    tallies: dict[tuple[str, str], Tally] = {}
    for number, prompt in enumerate(prompts, start=1):
        content = [{"role": "user", "content": prompt.content}]
        text = model.tokenizer.apply_chat_template(content)  # type: ignore[arg-type]
        ids, answers = model.tokenizer.encode(text, add_bos=False), dict[str, dict[str, Any]]()
        for name in list(contenders.answers):
            try:
                found = contenders.answers[name](text, ids)
            except PeerMissingError as error:
                contenders.skipped[name] = " ".join(str(error).split())
                print(f"{name} is left out: {contenders.skipped[name]}", file=sys.stderr)
                del contenders.answers[name]
                continue
            tallies.setdefault((name, prompt.task), Tally()).add(found)
            answers[name] = found
            plain = answers["specdec plain"]["ids"]
            if found.get("ids", plain)[:1] != plain[:1]:  # rounding may change a token, rarely the first one
                print(f"{name} begins otherwise than specdec: look at its files", file=sys.stderr)
        check_identity(answers)
        print(f"  {prompt.task}: {number} of {len(prompts)} prompts", file=sys.stderr)
    return {key: tally for key, tally in tallies.items() if key[0] in contenders.answers and tally.rates}


def rows_of(tallies: dict[tuple[str, str], Tally]) -> list[dict[str, Any]]:
    """A row for each contender and task, and one over all tasks whose ratio is the mean of theirs."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for name, _ in tallies):
        of_name = {task: tally for (one, task), tally in tallies.items() if one == name}
        ratios = []
        for task, tally in of_name.items():
            plain = tallies["specdec plain", task]
            rate = tally.tokens / tally.seconds
            ratios.append(rate / (plain.tokens / plain.seconds))
            rows.append(_row(name, task, tally, ratios[-1]))
        total = Tally(
            tokens=sum(one.tokens for one in of_name.values()),
            seconds=sum(one.seconds for one in of_name.values()),
            drafted=sum(one.drafted for one in of_name.values()),
            accepted=sum(one.accepted for one in of_name.values()),
            rates=[rate for one in of_name.values() for rate in one.rates],
        )
        rows.append(_row(name, "all", total, sum(ratios) / len(ratios)))
    return rows


def _row(name: str, task: str, tally: Tally, ratio: float) -> dict[str, Any]:
    return {
        "contender": name,
        "task": task,
        "answers": len(tally.rates),
        "tokens": tally.tokens,
        "tok_per_s": tally.tokens / tally.seconds,
        "slowest": min(tally.rates),
        "fastest": max(tally.rates),
        "ratio_to_plain": ratio,
        "accepted_share": tally.accepted / tally.drafted if tally.drafted else None,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the original .gguf file")
    parser.add_argument("--twin", type=Path, metavar="STORE", help="store of the dithered twin, for specdec and as F16")
    parser.add_argument("--blocks", type=Path, metavar="STORE", help="store that keeps the blocks of the .gguf file")
    parser.add_argument(
        "--draft", type=Path, metavar="FILE", help=".gguf file of a smaller model of the same vocabulary"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="llama.cpp's programs (default: built here)")
    parser.add_argument("--torch", default="torch", metavar="REQUIREMENT", help="what to install for transformers")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for builds, environments and model files")
    parser.add_argument("--per-task", type=int, default=1, help="prompts of each task")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--num-draft-tokens", type=int, default=4, help="most drafted tokens of the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    parser.add_argument("--prepare", action="store_true", help="build, install and convert what is missing, and end")
    add_json_option(parser)
    args = parser.parse_args()
    args.work = (args.work or paths.home() / "peers").absolute()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in ("model", "twin", "blocks", "draft", "llama"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            parser.error(f"{path} does not exist")
        setattr(args, name, path and path.absolute())
    if args.blocks is not None and (args.twin is not None or args.peers != ["llama.cpp"]):
        parser.error("--blocks goes with --peers llama.cpp, and without --twin: others run no GGUF blocks")
    return args


def main() -> None:
    """Run from the command line."""
    args = arguments()
    print_machine()
    model = specdec.load(args.blocks or args.twin or args.model, threads=args.threads)
    if args.blocks is not None and not (model.store is not None and model.store.quantised):
        sys.exit(f"{args.blocks} keeps no blocks: convert the model with --to keep")
    model.prompt_cache = PromptCache()
    prompts = load_prompts(["spec-bench", "humaneval"], tasks=args.tasks, per_task=args.per_task)
    with ExitStack() as stack:
        contenders = gather(args, model, stack)
        if args.prepare:
            return
        rows = rows_of(measure(model, contenders, prompts))
    for name, found in contenders.versions.items():
        print(f"{name}: {found}")
    header = list(rows[0])
    print_table(header, [["" if row[key] is None else row[key] for key in header] for row in rows])
    settings = {
        "model": args.model.stem,
        "specdec_weights": (args.blocks or args.twin or args.model).stem,
        "per_task": args.per_task,
        "max_tokens": args.max_tokens,
        "threads": args.threads,
        "num_draft_tokens": args.num_draft_tokens,
    }
    results = {"settings": settings, "versions": contenders.versions, "skipped": contenders.skipped, "rows": rows}
    write_json(args.json, results, benchmark="peers")


if __name__ == "__main__":
    main()

# ruff: noqa: E501 (prose)
"""Write BENCHMARKS.md, and the README's figures, from `benchmarks/results`: `python benchmarks/render.py`.

Every table names the file that it comes from and the command that made that file. Prose lives here, beside the table it
explains; a section whose results are missing is left out, and said to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_section
import quantised_section
from acceptance_section import ACCEPTANCE, acceptance_figures, acceptance_table
from bench_section import bench_figures, bench_table
from eval_section import EVALUATED, eval_figures, eval_table
from peers_section import PEERS, peers_table
from readme import how_fast, with_section
from replay_section import REPLAYED, replay_figures, replay_table
from tables import markdown
from tune_section import NOTES as TUNE_NOTES
from tune_section import TUNED, tune_table

BENCH = (
    "bench-smollm2-135m-dithered.json",
    "bench-smollm2-135m.json",
    "bench-qwen2.5-coder-1.5b-dithered-auto.json",
    "bench-qwen2.5-coder-1.5b-dithered.json",
    "bench-qwen2.5-coder-1.5b.json",
    "bench-policies-smollm2-135m-dithered.json",
)
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


@dataclass
class Section:
    """One part of the report: a title, what the numbers mean, and the result files that its table is drawn from."""

    title: str
    prose: str
    files: Sequence[str]
    table: Callable[[list[dict[str, Any]]], str]
    figures: Callable[[list[dict[str, Any]]], dict[str, str]] | None = None
    notes: str = ""

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """What was measured so far, by file name, which each holds as its `file`, too."""
        there = [name for name in self.files if (RESULTS / name).exists()]
        return {name: json.loads((RESULTS / name).read_text(encoding="utf-8")) | {"file": name} for name in there}

    def text(self) -> str:
        """The section in Markdown."""
        if not (records := self.records):
            return f"## {self.title}\n\nNot measured yet.\n"
        sources = "\n".join(
            f"- `results/{name}`, {record['machine']['date']}: `{record['command']}`"
            for name, record in records.items()
        )
        parts = [f"## {self.title}", self.prose, self.table([*records.values()]), self.notes, sources]
        return "\n\n".join(part for part in parts if part) + "\n"

    def drawn(self) -> dict[str, str]:
        """SVGs that the section shows, by file name."""
        return {} if self.figures is None else self.figures([*self.records.values()])


def cosine_table(records: list[dict[str, Any]]) -> str:
    """Mean cosine over all matrices but the logits layer, by method and effort."""
    results = records[0]["results"]
    rows = []
    for activation in ("captured", "Gaussian"):
        for method in ("bucketMul", "whole inputs", "static pruning"):
            chosen = [
                row["mean"]
                for row in results["matrices"]
                if row["method"] == method
                and row["activation"].lower() == activation.lower()
                and row["matrix"] != "head"
            ]
            if chosen:
                means = [sum(column) / len(column) for column in zip(*chosen, strict=True)]
                rows.append([activation, method, *means])
    return markdown(["activation", "products kept", *map(str, results["efforts"])], rows)


def agreement_table(records: list[dict[str, Any]]) -> str:
    """One row for every model, layout, view and effort."""
    rows = []
    for record in records:
        settings = record["results"]["settings"]
        name = settings["model"].removesuffix(".gguf").removesuffix(".store")
        tiers = "+".join(map(str, settings["layout"]["tier_sizes"]))
        for row in record["results"]["rows"]:
            tiers_shown = tiers if row["view"] == "bucket" else "inputs"
            rows.append(
                [
                    name,
                    row["view"],
                    "1 each"
                    if tiers_shown.count("+") > 8
                    else "16 (whole inputs)"
                    if tiers_shown == "16"
                    else tiers_shown,
                    row["effort"],
                    f"{row['top1']:.3f} ± {row['standard_error']:.3f}",
                    row["top2"],
                    row["kl"],
                    row["positions"],
                ]
            )
    return markdown(["model", "view", "tiers", "effort", "top-1", "in draft's top 2", "KL, nats", "positions"], rows)


def _name(record: dict[str, Any]) -> str:
    """The model that a record's command names first."""
    words = record["command"].split()
    return words[words.index(next(w for w in words if w.endswith(".py"))) + 1].removesuffix(".store")


def steps_table(records: list[dict[str, Any]]) -> str:
    """One row for every view, effort and number of rows, a column for each model; then speed and memory."""
    names = [_name(record) for record in records]
    steps = [{(s["view"], s["effort"], s["rows"]): s for s in record["results"]["steps"]} for record in records]
    rows = [
        [*key, *(f"{own[key]['dense steps']:.3f} ({own[key]['ms']:.1f} ms)" if key in own else "-" for own in steps)]
        for key in dict.fromkeys(key for own in steps for key in own)
    ]
    first = markdown(["view", "effort", "rows", *names], rows)
    facts = list(dict.fromkeys(key for record in records for key in record["results"]["speed"]))
    speed = [
        [
            key.replace("_", " "),
            *(f"{r['results']['speed'][key]:.2f}" if key in r["results"]["speed"] else "-" for r in records),
        ]
        for key in facts
    ]
    for view in ("masks", "int4", "bucket8"):
        shares = [r["results"]["memory"].get(view, 0) / r["results"]["memory"]["exact"] for r in records]
        speed.append([f"memory of {view}, of the exact weights", *(f"{share:.3f}" for share in shares)])
    speed.append(["reading speed of the machine, GB/s", *(f"{r['results']['read_gb_s']:.1f}" for r in records)])
    return first + "\n\n" + markdown(["", *names], speed)


def kernels_table(records: list[dict[str, Any]]) -> str:
    """One row for every view, effort and M, a column for each shape."""
    shapes = [record["command"].split("--shape ")[1].split()[0] for record in records]
    kernels = [{(k["view"], k["effort"], k["rows"]): k for k in record["results"]} for record in records]
    rows = [
        [*key, *(f"{own[key]['ratio']:.2f} ({own[key]['gb_s']:.1f} GB/s)" for own in kernels)] for key in kernels[0]
    ]
    return markdown(["view", "effort", "M", *shapes], rows)


def quant_kernels_table(records: list[dict[str, Any]]) -> str:
    """One row for every instruction set and type, a column for every case."""
    results = records[0]["results"]
    cases = list(dict.fromkeys((k["view"], k["effort"], k["rows"]) for k in results))
    found = {(k["isa"], k["type"], k["view"], k["effort"], k["rows"]): k for k in results}
    rows = []
    for isa, kind in dict.fromkeys((k["isa"], k["type"]) for k in results):
        own = [found.get((isa, kind, *case)) for case in cases]
        rows.append([isa, kind, *("" if k is None else f"{k['core_ns_per_64']:.1f} ({k['ratio']:.2f})" for k in own)])
    header = [f"{view} {effort:g}, M={count}" if view != "exact" else f"M={count}" for view, effort, count in cases]
    speed = f"A plain read ran at {results[0]['read_gb_s']:.1f} GB/s."
    return markdown(["instructions", "type", *header], rows) + "\n\n" + speed


SECTIONS = [
    Section(
        title="How close a multiplication stays to the dense one",
        prose=(
            "Cosine between W v and what is left of it when only a share of the products is done, for real matrices of "
            "SmolLM2-135M-Instruct (the original 4-bit file, in float16), mean over every matrix but the logits layer. "
            '"Captured" activations are those that enter the matrix in the dense model; they are spikier than Gaussian '
            "ones, which every method that looks at the activation gains from. Static pruning keeps the largest weights "
            "of the matrix whatever the activation."
        ),
        files=["cosine-smollm2-135m.json"],
        table=cosine_table,
    ),
    Section(
        title="What a lower effort costs in quality",
        prose=(
            "The whole model at an effort, history included, beside itself at effort 1 (`specdec eval`, docs/evaluation.md "
            "says what is measured): perplexity, divergence and agreement on prompts of Spec-Bench, cosine of the hidden "
            'states, the questions of the original Effort, and HumanEval where it was run. "As dense" is the share of '
            "answers that are the dense model's, right or wrong. BasicQ is guessing for models of this size, at any effort. "
            "± is one standard error. This is what somebody gets who talks to the model at that effort; drafts are judged "
            "on the model's own text and behind a history of full quality, where they agree more often (next section)."
        ),
        files=EVALUATED,
        table=eval_table,
        figures=eval_figures,
        notes=(
            "Quality falls late and then fast, and the 1.5B bears most: at effort 0.8 perplexity rises by 1 % or less on all "
            "three twins, at 0.6 by 10 % (SmolLM2), 12 % (0.5B) and 7 % (1.5B), at 0.4 by 78 %, 56 % and 46 %, and at 0.2 the "
            "text is lost. Answers to the quiz bear more than the distribution does, since only the order of four choices "
            "counts: the 1.5B answers 76 % rightly at effort 1, 73 % at 0.6, 63 % at 0.4 and 33 % at 0.2. Of 20 "
            "programs the 0.5B writes 13 rightly at effort 1, 11 at 0.6, which may be chance, and 6 at 0.4. Weights that are "
            "not loaded cost far more than multiplications that are left out, as they are chosen once and not for each "
            "activation: 0.8 of the weights harm SmolLM2 and the 0.5B about as much as effort 0.5, and 0.6 of them leave "
            "nothing of SmolLM2. Of a quantised target less is lost, for nothing goes but lower bits: with 0.8 of the bits of its "
            "codes the Q8_0 twin of SmolLM2 lies between efforts 0.6 and 0.8 (KL 0.19), and with half of them, four bits a weight, "
            "a little below 0.6 (0.66 against 0.46); the 1.5B's is at 0.05 and 0.13, the latter better than effort 0.6 (0.19). States drift layer by layer, and the last layer, which writes the prediction, drifts most. The "
            "0.5B and the 1.5B are coding models: news and German, most of this text, are not what they write best."
        ),
    ),
    Section(
        title="How often a draft agrees with the dense model",
        prose=(
            "The model writes a greedy answer to four prompts at effort 1; at every position one draft step runs over the "
            "exact history, with the logits layer at full effort. Top-1: the draft's choice is the dense one (± one "
            "standard error). Names that end in `-dithered` are twins with 16 real bits (one quantisation step of seeded "
            "noise on every weight); the others are the original 4- to 5-bit files, whose 4-bit drafts flatter."
        ),
        files=[
            "agreement-smollm2-135m.json",
            "agreement-smollm2-135m-16-tiers.json",
            "agreement-smollm2-135m-whole-inputs.json",
            "agreement-smollm2-135m-int4.json",
            "agreement-smollm2-135m-dithered.json",
            "agreement-smollm2-135m-dithered-int4.json",
            "agreement-qwen2.5-coder-0.5b.json",
            "agreement-qwen2.5-coder-0.5b-whole-inputs.json",
            "agreement-qwen2.5-coder-0.5b-int4.json",
            "agreement-qwen2.5-coder-0.5b-dithered.json",
            "agreement-qwen2.5-coder-0.5b-dithered-int4.json",
        ],
        table=agreement_table,
        notes=(
            "Bigger models bear lower effort; tiers of 4 lose little against a tier for every rank; skipping whole inputs "
            "of 16-bit weights loses much. 4-bit values with every second input left out agree more often than 16-bit "
            "bucketMul at a quarter of the multiplications, and read fewer bytes."
        ),
    ),
    Section(
        title="Draft views of a quantised target",
        prose=quantised_section.VIEWS_PROSE,
        files=quantised_section.VIEWS,
        table=quantised_section.quantised_table,
        notes=quantised_section.VIEWS_NOTES,
    ),
    Section(
        title="Drafts of a quantised target as the native runtime runs them",
        prose=quantised_section.DRAFTS_PROSE,
        files=quantised_section.DRAFTS,
        table=quantised_section.drafts_table,
        notes=quantised_section.DRAFTS_NOTES,
    ),
    Section(
        title="Peak memory of quantised models",
        prose=quantised_section.MEMORY_PROSE,
        files=quantised_section.MEMORY,
        table=quantised_section.memory_table,
        notes=quantised_section.MEMORY_NOTES,
    ),
    Section(
        title="Models in 16 bits, loaded in part",
        prose=quantised_section.SHARES_PROSE,
        files=quantised_section.SHARES,
        table=quantised_section.shares_table,
    ),
    Section(
        title="Steps of the native CPU runtime",
        prose=(
            "One pass of the whole model in units of its own dense step (one row at effort 1), logits layer included, "
            "2 threads, context 200, every case once a round and ratios taken within the round. All three are dithered "
            "twins: 16 real bits. llama.cpp is build 11434 in F16, on the same weights (SmolLM2: on the undithered ones, as many bytes), in turn with "
            "the native runtime. "
            "Times are of a virtual machine whose memory speed drifts; the ratios are the result. `docs/cpu.md` says "
            "what limits them."
        ),
        files=[
            "cpu-step-qwen2.5-coder-1.5b-dithered.json",
            "cpu-step-qwen2.5-coder-0.5b-dithered.json",
            "cpu-step-smollm2-135m-dithered.json",
        ],
        table=steps_table,
    ),
    Section(
        title="Steps of quantised models on the CPU",
        prose=(
            "The same for models in their own blocks, in units of their own step, llama.cpp on the very same file. `own` "
            "and `nested` read the exact weights in part, and take no memory."
        ),
        files=["cpu-step-qwen2.5-coder-1.5b-dithered-q8_0.json", "cpu-step-qwen2.5-coder-1.5b-q4_k_m.json"],
        table=steps_table,
    ),
    Section(
        title="Kernels of the native CPU runtime",
        prose=(
            "One matrix by itself, outputs x inputs, random float16 weights, in units of the dense product with one row; "
            "in brackets the bytes that had to be read over the time. The int4 and bucket8 views multiply gate and up "
            "together, as a model does, so their ratio is to two dense products."
        ),
        files=["cpu-kernels-8960x1536.json", "cpu-kernels-1536x8960.json"],
        table=kernels_table,
    ),
    Section(
        title="Multiplications of quantised matrices on the CPU",
        prose=(
            "One matrix of 8960 outputs and 1536 inputs by itself, random blocks, out of memory: time of each of 2 cores "
            "for 64 weights in ns, in brackets that over one row of the same type and instruction set. 16 stands for "
            "float16. `nested` reads the upper four bits of a share of the inputs."
        ),
        files=["quant-kernels-8960x1536.json"],
        table=quant_kernels_table,
    ),
    Section(
        title="Beside other programs",
        prose=(
            "The same prompts and weights through specdec and its peers, every prompt answered by all of them in turn before "
            "the next one: tokens a second over those of specdec's plain decoding in the same run, prefill left out, greedy, "
            '2 threads, at most 4 drafted tokens a round for the peers. "original" is the published 4-bit file; F16 its '
            '16-bit form; "dithered F16" and Q8_0 hold the twin that specdec runs. Where specdec runs a store of quantised blocks, llama.cpp runs the very file that they come from. One prompt of each kind, once: differences of a tenth may be chance.'
        ),
        files=PEERS,
        table=peers_table,
    ),
    Section(
        title="Policies without the machine's noise",
        prose=(
            "Policies decide over recorded drafts at constant costs: for every position of the model's plain answers, what a "
            "draft step proposes at each effort behind the exact history, and how sure it is of it; costs are medians, "
            "measured in the same run (both files of the 1.5B: in one run on its twin, shortly before, and with the policy as it was before it learnt from two rounds at once, which changed SmolLM2's figures by less than half a percent). So differences are the policies' own. Learning policies are told times with 5% of "
            "noise, start knowing nothing of the model, and pay for their trials; the best fixed setting of a task is the "
            "best of 35 tried on the very same answers. Left out is that a step behind several drafted tokens sees drafted "
            "keys and values."
        ),
        files=REPLAYED,
        table=replay_table,
        figures=replay_figures,
        notes=(
            "The last table of each model tells how far signals help to foretell whether a drafted token is kept: nats of "
            "surprise for one who knows only the mean, the class of the signal before it, or the class of its own signal. The "
            "token's own signal tells much, and lengths are chosen by it; but the effort of a step has to be chosen before "
            "it, and the signal before tells little. So choosing the effort for each token finds the best single effort of "
            "a model and text, and gains no more than a few percent beyond."
        ),
    ),
    Section(
        title="What sharing out effort among the matrices brings",
        prose=(
            "Tolerance of every matrix, measured as `specdec tune` does it, turned into efforts in several ways; then "
            "drafts at equal mean effort along the model's own answers to other prompts: the share of positions at which "
            "a draft step behind the exact history proposes the model's own token (in brackets the difference to equal "
            "efforts, position by position, ± one standard error), what a step costs in dense steps, the speed that "
            "these promise at the best fixed draft length, and that of `auto` over the recording with drafts of the "
            "model alone."
        ),
        files=TUNED,
        table=tune_table,
        notes=TUNE_NOTES,
    ),
    Section(
        title="Ways of decoding, by `specdec bench`",
        prose=(
            "`specdec bench`: every prompt is answered by every way of decoding in turn, plain decoding among them, and "
            "every answer is plain decoding's, token for token. Speed-up is plain decoding's time over the way's, for "
            "the same tokens, prefill left out, with a 95 % bootstrap interval over prompts and repetitions; in the "
            'second table it is told by task. "auto" is the default: goodput with the model itself and lookup to '
            'choose from; "auto, ngram" has lookup alone; VIEW:EFFORT:LENGTH is a fixed draft by the model itself. '
            "`docs/benchmarking.md` says what each number is."
        ),
        files=BENCH,
        table=bench_table,
        figures=bench_figures,
    ),
    Section(
        title="Which drafted tokens are kept",
        prose=(
            "The model drafts six tokens a round for itself, at a fixed effort of a fixed view, on one prompt of every task (of five tasks for the 1.5B); "
            "each drafted token that the verifier got to look at counts once, by the entropy of the logits that it was "
            "drawn from and by its position in the round. In brackets, how many there were; shares of fewer than 5 are "
            "left out. Names without `-dithered` are the original 4- to 5-bit files, whose 4-bit drafts flatter."
        ),
        files=ACCEPTANCE,
        table=acceptance_table,
        figures=acceptance_figures,
        notes=(
            "Entropy tells most of it: below 0.6 nats 86 of 100 drafted tokens or more are kept at every effort that got "
            "there, and low effort mostly moves tokens into the classes of higher entropy. Only there does effort decide as "
            "well: above 2.5 nats, on the SmolLM2 twin, from 0.68 (int4, all inputs) down to 0.19 (bucket8 at 0.15). Position "
            "hardly matters once all tokens before were kept."
        ),
    ),
    Section(
        title="Steps of the GPU runtime",
        prose=gpu_section.STEP_PROSE,
        files=["gpu_step-h200.json"],
        table=gpu_section.step_table,
        notes=gpu_section.STEP_NOTES,
    ),
    Section(
        title="Steps of quantised models on the GPU",
        prose=gpu_section.QUANTISED_PROSE,
        files=["gpu_quantised-h100.json", "gpu_quantised-h200.json"],
        table=gpu_section.quantised_table,
        notes=gpu_section.QUANTISED_NOTES,
    ),
    Section(
        title="Decoding on the 7B shape, acceptance replayed",
        prose=gpu_section.REPLAY_PROSE,
        files=["gpu_replay-h200.json"],
        table=gpu_section.replay_table,
        notes=gpu_section.REPLAY_NOTES,
    ),
    Section(
        title="Real models on the GPU",
        prose=gpu_section.GENERATE_PROSE,
        files=gpu_section.GENERATED,
        table=gpu_section.generate_table,
        notes=gpu_section.GENERATE_NOTES,
    ),
    Section(
        title="Kernels of the GPU runtime one by one",
        prose=gpu_section.KERNELS_PROSE,
        files=["gpu_kernels-h200.json"],
        table=gpu_section.kernels_table,
    ),
]


def render() -> str:
    """The whole of BENCHMARKS.md."""
    machines = sorted(
        {
            f"{record['machine']['device']}, {record['machine']['cores']} cores, Python {record['machine']['python']}, "
            + ", ".join(f"{name} {version}" for name, version in record["machine"]["versions"].items())
            for record in (json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json")))
        }
    )
    head = (
        "# Benchmarks\n\nWritten by `python benchmarks/render.py` from the files in `benchmarks/results`; run the commands "
        "from the folder `benchmarks`, naming your own copy of a model (`specdec pull` brings the originals; "
        "`specdec convert --to f16` made their stores here, `--dither 1` the twins', `--to keep` those called quantised; files of twins, in F16 and by llama.cpp in Q8_0, come from `peers.py`).\n\nMachine: "
        + "; ".join(machines)
        + ".\n"
    )
    return "\n".join([head, *(section.text() for section in SECTIONS)])


def figures() -> dict[str, str]:
    """Every SVG that BENCHMARKS.md shows, by file name."""
    return {name: svg for section in SECTIONS for name, svg in section.drawn().items()}


if __name__ == "__main__":
    for name, svg in figures().items():
        (RESULTS / name).write_text(svg, encoding="utf-8")
    (HERE.parent / "BENCHMARKS.md").write_text(render(), encoding="utf-8")
    readme = HERE.parent / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), how_fast(RESULTS)), encoding="utf-8")

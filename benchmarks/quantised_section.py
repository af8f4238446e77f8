# ruff: noqa: E501 (prose)
"""The parts of BENCHMARKS.md about draft views of quantised targets."""

from __future__ import annotations

from typing import Any

from tables import markdown

KINDS = ("q", "o", "gate", "down", "head")
VIEWS = (
    "quantised_views-smollm2-135m-dithered-q8_0.json",
    "quantised_views-smollm2-135m.json",
    "quantised_views-qwen2.5-coder-0.5b.json",
)
VIEWS_PROSE = (
    "What a draft that reads a quantised target in part keeps of it, for which share of the target's bytes: `own` "
    "leaves out inputs, `nested` the lower bits of codes (four upper bits stay; three or two in `nested3` and "
    "`nested2`), `int4` is 4-bit weights of its own; `bucket-q8` and `bucket-q4` are the 8- and 4-bit bucketMul of "
    "the original Effort engine (buckets of 8; sign, place and four bits of magnitude between the smallest and the largest "
    "of a slice; or sign and place alone, with 2 % of the weights kept apart, 5 % in `bucket-q4-5`), whose author asks for a cosine of 0.99 at "
    "effort 1. Rows go by bytes, so neighbours cost the same; on the Q8_0 twin efforts were chosen for that. "
    "Teacher-forced on 128 tokens of the calibration text, in NumPy: one standard error of top-1 is 0.04."
)
VIEWS_NOTES = (
    "What did not pay. `bucket-q8` meets its author's bar (0.995 and more), and at half of the bytes of a Q8_0 target it "
    "strays least from it (KL 0.35; `int4` 0.45, `nested` 0.54, `own` 0.66). At 0.39 and 0.29 of the bytes `int4` is ahead "
    "(0.53 and 1.06 against 0.69 and 1.43), and there drafts are: an effort brings whole slices, and a code spends three of "
    "its eight bits on a place. Beside smaller blocks (Q4_1, Q5_0) it has no place at all, as its codes are longer than "
    "the target's. It would also be a second copy of the model, 0.97 of a Q8_0 target's memory, for `nested` needs none and "
    "`int4` half; and bytes of buckets cost more time than bytes of rows, because every product is scattered: the kernels of "
    "`bucket8` (16 weights a register and a mask, so better off than single places) read some 20 GB/s where those of `int4` "
    "read 26 (steps of the 1.5B, below). So it has no kernel. `bucket-q4` misses the bar (0.97 in layers, 0.93 in the logits "
    "layer) and, with it, everything else: a weight is known by its rank alone. With 5 % apart it reaches 0.98, for 0.79 of "
    "the bytes, and still agrees once in ten. `nested2` and `nested3` fail in the same "
    "way. `own` at low effort pays only where leaving out inputs saves time, which it does not on this machine (next section)."
)
DRAFTS = ("agreement-qwen2.5-coder-1.5b-dithered-q8_0.json", "agreement-qwen2.5-coder-1.5b-q4_k_m.json")
DRAFTS_PROSE = (
    "The draft views of the two 1.5B files in the native runtime: how often a draft step behind the exact history proposes "
    "the target's own token, as in the section on agreement, and what it costs, in the target's own single-row steps "
    "(median over positions; every draft and the exact step take turns at each position, in the same run). The logits layer "
    "is at the same effort as the rest. `own` and `nested` take no memory, `int4` half (Q8_0) and three quarters (Q4_K_M) of "
    "the target's."
)
DRAFTS_NOTES = (
    "Of Q8_0, `int4` is the cheapest at any agreement, and `nested` the one that needs no memory: at effort 0.7 it agrees "
    "as at 1.0 for little more than half of the time. Of Q4_K_M nothing is far below the step itself: its codes have four "
    "bits already, so `nested` leaves out only the rest of Q6_K, and at effort 1 the exact kernels are faster. `own` costs "
    "a whole step, for kernels of exact weights read every line of memory, chosen or not."
)

MEMORY = ("peak-memory-q8_0.json", "peak-memory-q4_k_m.json")
MEMORY_PROSE = (
    "The most that a process of the native runtime ever has resident while it loads a model in its own blocks, drafts with "
    "`nested` and verifies, over the size of the model file: weights, cache, vocabulary and Python included. A share below "
    "1 leaves out the lower bits of codes of the matrices that lose least by it. Median of 3 processes."
)
MEMORY_NOTES = "Wanted: at most 1.15 with everything loaded. Met: 1.071 and 1.135, most of what is beyond the file being vocabulary and Python."
SHARES = ("load-share-smollm2-135m-dithered.json",)
SHARES_PROSE = (
    "A model in 16 bits whose last tiers are not loaded: memory of its weights, and time of exact steps in single rows of "
    "the whole model, all in turn in one run on a Xeon of slow cores."
)


def memory_table(records: list[dict[str, Any]]) -> str:
    """One row for every file and share."""
    rows = [row for record in records for row in record["results"]["rows"]]
    cells = [
        [row["file"], f"{row['share']:g}", row["loaded"], row["peak"] / 1e6, row["peak over file"], row["spread"]]
        for row in rows
    ]
    return markdown(["file", "share", "loaded", "peak, MB", "of the file", "spread"], cells)


def shares_table(records: list[dict[str, Any]]) -> str:
    """One row for every share, a column for each number of rows."""
    rows = records[0]["results"]["rows"]
    counts = sorted({row["rows"] for row in rows})
    time = {(row["share"], row["rows"]): row["single rows of the whole"] for row in rows}
    memory = {row["share"]: (row["loaded"], row["memory, of the whole"]) for row in rows}
    cells = [[f"{share:g}", *found, *(time[share, count] for count in counts)] for share, found in memory.items()]
    return markdown(["share", "loaded", "memory", *(f"rows: {count}" for count in counts)], cells)


def quantised_table(records: list[dict[str, Any]]) -> str:
    """One row for every model, view and effort, the cheapest first."""
    rows = []
    for record in records:
        settings = record["results"]["settings"]
        name = settings["model"].removesuffix(".store").removesuffix("-keep")
        for row in sorted(record["results"]["rows"], key=lambda row: float(row["bytes_share"])):
            cosines = [f"{row['cosine'][kind]:.4f}" if kind in row["cosine"] else "" for kind in KINDS]
            rows.append([name, row["view"], row["effort"], row["bytes_share"], row["top1"], row["kl"], *cosines])
    header = ["model", "view", "effort", "bytes of the target's", "top-1", "KL, nats"]
    return markdown([*header, *(f"cosine {kind}" for kind in KINDS)], rows)


def drafts_table(records: list[dict[str, Any]]) -> str:
    """One row for every model, view and effort, the cheapest first."""
    rows = []
    for record in records:
        name = record["results"]["settings"]["model"].removesuffix(".store")
        for row in sorted(record["results"]["rows"], key=lambda row: float(row["cost"])):
            top1 = f"{row['top1']:.3f} ± {row['standard_error']:.3f}"
            rows.append([name, row["view"], row["effort"], row["cost"], top1, row["top2"], row["kl"], row["positions"]])
    header = ["model", "view", "effort", "cost, own steps", "top-1", "in draft's top 2", "KL, nats", "positions"]
    return markdown(header, rows)

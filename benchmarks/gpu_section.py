"""What BENCHMARKS.md shows of the GPU runtime."""

from __future__ import annotations

from typing import Any

from tables import markdown

GENERATED = (
    "gpu_generate-smollm2-135m-dithered-h200.json",
    "gpu_generate-qwen2.5-coder-0.5b-dithered-h200.json",
)

STEP_PROSE = (
    "A model of the 7B shape (32 blocks, hidden 4096, MLP 14336, 32 query and 8 key-value heads of 128, "
    "vocabulary 32000) with random float16 weights on one NVIDIA H200, MLX 0.32.4 with its CUDA backend: whole "
    "steps, attention over 200 positions and the logits layer included, each waited for. MLX's step is its own "
    "matmul, norm, rotation and fused attention under `mx.compile`. Before anything is timed, rows of 1 and 5 are "
    "compared with the same rows among 9, bit for bit, at effort 1.0 and 0.6, and the dense logits with MLX's "
    "(relative difference below 3e-3)."
)
STEP_NOTES = (
    "Met in this run: the dense step at 1 row (0.848 of MLX's; 1.05 allowed) and verification of 5 and 9 rows "
    "(0.861 and 0.956; 1.10 and 1.15 allowed; in units of our own faster dense step 1.015 and 1.127). Missed: 5 "
    "rows at effort 0.6 (1.41; 1.35 wanted), `int4` drafts at 1.0 and 0.5 (0.48 and 0.53; 0.33 and 0.25), "
    "`bucket` drafts at 0.15 and 0.25 (0.62 and 0.78; 0.40 and 0.50). Four runs with these or nearly these "
    "kernels, each on another machine, gave 1.39 to 1.44, 0.45 to 0.50, 0.46 to 0.53, 0.57 to 0.62 and 0.67 to "
    "0.78 for them. Each step is one kernel; what was tried, where the time goes, and what limits each target is "
    "in [docs/gpu.md](docs/gpu.md).\n\n"
    "`python benchmarks/gpu_tests.py -n 14` on the same GPU and the same kernels: 43 passed, none failed, 2 "
    "skipped for want of real models, which passed in runs of their own (golden tokens of SmolLM2 and of the "
    "0.5B). Passed: random models of four architectures in two types against float64 (8), rows in any company bit "
    "for bit (9) and across splits of attention (1), trimming (1), speculation against plain decoding with `int4` "
    "and `bucket`, greedy and sampled (4), refusals (1), golden logits and continuations (5), views against the "
    "reference with the same choice of tiers (14). No Metal kernel has run on an Apple GPU: the tests run them on "
    "the host (see README)."
)
QUANTISED_PROSE = (
    "The same shape on one NVIDIA H100 with 4-bit and 8-bit weights in groups of 64, as `mx.quantize` makes them, "
    "held in their own bits. MLX's steps are `mx.quantized_matmul` in the graph of its dense step. Before anything "
    "is timed, rows of 1 and 4 are compared with the same rows among 5, bit for bit, and the logits with MLX's "
    "(relative difference below 4e-3)."
)
QUANTISED_NOTES = (
    "Wanted of 4 bits in groups of 64: one row at most 0.38 of MLX's dense step, 5 rows at most 1.2 single rows. "
    "One row: 0.375, met in this run; an earlier state of the kernels, on another machine of the kind, gave 0.382. "
    "5 rows: 1.295, missed, and 1.215 in that earlier run, whose single row was slower (0.464 of the dense step for"
    " 5 rows, 0.486 now: machines and runs differ by some 5 %). MLX's own are 0.92 and 3.5. Leaving inputs out does"
    " not pay here: the choice takes what the unread bytes would have (`own` at 0.6 1.04 single rows, verification "
    "of 5 rows at 0.6 1.49). The upper four bits of 8-bit weights cost 0.67 of the whole. What limits them is in "
    "[docs/gpu.md](docs/gpu.md).\n\n"
    "`tests/test_gpu_quantised.py` on that GPU, in the minutes that were left: 35 of 72 passed and 3 skipped (a "
    "model with 16-bit matrices takes kernels one by one), none failed, before the run was cut off. Those of the "
    "one kernel's logits, rows and speculation had all passed with an earlier state of it."
)
REPLAY_PROSE = (
    "The same shape, decoding: every draft and every verification is run and waited for, its logits read and its "
    "best token looked up. Random weights accept nothing, so how many drafted tokens count is drawn from the "
    "record of the dithered 1.5B (`acceptance_map.py`: by place in the draft, 13 to 42 observations each)."
)
REPLAY_NOTES = (
    "Wanted: 1.7x. Best: 1.37x of our own plain decoding with 6 `int4` drafts at effort 1.0, 1.67x of MLX's dense "
    "step. A draft takes 0.56 of our dense step, which is most of it. The last places of the record were always "
    "kept, in 18 observations: lengths of 2 to 4 rest on more. Lower efforts draft no faster and are kept less "
    "often."
)
GENERATE_PROSE = (
    "Real models on the H200, `specdec.generate` on four prompts, 96 tokens each, greedy; seconds of drafts and "
    "verification, prefill left out. Every decoding gave the tokens of plain decoding, compared one by one."
)
GENERATE_NOTES = (
    "Wanted: 1.4x for `auto` on the 0.5B. Models this small take 1.3 and 1.5 ms a step, of which little is the "
    "weights: an `int4` draft costs nearly a whole step, so drafting with the model itself loses (0.51 and 0.73), "
    "lookup in the history wins, and `auto` comes to 1.43x on SmolLM2 and 1.22x on the 0.5B. Prompts this short "
    "leave it little to learn from: a fixed lookup does better there (1.30x)."
)
KERNELS_PROSE = (
    "The kernels one by one, as they run where a step is not one kernel: microseconds a call in chains of "
    "dependent calls over matrices that together exceed the cache, the launch included. Before a multiplication "
    "is timed, its rows are compared with the same rows alone and with MLX's."
)


def step_table(records: list[dict[str, Any]]) -> str:
    """Steps on the GPU, in units of MLX's own dense step."""
    header = ["step", "effort", "rows", "ms", "spread", "of MLX's dense step"]
    return markdown(header, [[row[name] for name in header] for row in records[0]["results"]["steps"]])


def quantised_table(records: list[dict[str, Any]]) -> str:
    """Steps of quantised models on the GPU, in units of MLX's dense step and of single rows."""
    header = ["step", "effort", "rows", "ms", "spread", "of MLX's dense step", "single rows"]
    return markdown(header, [[row[name] for name in header] for row in records[0]["results"]["steps"]])


def replay_table(records: list[dict[str, Any]]) -> str:
    """Decoding on the 7B shape."""
    header = ["decoding", "drafts a round", "ms a token", "of plain", "of MLX's dense step", "tokens a round"]
    return markdown(header, [[row[name] for name in header] for row in records[0]["results"]["rows"]])


def generate_table(records: list[dict[str, Any]]) -> str:
    """Real models."""
    header = ["model", "decoding", "tok/s", "of plain", "accepted of drafted", "tokens a round", "tokens"]
    return markdown(header, [[row[name] for name in header] for record in records for row in record["results"]["rows"]])


def kernels_table(records: list[dict[str, Any]]) -> str:
    """Microseconds by kernel, effort and rows, a column for each shape."""
    found: dict[tuple[str, float, int], dict[str, float]] = {}
    for row in records[0]["results"]["kernels"]:
        if "x" in row["shape"]:
            found.setdefault((row["kernel"], row["effort"], row["rows"]), {})[row["shape"]] = row["us"]
    shapes = list(dict.fromkeys(shape for cells in found.values() for shape in cells))
    lines = [[*key, *(f"{cells[shape]:.1f}" for shape in shapes)] for key, cells in found.items()]
    return markdown(["kernel", "effort", "rows", *(f"{shape}, us" for shape in shapes)], lines)

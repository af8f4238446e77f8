"""What BENCHMARKS.md shows of the GPU runtime."""

from __future__ import annotations

from typing import Any

from tables import markdown

GENERATED = (
    "gpu_generate-smollm2-135m-dithered-h200.json",
    "gpu_generate-qwen2.5-coder-0.5b-dithered-h200.json",
    "gpu_generate-smollm2-135m-h100.json",
    "gpu_generate-qwen2.5-coder-1.5b-q4_k_m-h200.json",
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
    "The same shape on one NVIDIA H100 and one H200 with 4-bit and 8-bit weights in groups of 64, as `mx.quantize` "
    "makes them, held in their own bits. MLX's steps are `mx.quantized_matmul` in the graph of its dense step. Before "
    "anything is timed, rows of 1 and 4 are compared with the same rows among 5, bit for bit, and the logits with "
    "MLX's (relative difference below 4e-3)."
)
QUANTISED_NOTES = (
    "Wanted of 4 bits in groups of 64: one row at most 0.38 of MLX's dense step, 5 rows at most 1.2 single rows. "
    "Both met: 0.340 and 1.157 on the H100 (0.393 of the dense step; 8 bits: 1.096), 0.371 and 1.199 on the H200 (8 "
    "bits: 1.136). Steps of 8 blocks, timed in turn on two machines with an H100, gave 1.08 to 1.15 single rows for 5. "
    "MLX's own are 0.94 and 3.4, on the H200 1.15 and 3.5. Machines and runs differ by some 5 %: two more runs on "
    "another H200 gave 0.383 and 1.149, and, with machine code kept from process to process as it is now, 0.378 and "
    "1.190. Leaving inputs out does not pay here: the choice takes what the unread bytes would have (`own` at 0.6 1.08 "
    "and 1.13 single rows, verification of 5 rows at 0.6 1.40 and 1.50). The upper four bits of 8-bit weights cost "
    "0.65 and 0.73 of the whole. What made the difference, what did not, and what limits them is in "
    "[docs/gpu.md](docs/gpu.md).\n\n"
    "`python benchmarks/gpu_tests.py -n 15` on the H200 and with these kernels: 192 of 195 tests passed, those "
    "of real models in a run of their own, none failed, and 3 were skipped, which ask a model with 16-bit matrices for "
    "the one kernel. Passed: golden tokens of SmolLM2 and the 0.5B (2); every type's logits against the "
    "dequantised weights (19), rows in any company bit for bit at effort 1.0 and 0.6 (38), views against the reference "
    "(48), speculation (36), models loaded in part (in all of these, and 6 of their own); and everything that 16-bit "
    "models have there (43), which ran once more and passed when machine code came to be kept; of quantised models the "
    "checks of this benchmark did, and an answer of SmolLM2's, token by token."
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
    "Real models, `specdec.generate` on four prompts, 96 tokens each, greedy; seconds of drafts and verification, "
    "prefill left out. Every decoding gave the tokens of plain decoding, compared one by one. The twins in 16 bits "
    "and the 1.5B in its own Q4_K_M blocks ran on the H200, SmolLM2 in its own Q4_1 blocks on an H100 with another "
    "processor."
)
GENERATE_NOTES = (
    "Wanted: 1.4x for `auto` on the 0.5B. Models this small take 1.3 and 1.5 ms a step, of which little is the "
    "weights: an `int4` draft costs nearly a whole step, so drafting with the model itself loses (0.51 and 0.73), "
    "lookup in the history wins, and `auto` comes to 1.43x on SmolLM2 and 1.22x on the 0.5B. Prompts this short "
    "leave it little to learn from: a fixed lookup does better there (1.30x). In its own blocks SmolLM2 gains as "
    "little from fewer bytes as from drafts of itself (0.77; `auto` 1.28x): a step of a model this small is "
    "meetings and what is waited for behind them. The 1.5B in Q4_K_M makes 494 tokens a second plainly. Nine of ten "
    "`nested` drafts are kept there, but a draft reads nearly what a whole row does, and it loses (0.92), as lookup "
    "does on these prompts (0.91); `auto` sees both and comes to 1.04x."
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
    results = [record["results"] for record in records]
    rows = [[found["gpu"], *(row[name] for name in header)] for found in results for row in found["steps"]]
    return markdown(["GPU", *header], rows)


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

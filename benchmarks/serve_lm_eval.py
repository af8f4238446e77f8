"""Run the bundled quizzes by lm-eval against specdec's server: scores must be equal with and without speculation.

The tasks are in `benchmarks/lm_eval/`; nothing is fetched. Two score choices by log-probabilities, with the tokenizer
that the server describes (`/tokenizer_info`), and one lets the model write. Scores and every answer must be equal
when the server speculates and when each request says `speculate: false`; log-probabilities, which nothing drafts, when
they are asked for twice. The exit code is 1 otherwise.

    pip install 'lm-eval[api]'
    python benchmarks/serve_lm_eval.py MODEL --limit 50 --json lm_eval.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import add_json_option, print_machine, print_table, write_json
from serving import client, free_port, metric, running, specdec_command

TASKS = ("specdec_quiz", "specdec_basicq", "specdec_quiz_written")
HERE = Path(__file__).with_name("lm_eval")


def prepare(folder: Path) -> None:
    """Write the tasks and their data into a folder."""
    for file in HERE.glob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        for data in ("quiz.jsonl", "basicq.jsonl"):
            text = text.replace(f"test: {data}", f"test: {json.dumps(str(folder / data))}")
        (folder / file.name).write_text(text, encoding="utf-8")
    packaged = resources.files("specdec").joinpath("data")
    quiz = json.loads(packaged.joinpath("effort_quiz.json").read_text(encoding="utf-8"))
    truths = json.loads(packaged.joinpath("effort_basicq.json").read_text(encoding="utf-8"))
    basicq = [
        {"prompt": one["prompt"], "choices": ["True", "False"], "answer": 0 if one["answer"] else 1} for one in truths
    ]
    for name, rows in (("quiz", quiz), ("basicq", basicq)):
        lines = [json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def evaluate(url: str, model: str, folder: Path, *, speculate: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Scores by task, and every answer.

    Raises:
        SystemExit: lm-eval failed.
    """
    output = folder / f"speculate-{speculate}"
    arguments = f"model={model},base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent={options.clients}"
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments,
        "--include_path", str(folder), "--tasks", ",".join(TASKS), "--output_path", str(output), "--log_samples",
        "--gen_kwargs", f"speculate={speculate}",
    ]  # fmt: skip
    if options.limit is not None:
        command += ["--limit", str(options.limit)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache"), "NO_PROXY": "*"}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"lm-eval failed: {(done.stdout + done.stderr).strip()[-3000:]}")
    (found,) = output.rglob("results_*.json")
    samples = {task: next(iter(output.rglob(f"samples_{task}_[0-9]*.jsonl"))) for task in TASKS}
    scores = json.loads(found.read_text(encoding="utf-8"))["results"]
    return {
        "scores": {task: _numbers(scores[task]) for task in TASKS},
        "answers": {task: _answers(path) for task, path in samples.items()},
    }


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if isinstance(value, float) and "stderr" not in name}


def _answers(path: Path) -> list[Any]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]


def main() -> None:
    """Evaluate twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as for `specdec serve`")
    parser.add_argument("--limit", type=int, help="questions of each task (default: all)")
    parser.add_argument("--clients", type=int, default=4, help="requests at once")
    add_json_option(parser)
    options = parser.parse_args()
    if find_spec("lm_eval") is None:
        parser.error("lm-eval is not installed: pip install 'lm-eval[api]'")
    print_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(folder)
        port = free_port()
        stack.enter_context(running(specdec_command(options.model, port, "--alias", "model"), port))
        url = f"http://127.0.0.1:{port}"
        on = evaluate(url, "model", folder, speculate=True, options=options)
        with client(url) as asking:
            drafted = metric(asking, "spec_decode_num_draft_tokens_total")
        off = evaluate(url, "model", folder, speculate=False, options=options)
        with client(url) as asking:
            drafted_off = metric(asking, "spec_decode_num_draft_tokens_total") - drafted
        shutil.rmtree(folder / "cache", ignore_errors=True)
    rows = [
        [task, name.split(",")[0], len(on["answers"][task]), value, off["scores"][task][name]]
        for task in TASKS
        for name, value in on["scores"][task].items()
    ]
    print_table(["task", "score", "questions", "speculation on", "off"], rows)
    is_equal = on == off
    print(f"{drafted:.0f} tokens drafted with speculation on, {drafted_off:.0f} with it off")
    print("scores and all answers are equal" if is_equal else "scores or answers DIFFER")
    for task in TASKS:
        for number, (one, other) in enumerate(zip(on["answers"][task], off["answers"][task], strict=True)):
            if one != other:
                print(f"{task}, question {number}: {one} with speculation on, {other} with it off")
    results = {"on": on["scores"], "off": off["scores"], "drafted": drafted, "drafted_off": drafted_off}
    write_json(options.json, results | {"equal": is_equal}, benchmark="serve_lm_eval")
    sys.exit(0 if is_equal and drafted and not drafted_off else 1)


if __name__ == "__main__":
    main()

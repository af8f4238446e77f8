"""Turn records of measurements into the tables of BENCHMARKS.md: `python benchmarks/tables.py TABLE RECORD.json ...`.

A record is what a benchmark, `specdec bench` or `specdec eval` writes with `--json`. A table is a small file in
`benchmarks/results`: its columns, its rows as they are shown, and the command, date and machine of every record that it
comes from. `render.py` copies it into the documents. Each function below makes the table of its name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
Record = dict[str, Any]


@dataclass
class Table:
    """One table.

    Attributes:
        columns: titles.
        rows: cells as they are shown, one for each column.
        sources: command, date and machine of every record, in order.
    """

    columns: list[str]
    rows: list[list[str]]
    sources: list[dict[str, str]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read(name: str, folder: Path | None = None) -> Table:
    """The table `NAME.json` of a folder, `benchmarks/results` if None."""
    return Table(**json.loads(((folder or RESULTS) / f"{name}.json").read_text(encoding="utf-8")))


def write(table: Table, name: str, folder: Path = RESULTS) -> None:
    """Write the table as `NAME.json`, a row a line."""
    parts = asdict(table)
    lists = [f' "{key}": [\n  ' + ",\n  ".join(map(_json, parts[key])) + "\n ]" for key in ("rows", "sources")]
    text = f'{{\n "columns": {_json(table.columns)},\n' + ",\n".join(lists) + "\n}\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def source(record: Record) -> dict[str, str]:
    """Where a record comes from."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gpu = record["results"].get("gpu")
    device = f"{gpu} with " if gpu else ""
    described = f"{device}{machine['device']}, {machine['cores']} cores, Python {machine['python']}, {versions}"
    return {"command": record["command"], "date": machine["date"], "machine": described}


def grid(corner: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, ...], dict[str, str]]) -> Table:
    """A table whose first columns are the keys of `cells` and whose others are looked up by title."""
    return Table([*corner, *columns], [[*key, *(own.get(name, "-") for name in columns)] for key, own in cells.items()])


def model_of(record: Record) -> str:
    """The model that was measured: from the settings, or the first word after the script's name."""
    words = record["command"].split()
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), 0)
    name = record["results"].get("settings", {}).get("model") or words[script + 1]
    return str(name).removesuffix(".store").removesuffix(".gguf")


def faster(records: list[Record]) -> Table:
    """Records of `peers.py`: tokens a second of specdec and of other programs on the same weights, and ratios."""
    columns = ["model", "specdec plain", "specdec `auto`", "llama.cpp plain", "llama.cpp lookup"]
    columns += [
        "llama.cpp draft model",
        "transformers, best",
        "mlx-lm",
        "plain / llama.cpp plain",
        "`auto` / best other",
    ]
    rows = []
    for record in records:
        found = {row["contender"]: row for row in record["results"]["rows"] if row["task"] == "all"}
        same = next((name for name in found if name.endswith("dithered F16")), None)
        same = same or next(name for name in found if name.startswith("llama.cpp"))
        theirs = [same, f"{same}, lookup", next((name for name in found if name.startswith(f"{same}, draft")), "")]
        slow = [name for name in found if name.startswith("transformers")]
        theirs += [max(slow, key=lambda name: found[name]["tok_per_s"], default=""), "mlx-lm bfloat16"]
        ratio = {name: found[name]["ratio_to_plain"] for name in theirs if name in found}
        speeds = [
            f"{found[name]['tok_per_s']:.1f}" if name in found else "-"
            for name in ("specdec plain", "specdec auto", *theirs)
        ]
        best = found["specdec auto"]["ratio_to_plain"] / max(ratio.values())
        weights = record["results"]["settings"]["specdec_weights"]
        rows.append([weights, *speeds, f"{1 / ratio[same]:.2f}", f"{best:.2f}"])
    return Table(columns, rows)


def kinds(records: list[Record]) -> Table:
    """Records of `specdec bench`: `auto` over plain decoding by kind of prompt."""
    table = Table(["model"], [])
    for record in records:
        results = record["results"]
        rows = {row["task"]: row for row in results["rows"] if row["contender"] == "auto"}
        tasks = results["settings"]["tasks"]
        table.columns = ["model", *tasks, "mean", "95 % of all prompts", "error by noise", "draft tokens accepted"]
        low, high = rows["all"]["speedup_interval"]
        table.rows.append(
            [
                model_of(record),
                *(f"{rows[task]['speedup']:.2f}" for task in tasks),
                f"{rows['all']['mean_of_tasks']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{results['noise']['error']:.1%}",
                f"{rows['all']['accepted'] / rows['all']['drafted']:.2f}",
            ]
        )
    return table


def policies(records: list[Record]) -> Table:
    """Records of `specdec bench` with many contenders: mean over tasks of the speed-up, by model and condition."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    columns = []
    for record in records:
        for condition in record["results"]["settings"]["conditions"]:
            columns.append(f"{model_of(record)}, {condition.removesuffix(', seed 0')}")
            for row in record["results"]["rows"]:
                if (row["task"], row["condition"]) == ("all", condition):
                    cells.setdefault((row["contender"],), {})[columns[-1]] = f"{row['mean_of_tasks']:.2f}"
    noise = [record["results"]["noise"]["error"] for record in records]
    counts = [len(record["results"]["settings"]["conditions"]) for record in records]
    shown = [f"{error:.1%}" for error, count in zip(noise, counts, strict=True) for _ in range(count)]
    cells["error by noise",] = dict(zip(columns, shown, strict=True))
    return grid([""], columns, cells)


def quality(records: list[Record]) -> Table:
    """Records of `specdec eval`, exact view: perplexity, agreement, right answers, if two models or more have them."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    columns: list[str] = []
    rows = [(model_of(record), row) for record in records for row in record["results"]["rows"]]
    for model, row in sorted(rows, key=lambda one: (-one[1].get("load_share", 1.0), -one[1]["effort"])):
        if row["view"] != "exact":
            continue
        own = cells.setdefault((f"{row['effort']:g}", f"{row.get('load_share', 1.0):g}"), {})
        if "text" in row:
            own[model] = f"{row['text']['perplexity']:.4g} ({row['text']['agreement']:.3f})"
        for kind in ("quiz", "humaneval"):
            if kind in row:
                own[f"{model}, {kind}"] = f"{row[kind]['right']} of {row[kind]['count']}"
        columns += [name for name in own if name not in columns]
    cells = {key: own for key, own in cells.items() if len({name.split(",")[0] for name in own}) > 1}
    return grid(["effort", "loaded"], sorted(columns, key=lambda name: ("," in name, columns.index(name))), cells)


def agreement(records: list[Record]) -> Table:
    """Records of `agreement.py`: how often a draft step's choice is the dense model's, by view and effort."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    layouts = {(4, 4, 4, 4): "", (16,): ", whole inputs"}
    for record in records:
        layout = layouts[tuple(record["results"]["settings"]["layout"]["tier_sizes"])]
        for row in record["results"]["rows"]:
            view = row["view"] + (layout if row["view"] == "bucket" else "")
            shown = f"{row['top1']:.3f} ± {row['standard_error']:.3f}"
            cells.setdefault((view, f"{row['effort']:g}"), {})[model_of(record)] = shown
    ordered = dict(sorted(cells.items(), key=lambda item: (item[0][0], float(item[0][1]))))
    return grid(["view", "effort"], list(dict.fromkeys(map(model_of, records))), ordered)


def drafts(records: list[Record]) -> Table:
    """Records of `agreement.py` on quantised models: top-1 of a draft step, and its cost in exact steps of one row."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    columns = [f"{model_of(record)}: {what}" for record in records for what in ("top-1", "cost")]
    for record in records:
        for row in record["results"]["rows"]:
            own = cells.setdefault((row["view"], f"{row['effort']:g}"), {})
            own[f"{model_of(record)}: top-1"] = f"{row['top1']:.3f} ± {row['standard_error']:.3f}"
            own[f"{model_of(record)}: cost"] = f"{row['cost']:.2f}"
    return grid(["view", "effort"], columns, cells)


def acceptance(records: list[Record]) -> Table:
    """Records of `acceptance_map.py`: share of drafted tokens accepted, by entropy of the logits they came from."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    classes: dict[int, str] = {}
    for record in records:
        rows = record["results"]["rows"]
        classes |= {row["entropy_class"]: row["entropy"] for row in rows}
        for view, effort in dict.fromkeys((row["view"], row["effort"]) for row in rows):
            own = cells.setdefault((model_of(record), view, f"{effort:g}"), {})
            for number, name in sorted(classes.items()):
                key = (view, effort, number)
                found = [row for row in rows if (row["view"], row["effort"], row["entropy_class"]) == key]
                looked = sum(row["looked_at"] for row in found)
                if looked >= 5:
                    own[name] = f"{sum(row['kept'] for row in found) / looked:.2f} ({looked})"
    return grid(["model", "view", "effort"], [classes[number] for number in sorted(classes)], cells)


def cpu_steps(records: list[Record]) -> Table:
    """Records of `cpu_step.py`: a pass in units of the model's own exact pass over one row."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for record in records:
        for step in record["results"]["steps"]:
            key = (step["view"], f"{step['effort']:g}", str(step["rows"]))
            if step["rows"] in (1, 5, 9, 16):
                cells.setdefault(key, {})[model_of(record)] = f"{step['dense steps']:.2f} ({step['ms']:.1f})"
    return grid(["view", "effort", "rows"], list(map(model_of, records)), cells)


def cpu_speed(records: list[Record]) -> Table:
    """Records of `cpu_step.py`: tokens a second of prompt and plain decoding, llama-bench in turn with it."""
    columns = [
        "model",
        "prompt",
        "decoding",
        "llama.cpp prompt",
        "llama.cpp decoding",
        "prompt ratio",
        "decoding ratio",
    ]
    columns.append("`int4` view")
    names = ("prefill_tok_per_s", "plain_tok_per_s", "llama_prefill_tok_per_s", "llama_plain_tok_per_s")
    rows = []
    for record in records:
        speed, memory = record["results"]["speed"], record["results"]["memory"]
        shown = [f"{speed[name]:.1f}" if name in speed else "-" for name in names]
        shown += [f"{speed[name]:.2f}" if name in speed else "-" for name in ("prefill_ratio", "plain_ratio")]
        rows.append([model_of(record), *shown, f"{memory['int4'] / memory['exact']:.2f} of the weights"])
    return Table(columns, rows)


# Steps that the table leaves out, of those with other rows than 2: kind, rows, effort.
_NOT_SHOWN = {("MLX dense", 9, 1.0), ("dense", 9, 1.0), ("inputs", 8, 0.6), ("verify", 1, 0.6), ("verify", 5, 0.6)}
_NOT_SHOWN |= {("inputs", rows, effort) for rows in (1, 5) for effort in (0.9, 0.5)}
_NOT_SHOWN |= {("int4", 1, 0.35), ("bucket", 1, 0.4)}


def gpu_steps(records: list[Record]) -> Table:
    """A record of `gpu_step.py`: whole steps on the 7B shape in 16 bits, those that say most."""
    (record,) = records
    of_mlx = "of MLX's dense step"
    rows = [
        [step["step"], f"{step['effort']:g}", str(step["rows"]), f"{step['ms']:.3f}", f"{step[of_mlx]:.3f}"]
        for step in record["results"]["steps"]
        if step["rows"] != 2 and (step["step"], step["rows"], step["effort"]) not in _NOT_SHOWN
    ]
    return Table(["step", "effort", "rows", "ms", of_mlx], rows)


def gpu_quantised(records: list[Record]) -> Table:
    """A record of `gpu_quantised.py`: the same with 4-bit and 8-bit weights, in units of a single row as well."""
    (record,) = records
    keys = ("of MLX's dense step", "single rows")
    rows = [
        [step["step"], f"{step['effort']:g}", str(step["rows"]), f"{step['ms']:.3f}", *(f"{step[k]:.3f}" for k in keys)]
        for step in record["results"]["steps"]
        if step["rows"] in (1, 5)
    ]
    return Table(["step", "effort", "rows", "ms", *keys], rows)


def gpu_models(records: list[Record]) -> Table:
    """Records of `gpu_generate.py`: tokens a second of real models, the ratio to plain decoding, and llama.cpp's."""
    columns = ["model", "GPU", "plain", "fixed draft by the model", "lookup", "`auto`", "16 at once", "llama.cpp plain"]
    rows = []
    for record in records:
        ways = {row["decoding"].split(" at ")[0]: row for row in record["results"]["rows"]}
        together = {row["decoding"]: row for row in record["results"]["rows"] if " at once " in row["decoding"]}
        drafted, lookup = (next(name for name in ways if name.startswith(fixed)) for fixed in ("fixed 4", "fixed 8"))
        shown = [_with_ratio(ways[name]) for name in (drafted, lookup, "auto")]
        shown[0] = f"{drafted.split(', ')[1]}: {shown[0]}"
        shown.append(_with_ratio(together["16 at once plain"]))
        peers = [f"{row['tok/s']:.0f}" for name, row in ways.items() if name.startswith("llama.cpp")]
        gpu = record["results"]["gpu"].removeprefix("NVIDIA ").split()[0]
        rows.append([model_of(record), gpu, f"{ways['plain']['tok/s']:.0f}", *shown, *(peers or ["-"])])
    return Table(columns, rows)


def _with_ratio(row: dict[str, Any]) -> str:
    return f"{row['tok/s']:.0f} ({row['of plain']:.2f})"


TABLES: dict[str, Callable[[list[Record]], Table]] = {
    make.__name__: make
    for make in (
        faster, kinds, policies, quality, agreement, drafts, acceptance, cpu_steps, cpu_speed,
        gpu_steps, gpu_quantised, gpu_models,
    )
}  # fmt: skip


def table_of(name: str, paths: Iterable[Path]) -> Table:
    """The table of a name from the files of its records."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    table = TABLES[name](records)
    table.sources = [source(record) for record in records]
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD.json", help="in the order of the table")
    chosen = parser.parse_args()
    write(table_of(chosen.table, chosen.records), chosen.table)

"""Copy the tables of `benchmarks/results` into BENCHMARKS.md and README.md: `python benchmarks/render.py`.

A line `<!-- table NAME -->` in a document is above the table of `results/NAME.json`. That line, the table and the
sentence with its commands are replaced; all other text belongs to the document. `tables.py` makes the files.
The table `front` of README.md has no file: it is put together from `faster` and `gpu_models`.
"""

from __future__ import annotations

import re
from pathlib import Path

import tables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("BENCHMARKS.md", "README.md")
FRONT_GPU = ("qwen2.5-coder-0.5b-dithered", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
_BLOCK = re.compile(r"^<!-- table (?P<name>[\w-]+) -->\n.*?^Printed by.*?$", re.M | re.S)
_MACHINES = re.compile(r"^Machines: .*?$", re.M)


def machines() -> list[str]:
    """Every machine that a table was measured on; a source is marked with the letter of its place here."""
    found = {one["machine"] for path in tables.RESULTS.glob("*.json") for one in tables.read(path.stem).sources}
    return sorted(found)


def front() -> tables.Table:
    """Tokens a second of specdec and llama.cpp on CPU and GPU, one model a row: what README.md shows of two tables."""
    columns = ["model", "machine", "plain", "`auto`", "llama.cpp plain", "llama.cpp lookup", "`auto` / best other"]
    cpu, gpu = tables.read("faster"), tables.read("gpu_models")
    rows = []
    for cells, source in zip(cpu.rows, cpu.sources, strict=True):
        own = dict(zip(cpu.columns, cells, strict=True))
        machine = ", ".join(source["machine"].split(", ")[:2])
        names = ("specdec plain", "specdec `auto`", "llama.cpp plain", "llama.cpp lookup", "`auto` / best other")
        rows.append([own["model"], machine, *(own[name] for name in names)])
    for own in (dict(zip(gpu.columns, cells, strict=True)) for cells in gpu.rows):
        if own["model"] not in FRONT_GPU:
            continue
        auto, other = own["`auto`"].split(" ")[0], own["llama.cpp plain"]
        ratio = "-" if other == "-" else f"{float(auto) / float(other):.2f}"
        rows.append([own["model"], f"NVIDIA {own['GPU']}", own["plain"], auto, other, "-", ratio])
    return tables.Table(columns, rows)


def commands(table: tables.Table) -> str:
    """The sentence that names the commands of a table, with date and machine."""
    letters = {machine: chr(ord("A") + number) for number, machine in enumerate(machines())}
    told = [f"`{one['command']}` ({one['date']}, {letters[one['machine']]})" for one in table.sources]
    return "Printed by " + "; ".join(told) + "."


def block(name: str, *, with_commands: bool) -> str:
    """A table with its mark and its commands, or with a reference to them."""
    table = front() if name == "front" else tables.read(name)
    last = commands(table) if with_commands else "Printed by the commands in [BENCHMARKS.md](BENCHMARKS.md)."
    return f"<!-- table {name} -->\n{table.markdown()}\n\n{last}"


def render(document: str, text: str) -> str:
    """The text of a document with its tables as `results` has them now."""
    own = document == "BENCHMARKS.md"
    text = _BLOCK.sub(lambda found: block(found["name"], with_commands=own), text)
    described = "; ".join(f"{chr(ord('A') + number)}: {machine}" for number, machine in enumerate(machines()))
    return _MACHINES.sub(lambda _: f"Machines: {described}.", text) if own else text


if __name__ == "__main__":
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(render(name, path.read_text(encoding="utf-8")), encoding="utf-8")

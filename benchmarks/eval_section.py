"""What BENCHMARKS.md shows of `specdec eval`: tables by effort, and hidden states by layer."""

from __future__ import annotations

from typing import Any

from figures import heat_map
from tables import markdown

EVALUATED = (
    "eval-smollm2-135m-dithered.json",
    "eval-smollm2-135m-dithered-q8_0.json",
    "eval-smollm2-135m.json",
    "eval-qwen2.5-coder-0.5b-dithered.json",
    "eval-qwen2.5-coder-0.5b.json",
    "eval-qwen2.5-coder-0.5b-humaneval.json",
    "eval-qwen2.5-coder-1.5b-dithered.json",
    "eval-qwen2.5-coder-1.5b-dithered-q8_0.json",
    "eval-qwen2.5-coder-1.5b.json",
    "eval-qwen2.5-coder-1.5b-q4_k_m.json",
)
_SHARES = {"basicq": "BasicQ", "quiz": "quiz", "humaneval": "HumanEval"}
_MOST_LAYERS = 8  # columns of a map


def eval_table(records: list[dict[str, Any]]) -> str:
    """A table for each model: a row for each view and effort; below it the map of its layers."""
    parts = []
    for record in records:
        rows = sorted(record["results"]["rows"], key=_order)
        partial = any("load_share" in row for row in rows)
        shares = [name for name in _SHARES if name in rows[0]]
        header = ["view", "effort", *(["loaded"] if partial else [])]
        if "text" in rows[0]:
            header += ["perplexity", "KL, nats", "agreement", "cosine behind the last layer"]
        for name in shares:
            header += [f"{_SHARES[name]} ({rows[0][name]['count']})", "as dense"]
        parts += [f"### {_title(record)}", markdown(header, [_cells(row, shares, partial=partial) for row in rows])]
        if _has_layers(record):
            parts.append(f"![{_title(record)}: hidden states](benchmarks/results/{_file(record)})")
    return "\n\n".join(parts)


def eval_figures(records: list[dict[str, Any]]) -> dict[str, str]:
    """The maps that `eval_table` names: cosine of the hidden states with the dense model's, by layer and effort."""
    return {_file(record): _layers(record) for record in records if _has_layers(record)}


def _order(row: dict[str, Any]) -> tuple[bool, bool, float, float]:
    """The exact view first, what was loaded in part last, the highest effort first."""
    share = row.get("load_share", 1.0)
    return share < 1, row["view"] != "exact", -row["effort"], -share


def _cells(row: dict[str, Any], shares: list[str], *, partial: bool) -> list[Any]:
    cells: list[Any] = [row["view"], f"{row['effort']:g}", *([f"{row.get('load_share', 1):g}"] if partial else [])]
    if "text" in row:
        text = row["text"]
        cells += [
            f"{text['perplexity']:.4g}",
            f"{text['kl']:.3g} ± {text['kl_error']:.1g}",
            f"{text['agreement']:.3f} ± {text['agreement_error']:.3f}",
            f"{text['cosine'][-1]:.3f}" if text["cosine"] else "-",
        ]
    for name in shares:
        one = row[name]
        share = one["right"] / one["count"]
        cells += [
            f"{share:.2f} ± {(share * (1 - share) / one['count']) ** 0.5:.2f}",
            f"{one['same'] / one['count']:.2f}",
        ]
    return cells


def _title(record: dict[str, Any]) -> str:
    views = list(dict.fromkeys(row["view"] for row in record["results"]["rows"] if row["effort"] < 1))
    kind = ", HumanEval" if "text" not in record["results"]["rows"][0] else ""
    return f"{record['results']['settings']['model']}, {' and '.join(views)}{kind}"


def _file(record: dict[str, Any]) -> str:
    return f"{record['file'].removesuffix('.json')}.layers.svg"


def _has_layers(record: dict[str, Any]) -> bool:
    return bool(record["results"]["rows"][0].get("text", {}).get("cosine"))


def _label(row: dict[str, Any]) -> str:
    loaded = f", {row['load_share']:g} loaded" if "load_share" in row else ""
    return f"{row['view']} {row['effort']:g}{loaded}"


def _layers(record: dict[str, Any]) -> str:
    lowered = sorted((row for row in record["results"]["rows"] if row["text"]["kl"] > 0), key=lambda row: row["effort"])
    count = len(lowered[0]["text"]["cosine"])
    shown = sorted({round(place * (count - 1) / (_MOST_LAYERS - 1)) for place in range(_MOST_LAYERS)})
    return heat_map(
        f"{_title(record)}: cosine of hidden states with the dense model's",
        [str(layer + 1) for layer in shown],
        [_label(row) for row in lowered],
        [[row["text"]["cosine"][layer] for layer in shown] for row in lowered],
        column_title="behind layer",
    )

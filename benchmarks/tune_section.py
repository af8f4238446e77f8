"""What BENCHMARKS.md shows of `tune_gain.py`: what sharing out effort among the matrices brings."""

from __future__ import annotations

from typing import Any

from tables import markdown

TUNED = ("tune-gain-smollm2-135m-dithered-int4.json",)
NOTES = (
    "By the divergence of the next-token distribution, and matrix by matrix, sharing out does what it should up "
    "to two thirds of the way: KL falls by a tenth or so, and two to five more drafts in a hundred are kept, at "
    "most two standard errors. But the same number of multiplications then takes 5 to 10 % longer, since effort "
    "moves to matrices whose multiplications cost more time. What is left promises about 1 % (0.7 of the way), "
    "and `auto` gains 0.4 %, less than this can tell from nothing. By layer, by kind of matrix, or by the "
    "distance of the logits (how far the last hidden state moved), drafts do not get better beyond chance. "
    "Tolerance came from an interrupted `specdec tune`, 21 of its 40 places: the file named below holds it, and its "
    "command reads it from there (`--places 21` measures as many anew). More text, the other views and "
    "larger models were not tried here."
)
_EFFORTS = (0.35, 0.5, 0.7)


def tune_table(records: list[dict[str, Any]]) -> str:
    """For every model and view: acceptance, cost and speed of each way at each mean effort, and of `auto`."""
    parts = []
    for record in records:
        results = record["results"]
        settings, rows = results["settings"], results["rows"]
        cells = {(row["way"], row["effort"]): row for row in rows}
        ways = list(dict.fromkeys(row["way"] for row in rows))
        name = f"{settings['model'].removesuffix('.store')}, {settings['view']}, {settings['positions']} positions"
        header = [name, *(f"{effort:g}: kept" for effort in _EFFORTS), *(f"{effort:g}: step" for effort in _EFFORTS)]
        header += [*(f"{effort:g}: speed" for effort in _EFFORTS), "auto, effort alone"]
        table = []
        for way in ways:
            of_way = [cells[way, effort] for effort in _EFFORTS]
            gains = ["" if way == ways[0] else f" ({one['gain']:+.3f} ± {one['error']:.3f})" for one in of_way]
            table.append(
                [
                    way,
                    *(f"{one['kept']:.3f}{gain}" for one, gain in zip(of_way, gains, strict=True)),
                    *(f"{one['step']:.2f}" for one in of_way),
                    *(f"{one['speedup']:.2f}" for one in of_way),
                    f"{of_way[0]['auto']:.3f}",
                ]
            )
        parts.append(markdown(header, table))
    return "\n\n".join(parts)

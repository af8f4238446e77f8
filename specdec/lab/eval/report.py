"""What an evaluation found, as numbers and as a table; plots are in `plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specdec.lab.eval.plan import DENSE, Plan, Setting
from specdec.lab.eval.questions import SETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of how many.

    Attributes:
        count: all of them.
        right: right answers.
        same: answers, right or wrong, that are the dense model's; of HumanEval, problems with the same outcome.
    """

    count: int
    right: int
    same: int

    @property
    def share(self) -> float:
        """Right ones of all."""
        return self.right / self.count

    @property
    def error(self) -> float:
        """One standard error of `share`."""
        return math.sqrt(self.share * (1 - self.share) / self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """On the text, compared with the dense model.

    Attributes:
        count: predictions.
        perplexity: exp of the mean negative log-likelihood of the text's tokens.
        nll_increase: of that mean over the dense model's, nats a token.
        nll_increase_error: one standard error of it.
        kl: mean KL(dense || setting), nats a token.
        kl_error: one standard error of it.
        agreement: share of predictions whose likeliest token is the dense model's.
        agreement_error: one standard error of it.
        cosine: after each layer, mean cosine between the hidden states and the dense model's; empty when unknown.
    """

    count: int
    perplexity: float
    nll_increase: float
    nll_increase_error: float
    kl: float
    kl_error: float
    agreement: float
    agreement_error: float
    cosine: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Everything about one setting; None where it was not measured."""

    setting: Setting
    text: TextScore | None = None
    basicq: Share | None = None
    quiz: Share | None = None
    humaneval: Share | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rows by setting, the dense model first.

    Attributes:
        description: model, text and sizes.
        rows: what was found.
    """

    description: dict[str, Any]
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = []
        for row in self.rows:
            measured = {name: value for name, value in asdict(row).items() if value is not None and name != "setting"}
            loaded = {} if row.setting.load_share == 1 else {"load_share": row.setting.load_share}
            rows.append({"view": row.setting.view, "effort": row.setting.effort} | loaded | measured)
        return {"settings": self.description, "rows": rows}


def find(
    plan: Plan, values: Mapping[str, Any], description: Mapping[str, Any], *, problems: Sequence[str]
) -> Evaluation:
    """Sum up the journal's values."""
    rows = []
    for setting in plan.all_settings:
        found: dict[str, Any] = {}
        if "text" in plan.measures:
            found["text"] = _text(plan, values, setting)
        for name in SETS:
            if name in plan.measures:
                count = sum(unit.startswith(f"{name} {DENSE.name} ") for unit in values)
                found[name] = _share(values, setting, [f"{name} {{}} {number}" for number in range(count)])
        if problems:
            found["humaneval"] = _share(values, setting, [f"{problem} {{}}" for problem in problems], of=0)
        rows.append(Row(setting=setting, **found))
    return Evaluation(dict(description), tuple(rows))


def table(evaluation: Evaluation) -> list[str]:
    """Lines for people: a setting each."""
    partial = any(row.setting.load_share != 1 for row in evaluation.rows)
    titles = ["view", "effort", *(["loaded"] if partial else [])]
    first = evaluation.rows[0]
    if first.text is not None:
        titles += ["perplexity", "KL, nats", "agreement", "last layer"]
    shares = [name for name in (*SETS, "humaneval") if getattr(first, name) is not None]
    for name in shares:
        titles += [name, "as dense"]
    lines = [[*titles]]
    for row in evaluation.rows:
        cells = [row.setting.view, f"{row.setting.effort:g}", *([f"{row.setting.load_share:g}"] if partial else [])]
        if row.text is not None:
            cosine = f"{row.text.cosine[-1]:.3f}" if row.text.cosine else "-"
            cells += [f"{row.text.perplexity:.4g}", f"{row.text.kl:.3g} ± {row.text.kl_error:.1g}"]
            cells += [f"{row.text.agreement:.3f} ± {row.text.agreement_error:.3f}", cosine]
        for name in shares:
            share: Share = getattr(row, name)
            cells += [f"{share.share:.3f} ± {share.error:.3f}", f"{share.same / share.count:.3f}"]
        lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def _text(plan: Plan, values: Mapping[str, Any], setting: Setting) -> TextScore:
    scores = [values[f"text {number} {setting.name}"] for number in range(plan.passages)]
    dense = [values[f"text {number} {DENSE.name}"] for number in range(plan.passages)]
    count = sum(one["count"] for one in scores)
    nll, kl, agreed = (sum(one[name] for one in scores) for name in ("nll", "kl", "agreed"))
    increase = (nll - sum(one["nll"] for one in dense)) / count
    agreement = agreed / count
    layers = zip(*(one["cosine"] for one in scores), strict=True)
    return TextScore(
        count=count,
        perplexity=math.exp(nll / count),
        nll_increase=increase,
        nll_increase_error=_error(sum(one["nll_increase_sq"] for one in scores), increase, count),
        kl=kl / count,
        kl_error=_error(sum(one["kl_sq"] for one in scores), kl / count, count),
        agreement=agreement,
        agreement_error=math.sqrt(agreement * (1 - agreement) / count),
        cosine=[sum(layer) / count for layer in layers],
    )


def _error(squares: float, mean: float, count: int) -> float:
    """One standard error of a mean, from the sum of squares."""
    return math.sqrt(max(0.0, squares / count - mean * mean) / max(1, count - 1))


def _share(values: Mapping[str, Any], setting: Setting, units: Sequence[str], *, of: int = 1) -> Share:
    """Values whose item `of` is 1, and those whose first item is the dense model's."""
    found = [values[unit.format(setting.name)] for unit in units]
    dense = [values[unit.format(DENSE.name)] for unit in units]
    same = sum(one[0] == other[0] for one, other in zip(found, dense, strict=True))
    return Share(count=len(found), right=sum(one[of] for one in found), same=same)

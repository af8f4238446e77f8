"""Everything that a run has found, as it is kept in a JSON file: `Findings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from specdec.errors import InvalidArgumentError
from specdec.lab.bench.analysis import Row, Steps, analyse, count_steps
from specdec.lab.bench.noise import Noise, noise
from specdec.lab.bench.plan import Plan
from specdec.lab.bench.sample import Sample

BENCHMARK = "bench"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A run's result.

    Attributes:
        command: that measured it.
        machine: device, versions and date, as in `specdec.record.machine`.
        settings: what was measured: model, runtime, threads, prompts, lengths, contenders, conditions.
        noise: of the machine.
        rows: by condition, contender and task.
        steps: what became of drafted tokens.
        answers: every answer in short, a flat object each.
    """

    command: str
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    noise: Noise
    rows: Sequence[Row]
    steps: Sequence[Steps]
    answers: Sequence[Mapping[str, Any]]

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions, in order."""
        return list(dict.fromkeys(row.condition for row in self.rows))

    @property
    def contenders(self) -> list[str]:
        """Names of the contenders, plain decoding first."""
        return list(dict.fromkeys(row.contender for row in self.rows))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, "all" first."""
        return list(dict.fromkeys(row.task for row in self.rows))

    def row(self, condition: str, task: str, contender: str) -> Row:
        """One row."""
        return next(r for r in self.rows if (r.condition, r.task, r.contender) == (condition, task, contender))

    def to_record(self) -> dict[str, Any]:
        """Plain JSON values."""
        results = {
            "settings": dict(self.settings),
            "noise": asdict(self.noise) | {"is_too_loud": self.noise.is_too_loud},
            "rows": [asdict(row) for row in self.rows],
            "steps": [asdict(one) for one in self.steps],
            "answers": [dict(one) for one in self.answers],
        }
        return {"benchmark": BENCHMARK, "command": self.command, "machine": dict(self.machine), "results": results}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Findings:
        """From what `to_record` gave.

        Raises:
            InvalidArgumentError: it is not a record of `specdec bench`, or of another version.
        """
        try:
            if record["benchmark"] != BENCHMARK:
                raise ValueError
            results = record["results"]
            return cls(
                command=record["command"],
                machine=record["machine"],
                settings=results["settings"],
                noise=_made(Noise, results["noise"]),
                rows=[_made(Row, row) for row in results["rows"]],
                steps=[_made(Steps, one) for one in results["steps"]],
                answers=results["answers"],
            )
        except (KeyError, TypeError, ValueError):
            raise InvalidArgumentError("this is not a record of specdec bench, or one of another version") from None


def find(
    plan: Plan,
    samples: Sequence[Sample],
    *,
    command: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    noise_limit: float,
) -> Findings:
    """What a finished run has found.

    Args:
        plan: what was measured.
        samples: all its answers.
        command: that measured them.
        machine: on which.
        settings: what to keep of the model and how it was run; the plan's own are added.
        noise_limit: spread of plain decoding above which results are meaningless.
    """
    own = {
        "tasks": list(dict.fromkeys(prompt.task for prompt in plan.prompts)),
        "prompts": len(plan.prompts),
        "max_tokens": plan.max_tokens,
        "repeat": plan.repeat,
        "chat": plan.chat,
        "contenders": {one.name: dict(one.options) for one in plan.grid.contenders},
        "conditions": {one.name: one.options for one in plan.grid.conditions},
    }
    return Findings(
        command=command,
        machine=machine,
        settings={**settings, **own},
        noise=noise(samples, limit=noise_limit),
        rows=analyse(plan, samples),
        steps=count_steps(plan, samples),
        answers=[_short(plan, one) for one in samples],
    )


def _short(plan: Plan, sample: Sample) -> dict[str, Any]:
    place, prompt, stats = sample.place, plan.prompts[sample.place.prompt], sample.stats
    kept = ("draft_s", "verify_s", "overhead_s", "rounds", "drafted", "accepted")
    return {
        "condition": plan.grid.conditions[place.condition].name,
        "task": prompt.task,
        "prompt": prompt.name,
        "contender": place.contender,
        "repetition": place.repetition,
        "tokens": sample.emitted,
        "seconds": sample.seconds,
        **{name: stats[name] for name in kept},
        "predicted_gain": stats["policy"].get("predicted_gain"),
    }


def _made(kind: type[T], values: Mapping[str, Any]) -> T:
    """An object from its fields; lists that stand for tuples become such."""
    known = {one.name: values[one.name] for one in fields(kind)}  # type: ignore[arg-type]
    pairs = ("rate_quartiles", "speedup_interval")
    return kind(**{name: tuple(v) if name in pairs and v is not None else v for name, v in known.items()})

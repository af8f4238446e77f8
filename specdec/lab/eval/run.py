"""The whole of an evaluation: `evaluate` measures what is not known yet, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from specdec import paths
from specdec.errors import InvalidArgumentError
from specdec.lab.eval.humaneval import Problem, load_problems, to_program, write_answer
from specdec.lab.eval.passages import run_passage, score_passage
from specdec.lab.eval.plan import DENSE, Plan, Setting, journal_name
from specdec.lab.eval.questions import SETS, answer_questions, encode_question, load_questions
from specdec.lab.eval.report import Evaluation, find
from specdec.lab.eval.sandbox import run_program
from specdec.lab.journal import Journal, as_is
from specdec.lab.text import read_text, spec_bench, split_passages
from specdec.progress import Progress
from specdec.warn import warn

if TYPE_CHECKING:
    from specdec.model.loaded import Model


def evaluate(model: Model, plan: Plan, *, restart: bool = False, progress: Progress) -> Evaluation:
    """Measure what lower efforts cost. When it is interrupted, the next call goes on where this one stopped, even
    with other settings and measures of the same model and text.

    Args:
        model: from `specdec.load`.
        plan: what to measure.
        restart: forget what an interrupted call has found.
        progress: called as the work goes on.

    Raises:
        InvalidArgumentError: the text will not do, the model has no tokenizer, or results cannot be kept.
        UnknownNameError: the runtime has no such view.
        RuntimeUnavailableError: programs cannot be limited on this system.
    """
    plan.check_model(model)
    content = read_text(plan.text, spec_bench) if "text" in plan.measures else None
    description = plan.describe(model, content)
    passages = [] if content is None else _passages(model, plan, content)
    for setting in plan.settings:
        if setting.load_share == 1:
            model.runtime.prepare(setting.view)
    problems = load_problems(plan.problems) if "humaneval" in plan.measures else []
    path = paths.home() / "eval" / journal_name(description)
    journal = Journal(path, "specdec eval", description, decode=as_is, restart=restart)
    complete = False
    try:
        run = _Run(model, plan, journal, progress)
        run.read_passages(passages)
        for name in SETS:
            if name in plan.measures:
                run.ask(name)
        run.test_programs(problems)
        evaluation = find(plan, journal.results, description, problems=[problem.name for problem in problems])
        complete = True
    finally:
        journal.close(remove=complete)
    return evaluation


def _passages(model: Model, plan: Plan, content: str) -> list[list[int]]:
    """Token ids of the passages.

    Raises:
        InvalidArgumentError: the text is shorter than one of them.
    """
    assert model.tokenizer is not None
    length = min(plan.passage_tokens, model.config.max_context)
    if length < plan.passage_tokens:
        warn(f"passages have {length} tokens, which the model's context holds, not {plan.passage_tokens}")
    return split_passages(content, model.tokenizer, count=plan.passages, length=length)


class _Run:
    """The measuring itself: each method does what the journal does not know yet of one measure."""

    def __init__(self, model: Model, plan: Plan, journal: Journal[Any], progress: Progress) -> None:
        self._model, self._plan, self._journal, self._progress = model, plan, journal, progress
        self._stage, self._done, self._total = "", 0, 0
        self._part: tuple[float, Model] | None = None

    def read_passages(self, passages: Sequence[Sequence[int]]) -> None:
        """Every setting on every passage, compared with the dense model."""
        settings, runtime = self._plan.all_settings, self._model.runtime
        self._begin("text", [f"text {number} {one.name}" for number in range(len(passages)) for one in settings])
        for number, tokens in enumerate(passages):
            missing = [one for one in settings if self._lacks(f"text {number} {one.name}")]
            if not missing:
                continue
            dense = run_passage(runtime, tokens, view=DENSE.view, effort=DENSE.effort)
            for one in missing:
                other = dense
                if one != DENSE:
                    other = run_passage(self._model_of(one).runtime, tokens, view=one.view, effort=one.effort)
                self._keep(f"text {number} {one.name}", asdict(score_passage(tokens, dense, other)))

    def ask(self, name: str) -> None:
        """Every setting, the questions of a set; kept is the index of the choice."""
        assert self._model.tokenizer is not None
        questions = [
            encode_question(question, self._model.tokenizer) for question in load_questions(name, seed=self._plan.seed)
        ]
        longest = max(len(one.ids) + max(map(len, one.tails)) for one in questions)
        if longest > self._model.config.max_context:
            raise InvalidArgumentError(f"the questions of {name} do not fit the model's context: leave them out")
        settings = self._plan.all_settings
        self._begin(name, [f"{name} {one.name} {number}" for one in settings for number in range(len(questions))])
        for one in settings:
            names = [f"{name} {one.name} {number}" for number in range(len(questions))]
            missing = [number for number, unit in enumerate(names) if self._lacks(unit)]
            chosen = answer_questions(
                self._model_of(one).runtime, [questions[number] for number in missing], view=one.view, effort=one.effort
            )
            for number, choice in zip(missing, chosen, strict=True):
                self._keep(names[number], [choice, int(choice == questions[number].answer)])

    def test_programs(self, problems: Sequence[Problem]) -> None:
        """Every setting, each problem; kept is whether the tests passed, and why not."""
        settings = self._plan.all_settings
        self._begin("humaneval", [f"{problem.name} {one.name}" for one in settings for problem in problems])
        for one in settings:
            for problem in problems:
                if self._lacks(f"{problem.name} {one.name}"):
                    answer = write_answer(
                        self._model_of(one), problem, view=one.view, effort=one.effort, max_tokens=self._plan.max_tokens
                    )
                    outcome = run_program(to_program(problem, answer), unconfined=self._plan.unconfined)
                    self._keep(f"{problem.name} {one.name}", [int(outcome.passed), outcome.reason])

    def _model_of(self, setting: Setting) -> Model:
        """The model with as much of its weights as the setting says. One that is loaded in part is kept until another
        is asked for."""
        if setting.load_share == 1:
            return self._model
        if self._part is None or self._part[0] != setting.load_share:
            from specdec.model.loaded import load

            assert self._model.store is not None
            self._part = None  # its memory, before there is another
            runtime = self._model.runtime
            part = load(
                self._model.store.path,
                runtime=runtime.info.name,
                threads=runtime.info.threads,
                load_share=setting.load_share,
                context=self._model.config.max_context,
            )
            self._part = setting.load_share, part
        return self._part[1]

    def _begin(self, stage: str, units: Sequence[str]) -> None:
        self._stage, self._total = stage, len(units)
        self._done = sum(not self._lacks(unit) for unit in units)
        if self._done < self._total:
            self._progress(stage, self._done, self._total)

    def _lacks(self, unit: str) -> bool:
        return unit not in self._journal.results

    def _keep(self, unit: str, value: object) -> None:
        self._journal.add(unit, value)
        self._done += 1
        self._progress(self._stage, self._done, self._total)

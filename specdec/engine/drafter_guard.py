"""Keeps a faulty drafter from doing harm: what it is, asks for and proposes is checked, and every error names it."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Any

from specdec.checks import is_integral
from specdec.drafters.base import Ask, Draft, DraftContext, Drafter, Drafting, Foreteller, late_in
from specdec.engine.policy import DraftOption, DraftPlan, StepSignals
from specdec.errors import InvalidArgumentError, MemoryShortError, ModelOutputError, PluginError, SpecdecError
from specdec.interrupts import is_from_signal_handler
from specdec.runtimes.base import Rows, is_chain
from specdec.runtimes.checks import check_parents


class faults_of:  # noqa: N801  # reads as a statement, and is entered several times for each token
    """Around a call of a drafter. A plug-in that the drafter itself calls, such as the policy, is blamed under its own
    name.

    Raises:
        PluginError: the drafter raises anything but that, a shortage of memory, or what a damaged model brings about.
    """

    __slots__ = ("_doing", "_name")

    def __init__(self, name: str, doing: str) -> None:
        self._name, self._doing = name, doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, PluginError | MemoryShortError | ModelOutputError):
            return
        if not is_from_signal_handler(error):
            raise PluginError.raised("drafter", self._name, error, doing=self._doing) from error


def options_of(name: str, drafter: Drafter) -> list[DraftOption]:
    """The drafter with each of its views, as the policy is offered it.

    Raises:
        PluginError: its properties fail, `views` is not a sequence of names, or `most_tokens` or `windowed_from`,
            which it may lack, is neither None nor a whole number of at least 1.
    """
    with faults_of(name, "views and takes_effort"):
        views, takes_effort = drafter.views, bool(drafter.takes_effort)
        most, turn_rows = getattr(drafter, "most_tokens", None), getattr(drafter, "turn_rows", 0)
        windowed_from = getattr(drafter, "windowed_from", None)
    if not isinstance(views, tuple | list) or not all(isinstance(view, str) for view in views):
        raise _wrong(name, f"views must be a tuple of names, not {views!r}")
    for what, value in (("most_tokens", most), ("windowed_from", windowed_from)):
        if value is not None and (not is_integral(value) or value < 1):
            raise _wrong(name, f"{what} must be None or a whole number of at least 1, not {value!r}")
    return [
        DraftOption(
            name, view, takes_effort, most, waits=late_in(drafter, view) is not None, turn_rows=turn_rows,
            windowed_from=windowed_from,
        )
        for view in views or (None,)
    ]  # fmt: skip


def match_length(name: str, drafter: Foreteller, context: DraftContext) -> int:
    """What the drafter knows beforehand.

    Raises:
        PluginError: it fails, or does not answer a whole number of at least 0.
    """
    with faults_of(name, "match_length"):
        found = drafter.match_length(context)
    if not is_integral(found) or found < 0:
        raise _wrong(name, f"match_length must be a whole number of at least 0, not {found!r}")
    return int(found)


def checked_drafting(name: str, outcome: object) -> Drafting:
    """What a drafter gave that is not yet a draft.

    Raises:
        PluginError: it is not a generator.
    """
    if not isinstance(outcome, Generator):
        raise _wrong(name, f"draft must return a Draft, or be a generator that does, not {outcome!r}")
    return outcome


def checked_ask(name: str, ask: object) -> Ask:
    """A pass that a drafter asks for, as far as it can be checked before it runs.

    Raises:
        PluginError: it is not an `Ask` of `Rows`.
    """
    if not isinstance(ask, Ask) or not isinstance(ask.rows, Rows):
        raise _wrong(name, f"draft must yield Asks for Rows, not {ask!r}")
    return ask


def refused_pass(name: str, error: Exception) -> Exception:
    """The error of a pass that a drafter asked for, under its name where the pass could not run as asked."""
    if isinstance(error, PluginError) or not isinstance(error, InvalidArgumentError | TypeError | AttributeError):
        return error
    if is_from_signal_handler(error):
        return error
    blamed = PluginError("drafter", name, f"asked for a pass that cannot run: {error}")
    blamed.__cause__ = error
    return blamed


def checked_draft(name: str, draft: object, plan: DraftPlan, *, most: int, vocab_size: int) -> Draft:
    """A draft that the verifier can take: tokens in a list of Python's numbers, sources filled in, a chain without
    parents.

    Args:
        name: of the drafter.
        draft: what it gave.
        plan: what it was asked for.
        most: tokens that may be drafted in all, with those that a grammar leaves no choice about.
        vocab_size: of the model.

    Raises:
        PluginError: the drafter gave something else, more tokens than were allowed, tokens that the model does not
            have, signals or sources for some tokens only, or parents that are not a tree.
    """
    if not isinstance(draft, Draft):
        raise _wrong(name, f"draft must return a Draft, not {draft!r}")
    try:
        tokens: list[Any] = list(draft.tokens)
    except TypeError:
        raise _wrong(name, f"tokens must be a list of whole numbers, not {draft.tokens!r}") from None
    drafted = len(tokens)
    allowed = min(plan.num_draft_tokens + draft.forced, most)
    if drafted > allowed:
        raise PluginError("drafter", name, f"drafted {drafted} tokens where {allowed} were allowed")
    for token in tokens:
        if not is_integral(token) or not 0 <= token < vocab_size:
            raise _wrong(name, f"tokens must be whole numbers from 0 to {vocab_size - 1}, not {token!r}")
    draft.tokens = [int(token) for token in tokens]
    own = drafted - draft.forced
    for what, values, kind, count in (
        ("signals", draft.signals, StepSignals, own),
        ("sources", draft.sources, str, drafted),
    ):
        if values and (len(values) != count or not all(isinstance(one, kind) for one in values)):
            raise _wrong(name, f"{what} must be one {kind.__name__} for each of the {count} tokens, or none")
    if draft.parents is not None:
        try:
            check_parents(draft.parents, drafted)
        except (SpecdecError, TypeError) as error:
            raise _wrong(name, str(error)) from None
        if is_chain(draft.parents):
            draft.parents = None
    draft.sources = draft.sources or [name] * drafted
    return draft


def _wrong(name: str, fault: str) -> PluginError:
    return PluginError("drafter", name, f"gave a wrong answer: {fault}")

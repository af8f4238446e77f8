"""The library's two verbs, `stream` and `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack, overload

from specdec.engine.begin import begin
from specdec.engine.generation import Generation, Stream
from specdec.engine.options import OptionArguments
from specdec.engine.prompt import Prompt
from specdec.engine.result import Result
from specdec.engine.together import generate_all
from specdec.errors import InvalidArgumentError
from specdec.progress import Progress, Summed, check_progress

if TYPE_CHECKING:
    from specdec.model.loaded import Model


def stream(
    model: Model, prompt: Prompt, *, progress: Progress | None = None, **options: Unpack[OptionArguments]
) -> Generation:
    """Begin an answer; iterate over what comes back for its pieces, with `piece.text` and `piece.tokens`.

    The tokens are those of plain decoding at `verify_effort` with the same sampling options, whatever the draft options
    say. Arguments are checked here; the model runs as the pieces are asked for.

    Args:
        model: from `specdec.load`.
        prompt: text, token ids, or chat messages (mappings with "role" and "content").
        progress: called as `progress(stage, done, total)`: while a draft view is built ("building draft view int4",
            in matrices), and between passes over the prompt ("reading the prompt", in tokens). The first call of a
            stage announces it, the one with `done == total` ends it. What it raises ends the answer.
        options: see `specdec.Options`, which describes each and its default.

    Raises:
        InvalidArgumentError: an argument is out of range or contradicts another one, or the prompt does not fit.
        UnknownNameError: no policy, drafter or draft view of that name.
        TypeError: an option that there is not.

    Warns:
        UserWarning: drafting at a higher effort than verification.
    """
    return Stream(begin(model, prompt, options, caller="stream", progress=progress), model.lock)


@overload
def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
    model: Model, prompt: Prompt, *, progress: Progress | None = None, **options: Unpack[OptionArguments]
) -> Result: ...
@overload
def generate(
    model: Model, prompt: Sequence[Prompt], *, progress: Progress | None = None, **options: Unpack[OptionArguments]
) -> list[Result]: ...
def generate(
    model: Model,
    prompt: Prompt | Sequence[Prompt],
    *,
    progress: Progress | None = None,
    **options: Unpack[OptionArguments],
) -> Result | list[Result]:
    """Generate a whole answer, or one for each of several prompts, which then share passes.

    Arguments, errors and warnings are those of `stream`.

    Args:
        model: from `specdec.load`.
        prompt: a prompt, or a sequence of prompts: texts, lists or arrays of token ids, or lists of chat messages. Each
            answer is the one that its prompt gets alone; all have the same seed.
        progress: see `stream`; for several prompts, their tokens are added up.
        options: see `specdec.Options`; a trace is for a single prompt.

    Returns:
        Text, tokens, statistics, and what they are identical to; a list of them for several prompts.
    """
    if _are_many(prompt):
        _check_shared(options)
        check_progress(progress)
        answers, summed = [], None if progress is None else Summed(progress)
        try:
            for one in prompt:
                told = None if summed is None else summed.part()
                answers.append(begin(model, one, options, caller="generate", progress=told))  # type: ignore[arg-type]
        except BaseException:
            for answer in answers:
                answer.close()
            raise
        return generate_all(model, answers)
    begun = begin(model, prompt, options, caller="generate", progress=progress)  # type: ignore[arg-type]
    with Stream(begun, model.lock) as generation:
        for _ in generation:
            pass
        return generation.result()


def _check_shared(options: OptionArguments) -> None:
    """Refuse what several answers cannot share.

    Raises:
        InvalidArgumentError: a trace, or a policy or drafter that is an object.
    """
    if options.get("trace") is not None:
        raise InvalidArgumentError("a trace is for one prompt: leave it out, or give the prompts one by one")
    drafter = options.get("drafter", "auto")
    drafters = drafter if isinstance(drafter, (list, tuple)) else [drafter]
    for kind, values in (("policy", [options.get("policy", "auto")]), ("drafter", drafters)):
        if not all(isinstance(value, str) for value in values):
            raise InvalidArgumentError(f"a {kind} that is an object serves one answer: give its name")


def _are_many(prompt: object) -> bool:
    """Whether this is a sequence of prompts, or an array with one in each row: a prompt itself holds token ids or
    mappings."""
    if getattr(prompt, "ndim", 0) == 2:
        return True
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    first = prompt[0]
    if isinstance(first, str) or getattr(first, "ndim", 0) == 1:
        return True
    return isinstance(first, Sequence) and not isinstance(first, (bytes, Mapping))

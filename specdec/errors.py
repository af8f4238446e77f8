"""The errors that specdec raises on purpose: for a user's mistake, and for a plug-in that fails.

Each one carries a single sentence that names what was wrong and what would be right. The command line prints that
sentence and exits with code 2, or 1 for a `PluginError`; a library user catches `SpecdecError`, or the built-in class
that each also is.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable


class SpecdecError(Exception):
    """Base class of every error that specdec raises on purpose. A copy, or one that another process sends, is equal."""

    def __reduce__(self) -> tuple[Callable[..., SpecdecError], tuple[object, ...], dict[str, object]]:
        # The arguments of most classes are not `args`, which is the sentence.
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[SpecdecError], args: tuple[object, ...]) -> SpecdecError:
    """An error of this class with these `args`; its attributes come later."""
    return kind.__new__(kind, *args)


class InvalidArgumentError(SpecdecError, ValueError):
    """An argument is out of range or contradicts another one."""


class OptionError(InvalidArgumentError):
    """The value of an option is out of range. The command line words it with its own flags: see `worded`.

    Args:
        option: name of the option in the library.
        problem: what is wrong, without the name: "must be a whole number of at least 1, not 0".
        instead: a switch that could be used instead, and what for: ("speculate", "to decode without drafts").
    """

    def __init__(self, option: str, problem: str, *, instead: tuple[str, str] | None = None) -> None:
        self.option, self.problem, self.instead = option, problem, instead
        super().__init__(self._sentence(option, f"{instead[0]}=False" if instead else ""))

    def worded(self, flag_of: Callable[[str], str]) -> str:
        """The same sentence with flags of the command line."""
        return self._sentence(flag_of(self.option), flag_of(self.instead[0]) if self.instead else "")

    def _sentence(self, option: str, switch: str) -> str:
        more = f"; use {switch} {self.instead[1]}" if self.instead else ""
        return f"{option} {self.problem}{more}"


class ModelOutputError(SpecdecError, RuntimeError):
    """The model computes what means nothing, such as logits that are not finite: it may be damaged."""


class ContextLengthError(InvalidArgumentError):
    """A prompt does not fit into the model's context.

    Args:
        prompt_tokens: of the prompt.
        max_tokens: that the answer was to have at most; None where nothing was asked.
        context: tokens that the model's context holds, answer included.
        can_grow: the model can be loaded for a longer context.
        is_least: the prompt may have more tokens: it was too long to be worth encoding.
    """

    def __init__(
        self,
        prompt_tokens: int,
        max_tokens: int | None,
        context: int,
        *,
        can_grow: bool = False,
        is_least: bool = False,
    ) -> None:
        self.prompt_tokens, self.max_tokens, self.context, self.is_least = prompt_tokens, max_tokens, context, is_least
        super().__init__(
            f"the prompt has {self.size} and the model's context holds {context}, answer included: "
            f"shorten the prompt{' or load the model for a longer one (context=, --context)' if can_grow else ''}"
        )

    @property
    def size(self) -> str:
        """Length of the prompt in words: "20 tokens", "at least 20 tokens"."""
        return f"{'at least ' if self.is_least else ''}{self.prompt_tokens} tokens"


class QueueFullError(SpecdecError, RuntimeError):
    """The queue is full: ask again later.

    Args:
        waiting: requests that wait.
        retry_after_s: seconds after which there is likely to be room, from measured rates.
    """

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        self.waiting, self.retry_after_s = waiting, retry_after_s
        full = f"{waiting} requests wait already, which is all that may" if waiting else "no place is free to answer in"
        super().__init__(f"{full}: try again in {retry_after_s:.0f} s")


class UnknownNameError(InvalidArgumentError):
    """A policy, view, drafter, runtime or model name that is not registered, or that is not for this model; the message
    lists the existing names.

    Args:
        kind: of the thing, such as "view".
        name: that was asked for.
        known: names that there are.
        reason: why a name that does exist is not among them: "needs 16-bit weights".
    """

    def __init__(self, kind: str, name: str, known: list[str], *, reason: str | None = None) -> None:
        what = f"unknown {kind} {name!r}" if reason is None else f"{kind} {name!r} {reason}"
        super().__init__(f"{what}: choose from {', '.join(sorted(known)) or '(none installed)'}")
        self.kind, self.name, self.known = kind, name, sorted(known)


class GrammarError(OptionError):
    """A grammar that an answer cannot be made to follow: it has a mistake, cannot be met, or is not supported.

    Args:
        option: what asked for the grammar: "response_format", "grammar" or "regex".
        problem: what is wrong, without the name.
        keywords: of a JSON schema that are at fault.
    """

    def __init__(self, option: str, problem: str, *, keywords: tuple[str, ...] = ()) -> None:
        super().__init__(option, problem)
        self.keywords = keywords


class ModelFormatError(SpecdecError, ValueError):
    """A model file or folder that is missing, damaged, or of a kind that this version does not read."""


class StoreError(ModelFormatError):
    """A bucket store that is missing, unfinished, damaged, or written by a newer version."""


class IndexFileError(SpecdecError, ValueError):
    """The file of a search index that is missing, truncated, damaged, or of another version."""


class LayerFileError(SpecdecError, ValueError):
    """The file of a fast feedforward layer that is missing, truncated, damaged, or of another version."""


class DownloadError(SpecdecError, RuntimeError):
    """A model could not be fetched, or what came has another checksum than the catalogue says."""


class LicenceError(DownloadError):
    """A model's licence asks for consent, and it was not accepted.

    Args:
        model: catalogue name.
        licence: its name.
        url: where its text is.
    """

    def __init__(self, model: str, licence: str, url: str) -> None:
        super().__init__(
            f"{model} is under the {licence} ({url}), which have to be accepted first: read them, then give "
            f"--accept-licence (accept_licence=True in Python)"
        )
        self.model, self.licence, self.url = model, licence, url


class RuntimeUnavailableError(SpecdecError, RuntimeError):
    """A runtime was asked for by name and cannot run here; the message says what to install."""


class DistributedError(SpecdecError, RuntimeError):
    """Processes that were to run a model together cannot: one is missing, differs from the others, or has failed."""


class MemoryShortError(SpecdecError, MemoryError):
    """Not enough memory for something that could be left out, such as a draft view."""


class PluginError(SpecdecError, RuntimeError):
    """A policy, drafter or other plug-in has a bug: it raised an exception or gave an answer out of range.

    Args:
        kind: of the plug-in, such as "policy".
        name: of the plug-in.
        fault: what is wrong, as the rest of a sentence that begins with kind and name.
    """

    def __init__(self, kind: str, name: str, fault: str) -> None:
        super().__init__(f"{kind} {name!r} {fault}")
        self.kind, self.name = kind, name

    @classmethod
    def raised(cls, kind: str, name: str, error: BaseException, *, doing: str) -> PluginError:
        """For an exception that came out of a plug-in; raise it `from error`.

        Args:
            kind: of the plug-in.
            name: of the plug-in.
            error: what it raised.
            doing: its method, as the rest of "failed in".
        """
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        return cls(kind, name, f"failed in {doing}: {type(error).__name__}: {error}{place}")

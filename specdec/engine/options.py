"""Everything that a caller may ask of one answer: `Options`, the one list that library, command line and bench read.

What an option is called on the command line, and what its help says, stands beside it.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from specdec.checks import check_effort
from specdec.drafters.base import Drafter
from specdec.engine.policy import Policy
from specdec.engine.sampler import SamplingParams
from specdec.errors import InvalidArgumentError, OptionError, PluginError
from specdec.interrupts import is_from_signal_handler
from specdec.model.effort import EffortSchedule


class OptionArguments(TypedDict, total=False):
    """Keyword arguments of `specdec.generate` and `specdec.stream`; `Options` describes them."""

    max_tokens: int
    draft_effort: float | EffortSchedule | None
    draft_view: str
    verify_effort: float | EffortSchedule
    draft_len: int
    policy: str | Policy
    drafter: str | Drafter | Sequence[str | Drafter]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: str | Sequence[str]
    chat: bool
    literal: bool
    chat_template_kwargs: Mapping[str, Any] | None
    speculate: bool
    trust: float | None
    trace: str | Path | None


@dataclass(frozen=True, slots=True)
class Flag:
    """An option on the command line.

    Attributes:
        kind: type of its value; bool for a switch that turns the option off, dict for KEY=VALUE.
        metavar: what help calls the value.
        help: what it does.
        default: what help calls the default, where its value says nothing.
        name: of the flag, where it is not the option's own name.
    """

    kind: type
    metavar: str
    help: str
    default: str | None = None
    name: str | None = None


def _flag(
    kind: type, metavar: str, help: str, default: str | None = None, *, name: str | None = None
) -> dict[str, Flag]:
    return {"flag": Flag(kind, metavar, help, default, name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to generate and how.

    Attributes:
        max_tokens: most tokens to generate; the model's context may end the answer before.
        draft_effort: share of the multiplications that a draft step performs, in (0, 1], or a schedule by matrix. None
            leaves it to the policy; one that does not choose efforts takes what measured fastest on the runtime.
        draft_view: form of the weights that drafts read: "bucket", "int4", or another one that the runtime has; "exact"
            is the verifier's own, "auto" the one that measured fastest on the model's runtime. Several, with commas
            between, are offered to the policy, which may choose for each round.
        verify_effort: share of the multiplications that verification performs; 1.0 is the model itself.
        draft_len: tokens that the policy "fixed" drafts a round.
        policy: decides what to draft with, how many tokens and at what effort: a name, `name:key=value,key=value`, a
            policy file `FILE.yaml`, or an object with the methods of `specdec.engine.policy.Policy`, which then serves
            this answer only. "auto" is "goodput": expected tokens a second by this machine's costs.
        drafter: proposes tokens: a name, `name:argument`, or an object as in `specdec.drafters.base`. Several, as a
            sequence or with semicolons between, are offered to the policy, which may choose for each round; "auto"
            offers the model itself at low effort and lookup in the text so far.
        temperature: 0 always takes the likeliest token; above 0, tokens are drawn, 1.0 from the model's distribution.
        top_k: draw from the k likeliest tokens only; 0 from all.
        top_p: draw from the fewest likeliest tokens that hold this probability together.
        min_p: draw from tokens at least this fraction as likely as the likeliest.
        seed: random seed for sampling; equal seeds give equal answers.
        stop: strings that end the answer and are not part of its text.
        chat: put a text prompt into the model's chat template as a user's message, if it has one; False takes the text
            as it is.
        literal: the names of control tokens in chat messages, such as "<|im_end|>", are text like any other. False
            makes them those tokens, which end turns and begin others: only for messages whose text is trusted.
        chat_template_kwargs: variables that the model's chat template asks for by name, such as `enable_thinking` or
            `tools`; also `add_generation_prompt` and `continue_final_message`.
        speculate: False decodes one token at a time.
        trust: entropy in nats under which a draft token is accepted without verification. The answer is then not that
            of plain decoding, and its `identical_to` says so. None verifies every token.
        trace: file that gets a JSON line for every round.

    Raises:
        OptionError: a value is out of range.
    """

    max_tokens: int = field(default=256, metadata=_flag(int, "N", "most tokens to generate"))
    draft_effort: float | EffortSchedule | None = field(
        default=None,
        metadata=_flag(float, "E", "share of the multiplications that a draft step performs", "the policy's"),
    )
    draft_view: str = field(
        default="auto",
        metadata=_flag(str, "VIEW", "weights that drafts read: auto, bucket, int4, ...; several with commas"),
    )
    verify_effort: float | EffortSchedule = field(
        default=1.0, metadata=_flag(float, "E", "the same share for verification; 1 is the model itself")
    )
    draft_len: int = field(default=4, metadata=_flag(int, "K", "tokens that the policy `fixed` drafts in a round"))
    policy: str | Policy = field(
        default="auto",
        metadata=_flag(str, "NAME[:KEY=VALUE,...]", "decides what and how much to draft; or a FILE.yaml"),
    )
    drafter: str | Drafter | Sequence[str | Drafter] = field(
        default="auto", metadata=_flag(str, "NAME[:ARGUMENT]", "proposes tokens; several with semicolons")
    )
    temperature: float = field(
        default=0.0, metadata=_flag(float, "T", "0 takes the likeliest token, above 0 tokens are drawn")
    )
    top_k: int = field(default=0, metadata=_flag(int, "K", "draw from the K likeliest tokens only; 0 from all"))
    top_p: float = field(
        default=1.0, metadata=_flag(float, "P", "draw from the fewest likeliest tokens that hold this probability")
    )
    min_p: float = field(
        default=0.0, metadata=_flag(float, "P", "draw from tokens at least P times as likely as the likeliest")
    )
    seed: int = field(default=0, metadata=_flag(int, "N", "random seed for sampling"))
    stop: str | Sequence[str] = field(
        default=(), metadata=_flag(list, "TEXT", "end before this text; repeatable", "none")
    )
    chat: bool = field(
        default=True, metadata=_flag(bool, "", "take the prompt as it is, without the chat template", name="--raw")
    )
    literal: bool = field(
        default=True,
        metadata=_flag(bool, "", "control tokens spelled in messages act as such (trusted text only)", name="--markup"),
    )
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None,
        metadata=_flag(dict, "KEY=VALUE", "variable of the chat template; repeatable", "none", name="--template-arg"),
    )
    speculate: bool = field(default=True, metadata=_flag(bool, "", "decode without speculation", name="--plain"))
    trust: float | None = field(
        default=None,
        metadata=_flag(
            float,
            "H",
            "accept draft tokens with entropy below H nats without verification (lossy, reported in the output)",
            "verify all",
        ),
    )
    trace: str | Path | None = field(
        default=None, metadata=_flag(str, "FILE.jsonl", "write a line for every round", "no trace")
    )

    def __post_init__(self) -> None:
        _check_count("max_tokens", self.max_tokens)
        _check_count("draft_len", self.draft_len, instead=("speculate", "to decode without drafts"))
        if self.draft_effort is not None:
            _set(self, "draft_effort", effort_schedule("draft_effort", self.draft_effort))
        _set(self, "verify_effort", effort_schedule("verify_effort", self.verify_effort))
        if self.trust is not None and not (_is_number(self.trust) and self.trust > 0):
            raise OptionError("trust", f"must be an entropy above 0 nats, not {self.trust!r}")
        _set(self, "drafter", tuple(self.drafter) if isinstance(self.drafter, (list, tuple)) else (self.drafter,))
        if not self.drafters:
            raise OptionError("drafter", "must be at least one", instead=("speculate", "to decode without drafts"))
        named = [("policy", Policy, self.policy), *(("drafter", Drafter, drafter) for drafter in self.drafters)]
        for name, kind, value in named:
            try:
                fits = isinstance(value, (str, kind))
            except Exception as error:  # a property of the object
                if is_from_signal_handler(error):
                    raise
                raise PluginError.raised(name, type(value).__name__, error, doing="its properties") from error
            if not fits:
                raise OptionError(name, f"must be a name or an object with a {name}'s methods, not {value!r}")
        _set(self, "stop", stop_strings(self.stop))
        _check_variables(self.chat_template_kwargs)
        _ = self.sampling  # checks it

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are chosen."""
        return SamplingParams(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, seed=self.seed
        )

    @property
    def drafters(self) -> tuple[str | Drafter, ...]:
        """What may draft, as it was asked for."""
        asked = self.drafter
        assert isinstance(asked, tuple)  # __post_init__ saw to it
        return asked

    @property
    def draft_schedule(self) -> EffortSchedule | None:
        """Efforts of drafts, where the caller named them."""
        return None if self.draft_effort is None else EffortSchedule.of_value(self.draft_effort)

    @property
    def verify_schedule(self) -> EffortSchedule:
        """Efforts of verification."""
        return EffortSchedule.of_value(self.verify_effort)


def options_of(arguments: OptionArguments, caller: str) -> Options:
    """Options from keyword arguments.

    Raises:
        TypeError: an argument that there is not.
        OptionError: a value is out of range.
    """
    if unknown := set(arguments) - set(FLAGS):
        raise TypeError(f"{caller}() has no option {min(unknown)!r}: choose from {', '.join(FLAGS)}")
    return Options(**arguments)


def check_useful(given: Mapping[str, Any]) -> None:
    """Refuse options that would do nothing beside the others.

    Args:
        given: the options that the caller named, by name.

    Raises:
        OptionError: one of them has no effect.
    """
    if given.get("speculate") is False:
        for name in _DRAFTING:
            if name in given:
                raise OptionError(name, "has no effect on plain decoding, which drafts nothing: leave one of them out")
    policy = given.get("policy", "auto")
    if "draft_len" in given and isinstance(policy, str) and not policy.startswith("fixed") and "." not in policy:
        raise OptionError("draft_len", f"is only for the policy 'fixed', and the policy is {policy!r}: name 'fixed'")
    for name in ("top_k", "top_p", "min_p"):
        if name in given and not given.get("temperature"):
            raise OptionError(name, "has no effect at temperature 0, which takes the likeliest token: give one above 0")


_DRAFTING = ("draft_effort", "draft_view", "draft_len", "policy", "drafter", "trust")
FLAGS: dict[str, Flag] = {one.name: one.metadata["flag"] for one in fields(Options)}
# What a way of decoding is made of, and under what it is measured: `specdec bench` takes lists of them.
DRAFT_OPTIONS = ("draft_view", "draft_effort", "draft_len", "policy", "drafter")
CONDITION_OPTIONS = ("verify_effort", "temperature", "seed")
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Options)}


def option_value(name: str, value: Any) -> Any:
    """The value of an option that came as text or out of a file, in its type and range.

    Raises:
        OptionError: it is not a number where one is needed, or out of range.
    """
    kind = FLAGS[name].kind
    if kind in (int, float):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            raise OptionError(name, f"must be a number, not {value!r}") from None
        if kind is float:
            value = number
        elif math.isfinite(number) and number == int(number):
            value = int(number)
    elif kind is str and (not isinstance(value, str) or not value):
        raise OptionError(name, f"must be a name, not {value!r}")
    Options(**{name: value})
    return value


def flag_of(name: str) -> str:
    """An option's flag on the command line, "--draft-len"."""
    flag = FLAGS.get(name)
    return flag.name if flag is not None and flag.name else "--" + name.replace("_", "-")


def effort_schedule(name: str, value: float | EffortSchedule) -> EffortSchedule:
    """A schedule from the option called `name`.

    Raises:
        OptionError: it is neither a schedule nor a number in (0, 1].
    """
    if isinstance(value, EffortSchedule):
        return value
    try:
        return EffortSchedule(check_effort(value))
    except InvalidArgumentError:
        raise OptionError(name, f"must be a number above 0 and at most 1, not {value!r}") from None


def stop_strings(value: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings from one string or several.

    Raises:
        InvalidArgumentError: one of them is empty or not text.
    """
    if not isinstance(value, Iterable):
        raise OptionError("stop", f"must be text or a sequence of texts, not {value!r}")
    stops = (value,) if isinstance(value, str) else tuple(value)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InvalidArgumentError(f"a stop string must be text of at least one character, not {stop!r}")
    return stops


def template_argument(text: str) -> tuple[str, Any]:
    """A variable of a chat template from "KEY=VALUE", where the value is JSON or else text.

    Raises:
        ValueError: no "=", or nothing before it.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"must be KEY=VALUE, not {text!r}")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:  # as Python writes them, too
        return name, words[value.lower()]
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _check_variables(value: object) -> None:
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        raise OptionError("chat_template_kwargs", f"must be a mapping of names to values, not {value!r}")


def _set(options: Options, name: str, value: object) -> None:
    object.__setattr__(options, name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_count(name: str, value: object, *, instead: tuple[str, str] | None = None) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise OptionError(name, f"must be a whole number of at least 1, not {value!r}", instead=instead)

"""Options of one answer: `Options`, the one list that library, command line, server and bench read.

Each field also holds its name on the command line and its help.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

from specdec.drafters.base import Drafter
from specdec.engine.chooser import LogitsProcessor
from specdec.engine.flags import (
    Flag,
    bias_argument,
    flag,
    format_argument,
    processor_argument,
    template_argument,
)
from specdec.engine.grammar import Grammar, asked_grammar
from specdec.engine.logprobs import MOST_LOGPROBS
from specdec.engine.option_checks import (
    check_flag,
    check_useful,
    check_variables,
    check_whole,
    checked_bias,
    checked_processors,
    effort_schedule,
    is_number,
    stop_ids,
    stop_strings,
)
from specdec.engine.penalties import Penalties
from specdec.engine.policy import Policy
from specdec.engine.sampler import SamplingParams
from specdec.errors import OptionError, PluginError
from specdec.interrupts import unless_signalled
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
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float] | None
    logits_processors: Sequence[LogitsProcessor]
    response_format: Mapping[str, Any] | None
    grammar: str | None
    regex: str | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    chat: bool
    literal: bool
    chat_template_kwargs: Mapping[str, Any] | None
    speculate: bool
    trust: float | None
    logprobs: int | None
    prompt_logprobs: int | None
    trace: str | Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to generate and how.

    Attributes:
        max_tokens: most tokens to generate; the model's context may end the answer before. 0 only reads the prompt, for
            `prompt_logprobs`.
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
        temperature: 0 takes the most likely token; above 0, tokens are sampled, at 1.0 from the model's distribution.
        top_k: sample from the k most likely tokens; 0 means all.
        top_p: sample from the smallest set of most likely tokens with this total probability.
        min_p: sample from tokens at least this fraction as likely as the most likely one.
        seed: random seed for sampling; equal seeds give equal answers. None chooses one, which the result names.
        presence_penalty: subtracted from the logit of every token that occurs in the answer, -2 to 2.
        frequency_penalty: the same, times the number of occurrences.
        repetition_penalty: above 1, tokens of the prompt and the answer become less likely: their logits are divided by
            it where positive, multiplied with it where negative. 1 changes nothing.
        logit_bias: numbers from -100 to 100 by token id, added to the logits; -100 bans the token.
        logits_processors: functions `(tokens, logits) -> logits`, called with every id before the token to choose,
            int64 (T,), and logits float32 (V,), after biases and penalties. They must be pure functions: they are asked
            about drafts, too, in any order.
        response_format: what the answer must be, as in OpenAI's API: {"type": "json_object"}, or {"type":
            "json_schema", "json_schema": {"schema": {...}}}. It may be cut short by `max_tokens`. Needs the extra
            `grammar`, as do the next two.
        grammar: a grammar that the answer must follow, in llguidance's dialect of Lark or in llama.cpp's GBNF.
        regex: a regular expression (of Rust's crate `regex`, without look-around) that the whole answer must match.
        stop: strings that end the answer and are not part of its text.
        stop_token_ids: token ids that end the answer, in addition to the model's own end tokens.
        ignore_eos: the model's own end tokens do not end the answer: it goes on to `max_tokens`, or to a stop. For
            benchmarks. Not with a grammar, which has an end of its own.
        chat: put a text prompt into the model's chat template as a user's message, if it has one; False takes the text
            as it is.
        literal: the names of control tokens in chat messages, such as "<|im_end|>", are text like any other. False
            makes them those tokens, which end turns and begin others: only for messages whose text is trusted.
        chat_template_kwargs: variables that the model's chat template asks for by name, such as `enable_thinking` or
            `tools`; also `add_generation_prompt` and `continue_final_message`.
        speculate: False decodes one token at a time.
        trust: entropy in nats under which a draft token is accepted without verification. The answer is then not that
            of plain decoding, and its `identical_to` says so. None verifies every token.
        logprobs: return each token's log-probability, and those of this many most likely tokens (0 to 20): the
            log-softmax of the model's logits, before masks, penalties and temperature. None returns none.
        prompt_logprobs: the same for the tokens of the prompt. Reads the whole prompt again, even if a part is cached.
        trace: file that gets a JSON line for every round.

    Raises:
        OptionError: a value is out of range.
    """

    max_tokens: int = field(default=256, metadata=flag(int, "N", "longest answer, in tokens"))
    draft_effort: float | EffortSchedule | None = field(
        default=None,
        metadata=flag(float, "E", "share of the multiplications of a draft step, in (0, 1]", "chosen by the policy"),
    )
    draft_view: str = field(
        default="auto",
        metadata=flag(
            str, "VIEW", "form of the weights that drafts read: auto, bucket, int4, ...; several with commas"
        ),
    )
    verify_effort: float | EffortSchedule = field(
        default=1.0, metadata=flag(float, "E", "share of the multiplications of verification; below 1 is lossy")
    )
    draft_len: int = field(default=4, metadata=flag(int, "K", "tokens that the policy `fixed` drafts in a round"))
    policy: str | Policy = field(
        default="auto",
        metadata=flag(str, "NAME[:KEY=VALUE,...]", "what decides how much to draft: a name, or a FILE.yaml"),
    )
    drafter: str | Drafter | Sequence[str | Drafter] = field(
        default="auto", metadata=flag(str, "NAME[:ARGUMENT]", "what proposes tokens; several with semicolons")
    )
    temperature: float = field(
        default=0.0, metadata=flag(float, "T", "0 takes the most likely token; above 0, tokens are sampled")
    )
    top_k: int = field(default=0, metadata=flag(int, "K", "sample from the K most likely tokens; 0 means all"))
    top_p: float = field(
        default=1.0, metadata=flag(float, "P", "sample from the smallest set of tokens with this total probability")
    )
    min_p: float = field(
        default=0.0, metadata=flag(float, "P", "sample from tokens at least P times as likely as the most likely one")
    )
    seed: int | None = field(default=None, metadata=flag(int, "N", "random seed for sampling", "random, printed"))
    presence_penalty: float = field(
        default=0.0, metadata=flag(float, "P", "subtract P from the logits of tokens that occur in the answer")
    )
    frequency_penalty: float = field(
        default=0.0, metadata=flag(float, "P", "the same, times the number of occurrences")
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata=flag(float, "P", "divide positive logits of tokens in prompt and answer by P, multiply negative ones"),
    )
    logit_bias: Mapping[int, float] | None = field(
        default=None,
        metadata=flag(
            dict, "ID=BIAS", "add BIAS to the logit of a token; -100 bans it; repeatable", "none", parse=bias_argument
        ),
    )
    logits_processors: Sequence[LogitsProcessor] = field(
        default=(),
        metadata=flag(
            list,
            "MODULE:FUNCTION",
            "function (tokens, logits) -> logits; repeatable",
            "none",
            name="--logits-processor",
            parse=processor_argument,
        ),
    )
    response_format: Mapping[str, Any] | None = field(
        default=None,
        metadata=flag(
            str, "FORMAT", "json_object, or an OpenAI response format as JSON", "text", parse=format_argument
        ),
    )
    grammar: str | None = field(
        default=None, metadata=flag(str, "TEXT", "grammar in Lark or GBNF that the answer must follow", "none")
    )
    regex: str | None = field(
        default=None, metadata=flag(str, "PATTERN", "regular expression that the answer must match", "none")
    )
    stop: str | Sequence[str] = field(
        default=(), metadata=flag(list, "TEXT", "end the answer before this text; repeatable", "none")
    )
    stop_token_ids: Sequence[int] = field(
        default=(),
        metadata=flag(
            list, "ID", "end the answer at this token; repeatable", "none", name="--stop-token-id", parse=int
        ),
    )
    ignore_eos: bool = field(
        default=False,
        metadata=flag(bool, "", "continue after the model's end tokens, for benchmarks", name="--ignore-eos"),
    )
    chat: bool = field(
        default=True, metadata=flag(bool, "", "use the prompt as it is, without the chat template", name="--raw")
    )
    literal: bool = field(
        default=True,
        metadata=flag(
            bool, "", "names of control tokens in messages are control tokens (for trusted text only)", name="--markup"
        ),
    )
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None,
        metadata=flag(
            dict,
            "KEY=VALUE",
            "variable of the chat template; repeatable",
            "none",
            name="--template-arg",
            parse=template_argument,
        ),
    )
    speculate: bool = field(default=True, metadata=flag(bool, "", "decode without speculation", name="--plain"))
    trust: float | None = field(
        default=None,
        metadata=flag(
            float,
            "H",
            "accept draft tokens with entropy below H nats without verification (lossy, reported in the output)",
            "verify all",
        ),
    )
    logprobs: int | None = field(
        default=None,
        metadata=flag(int, "N", "log-probability of each token and of the N most likely ones, with --json", "none"),
    )
    prompt_logprobs: int | None = field(
        default=None, metadata=flag(int, "N", "the same for the prompt, with --json", "none")
    )
    trace: str | Path | None = field(
        default=None, metadata=flag(str, "FILE.jsonl", "write one JSON line for every round", "no trace")
    )

    def __post_init__(self) -> None:
        for name in ("ignore_eos", "chat", "literal", "speculate"):
            _set(self, name, check_flag(name, getattr(self, name)))
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _set(self, name, check_whole(name, getattr(self, name), least=0, most=MOST_LOGPROBS))
        least = 1 if self.prompt_logprobs is None else 0
        _set(self, "max_tokens", check_whole("max_tokens", self.max_tokens, least=least))
        instead = ("speculate", "to decode without drafts")
        _set(self, "draft_len", check_whole("draft_len", self.draft_len, least=1, instead=instead))
        if self.draft_effort is not None:
            _set(self, "draft_effort", effort_schedule("draft_effort", self.draft_effort))
        _set(self, "verify_effort", effort_schedule("verify_effort", self.verify_effort))
        if self.trust is not None and not (is_number(self.trust) and self.trust > 0):
            raise OptionError("trust", f"must be an entropy above 0 nats, not {self.trust!r}")
        if self.trace is not None and (not isinstance(self.trace, (str, PathLike)) or "\0" in str(self.trace)):
            raise OptionError("trace", f"must be the path of a file, not {self.trace!r}")
        if not isinstance(self.draft_view, str):
            raise OptionError("draft_view", f"must be the name of a view, not {self.draft_view!r}")
        self._check_drafting()
        _set(self, "stop", stop_strings(self.stop))
        _set(self, "stop_token_ids", stop_ids(self.stop_token_ids))
        _set(self, "logit_bias", checked_bias(self.logit_bias))
        _set(self, "logits_processors", checked_processors(self.logits_processors))
        check_variables(self.chat_template_kwargs)
        _ = self.sampling, self.penalties  # checks them
        if self.seed is not None:
            _set(self, "seed", int(self.seed))
        if self.ignore_eos and self.asked_grammar is not None:
            raise OptionError("ignore_eos", "cannot be combined with a grammar, whose end is the answer's")

    def _check_drafting(self) -> None:
        _set(self, "drafter", tuple(self.drafter) if isinstance(self.drafter, (list, tuple)) else (self.drafter,))
        if not self.drafters:
            raise OptionError("drafter", "must be at least one", instead=("speculate", "to decode without drafts"))
        named = [("policy", Policy, self.policy), *(("drafter", Drafter, drafter) for drafter in self.drafters)]
        for name, kind, value in named:
            try:
                fits = isinstance(value, (str, kind))
            except unless_signalled(Exception) as error:  # a property of the object
                raise PluginError.raised(name, type(value).__name__, error, doing="its properties") from error
            if not fits:
                raise OptionError(name, f"must be a name or an object with a {name}'s methods, not {value!r}")

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are drawn."""
        seed = 0 if self.seed is None else self.seed
        return SamplingParams(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, seed=seed
        )

    @property
    def penalties(self) -> Penalties:
        """What tokens lose that the text has already."""
        return Penalties(
            presence=self.presence_penalty, frequency=self.frequency_penalty, repetition=self.repetition_penalty
        )

    @property
    def asked_grammar(self) -> Grammar | None:
        """What the answer must follow; None for any text."""
        return asked_grammar(self.response_format, self.grammar, self.regex)

    @property
    def biases(self) -> dict[int, float]:
        """Biases by token id; empty where there are none."""
        return dict(self.logit_bias or {})

    def seeded(self) -> Options:
        """The same with a seed, a random one where the caller named none. Greedy decoding needs none."""
        if self.seed is not None or not self.temperature:
            return self
        return replace(self, seed=secrets.randbits(32))

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
        OptionError: a value is out of range, or has no effect together with the others.
    """
    if unknown := set(arguments) - set(FLAGS):
        raise TypeError(f"{caller}() has no option {min(unknown)!r}: choose from {', '.join(FLAGS)}")
    options = Options(**arguments)
    check_useful(arguments)
    return options


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
            number = math.nan if isinstance(value, bool) else _number(value)
            if kind is float:
                value = float(number)
            elif isinstance(number, int) or number.is_integer():
                value = int(number)
        except unless_signalled(TypeError, ValueError, OverflowError):
            raise OptionError(name, f"must be a number, not {value!r}") from None
    elif kind is str and (not isinstance(value, str) or not value):
        raise OptionError(name, f"must be a name, not {value!r}")
    Options(**{name: value})
    return value


def _number(value: Any) -> int | float:
    """A number, or the text of one; a whole one with all its digits, since a float holds 53 bits."""
    try:
        return int(value) if isinstance(value, int | str) else float(value)
    except ValueError:
        return float(value)


def flag_of(name: str) -> str:
    """An option's flag on the command line, "--draft-len"."""
    flag = FLAGS.get(name)
    return flag.name if flag is not None and flag.name else "--" + name.replace("_", "-")


def _set(options: Options, name: str, value: object) -> None:
    object.__setattr__(options, name, value)

"""The library's two verbs, `stream` and `generate`: from a caller's arguments to a running generation."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from specdec.drafters.base import DraftContext, Drafter, DrafterSetup
from specdec.drafters.registry import create as create_drafter
from specdec.effort import EffortSchedule
from specdec.engine.efforts import EffortScale, describe_target
from specdec.engine.engine import Engine, Speculation
from specdec.engine.generation import Generation
from specdec.engine.policy_guard import GuardedPolicy
from specdec.engine.prompt import EncodedPrompt, Prompt, encode_prompt
from specdec.engine.result import Result
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.engine.settings import GenerationSettings, effort_schedule, stop_strings
from specdec.engine.stops import StopStrings
from specdec.engine.trace import TraceWriter
from specdec.errors import InvalidArgumentError, UnknownNameError
from specdec.policies.base import DraftOption, Policy
from specdec.policies.registry import create as create_policy

if TYPE_CHECKING:
    from specdec.model import Model
    from specdec.tokenizers import Tokenizer

AUTO_DRAFTERS = ("effort",)  # what the drafter "auto" offers

P = ParamSpec("P")
R = TypeVar("R")


def stream(
    model: Model,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    draft_effort: float | EffortSchedule = 0.15,
    draft_view: str = "bucket",
    verify_effort: float | EffortSchedule = 1.0,
    draft_len: int = 4,
    policy: str | Policy = "fixed",
    drafter: str | Drafter | Sequence[str | Drafter] = "effort",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    chat: bool = True,
    speculate: bool = True,
    trace: str | Path | None = None,
) -> Generation:
    """Begin an answer; iterate over what comes back for its pieces, with `piece.text` and `piece.tokens`.

    The tokens are those of plain decoding at `verify_effort` with the same sampling arguments, whatever the draft
    arguments say. Arguments are checked here; the model runs as the pieces are asked for.

    Args:
        model: from `specdec.load`.
        prompt: text, token ids, or chat messages (mappings with "role" and "content").
        max_tokens: most tokens to generate; the model's context may end the answer before.
        draft_effort: share of the multiplications that a draft step performs, in (0, 1], or a schedule by matrix.
        draft_view: layout of the weights that drafts are made with: "bucket", "int4", or another one that the runtime
            has; "exact" is the verifier's own, "auto" the one that measured fastest on the model's runtime. Several,
            with commas between, are offered to the policy, which may choose for each round.
        verify_effort: share of the multiplications that verification performs; 1.0 is the model itself.
        draft_len: tokens that the policy "fixed" drafts a round.
        policy: decides how many tokens to draft and at what effort: a name, `name:key=value,key=value`, or an object
            with the methods of `specdec.policies.base.Policy`, which then serves this generation only.
        drafter: proposes tokens: a name, `name:argument`, or an object as in `specdec.drafters.base`. Several, as a
            sequence or with semicolons between, are offered to the policy, which may choose for each round; "auto"
            offers the model itself at low effort and lookup in the text so far.
        temperature: 0 always takes the likeliest token; above 0, tokens are drawn, 1.0 from the model's distribution.
        top_k: draw from the k likeliest tokens only; 0 from all.
        top_p: draw from the fewest likeliest tokens that hold this probability together.
        min_p: draw from tokens at least this fraction as likely as the likeliest.
        seed: of the draw; equal seeds give equal answers.
        stop: strings that end the answer and are not part of its text.
        chat: put a text prompt into the model's chat template as a user's message, if it has one; False takes the text
            as it is.
        speculate: False decodes one token at a time.
        trace: file that gets a JSON line for every round.

    Raises:
        InvalidArgumentError: an argument is out of range or contradicts another one, or the prompt does not fit.
        UnknownNameError: no policy, drafter or draft view of that name.

    Warns:
        UserWarning: drafting at a higher effort than verification.
    """
    settings = GenerationSettings(
        max_tokens=max_tokens,
        draft_effort=effort_schedule("draft_effort", draft_effort),
        draft_view=draft_view,
        verify_effort=effort_schedule("verify_effort", verify_effort),
        draft_len=draft_len,
        policy=policy,
        drafter=tuple(drafter) if isinstance(drafter, (list, tuple)) else cast("str | Drafter", drafter),
        sampling=SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed),
        stop=stop_strings(stop),
        speculate=speculate,
    )
    return _begin(model, encode_prompt(prompt, model.tokenizer, model.config, chat=chat), settings, trace)


def _with_arguments_of(source: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function that passes all its arguments on the signature of the one that takes them."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        returns = inspect.signature(function).return_annotation
        signature = inspect.signature(source).replace(return_annotation=returns)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return cast("Callable[P, R]", function)

    return decorate


@_with_arguments_of(stream)
def generate(*arguments: Any, **options: Any) -> Result:
    """Generate a whole answer. Arguments, errors and warnings are those of `stream`.

    Returns:
        Text, tokens, statistics, and what they are identical to.
    """
    with stream(*arguments, **options) as generation:
        for _ in generation:
            pass
        return generation.result()


def _begin(model: Model, prompt: EncodedPrompt, settings: GenerationSettings, trace: str | Path | None) -> Generation:
    config, tokenizer = model.config, model.tokenizer
    identical_to = describe_target(settings.verify_effort, config)
    end_tokens, stops = _end_conditions(tokenizer, settings.stop)
    engine = Engine(
        model.runtime,
        prompt.ids,
        limit=min(len(prompt.ids) + settings.max_tokens, config.max_context),
        effort=settings.verify_effort,
        sampler=Sampler(settings.sampling),
    )
    if settings.speculate:
        engine.speculation = _speculation(model, engine, settings, end_tokens)
    return Generation(
        engine,
        max_tokens=settings.max_tokens,
        end_tokens=end_tokens,
        stops=stops,
        detokenizer=None if tokenizer is None else tokenizer.detokenizer(continues=prompt.continues),
        identical_to=identical_to,
        draft_view=None if engine.speculation is None else engine.speculation.options[0].view,
        trace=None if trace is None else TraceWriter(trace),
    )


def _end_conditions(tokenizer: Tokenizer | None, stops: tuple[str, ...]) -> tuple[frozenset[int], StopStrings]:
    """Ids that end an answer, and a watch for the stop strings that are text.

    A stop string that is a single control token, such as "<|im_end|>", never shows up in the text: its id ends the
    answer instead.
    """
    if tokenizer is None:
        if stops:
            raise InvalidArgumentError("this model has no tokenizer: stop strings need one")
        return frozenset(), StopStrings()
    ids = {stop: tokenizer.encode(stop, add_bos=False) for stop in stops}
    texts = {stop: tokenizer.decode(ids[stop], skip_special=True, continues=True) for stop in stops}
    controls = {stop for stop in stops if len(ids[stop]) == 1 and not texts[stop]}
    end_tokens = tokenizer.eos_ids | {ids[stop][0] for stop in controls}
    return end_tokens, StopStrings(stop for stop in stops if stop not in controls)


def _speculation(model: Model, engine: Engine, settings: GenerationSettings, end_tokens: frozenset[int]) -> Speculation:
    efforts = EffortScale(settings.draft_effort, model.config)
    verify_effort = settings.verify_effort.mean(model.config)
    if efforts.mean > verify_effort:
        warnings.warn(
            f"draft effort {efforts.mean:g} is above verify effort {verify_effort:g}: drafts cost more than they save",
            stacklevel=4,  # the caller of stream
        )
    policy = settings.policy
    policy_name = policy.partition(":")[0] if isinstance(policy, str) else type(policy).__name__
    drafters = _drafters(model, settings)
    return Speculation(
        drafters=drafters,
        options=_options(model, drafters, settings.draft_view.split(",")[1:]),
        policy=GuardedPolicy(create_policy(policy) if isinstance(policy, str) else policy, policy_name),
        context=DraftContext(
            history=engine.tokens,
            cache=engine.cache,
            efforts=efforts,
            sample=engine.sampler,
            end_tokens=end_tokens,
            prompt_length=len(engine.tokens),
        ),
        draft_len=settings.draft_len,
        draft_effort=efforts.mean,
        verify_effort=verify_effort,
        temperature=settings.sampling.temperature,
    )


def _drafters(model: Model, settings: GenerationSettings) -> dict[str, Drafter]:
    """The drafters that were asked for, by name, in order.

    Raises:
        InvalidArgumentError: one is asked for twice.
    """
    tokenizer = model.tokenizer
    setup = DrafterSetup(
        model.runtime,
        settings.draft_view.split(",")[0],
        vocabulary=None if tokenizer is None else tokenizer.fingerprint,
        tokenizer=tokenizer,
        load_model=model.load_other,
        shared=model.shared,
    )
    asked: list[str | Drafter] = []
    for one in settings.drafter if isinstance(settings.drafter, tuple) else (settings.drafter,):
        asked += [part.strip() for part in one.split(";")] if isinstance(one, str) else [one]
    drafters: dict[str, Drafter] = {}
    for one in asked:
        for spec in AUTO_DRAFTERS if one == "auto" else (one,):
            name = spec if isinstance(spec, str) else type(spec).__name__
            if name in drafters:
                raise InvalidArgumentError(f"drafter {name!r} is asked for twice")
            drafters[name] = create_drafter(spec, setup) if isinstance(spec, str) else spec
    return drafters


def _options(model: Model, drafters: dict[str, Drafter], further_views: Sequence[str]) -> tuple[DraftOption, ...]:
    """What a round may use: every drafter with its first view, and with the further ones that the caller named.

    Raises:
        UnknownNameError: no drafter reads such a view.
    """
    offered: list[DraftOption] = []
    for name, drafter in drafters.items():
        views: list[str | None] = list(drafter.views[:1]) or [None]
        views += [view for view in further_views if view in drafter.views and view not in views]
        offered += [DraftOption(name, view, drafter.takes_effort) for view in views]
    known = sorted({view for drafter in drafters.values() for view in drafter.views})
    for view in further_views:
        if view not in known:
            raise UnknownNameError("draft view", view, known)
        model.runtime.prepare_view(view)
    return tuple(offered)

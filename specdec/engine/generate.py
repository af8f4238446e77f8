"""The library's two verbs, `stream` and `generate`: from a caller's arguments to a running generation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from specdec.drafters.base import Drafter
from specdec.engine.efforts import describe_target
from specdec.engine.generation import Generation
from specdec.engine.options import GenerationSettings, effort_schedule, stop_strings
from specdec.engine.policy import Policy
from specdec.engine.prompt import EncodedPrompt, Prompt, encode_prompt
from specdec.engine.result import Result
from specdec.engine.round import Engine
from specdec.engine.sampler import Sampler, SamplingParams
from specdec.engine.speculation import speculation
from specdec.engine.stops import StopStrings
from specdec.engine.trace import TraceWriter
from specdec.errors import InvalidArgumentError
from specdec.model.effort import EffortSchedule

if TYPE_CHECKING:
    from specdec.model.loaded import Model
    from specdec.tokenizers import Tokenizer

P = ParamSpec("P")
R = TypeVar("R")


def stream(
    model: Model,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    draft_effort: float | EffortSchedule | None = None,
    draft_view: str = "auto",
    verify_effort: float | EffortSchedule = 1.0,
    draft_len: int = 4,
    policy: str | Policy = "auto",
    drafter: str | Drafter | Sequence[str | Drafter] = "auto",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    chat: bool = True,
    speculate: bool = True,
    trust: float | None = None,
    trace: str | Path | None = None,
) -> Generation:
    """Begin an answer; iterate over what comes back for its pieces, with `piece.text` and `piece.tokens`.

    The tokens are those of plain decoding at `verify_effort` with the same sampling arguments, whatever the draft
    arguments say. Arguments are checked here; the model runs as the pieces are asked for.

    Args:
        model: from `specdec.load`.
        prompt: text, token ids, or chat messages (mappings with "role" and "content").
        max_tokens: most tokens to generate; the model's context may end the answer before.
        draft_effort: share of the multiplications that a draft step performs, in (0, 1], or a schedule by matrix. None
            leaves it to the policy; one that does not choose efforts takes what measured fastest on the runtime.
        draft_view: layout of the weights that drafts are made with: "bucket", "int4", or another one that the runtime
            has; "exact" is the verifier's own, "auto" the one that measured fastest on the model's runtime. Several,
            with commas between, are offered to the policy, which may choose for each round.
        verify_effort: share of the multiplications that verification performs; 1.0 is the model itself.
        draft_len: tokens that the policy "fixed" drafts a round.
        policy: decides what to draft with, how many tokens and at what effort: a name, `name:key=value,key=value`, a
            policy file `FILE.yaml`, or an object with the methods of `specdec.engine.policy.Policy`, which then serves
            this generation only. "auto" is "goodput": expected tokens a second by this machine's costs.
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
        trust: entropy in nats under which a draft token is taken without a check. The answer is then no longer that of
            plain decoding, and its `identical_to` says so. None checks every token.
        trace: file that gets a JSON line for every round.

    Raises:
        InvalidArgumentError: an argument is out of range or contradicts another one, or the prompt does not fit.
        UnknownNameError: no policy, drafter or draft view of that name.

    Warns:
        UserWarning: drafting at a higher effort than verification.
    """
    settings = GenerationSettings(
        max_tokens=max_tokens,
        draft_effort=None if draft_effort is None else effort_schedule("draft_effort", draft_effort),
        draft_view=draft_view,
        verify_effort=effort_schedule("verify_effort", verify_effort),
        draft_len=draft_len,
        policy=policy,
        drafter=tuple(drafter) if isinstance(drafter, (list, tuple)) else cast("str | Drafter", drafter),
        sampling=SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed),
        stop=stop_strings(stop),
        speculate=speculate,
        trust=trust,
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
    if model.store is not None and model.store.loaded_share < 1:
        identical_to = f"{identical_to} at {model.store.loaded_share:.3f} of the weights"
    end_tokens, stops = _end_conditions(tokenizer, settings.stop)
    limit, effort = min(len(prompt.ids) + settings.max_tokens, config.max_context), settings.verify_effort
    kept = model.prompt_cache
    engine = Engine(
        model.runtime,
        prompt.ids,
        limit=limit,
        effort=effort,
        sampler=Sampler(settings.sampling),
        cache=None if kept is None else kept.take(prompt.ids, effort=effort, capacity=limit),
    )
    if settings.speculate:
        engine.speculation = speculation(model, engine, settings, end_tokens)
    return Generation(
        engine,
        max_tokens=settings.max_tokens,
        end_tokens=end_tokens,
        stops=stops,
        detokenizer=None if tokenizer is None else tokenizer.detokenizer(continues=prompt.continues),
        identical_to=identical_to,
        draft_view=None if engine.speculation is None else engine.speculation.options[0].view,
        trace=None if trace is None else TraceWriter(trace),
        prompt_cache=kept,
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

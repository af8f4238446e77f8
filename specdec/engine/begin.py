"""From a caller's arguments to an `Answer` that is ready to run: `begin`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from specdec.engine.answer import Answer
from specdec.engine.chooser import Rules
from specdec.engine.efforts import describe_target
from specdec.engine.options import OptionArguments, Options, options_of
from specdec.engine.prompt import EncodedPrompt, Prompt, encode_prompt
from specdec.engine.prompt_cache import PromptCache
from specdec.engine.sampler import Sampler
from specdec.engine.sequence import ChooserMaker, Sequence
from specdec.engine.speculation import choose_drafting
from specdec.engine.stops import StopStrings
from specdec.engine.trace import TraceWriter
from specdec.errors import InvalidArgumentError, OptionError
from specdec.model.effort import resolve_efforts
from specdec.progress import CallersProgress, Progress, check_progress

if TYPE_CHECKING:
    from specdec.model.loaded import Model
    from specdec.tokenizers import Tokenizer


def check_model(model: object, caller: str) -> None:
    """Refuse anything but a model, for instance its name.

    Args:
        model: that the caller got.
        caller: name of the function or class that it was given to.

    Raises:
        InvalidArgumentError: it is something else.
    """
    if not hasattr(model, "prompt_cache"):
        raise InvalidArgumentError(f"{caller} needs a model that specdec.load returned, not {model!r}")


def begin(
    model: Model, prompt: Prompt, arguments: OptionArguments, *, caller: str, progress: Progress | None = None
) -> Answer:
    """An answer before its first pass. Arguments are checked here; nothing runs but what builds draft views and
    measures the machine's costs.

    Args:
        model: from `specdec.load`.
        prompt: text, token ids, or chat messages.
        arguments: see `Options`.
        caller: name of the function that the arguments were given to.
        progress: reports draft views that are built, and the prompt as it is read.

    Raises:
        InvalidArgumentError: an argument is out of range or contradicts another one, or the prompt does not fit.
        UnknownNameError: no policy, drafter or draft view of that name.
        TypeError: an argument that there is not.
    """
    check_model(model, caller)
    answer = ask(model, prompt, arguments, caller=caller, progress=progress, prompt_cache=model.prompt_cache)
    sequence, kept = answer.sequence, model.prompt_cache
    assert sequence is not None
    try:
        with model.lock:
            cache = None
            if kept is not None and sequence.prompt_logprobs is None:  # what was read before has left no logits
                cache = kept.take(model.runtime, sequence.tokens, efforts=sequence.efforts, capacity=sequence.limit)
            answer.start(cache)
    except BaseException:
        answer.close()
        raise
    return answer


def ask(
    model: Model,
    prompt: Prompt,
    arguments: OptionArguments,
    *,
    caller: str,
    owner: str | None = None,
    progress: Progress | None = None,
    prompt_cache: PromptCache | None = None,
    chooser: ChooserMaker | None = None,
    end_tokens: Collection[int] | None = None,
) -> Answer:
    """An answer that has yet to be started. Arguments are checked here; nothing waits for passes that run, unless a
    draft view has yet to be made ready.

    Arguments and errors are those of `begin`. Drafters learn from earlier answers of `owner`, and keep this one for its
    later ones; None for neither. `prompt_cache` gets the keys and values at the answer's end. `chooser` chooses the
    tokens in place of the sampling options, see `Sequence`; `end_tokens` end the answer in place of the tokenizer's.
    """
    check_progress(progress)
    progress = None if progress is None else CallersProgress(progress)
    options = options_of(arguments, caller).seeded()
    encoded = encode_prompt(
        prompt,
        model.tokenizer,
        model.config,
        chat=options.chat,
        literal=options.literal,
        variables=options.chat_template_kwargs,
        max_tokens=options.max_tokens,
    )
    config, tokenizer = model.config, model.tokenizer
    stop_tokens, stops = _stops(tokenizer, tuple(options.stop))
    own_ends = _end_tokens(model, options)
    ends = (own_ends if end_tokens is None else frozenset(end_tokens)) | stop_tokens.keys()
    sequence = Sequence(
        model.runtime,
        encoded.ids,
        limit=min(len(encoded.ids) + options.max_tokens, config.max_context),
        efforts=resolve_efforts(options.verify_effort, config),
        sampler=Sampler(options.sampling),
        rules=_rules(model, encoded, options),
        logprobs=options.logprobs,
        prompt_logprobs=options.prompt_logprobs,
        reads_only=options.max_tokens == 0,
        chooser=chooser,
    )
    return Answer(
        sequence,
        max_tokens=options.max_tokens,
        end_tokens=ends,
        stop_tokens=stop_tokens,
        stops=stops,
        detokenizer=None if tokenizer is None else tokenizer.detokenizer(continues=encoded.continues),
        identical_to=_identical_to(model, options),
        seed=options.seed,
        has_logprobs=options.logprobs is not None,
        drafting=choose_drafting(model, options, owner=owner, progress=progress)
        if options.speculate and options.max_tokens
        else None,
        trace=None if options.trace is None else TraceWriter(options.trace),
        prompt_cache=prompt_cache,
        lock=model.lock,
        progress=progress,
    )


def _rules(model: Model, prompt: EncodedPrompt, options: Options) -> Rules:
    """What the options ask of the tokens, other than sampling.

    Raises:
        OptionError: a bias for a token that the model does not have, or a grammar that cannot be used.
    """
    size = model.config.vocab_size
    for token in options.biases:
        if token >= size:
            raise OptionError("logit_bias", f"must have token ids from 0 to {size - 1} for this model, not {token}")
    asked, constraint = options.asked_grammar, None
    if asked is not None:
        constraint = model.memory.grammars.constraint(asked, model.tokenizer, size, continues=prompt.continues)
    return Rules(
        bias=options.biases,
        penalties=options.penalties,
        processors=tuple(options.logits_processors),
        constraint=constraint,
    )


def _end_tokens(model: Model, options: Options) -> frozenset[int]:
    """Ids that end the answer; stop strings have ids of their own.

    Raises:
        OptionError: an id that the model does not have.
    """
    size = model.config.vocab_size
    for token in options.stop_token_ids:
        if token >= size:
            raise OptionError("stop_token_ids", f"must be token ids from 0 to {size - 1} for this model, not {token}")
    own = frozenset() if model.tokenizer is None or options.ignore_eos else model.tokenizer.eos_ids
    return own | frozenset(options.stop_token_ids)


def _identical_to(model: Model, options: Options) -> str:
    """What plain decoding with these options is."""
    target = describe_target(options.verify_schedule, model.config)
    if model.store is not None and target != "dense":
        target = f"{target} by {model.store.selection}"
    if model.store is not None and model.store.loaded_share < 1:
        target = f"{target} at {model.store.loaded_share:.3f} of the weights"
    return target


def _stops(tokenizer: Tokenizer | None, stops: tuple[str, ...]) -> tuple[dict[int, str], StopStrings]:
    """Stop strings that are control tokens, by id, and a watch for the others.

    A stop string that is a single control token, such as "<|im_end|>", never shows up in the text: its id ends the
    answer instead. One with control tokens among its text is looked for in the text with them.
    """
    if tokenizer is None:
        if stops:
            raise InvalidArgumentError("this model has no tokenizer: stop strings need one")
        return {}, StopStrings()
    controls = {stop: tokenizer.control_id(stop) for stop in stops}
    names = tokenizer.control_names
    mixed = [stop for stop in stops if controls[stop] is None and any(name in stop for name in names)]
    texts = [stop for stop in stops if controls[stop] is None and stop not in mixed]
    return {token: stop for stop, token in controls.items() if token is not None}, StopStrings(texts, mixed)

"""From a caller's arguments to an `Answer` that is ready to run: `begin`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specdec.engine.answer import Answer
from specdec.engine.efforts import describe_target
from specdec.engine.options import OptionArguments, Options, options_of
from specdec.engine.prompt import EncodedPrompt, Prompt, encode_prompt
from specdec.engine.sampler import Sampler
from specdec.engine.sequence import Sequence
from specdec.engine.speculation import make_speculation
from specdec.engine.stops import StopStrings
from specdec.engine.trace import TraceWriter
from specdec.errors import InvalidArgumentError
from specdec.model.effort import resolve_efforts
from specdec.progress import Progress, check_progress

if TYPE_CHECKING:
    from specdec.model.loaded import Model
    from specdec.tokenizers import Tokenizer


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
        progress: told of draft views that are built, and of the prompt as it is read.

    Raises:
        InvalidArgumentError: an argument is out of range or contradicts another one, or the prompt does not fit.
        UnknownNameError: no policy, drafter or draft view of that name.
        TypeError: an argument that there is not.
    """
    check_progress(progress)
    options = options_of(arguments, caller)
    encoded = encode_prompt(
        prompt,
        model.tokenizer,
        model.config,
        chat=options.chat,
        literal=options.literal,
        variables=options.chat_template_kwargs,
    )
    with model.lock:
        answer = _prepared(model, encoded, options, progress)
    try:
        answer.announce()
    except BaseException:
        answer.close()
        raise
    return answer


def _prepared(model: Model, prompt: EncodedPrompt, options: Options, progress: Progress | None) -> Answer:
    config, tokenizer, kept = model.config, model.tokenizer, model.prompt_cache
    end_tokens, stops = _end_conditions(tokenizer, tuple(options.stop))
    limit = min(len(prompt.ids) + options.max_tokens, config.max_context)
    efforts = resolve_efforts(options.verify_effort, config)
    taken = None if kept is None else kept.take(model.runtime, prompt.ids, efforts=efforts, capacity=limit)
    sequence = Sequence(
        model.runtime, prompt.ids, limit=limit, efforts=efforts, sampler=Sampler(options.sampling), cache=taken
    )
    if options.speculate:
        sequence.speculation = make_speculation(model, sequence, options, end_tokens, progress)
    return Answer(
        sequence,
        max_tokens=options.max_tokens,
        end_tokens=end_tokens,
        stops=stops,
        detokenizer=None if tokenizer is None else tokenizer.detokenizer(continues=prompt.continues),
        identical_to=_identical_to(model, options),
        draft_view=None if sequence.speculation is None else sequence.speculation.options[0].view,
        trace=None if options.trace is None else TraceWriter(options.trace),
        prompt_cache=kept,
        lock=model.lock,
        progress=progress,
    )


def _identical_to(model: Model, options: Options) -> str:
    """What plain decoding with these options is."""
    target = describe_target(options.verify_schedule, model.config)
    if model.store is not None and model.store.loaded_share < 1:
        target = f"{target} at {model.store.loaded_share:.3f} of the weights"
    return target


def _end_conditions(tokenizer: Tokenizer | None, stops: tuple[str, ...]) -> tuple[frozenset[int], StopStrings]:
    """Ids that end an answer, and a watch for the other stop strings.

    A stop string that is a single control token, such as "<|im_end|>", never shows up in the text: its id ends the
    answer instead. One with control tokens among its text is looked for in the text with them.
    """
    if tokenizer is None:
        if stops:
            raise InvalidArgumentError("this model has no tokenizer: stop strings need one")
        return frozenset(), StopStrings()
    controls = {stop: tokenizer.control_id(stop) for stop in stops}
    names = tokenizer.control_names
    mixed = [stop for stop in stops if controls[stop] is None and any(name in stop for name in names)]
    texts = [stop for stop in stops if controls[stop] is None and stop not in mixed]
    end_tokens = tokenizer.eos_ids | {token for token in controls.values() if token is not None}
    return end_tokens, StopStrings(texts, mixed)

"""mlx-lm's `generate`, `stream_generate` and `generate_step`. Batches are in `batch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from specdec.checks import check_count
from specdec.errors import InvalidArgumentError
from specdec.mlx_lm.answer import Request, Token, tokens_of
from specdec.mlx_lm.batch import BatchResponse, batch_generate
from specdec.mlx_lm.chooser import logprobs_of
from specdec.mlx_lm.foreign_tokenizer import wrapped
from specdec.mlx_lm.generate_utils import peak_memory_gb
from specdec.mlx_lm.refusals import check_cache_arguments
from specdec.mlx_lm.sample_utils import LogitsProcessor, Sampler

if TYPE_CHECKING:
    from specdec.model.loaded import Model

__all__ = [
    "BatchResponse",
    "GenerationResponse",
    "batch_generate",
    "generate",
    "generate_step",
    "generation_stream",
    "stream_generate",
]

generation_stream = mx.new_thread_local_stream(mx.default_device())


@dataclass
class GenerationResponse:
    """A token of an answer, with what it adds to the text.

    Attributes:
        text: new text; may be empty while a character is incomplete.
        token: id.
        logprobs: log-probabilities (V,) of the place, after logits processors, an MLX array.
        from_draft: the token was drafted, and the model agreed.
        prompt_tokens: of this call's prompt.
        prompt_tps: prompt tokens a second, up to the first token.
        generation_tokens: of the answer so far.
        generation_tps: tokens a second since the first one.
        peak_memory: 10^9 bytes of memory that the process has used at most.
        finish_reason: "stop" for a token that ends the answer, "length" for the last of `max_tokens`, else None.
    """

    text: str
    token: int
    logprobs: Any
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None


def generate_step(
    prompt: Any,
    model: Model,
    stream: Any = generation_stream,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: list[LogitsProcessor] | None = None,
    max_kv_size: int | None = None,
    prompt_cache: Any | None = None,
    prefill_step_size: int = 2048,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 5000,
    prompt_progress_callback: Callable[[int, int], None] | None = None,
    input_embeddings: Any | None = None,
) -> Iterator[tuple[int, Any]]:
    """The tokens of an answer with their log-probabilities (V,), until `max_tokens`; no token ends it.

    Arguments are those of `stream_generate`. `kv_group_size` and `quantized_kv_start` matter with `kv_bits` only.
    """
    check_cache_arguments(kv_bits=kv_bits, input_embeddings=input_embeddings)
    request = Request(
        prompt=_ids(prompt),
        max_tokens=max_tokens,
        sampler=sampler,
        processors=logits_processors or (),
        cache=prompt_cache,
        max_kv_size=max_kv_size,
        stream=stream,
    )
    step_size = check_count("prefill_step_size", prefill_step_size)
    tokens = tokens_of(model, request, step_size=step_size, progress=prompt_progress_callback)
    return ((one.token, logprobs_of(one.logits)) for one in tokens)


def stream_generate(
    model: Model,
    tokenizer: Any,
    prompt: str | Any | list[int],
    max_tokens: int = 256,
    draft_model: Model | None = None,
    stream: Any = generation_stream,
    **kwargs: Any,
) -> Iterator[GenerationResponse]:
    """The answer to a prompt, token by token. The tokens are those of plain decoding with the same functions.

    Args:
        model: from `load`.
        tokenizer: from `load`; one of Hugging Face's will do as well.
        prompt: text, which is taken as it is, or token ids.
        max_tokens: most tokens; -1 for as many as the context holds.
        draft_model: another model from `load` that drafts, with the same vocabulary; None lets the model draft for
            itself.
        stream: MLX stream that samplers and processors run in.
        kwargs: `sampler`, `logits_processors`, `prompt_cache`, `prefill_step_size`, `prompt_progress_callback`,
            `max_kv_size` and `num_draft_tokens` (of a round; 0 decodes plainly). `kv_bits` and `input_embeddings` are
            refused unless they are None.

    Raises:
        InvalidArgumentError: an argument is out of range or refused.
        ContextLengthError: the prompt leaves no room in the model's context.
        TypeError: an argument that there is not.
    """
    return _responses(model, tokenizer, prompt, max_tokens, draft_model, stream, with_logprobs=True, **kwargs)


def generate(model: Model, tokenizer: Any, prompt: str | list[int], verbose: bool = False, **kwargs: Any) -> str:
    """The whole answer to a prompt.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompt: text, which is taken as it is, or token ids.
        verbose: print the answer as it comes, and what it took.
        kwargs: see `stream_generate`.
    """
    given = {"max_tokens": 256, "draft_model": None, "stream": generation_stream} | kwargs
    first = [given.pop(name) for name in ("max_tokens", "draft_model", "stream")]
    text, last = "", None
    if verbose:
        print("=" * 10)
    for last in _responses(model, tokenizer, prompt, *first, with_logprobs=False, **given):
        text += last.text
        if verbose:
            print(last.text, end="", flush=True)
    if verbose and last is not None:
        print()
        print("=" * 10)
        if not text:
            print("No text generated for this prompt")
        else:
            print(f"Prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.3f} tokens-per-sec")
            print(f"Generation: {last.generation_tokens} tokens, {last.generation_tps:.3f} tokens-per-sec")
            print(f"Peak memory: {last.peak_memory:.3f} GB")
    return text


def _responses(
    model: Model,
    tokenizer: Any,
    prompt: Any,
    max_tokens: int,
    draft_model: Model | None,
    stream: Any,
    *,
    with_logprobs: bool,
    sampler: Sampler | None = None,
    logits_processors: Sequence[LogitsProcessor] | None = None,
    max_kv_size: int | None = None,
    prompt_cache: Any | None = None,
    prefill_step_size: int = 2048,
    kv_bits: int | None = None,
    kv_group_size: int = 64,  # means something with kv_bits only
    quantized_kv_start: int = 5000,  # likewise
    prompt_progress_callback: Callable[[int, int], None] | None = None,
    input_embeddings: Any | None = None,
    num_draft_tokens: int | None = None,
) -> Iterator[GenerationResponse]:
    """The responses of `stream_generate`; without log-probabilities if they are not used."""
    if max_tokens == 0:
        raise InvalidArgumentError("max_tokens must be at least 1, or -1 for as many as the context holds, not 0")
    check_cache_arguments(kv_bits=kv_bits, input_embeddings=input_embeddings)
    words = wrapped(tokenizer)
    if isinstance(prompt, str):
        is_begun = words.bos_token is not None and prompt.startswith(words.bos_token)
        prompt = words.encode(prompt, add_special_tokens=not is_begun)
    request = Request(
        prompt=_ids(prompt),
        max_tokens=max_tokens,
        sampler=sampler,
        processors=logits_processors or (),
        cache=prompt_cache,
        max_kv_size=max_kv_size,
        end_tokens=frozenset(words.eos_token_ids),
        draft_model=draft_model,
        num_draft_tokens=num_draft_tokens,
        stream=stream,
    )
    step_size = check_count("prefill_step_size", prefill_step_size)
    tokens = tokens_of(model, request, step_size=step_size, progress=prompt_progress_callback)
    return _told(tokens, request, words.detokenizer, with_logprobs=with_logprobs)


def _told(
    tokens: Iterator[Token], request: Request, detokenizer: Any, *, with_logprobs: bool
) -> Iterator[GenerationResponse]:
    """A response for each token. The last one holds the text that was held back until then."""
    start_s, prompt_tps, size = time.perf_counter(), 0.0, len(request.prompt)
    for count, one in enumerate(tokens, start=1):
        if count == 1:
            prompt_tps = size / max(time.perf_counter() - start_s, 1e-9)
            start_s = time.perf_counter()
        finish_reason = None
        is_end = one.token in request.end_tokens
        if not is_end:
            detokenizer.add_token(one.token)
        if one.is_last:
            detokenizer.finalize()
            finish_reason = "stop" if is_end else "length"
        yield GenerationResponse(
            text=detokenizer.last_segment,
            token=one.token,
            logprobs=logprobs_of(one.logits) if with_logprobs else None,
            from_draft=one.from_draft,
            prompt_tokens=size,
            prompt_tps=prompt_tps,
            generation_tokens=count,
            generation_tps=count / max(time.perf_counter() - start_s, 1e-9),
            peak_memory=peak_memory_gb(),
            finish_reason=finish_reason,
        )


def _ids(prompt: Any) -> list[int]:
    """Token ids of a list or an array."""
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    return list(values)

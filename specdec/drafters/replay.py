"""Drafting from a stored answer: the upper bound of what drafting can give, and the ceiling in benchmarks."""

from __future__ import annotations

from pathlib import Path

from specdec.drafters.arguments import encode, read_text
from specdec.drafters.base import Draft, DraftContext, DrafterSetup
from specdec.engine.policy import DraftPlan, Policy
from specdec.errors import InvalidArgumentError
from specdec.parse import ParseError, parse_json

_MOST_CHARS = 1 << 22


class ReplayDrafter:
    """Proposes the tokens of a stored answer, found by their position in the answer; past its end, nothing.

    Where the model writes something else for a while, the stored tokens are still proposed, each at its place.

    Args:
        argument: a file: token ids as a JSON list, or else UTF-8 text.

    Raises:
        InvalidArgumentError: no file is named, it cannot be read, or it holds ids that the model does not have.
    """

    views: tuple[str, ...] = ()
    takes_effort = False

    def __init__(self, argument: str, setup: DrafterSetup) -> None:
        if not argument:
            raise InvalidArgumentError("drafter 'replay' needs a file, as in replay:answer.json")
        self._tokens = _stored_answer(Path(argument), setup)

    def draft(self, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:
        """Propose the stored tokens from here on."""
        return self.extend(Draft(), plan, context, policy=policy)

    def extend(self, draft: Draft, plan: DraftPlan, context: DraftContext, *, policy: Policy) -> Draft:  # noqa: ARG002
        """`draft` with stored tokens after it, as far as the plan and the stored answer go."""
        start = len(context.history) - context.prompt_length
        found = self._tokens[start + len(draft.tokens) : start + plan.num_draft_tokens]
        if draft.tokens and draft.tokens[-1] in context.end_tokens:
            return draft
        ends = [index for index, token in enumerate(found) if token in context.end_tokens]
        found = found[: ends[0] + 1] if ends else found
        if not found:
            return draft
        return Draft(
            tokens=[*draft.tokens, *found],
            bytes_read=draft.bytes_read,
            sources=[*draft.sources, *["replay"] * len(found)],
        )


def _stored_answer(path: Path, setup: DrafterSetup) -> list[int]:
    text = read_text("replay", path)
    try:
        stored = parse_json(text)
    except ParseError:
        stored = None
    if not isinstance(stored, list):  # a text may well be valid JSON of another kind, such as a number
        if len(text) > _MOST_CHARS:
            raise InvalidArgumentError(
                f"drafter 'replay' takes an answer of at most {_MOST_CHARS} characters, unlike {path}"
            )
        return encode("replay", path, text, setup.tokenizer)
    size = setup.runtime.config.vocab_size
    for token in stored:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
            raise InvalidArgumentError(
                f"drafter 'replay' needs a list of token ids from 0 to {size - 1}, and {path} holds {token!r}"
            )
    if not stored:
        raise InvalidArgumentError(f"drafter 'replay' needs at least one token id, and {path} holds none")
    return stored

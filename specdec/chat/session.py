"""A model in conversation: `Session` makes prompts that repeat earlier tokens exactly, and streams answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import specdec
from specdec.chat.conversation import Conversation, Turn
from specdec.engine.prompt import EncodedPrompt, encode_prompt
from specdec.engine.prompt_cache import PromptCache
from specdec.errors import InvalidArgumentError
from specdec.interrupts import take_interrupt
from specdec.server.answer_form import AnswerForm
from specdec.server.chat_reader import FormReader
from specdec.server.events import ChatRequest, ReasoningDelta, TextDelta
from specdec.server.logprobs import describer

if TYPE_CHECKING:
    from specdec.engine.result import Result
    from specdec.tokenizers import Tokenizer

Show = Callable[[TextDelta | ReasoningDelta], None]

_END_TOKENS = 32  # of a prompt; the chat template's last marker is among them


class Session:
    """Answers questions, and remembers them.

    Args:
        model: with a tokenizer and a chat template. It gets a prompt cache, so that nothing is read twice.
        options: keyword arguments of `specdec.stream`.
        conversation: to continue with; None begins one.

    Attributes:
        options: the same; may be changed between answers.
        conversation: so far.
        last: result of the last answer.
        retried: turn that the next answer replaces; it stays if there is no answer.

    Raises:
        InvalidArgumentError: the model has no chat template.
    """

    def __init__(self, model: specdec.Model, options: dict[str, Any], conversation: Conversation | None = None) -> None:
        tokenizer = model.tokenizer
        if tokenizer is None or not tokenizer.has_chat_template:
            raise InvalidArgumentError(
                "this model has no chat template, so it cannot chat: name an instruct model, or use specdec generate"
            )
        self._tokenizer: Tokenizer = tokenizer
        self._form = AnswerForm.of(tokenizer)
        self.model, self.options = model, options
        self.conversation = Conversation() if conversation is None else conversation
        self.last: Result | None = None
        self.retried: Turn | None = None
        model.prompt_cache = model.prompt_cache or PromptCache()

    def answer(self, question: str, show: Show) -> Result:
        """Answer a question; the turn is part of the conversation then, also when it was interrupted.

        Args:
            question: of the user.
            show: gets text and reasoning as they come.

        Returns:
            The result; its `stopped_by` is "caller" after Ctrl-C.

        Raises:
            InvalidArgumentError: the conversation does not fit into the context any more, or an option is wrong.
        """
        retried, self.retried = self.retried, None
        turns = self.conversation.turns
        before = len(turns)
        try:
            return self._answer(question, show)
        finally:
            if retried is not None and len(turns) == before:
                turns.append(retried)

    def _answer(self, question: str, show: Show) -> Result:
        template_ids, prompt = self._prompt(question)
        request = ChatRequest(messages=self.conversation.messages(question))
        end = self._tokenizer.decode(prompt.ids[-_END_TOKENS:], continues=True)
        reader = FormReader(
            self._form.parser(request, end), self._tokenizer.detokenizer().control, describer(self._tokenizer)
        )
        turn = Turn(question, prompt_ids=prompt.ids, template_ids=template_ids)

        def take(events: list[Any]) -> None:
            for event in events:
                if isinstance(event, TextDelta):
                    turn.answer += event.text
                elif isinstance(event, ReasoningDelta):
                    turn.reasoning += event.text
                else:
                    continue
                show(event)

        with specdec.stream(self.model, prompt, **self.options) as generation:
            try:
                for piece in generation:
                    take(reader.read(piece))
            except KeyboardInterrupt as interrupt:
                take_interrupt(interrupt)
                generation.close()
            self.last = generation.result()
        take(reader.finish(self.last))
        turn.answer_ids = self.last.tokens
        if turn.answer or turn.reasoning:
            self.conversation.turns.append(turn)
        return self.last

    def _prompt(self, question: str) -> tuple[list[int], EncodedPrompt]:
        """The prompt as template and tokenizer have it, and as the model is to read it: where the template repeats the
        last answer as it stands, so do its tokens. The tokenizer might cut the same text otherwise, and keys and values
        would have to be made again."""
        variables = dict(self.options.get("chat_template_kwargs") or {}) | {"add_generation_prompt": True}
        prompt = encode_prompt(
            self.conversation.messages(question),
            self._tokenizer,
            self.model.config,
            literal=self.options.get("literal", True),
            variables=variables,
            max_tokens=self.options.get("max_tokens"),
        )
        turn = self.conversation.turns[-1] if self.conversation.turns else None
        if turn is None or not turn.prompt_ids or turn.reasoning:
            return prompt.ids, prompt
        begin = len(turn.template_ids)
        canonical = self._tokenizer.encode(turn.answer, add_bos=False, literal=True) if turn.answer else []
        end = begin + len(canonical)
        if prompt.ids[:end] != turn.template_ids + canonical:
            return prompt.ids, prompt
        said = turn.answer_ids
        if said and said[-1] in self._tokenizer.eos_ids:
            said = said[:-1]
        if self._tokenizer.decode(said, skip_special=True, continues=True) != turn.answer:
            return prompt.ids, prompt  # a stop string was cut off
        return prompt.ids, EncodedPrompt([*turn.prompt_ids, *said, *prompt.ids[end:]], prompt.continues)

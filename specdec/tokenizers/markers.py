"""Tokens whose text alone says what they are: ends of an answer, and other marks that are never ordinary text.

Files often give such tokens a wrong type or name only one of several ends. What counts is listed here by text, as in
llama.cpp's list of tokens that end a generation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_TURN_ENDS = (
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>",
    "<|calls|>", "<|flush|>", "<|end_of_turn|>", "<end_of_turn>", "<turn|>", "<|tool_response>", "<end_of_utterance>",
    "<|EOT|>", "<EOT>", "_<EOT>", "\u2581<EOT>", "[EOT]", "[EOS]", "<eos>", "</s>", "[e~[",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
# A code model that completes a file continues with these into the padding, or into another file.
_FILE_ENDS = (
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
)  # fmt: skip
END_MARKERS = (*_TURN_ENDS, *_FILE_ENDS)
"""Tokens that end an answer; a model may name only one of them as its end of sequence."""

CONTROL_MARKERS = (
    *END_MARKERS, "<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>",
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>",
    "<|code_prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
    "\u2581<SUF>", "<|code_suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>",
    "<MID>", "\u2581<MID>", "<|code_middle|>",
)  # fmt: skip
"""Tokens that steer a model, whatever type a file gives them."""

AMBIGUOUS = frozenset(
    ("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[PAD]", "<PAD>", "<PRE>", "<SUF>", "<MID>", "<REPO>")
)
"""Markers that some vocabularies also have as ordinary text, of HTML for example."""


MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""What a token's text looks like when it is not text: <s>, [INST], <|im_end|>."""


def end_tokens(ids: Mapping[str, int]) -> set[int]:
    """Ids of the end markers of a vocabulary.

    Args:
        ids: text of every token, or at least of its end markers, to its id.
    """
    found = {text for text in END_MARKERS if text in ids}
    # In the formats of gpt-oss and Solar a message ends at <|end|> and the answer continues with the next message.
    if {"<|return|>", "<|call|>"} <= found or ({"<|call|>", "<|calls|>"} & found and "<|flush|>" in found):
        found.discard("<|end|>")
    # Gemma's vocabularies have </s> as a piece of HTML.
    if "<|tool_response>" in found or {"<eos>", "<end_of_turn>"} <= found:
        found.discard("</s>")
    return {ids[text] for text in found}

"""The named rules by which byte-level BPE models cut text before merging, and a tokenizer made of one.

A GGUF file names its rule in `tokenizer.ggml.pre`. The table has a row for each rule, with every name under which
llama.cpp's converter writes it; the regular expressions are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from specdec.errors import ModelFormatError
from specdec.interrupts import unless_signalled
from specdec.tokenizers.tokenizer_limits import check_added

DEFAULT = "default"

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Words change where capitals begin; %s is replaced by what may follow a word, and by numbers.
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ASCII_MARK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_MARKED_WORDS = (
    _ASCII_MARK + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters with a case, in the Unicode version of the model's own file.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_ASCII_AND_WIDE_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_NO_PUNCTUATION = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DIGIT, _THREE = r"\p{N}", r"\p{N}{1,3}"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one family of models prepares text.

    Attributes:
        patterns: each in turn cuts the parts so far at what it matches, which then stays together.
        names: what GGUF files call the rule.
        compose: text is brought into Unicode NFC first.
        whole_words: a word that is in the vocabulary is one token, whatever the merges say.
        add_bos: the family wants its first token added when the file does not say.
    """

    patterns: tuple[str, ...]
    names: tuple[str, ...]
    compose: bool = False
    whole_words: bool = False
    add_bos: bool = False


_LLAMA3 = Rule((_WORDS % _THREE,), (), whole_words=True, add_bos=True)

_TABLE = (
    # llama.cpp's own, for files that name no rule.
    Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), ("default",)),
    Rule(
        (_GPT2,),
        ("gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code",
         "roberta-bpe", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "jais", "trillion",
         "granite-docling"),
    ),
    Rule((_GPT2,), ("mpt", "olmo"), compose=True),  # GPT-NeoX's
    Rule(
        (_DIGIT, _GPT2),
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    Rule((_DIGIT, _GPT2), ("command-r",), compose=True),
    Rule((_WORDS % _DIGIT,), ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan",
                              "solar-open", "grok-2"), compose=True),
    Rule((_SHORT + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
         ("qwen35",), compose=True),
    replace(_LLAMA3, names=("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
                            "jina-v5-nano")),
    # Its words and numbers are Llama 3's, its merges and first token are not.
    Rule((_WORDS % _THREE,), ("dbrx", "smaug-bpe", "chatglm-bpe")),
    Rule((_WORDS % _THREE,), ("glm4", "glm5"), whole_words=True),
    Rule((_THREE, _WORDS % r"\p{N}+"), ("minicpm5",), whole_words=True),
    Rule((_CASED % ("", "", _DIGIT),), ("tekken",), whole_words=True, add_bos=True),
    Rule((_CASED % (_SHORT + "?", _SHORT + "?", _THREE),), ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")),
    Rule(("[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _ASCII_AND_WIDE_MARKS, r"\s+$",
          _HAN_AND_HANGUL, _DIGIT), ("deepseek-llm",)),
    Rule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, _DIGIT), ("deepseek-coder",)),
    Rule((_THREE, _HAN_AND_KANA, _MARKED_WORDS), ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")),
    Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"), ("falcon",)),
    Rule((_NO_PUNCTUATION,), ("poro-chat", "bloom", "gpt3-finnish")),
    Rule((_NO_PUNCTUATION, _DIGIT), ("viking",)),
    Rule((r"\p{N}+", r"(?=(\d{3})+(?!\d))"), ("superbpe",)),
    Rule((r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",),
         ("bailingmoe", "bailingmoe2", "llada-moe")),
    Rule((_SHORT + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
         ("seed-coder",)),
    Rule((r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",), ("ufakzeka",)),
    Rule((r"\d{1,3}(?=(?:\d{3})*\b)", _CASED % (_SHORT + "?", _SHORT + "?", _THREE)), ("tiny_aya", "cohere2moe")),
)  # fmt: skip

RULES = {name: rule for rule in _TABLE for name in rule.names}
"""Every name that a GGUF file may give its rule."""


def rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        ModelFormatError: unknown; the message lists the known names.
    """
    if name not in RULES:
        raise ModelFormatError(f"unknown pre-tokenizer {name!r}: this version knows {', '.join(sorted(RULES))}")
    return RULES[name]


def build_byte_level(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    rule: Rule,
    special: Sequence[str] = (),
    user_defined: Sequence[str] = (),
    strip_right: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer of the tokenizers library.

    Args:
        vocabulary: token, in the byte-level alphabet, to id.
        merges: pairs of tokens, first merged first.
        rule: how text is prepared.
        special: tokens of `vocabulary` that steer the model.
        user_defined: other tokens of `vocabulary` that are found in text before anything else.
        strip_right: members of `special` that take the spaces after them.

    Raises:
        ModelFormatError: a merge makes a token that is not in the vocabulary, or tokens that are found in text are
            too many or too long.
    """
    check_added([*special, *user_defined], "the vocabulary")
    try:
        tokenizer = Tokenizer(BPE(vocabulary, list(merges), ignore_merges=rule.whole_words))
    except unless_signalled(Exception) as error:  # the library raises bare Exception
        raise ModelFormatError(f"vocabulary and merges do not fit: {' '.join(str(error).split())}") from None
    if rule.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    strips = set(strip_right)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False, rstrip=text in strips) for text in special]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in user_defined])
    return tokenizer


def _pre_tokenizer(rule: Rule) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rule.patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

"""Makes specdec/data/frequent_pieces.txt, pieces of text in the order of a vocabulary's merges, for draft heads.

python benchmarks/rank_pieces.py smollm2-135m --write specdec/data/frequent_pieces.txt
python benchmarks/rank_pieces.py qwen2.5-coder-0.5b --answers answers.jsonl

The vocabulary has to be one whose ids follow its merges, as those of byte-level BPE do. With `--answers`, a file that
`lookup_replay.py --answers` has made, it prints the share of the answers' tokens that the file's list holds for this
model, by its length: alone, and with the tokens of prompt and answer so far.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import print_table

import specdec
from specdec.drafters.frequent import frequent_tokens

COUNT = 12288
SIZES = (2048, 4096, 8192, 12288, 16384, 32768)
HEADER = "# Pieces of text by rank: the first {count} of the vocabulary of {name}, in the order of its merges."


def main() -> None:
    """Write the list, or print what it holds of answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the list here")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="print the share of these answers that it holds")
    args = parser.parse_args()
    model = specdec.load(args.model)
    if args.write:
        write(model, args.write)
    if args.answers:
        answers = [json.loads(line) for line in args.answers.read_text().splitlines()]
        print_table(["tokens", "alone", "with prompt and answer"], [[str(n), *share(model, answers, n)] for n in SIZES])


def write(model: specdec.Model, file: Path) -> None:
    """The first pieces that are text."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    found: list[str] = []
    for token, piece in enumerate(tokenizer.pieces):
        if token in tokenizer.special_ids or not piece or len(found) == COUNT:
            continue
        try:
            found.append(json.dumps(piece.decode("utf-8"), ensure_ascii=False))
        except UnicodeDecodeError:  # a single byte of a longer character
            continue
    file.write_text("\n".join([HEADER.format(count=len(found), name=model.name), *found, ""]), encoding="utf-8")


def share(model: specdec.Model, answers: list[dict[str, list[int]]], count: int) -> list[str]:
    """Shares of the answers' tokens that the list holds, alone and with the text before them."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    known = set(frequent_tokens(tokenizer.pieces, model.config.vocab_size, count, always=tokenizer.eos_ids))
    alone = together = total = 0
    for answer in answers:
        seen = set(answer["prompt"])
        for token in answer["tokens"]:
            total += 1
            alone += token in known
            together += token in known or token in seen
            seen.add(token)
    return [f"{alone / total:.3f}", f"{together / total:.3f}"]


if __name__ == "__main__":
    main()

"""Makes specdec/data/usual_pairs.txt: what follows each piece of text most often.

python benchmarks/usual_pairs.py qwen2.5-coder-0.5b --texts texts.jsonl --files "docs/*.md" "specdec/**/*.py" \
    --write specdec/data/usual_pairs.txt

The pairs are counted in answers of models and in `--files`, which are this project's own prose and code. The model
answers prompts of this file, `TOPICS` in half of `FORMS` each. None is of a bundled prompt set, so that those still
say what the pairs bring. `--texts` keeps the answers, a line of JSON each; runs with other models add theirs. The
vocabulary is that of the model named last.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import specdec
from specdec.drafters.usual import MOST

PIECES = 6000  # that are listed, the most frequent first
LEAST = 2  # times that a pair has to occur
BATCH = 32
HEADER = "# A piece of text, then those that follow it most often: {count} pieces, of {tokens} tokens of text."
TOPICS = """\
a bakery that opens at five
how bridges carry weight
a shopping list for a week
the history of paper
a queue of print jobs
counting words in a file
train timetables
why leaves change colour
a bank account with deposits
sorting cards by hand
a letter to a landlord
the water cycle
a chess clock
temperature in three cities
learning to swim
an inventory of spare parts
a recipe for lentil soup
how vaccines work
planning a garden
a lighthouse keeper
compressing text
dates and time zones
a matrix of distances
saving money every month
renting bicycles
the moons of Jupiter
a phone directory
parsing log lines
a hiking trip
glass and sand
""".splitlines()
FORMS = """\
Write a Python function about {}. Explain it.
Explain {} to a beginner, step by step.
Make up a word problem with numbers about {} and solve it step by step.
Write a short summary of what matters about {}.
List the five most important facts about {}, with a reason for each.
Write a dialogue of two people about {}.
Translate into German, then into French: I have read a book about {} and would like to know more.
Write a Python class for {} with type hints, docstrings and tests.
What are common mistakes with {}? Answer in a numbered list.
Write an email of three paragraphs about {}.
Write a JavaScript or C program about {} with comments.
Who, what, where and when: answer questions about {} in short sentences.
""".splitlines()


def main() -> None:
    """Answer, and write the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="catalogue name, store, GGUF file or Hugging Face folder")
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="keep the answers here")
    parser.add_argument("--files", nargs="*", default=[], metavar="GLOB", help="files to count pairs in as well")
    parser.add_argument("--answers", type=int, default=180, metavar="N", help="answers to add (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=384, metavar="N", help="of an answer (default %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the list here")
    args = parser.parse_args()
    model = specdec.load(args.model)
    if args.answers:
        answer(model, args.texts, args.answers, args.max_tokens)
    if args.write:
        lines = args.texts.read_text(encoding="utf-8").splitlines() if args.texts.exists() else []
        texts = [json.loads(line)["text"] for line in lines]
        texts += [file.read_text(encoding="utf-8") for glob in args.files for file in sorted(Path().glob(glob))]
        write(model, texts, args.write)


def answer(model: specdec.Model, file: Path, count: int, most: int) -> None:
    """Add answers to the file: half of the forms for each topic, others for the next one."""
    prompts = [
        form.format(topic)
        for place, topic in enumerate(TOPICS)
        for number, form in enumerate(FORMS)
        if (place + number) % 2 == 0
    ][:count]
    with file.open("a", encoding="utf-8") as kept:
        for first in range(0, len(prompts), BATCH):
            part = prompts[first : first + BATCH]
            found = specdec.generate(model, part, chat=True, max_tokens=most, temperature=0)
            for prompt, one in zip(part, found, strict=True):
                kept.write(json.dumps({"model": model.name, "prompt": prompt, "text": one.text}) + "\n")
            kept.flush()  # what is there stays, whatever ends the run


def write(model: specdec.Model, texts: list[str], file: Path) -> None:
    """The most frequent pieces with what follows them, by the model's vocabulary."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    pairs: dict[int, Counter[int]] = {}
    tokens = 0
    for text in texts:
        ids = list(tokenizer.encode(text, add_bos=False))
        tokens += len(ids)
        for token, successor in pairwise(ids):
            pairs.setdefault(token, Counter())[successor] += 1
    lines = []
    for token in sorted(pairs, key=lambda one: -pairs[one].total()):
        followers = [other for other, times in pairs[token].most_common(MOST) if times >= LEAST]
        try:
            words = [tokenizer.pieces[one].decode("utf-8") for one in (token, *followers)]
        except UnicodeDecodeError:  # a single byte of a longer character
            continue
        if followers and len(lines) < PIECES:
            lines.append(json.dumps(words, ensure_ascii=False, separators=(",", ":")))
    header = HEADER.format(count=len(lines), tokens=tokens)
    file.write_text("\n".join([header, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()

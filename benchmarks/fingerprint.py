"""Checksums of a model's logits bits and of generated tokens, to compare two builds on one machine.

python benchmarks/fingerprint.py tests/data/tiny-llama smollm2-135m --json before.json
python benchmarks/fingerprint.py tests/data/tiny-llama smollm2-135m --compare before.json

Only the library's public names are used, so that the same file runs on any two builds. Equal checksums mean equal bits;
a runtime's bits hold for one machine, at any number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import specdec
from specdec.errors import SpecdecError, UnknownNameError

VIEWS = ("bucket", "bucket8", "int4", "nested", "own")
EFFORTS = (1.0, 0.5)
LENGTHS = (1, 7, 40)
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "top_p": 0.95, "seed": 3},
}
DRAFT_LENGTHS = (1, 4, 8)
TEXT = (
    "def merge(left, right):\n    result = []\n    while left and right:\n        if left[0] < right[0]:\n"
    "            result.append(left.pop(0))\n        else:\n            result.append(right.pop(0))\n    return "
)


def checksum(array: np.ndarray) -> str:
    """16 hexadecimal digits of the bits, shape and type of an array."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def token_ids(model: specdec.Model, length: int) -> list[int]:
    """The same `length` tokens at every call: of a text, or random ones for a model without a tokenizer."""
    if model.tokenizer is not None:
        ids = list(model.tokenizer.encode(TEXT))
        return (ids * (length // len(ids) + 1))[:length]
    return [int(token) for token in np.random.default_rng(0).integers(0, model.config.vocab_size, length)]


def logits_bits(model: specdec.Model, lengths: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Checksums of logits, by view, effort and length."""
    for view in ("exact", *VIEWS):
        for effort in EFFORTS:
            for length in lengths:
                try:
                    logits = model.logits(token_ids(model, length), effort=effort, view=view)
                except UnknownNameError:  # this runtime has no such view for this store
                    continue
                yield f"logits {view} effort {effort} of {length} tokens", checksum(logits)


def generated(model: specdec.Model, max_tokens: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """Label, tokens, and the tokens of plain decoding that they must equal."""
    prompt = token_ids(model, 24)
    for effort in EFFORTS:
        for name, sampling in SAMPLING.items():
            options = {"max_tokens": max_tokens, "verify_effort": effort, **sampling}
            label = f"tokens {name} at effort {effort}"
            plain = specdec.generate(model, prompt, speculate=False, **options).tokens
            yield f"{label}, plain", plain, plain
            for view in VIEWS:
                drafts = {"policy": "fixed", "drafter": "effort", "draft_view": view, "draft_effort": 0.5}
                for draft_len in DRAFT_LENGTHS:
                    try:
                        found = specdec.generate(model, prompt, draft_len=draft_len, **drafts, **options).tokens
                    except UnknownNameError:
                        break
                    yield f"{label}, fixed {draft_len} in {view}", found, plain
            lookup = specdec.generate(model, prompt, policy="fixed", drafter="ngram", draft_len=5, **options)
            yield f"{label}, fixed 5 by lookup", lookup.tokens, plain
            yield f"{label}, auto", specdec.generate(model, prompt, **options).tokens, plain


def fingerprint(name: str, runtime: str, arguments: argparse.Namespace) -> dict[str, str]:
    """All checksums of one model on one runtime; exits where speculation changes a token."""
    model = specdec.load(name, runtime=runtime, threads=arguments.threads)
    prefix = f"{Path(name).name} {runtime}: "
    found = {}
    for label, bits in logits_bits(model, (*LENGTHS, *arguments.lengths)):
        found[prefix + label] = bits
    for label, tokens, plain in generated(model, arguments.max_tokens):
        if tokens != plain:
            sys.exit(f"{prefix}{label}: other tokens than plain decoding")
        found[prefix + label] = checksum(np.array(tokens, np.int64))
    whole = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
    print(f"{prefix}{whole} over {len(found)} checksums", flush=True)
    return found


def compare(found: dict[str, str], path: Path) -> int:
    """Print what differs from an earlier run's file; returns the exit status."""
    before = json.loads(path.read_text())
    if before["machine"] != machine():
        print(f"warning: {path} is from {before['machine']}, and this is {machine()}")
    names = {label.split(":")[0] for label in found}
    wanted = {label: bits for label, bits in before["checksums"].items() if label.split(":")[0] in names}
    different = [label for label in wanted if label in found and found[label] != wanted[label]]
    missing, new = [label for label in wanted if label not in found], [label for label in found if label not in wanted]
    for kind, labels in (("different", different), ("missing here", missing), ("only here", new)):
        for label in labels:
            print(f"{kind}: {label}")
    print(f"{len(wanted) - len(different) - len(missing)} of {len(wanted)} checksums equal those of {path}")
    return 1 if different or missing or new else 0


def machine() -> str:
    """What the bits may depend on, other than the build."""
    cpu = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    return f"{cpu or platform.processor() or platform.machine()}, SPECDEC_CPU={os.environ.get('SPECDEC_CPU', '')}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    """Print, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="catalogue names, stores, model files or folders")
    parser.add_argument("--runtimes", nargs="+", default=["native"], help="default: native")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: the runtime's choice)")
    parser.add_argument("--max-tokens", type=int, default=24, help="of each answer (default %(default)s)")
    parser.add_argument(
        "--lengths", nargs="*", type=int, default=[], help=f"more lengths of texts for logits than {LENGTHS}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the checksums; adds to a file of this machine")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare with the checksums of another build")
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    try:
        for name in arguments.models:
            for runtime in arguments.runtimes:
                found |= fingerprint(name, runtime, arguments)
    except SpecdecError as error:
        sys.exit(str(error))
    if arguments.json is not None:
        before = json.loads(arguments.json.read_text())["checksums"] if arguments.json.exists() else {}
        content = {"machine": machine(), "checksums": before | found}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return compare(found, arguments.compare) if arguments.compare else 0


if __name__ == "__main__":
    sys.exit(main())

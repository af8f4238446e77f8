"""`specdec convert`: write a store from a model file of another program."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from specdec import catalogue
from specdec.cli.commands import COMMANDS
from specdec.cli.common import MODEL_HELP, Subparsers, examples, whole_numbers
from specdec.cli.consent import add_licence_option, consent_of
from specdec.cli.output import add_json_option, check_json, write_json_output
from specdec.errors import InvalidArgumentError
from specdec.parse import foreign
from specdec.progress import StreamProgress

if TYPE_CHECKING:
    from specdec.store import BucketLayout

_DTYPES = {"f16": "float16", "float16": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16"}
_BLOCKS = {"keep": "keep", "q8": "q8_0"}


def add_parser(subparsers: Subparsers) -> None:
    """Add `convert` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help=COMMANDS["convert"],
        description="Convert a model into a store, which keeps every bit of every weight unless --to or --dither says "
        "otherwise. Other commands do it on first use; this one chooses where and how.",
        **examples(
            "specdec convert model.gguf -o model.store",
            "specdec convert model.gguf -o model-f16.store --to f16",
            "specdec convert Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M -o qwen.store",
        ),
    )
    parser.add_argument("source", metavar="SOURCE", help=MODEL_HELP)
    parser.add_argument("-o", "--output", metavar="STORE", required=True, help="folder to create")
    parser.add_argument(
        "--views",
        metavar="NAME,...",
        default="",
        help="draft views to store, such as int4; others are built on loading",
    )
    parser.add_argument(
        "--dither",
        type=int,
        metavar="SEED",
        help="add one quantisation step of seeded noise to every weight, for measurements",
    )
    parser.add_argument(
        "--to",
        choices=("keep", "f16", "bf16", "q8"),
        help="type of the weights: keep leaves them as they are; f16, bf16; q8 is GGUF's Q8_0 (default: keep)",
    )
    # What --to f16 and --to bf16 were called before there was anything else.
    parser.add_argument("--dtype", dest="to", choices=_DTYPES, help=argparse.SUPPRESS)
    parser.add_argument("--bucket-size", type=int, metavar="B", help="consecutive outputs in a bucket (default: 16)")
    parser.add_argument(
        "--tiers",
        type=whole_numbers,
        metavar="N,...",
        help="number of weights of a bucket in each tier (default: four equal tiers)",
    )
    parser.add_argument(
        "--selection",
        choices=("inputs", "tiers"),
        default="inputs",
        help="what a verify effort below 1 leaves out of 16-bit matrices: whole inputs, which saves time, or tiers of "
        "inputs, which keeps more of the result at an equal share (default: inputs)",
    )
    add_licence_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing store")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and print the folder of the store."""
    from specdec.formats import open_source
    from specdec.store import convert
    from specdec.store.conversion import default_quantised

    check_json(arguments)
    if arguments.output in ("", "-"):
        raise InvalidArgumentError("--output needs the name of a folder to create")
    layout, views = _layout(arguments), [name.strip() for name in arguments.views.split(",") if name.strip()]
    progress = StreamProgress()
    try:
        path, noted = catalogue.source_file(arguments.source, progress=progress, consent=consent_of(arguments))
        source = open_source(path, dtype=_DTYPES.get(arguments.to))
        source.description.update(noted)
        try:
            quantised = _BLOCKS.get(arguments.to)
            if arguments.to is None and arguments.dither is None:
                quantised = default_quantised(source)
            with foreign(path.name):
                store = convert(
                    source,
                    Path(arguments.output),
                    layout=layout,
                    views=views,
                    dither=arguments.dither,
                    quantised=quantised,
                    selection=arguments.selection,
                    overwrite=arguments.overwrite,
                    progress=lambda done, total: progress(f"converting {path.name}", done, total),
                )
        finally:
            source.close()
    finally:
        progress.close()
    write_json_output(arguments, {"source": arguments.source, "store": str(store)})
    if arguments.json != "-":
        print(store)
    return 0


def _layout(arguments: argparse.Namespace) -> BucketLayout:
    """The layout that the options describe, in four equal tiers unless they say otherwise."""
    from specdec.store import BucketLayout

    if arguments.bucket_size is None and sum(arguments.tiers or (16,)) not in range(8, 65, 8):
        raise InvalidArgumentError(f"--tiers must add up to a multiple of 8 from 8 to 64, not {sum(arguments.tiers)}")
    size = arguments.bucket_size if arguments.bucket_size is not None else sum(arguments.tiers or (16,))
    return BucketLayout(size, arguments.tiers or (size // 4,) * 4)

"""`specdec search`: builds an index of vectors and queries it. The index itself is `specdec.search`."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from specdec.checks import check_count, check_effort
from specdec.cli.commands import COMMANDS
from specdec.cli.common import Subparsers, examples
from specdec.cli.output import STANDARD_OUTPUT, add_json_option, check_outputs, write_json_output

_METRICS = ("ip", "cosine", "l2")
_FORMS = ("float32", "float16", "int8", "int4")
_SHOWN = 20  # queries whose results are printed


def add_parser(subparsers: Subparsers) -> None:
    """Add `search` to the command line."""
    parser = subparsers.add_parser(
        "search",
        help=COMMANDS["search"],
        description="Vector search at an effort: the share of the products that a search carries out.",
        **examples(
            "specdec search build vectors.npy --out vectors.index --metric cosine",
            "specdec search query vectors.index queries.npy --k 5 --effort 0.25",
        ),
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions)
    _add_query(actions)


def _add_build(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "build",
        help="index the vectors of a file",
        description="Index the vectors of a .npy, .fvecs or .parquet file.",
    )
    parser.add_argument("vectors", metavar="VECTORS", help="a .npy, .fvecs or .parquet file")
    parser.add_argument("--out", required=True, metavar="INDEX", help="file of the index, replaced if it exists")
    parser.add_argument("--metric", default="ip", choices=_METRICS, help="what makes vectors close (default: ip)")
    parser.add_argument(
        "--form", default="float16", choices=_FORMS, help="what is kept of the vectors (default: float16)"
    )
    parser.add_argument("--column", metavar="NAME", help="column of a parquet file")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all cores)")
    add_json_option(parser)
    parser.set_defaults(run=build)


def _add_query(actions: Subparsers) -> None:
    from specdec.search import DEFAULT_EFFORT

    parser = actions.add_parser(
        "query",
        help="find the closest vectors",
        description="Find the vectors of an index that are closest to each query of a file.",
    )
    parser.add_argument("index", metavar="INDEX", help="file that `specdec search build` wrote")
    parser.add_argument("queries", metavar="QUERIES", help="a .npy, .fvecs or .parquet file")
    parser.add_argument("--k", type=int, default=10, metavar="K", help="vectors for each query (default: 10)")
    parser.add_argument(
        "--effort",
        type=float,
        default=DEFAULT_EFFORT,
        metavar="E",
        help=f"share of the products; 1 is exact (default: {DEFAULT_EFFORT})",
    )
    parser.add_argument("--rerank", type=int, metavar="R", help="vectors scored exactly (default: 300, or 4 K if more)")
    parser.add_argument("--column", metavar="NAME", help="column of a parquet file")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with (default: all cores)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the checksum of the index")
    parser.add_argument("--out", metavar="FILE", help="write scores and ids to FILE, a .npz")
    add_json_option(parser)
    parser.set_defaults(run=query)


def build(arguments: argparse.Namespace) -> int:
    """Build an index and write it."""
    from specdec.search import BucketIndex
    from specdec.search.vector_files import read_vectors

    check_outputs(arguments)
    vectors = read_vectors(arguments.vectors, column=arguments.column)
    start = time.perf_counter()
    index = BucketIndex.build(vectors, metric=arguments.metric, form=arguments.form, threads=arguments.threads)
    seconds = time.perf_counter() - start
    index.save(arguments.out)
    report = {
        "vectors": len(index),
        "dims": index.dims,
        "metric": index.metric,
        "form": index.form,
        "bytes": index.nbytes,
        "build_s": seconds,
    }
    write_json_output(arguments, report)
    if arguments.json != STANDARD_OUTPUT:
        print(f"{arguments.out}: {index!r}, {index.nbytes / 1e6:.1f} MB, built in {seconds:.2f} s")
    return 0


def query(arguments: argparse.Namespace) -> int:
    """Search an index and print what was found."""
    import numpy as np

    from specdec.search import BucketIndex
    from specdec.search.vector_files import read_vectors
    from specdec.whole_file import whole_file

    check_outputs(arguments)
    check_count("k", arguments.k)
    check_effort(arguments.effort)
    queries = read_vectors(arguments.queries, column=arguments.column)
    index = BucketIndex.load(arguments.index, verify=not arguments.no_verify)
    start = time.perf_counter()
    scores, ids = index.search(
        queries, arguments.k, effort=arguments.effort, rerank=arguments.rerank, threads=arguments.threads
    )
    seconds = time.perf_counter() - start
    if arguments.out is not None:
        with whole_file(Path(arguments.out)) as unfinished, unfinished.open("wb") as file:
            np.savez(file, scores=scores, ids=ids)
    shown = [[score if math.isfinite(score) else None for score in row] for row in scores.tolist()]
    write_json_output(arguments, {"scores": shown, "ids": ids.tolist(), "search_s": seconds})
    if arguments.json != STANDARD_OUTPUT:
        for number in range(min(len(ids), _SHOWN)):
            print(
                f"query {number}: "
                + "  ".join(f"{i} ({s:.4g})" for i, s in zip(ids[number], scores[number], strict=True))
            )
        if len(ids) > _SHOWN:
            print(f"… and {len(ids) - _SHOWN} more queries: --json or --out have all results")
        print(f"{len(ids)} queries in {seconds:.3f} s")
    return 0

"""`specdec inspect`: what a store holds, checked byte for byte."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec import catalogue
from specdec.cli.common import Subparsers, readable_bytes
from specdec.errors import StoreError
from specdec.progress import StreamProgress

if TYPE_CHECKING:
    from specdec.store import Store


def add_parser(subparsers: Subparsers) -> None:
    """Add `inspect` to the command line."""
    parser = subparsers.add_parser("inspect", help="show what a store holds, and check it")
    parser.add_argument("store", metavar="STORE", help="folder of a store, or a catalogue name that was pulled")
    parser.add_argument("--json", action="store_true", help="one JSON object, with every matrix")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Describe the store on standard output."""
    from specdec.store import Store

    store = Store.open(_folder(arguments.store))
    progress = StreamProgress()
    try:
        description = describe(store, progress)
    finally:
        progress.close()
    if arguments.json:
        print(json.dumps(description))
    else:
        for line in _lines(description):
            print(line)
    return 0


def describe(store: Store, progress: StreamProgress) -> dict[str, Any]:
    """What a store is, as plain JSON values.

    `matrices` has one entry per matrix: its shape, its bytes, and `tier_energy`, the share of the sum of squared
    weights that each tier holds (they add up to 1).
    """
    matrices = {}
    names = list(store.config.matrices())
    for index, name in enumerate(names):
        progress("measuring tiers", index, len(names))
        matrices[name] = _describe_matrix(store, name)
    progress("measuring tiers", len(names), len(names))
    files = {name: record.nbytes for name, record in store.description.files.items()}
    return {
        "path": str(store.path),
        "checksum": store.checksum,
        "source": store.source,
        "dtype": store.dtype,
        "dither": store.dithered,
        "layout": store.layout.to_dict(),
        "views": list(store.views),
        "bytes": sum(files.values()),
        "files": files,
        "config": store.config.to_dict(),
        "weights": sum(out * inputs for out, inputs in store.config.matrices().values()),
        "matrices": matrices,
    }


def _describe_matrix(store: Store, name: str) -> dict[str, Any]:
    from specdec.views.dtypes import to_float32

    matrix = store.exact(name)
    energy = np.zeros(matrix.layout.num_tiers)
    for tier, values in enumerate(matrix.values):
        # A block of inputs at a time: few enough weights that float32 sums lose nothing that four digits would show.
        for start in range(0, len(values), 64):
            block = to_float32(values[start : start + 64], matrix.dtype).ravel()
            energy[tier] += float(np.dot(block, block))
    total = float(energy.sum())
    shares = energy / total if total else energy
    return {"shape": list(matrix.shape), "bytes": matrix.nbytes, "tier_energy": [float(share) for share in shares]}


def _folder(named: str) -> Path:
    """The folder of a store that is there already; nothing is fetched or converted for a look.

    Raises:
        StoreError: the catalogue name has not been pulled.
    """
    if named not in catalogue.list_names():
        return Path(named)
    if not catalogue.is_pulled(named):
        raise StoreError(f"{named} has not been pulled: run `specdec pull {named}`")
    return catalogue.store_path(named)


def _lines(described: dict[str, Any]) -> Iterator[str]:
    config, layout = described["config"], described["layout"]
    yield f"store      {described['path']}"
    yield f"checksum   {described['checksum']}  (every byte checked)"
    yield "source     " + ", ".join(f"{key} {value}" for key, value in described["source"].items())
    yield (
        f"model      {config['architecture']}: {config['num_layers']} layers, width {config['hidden_size']}, "
        f"{config['num_heads']} heads ({config['num_kv_heads']} key-value), vocabulary {config['vocab_size']}, "
        f"context {config['max_context']}"
    )
    dither = "" if described["dither"] is None else f", dithered with seed {described['dither']}"
    yield f"weights    {described['weights'] / 1e6:.1f} million under effort, {described['dtype']}{dither}"
    tiers = "+".join(str(size) for size in layout["tier_sizes"])
    yield f"layout     buckets of {layout['bucket_size']} in tiers of {tiers}"
    times = described["bytes"] / (2 * described["weights"])
    yield f"bytes      {readable_bytes(described['bytes'])} in all, {times:.3f} times 16-bit weights"
    for name, count in described["files"].items():
        yield f"           {readable_bytes(count):>9}  {name}"
    yield f"views      exact{''.join(f', {view}' for view in described['views'])} stored; others are built at load"
    yield ""
    yield f"{'matrices':<12} {'number':>6} {'out x in':>14} {'bytes':>9}   share of squared weights by tier"
    for kind, members in _by_kind(described["matrices"]).items():
        out, inputs = members[0]["shape"]
        energy = np.mean([member["tier_energy"] for member in members], axis=0)
        shares = "  ".join(f"{share:.3f}" for share in energy)
        total = readable_bytes(sum(member["bytes"] for member in members))
        yield f"{kind:<12} {len(members):>6} {f'{out} x {inputs}':>14} {total:>9}   {shares}"


def _by_kind(matrices: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Matrices of the same place in every layer (and expert) together."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, described in matrices.items():
        parts = [part for part in name.split(".") if not part.isdigit() and part not in ("layers", "experts")]
        kinds.setdefault(".".join(parts), []).append(described)
    return kinds

"""Estimated decoding speed of a 70B on several Macs, by the formula of docs/distributed.md. Nothing here is measured.

python benchmarks/distributed_estimate.py --memory-gb-s 546 --weights-gb 42.5
"""

from __future__ import annotations

import argparse

from common import print_table

from specdec.distributed.split import Link, gathered_bytes, gathers_of, layers_s, outputs_s
from specdec.model.architecture import ModelConfig

# The shape of Llama 3.1 70B.
SHAPE_70B = ModelConfig.uniform(
    family="llama",
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    rope_theta=500000.0,
    max_context=8192,
)
# Seconds of one hop and bytes a second of one direction. RDMA reaches every Mac of a mesh in one hop; a ring of n takes
# n - 1 hops for a gather.
LINKS = {
    "Thunderbolt 5, RDMA (jaccl)": (10e-6, 6e9, False),
    "Thunderbolt 5, TCP (ring)": (60e-6, 4e9, True),
    "10 GbE, TCP (ring)": (100e-6, 1.1e9, True),
}
READ_SHARE = 0.8  # of the memory's bandwidth that decoding reaches


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory-gb-s", type=float, default=546.0, help="of each Mac (default %(default)s)")
    parser.add_argument("--weights-gb", type=float, default=42.5, help="of the file (default %(default)s)")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4, 8])
    arguments = parser.parse_args()
    alone_s = arguments.weights_gb / (arguments.memory_gb_s * READ_SHARE)
    print(
        f"one device with the memory for it: {1 / alone_s:.1f} tok/s; {gathers_of(SHAPE_70B)} gathers of "
        f"{gathered_bytes(SHAPE_70B) / 1e6:.1f} MB in all for each row"
    )
    rows = []
    for name, (hop_s, bytes_per_s, is_ring) in LINKS.items():
        for ranks in arguments.ranks:
            link = Link(latency_s=hop_s * (ranks - 1 if is_ring else 1), bytes_per_s=bytes_per_s)
            outputs, layers = (way(SHAPE_70B, alone_s, ranks, link) for way in (outputs_s, layers_s))
            rows.append((name, ranks, 1 / outputs, alone_s / outputs, 1 / layers))
    print_table(("link", "Macs", "outputs, tok/s", "over one", "layers, tok/s"), rows)


if __name__ == "__main__":
    main()

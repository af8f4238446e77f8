"""Writes `golden_fff.npz`: layers of the fastfeedforward package and what it computes with them.

pip install fastfeedforward==0.2.1 torch && python tests/data/golden_fff.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fastfeedforward import FFF


def main() -> None:
    """One layer for each depth."""
    torch.manual_seed(0)
    made = {}
    for depth, activation in ((1, torch.nn.ReLU()), (4, torch.nn.GELU())):
        layer = FFF(7, 3, 5, depth, activation=activation).eval()
        x = torch.randn(11, 7)
        with torch.no_grad():
            soft, entropies = layer.training_forward(x, return_entropies=True)
            made[f"{depth}.soft"], made[f"{depth}.entropies"] = soft.numpy(), entropies.numpy()
            made[f"{depth}.hard"] = layer.training_forward(x, use_hard_decisions=True).numpy()
            made[f"{depth}.eval"] = layer.eval_forward(x).numpy()
        made[f"{depth}.x"] = x.numpy()
        made |= {f"{depth}.state.{name}": value.numpy() for name, value in layer.state_dict().items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **made)


if __name__ == "__main__":
    main()

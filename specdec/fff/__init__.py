"""Fast feedforward layers: a binary tree chooses a few neurons of thousands. Used on their own: `docs/fff.md`.

`FastFeedforward` and `train` need MLX, `GpuTrees` a GPU; they are imported when they are asked for.
"""

from typing import TYPE_CHECKING, Any

from specdec.fff.convert import from_fastfeedforward, to_fastfeedforward
from specdec.fff.files import load_layer, load_notes, save_layer
from specdec.fff.hard import HardFeedforward
from specdec.fff.weights import TreeWeights

if TYPE_CHECKING:
    from specdec.fff.gpu import GpuTrees
    from specdec.fff.module import FastFeedforward, hardening_loss
    from specdec.fff.training import TrainOptions, train

__all__ = [
    "FastFeedforward",
    "GpuTrees",
    "HardFeedforward",
    "TrainOptions",
    "TreeWeights",
    "from_fastfeedforward",
    "hardening_loss",
    "load_layer",
    "load_notes",
    "save_layer",
    "to_fastfeedforward",
    "train",
]
_LATER = {
    "FastFeedforward": "module",
    "hardening_loss": "module",
    "GpuTrees": "gpu",
    "TrainOptions": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"specdec.fff.{_LATER[name]}"), name)

"""Fast feedforward layers: a binary tree chooses a few neurons of thousands. Used on their own: `docs/fff.md`."""

from specdec.fff.weights import TreeWeights

__all__ = ["TreeWeights"]

"""The own view: draft from a quantised target's own blocks, choosing whole inputs. It needs no memory."""

from __future__ import annotations

from specdec.weights.bucket import ExactArraysView


class OwnView(ExactArraysView):
    """The exact matrices themselves. In a store quantised in part, those in buckets choose as the exact view does."""

    name = "own"

    def suits(self, *, quantised: bool) -> bool:
        """Quantised stores; of others this is what `bucket` does."""
        return quantised

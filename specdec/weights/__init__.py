"""Views: the same weights for different purposes: the exact view, and the draft views `bucket`, `bucket8`, `int4`."""

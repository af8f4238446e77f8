"""Views: the same weights, laid out or rounded for a purpose (exact, and the draft views `bucket`, `bucket8` and `int4`)."""

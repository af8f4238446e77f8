"""Views: the same weights, laid out or rounded for a purpose (exact, and the draft views `bucket` and `int4`)."""

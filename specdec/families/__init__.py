"""Model families as data: one file a family, and what their files have in common; `registry` finds them by name."""

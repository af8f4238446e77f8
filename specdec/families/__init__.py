"""Model families as data: one file a family, and what their files have in common; `registry` finds them by name.

A new family is one module here with a `FAMILY`: how a config.json and GGUF metadata become a `ModelConfig`, and the
names of its tensors in both. A feature that no runtime executes yet goes into `specdec.model` and the runtimes first.
"""

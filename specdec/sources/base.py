"""What a converter needs from a model file, whatever its format. The formats live beside this file."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from specdec.config import ModelConfig


class Source(Protocol):
    """One model, open for reading; every array it returns belongs to the caller.

    Attributes:
        config: shape of the model.
        dtype: "float16" or "bfloat16", what the bits of matrices and tables mean.
        description: where the weights come from, as plain strings, for the record.
    """

    config: ModelConfig
    dtype: str
    description: dict[str, str]

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """Name and content of every file that `load_tokenizer` needs in one folder; empty when there is no tokenizer.

        Raises:
            ModelFormatError: there is a tokenizer, and it is damaged or of an unknown kind.
        """
        ...

    def matrix(self, name: str) -> np.ndarray:
        """uint16 (out, in): raw bits of a matrix from `config.matrices()` or a table from `config.tables()`.

        Raises:
            ModelFormatError: a weight is NaN or infinite, or too large for `dtype`.
        """
        ...

    def vector(self, name: str) -> np.ndarray:
        """float32 (n,): a vector from `config.vectors()`.

        Raises:
            ModelFormatError: a value is NaN or infinite.
        """
        ...

    def close(self) -> None:
        """Let go of the files; the source gives nothing any more."""
        ...

"""Interface between the converter and a model file. Each format is a module of this package."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from specdec.model.architecture import ModelConfig
from specdec.weights.quantised import QuantisedTable


class Source(Protocol):
    """One model, open for reading; every array it returns belongs to the caller.

    Attributes:
        config: shape of the model.
        dtype: "float16" or "bfloat16", what the bits of matrices and tables mean.
        types: name of the quantised type of every matrix and table that has one, perhaps one that only `matrix` reads.
        description: where the weights come from, as plain strings, for the record.
    """

    config: ModelConfig
    dtype: str
    types: dict[str, str]
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

    def quantised(self, name: str, kind: str) -> QuantisedTable:
        """A matrix or table in the quantised type `kind`: its own blocks where that is its type in `types`, else
        quantised now, which only "q8_0" allows.

        Raises:
            InvalidArgumentError: it has another type and `kind` is not "q8_0", or blocks of `kind` do not fit its rows.
            ModelFormatError: a scale or weight is NaN or infinite.
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

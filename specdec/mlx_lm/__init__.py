"""mlx-lm's Python interface over this engine: names, signatures and fields of mlx-lm 0.32.

A program that says `from mlx_lm import load, generate` says `from specdec.mlx_lm import load, generate` and goes on as
before: the tokens are those of plain decoding, speculation makes them come faster. What is honoured and what is
refused, and why, is in docs/mlx_lm.md.
"""

from specdec.mlx_lm.convert import convert
from specdec.mlx_lm.generate import batch_generate, generate, stream_generate
from specdec.mlx_lm.utils import load
from specdec.version import version

__version__ = version()
__all__ = ["__version__", "batch_generate", "convert", "generate", "load", "stream_generate"]

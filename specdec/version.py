"""The version of the installed distribution."""

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version

DISTRIBUTION = "specdec-mlx"


@cache
def version() -> str:
    """Version of the installed distribution, or "unknown" when the code runs without being installed."""
    try:
        return distribution_version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"

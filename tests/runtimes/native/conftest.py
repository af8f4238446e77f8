"""Stores that several files here share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from models import real_model_path
from native_models import ARCHITECTURES, TINY
from places import DATA
from synthetic import SyntheticSource, tiny_config

from specdec.formats import open_source
from specdec.store import BucketLayout, Store, convert


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Store]:
    """A store of a folder of test data or of a random model; each made once."""

    @cache
    def build(
        name: str,
        dtype: str = "float16",
        layout: BucketLayout = BucketLayout(),  # noqa: B008
        quantised: str | None = None,
    ) -> Store:
        if name in ARCHITECTURES:
            source: Any = SyntheticSource(tiny_config(**ARCHITECTURES[name]), dtype=dtype)
        else:
            source = open_source(real_model_path(name) if name not in TINY else DATA / name)
        path = tmp_path_factory.mktemp("stores") / "store"
        return Store.open(convert(source, path, layout=layout, quantised=quantised), verify=False)

    return build

"""Versions to test with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from meles.engine.manifest.version import TableMeta

Table = Callable[..., TableMeta]


@pytest.fixture(scope="session")
def table() -> Table:
    """`table(7, "c-f")`: table 7 with keys c to f."""

    def make(table_id: int, span: str, **fields: object) -> TableMeta:
        low, _, high = span.partition("-")
        given = {"size": 100, "crc": 1, "count": 1, "min_version": 1, "max_version": 1} | fields
        return TableMeta(table_id, min_key=low.encode(), max_key=(high or low).encode(), **given)  # type: ignore[arg-type]

    return make

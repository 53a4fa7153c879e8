"""Fixtures of the table tests: an open directory and tables built in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.kernel import NATIVE
from meles.engine.table.builder import BuiltTable, TableBuilder
from meles.engine.table.reader import Table

CREATED_MS = 1_700_000_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with Directory(str(tmp_path)) as opened:
        yield opened


@pytest.fixture
def kernel() -> Any:
    """The kernel tables are built with; a suite over both overrides this."""
    return NATIVE


@pytest.fixture
def build(directory: Directory, kernel: Any) -> Callable[..., BuiltTable]:
    """Build a table of columns; keywords are build options, `table_id` and `batch` (entries)."""

    def make(
        columns: Columns, *, table_id: int = 1, batch: int = 1000, **options: Any
    ) -> BuiltTable:
        builder = TableBuilder(
            directory, table_id, BuildOptions(**options), created_ms=CREATED_MS, kernel=kernel
        )
        for start in range(0, len(columns), batch):
            builder.add(columns.slice(start, start + batch))
        return builder.finish()

    return make


@pytest.fixture
def open_table(directory: Directory) -> Iterator[Callable[..., Table]]:
    """Open a table; closed when the test ends."""
    tables: list[Table] = []

    def make(table_id: int = 1, **keywords: Any) -> Table:
        tables.append(Table(directory, table_id, **keywords))
        return tables[-1]

    yield make
    for table in tables:
        table.close()


@pytest.fixture
def sample() -> Columns:
    """Entries of every kind: several versions, tombstones, expiry, user bytes, pointers."""
    columns = Columns()
    for number in range(600):
        key = b"key%05d" % (number * 3) + b"-" * (number % 7)
        for version in range(1 + (number % 5 == 0) * (number % 11), 0, -1):
            kind = (number + version) % 6
            meta, expiry, value = 0, 0, b"v%d.%d" % (number, version) * (number % 4)
            if kind == 1:
                meta, value = 1, b""
            elif kind == 2:
                expiry = CREATED_MS + (number % 3 - 1) * 1000
            elif kind == 3:
                meta = number % 200 << 8
            elif kind == 4:
                meta = 2
                value = b"".join(
                    part.to_bytes(4, "little") for part in (1 + number % 3, number * 64, number)
                )
            columns.append(key, version * 10 + number % 10, meta, expiry, value)
    columns.check()
    return columns


@pytest.fixture
def plain() -> Callable[..., Columns]:
    """`count` entries with keys of one length, one version each and no meta data."""

    def make(count: int, value: bytes = b"value", *, version: int = 1, step: int = 2) -> Columns:
        keys = [b"user%08d" % (number * step) for number in range(count)]
        zeros = [0] * count
        return Columns(keys, [version] * count, zeros, zeros.copy(), [value] * count)

    return make

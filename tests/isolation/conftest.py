"""Databases so small that reads cross memtable, L0 and deeper levels all the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import meles
import pytest

TINY: dict[str, Any] = {
    "memtable_size": 64 << 10,
    "base_table_size": 16 << 10,
    "base_level_size": 64 << 10,
    "level_size_multiplier": 2,
    "num_level_zero_tables": 2,
    "num_level_zero_tables_stall": 8,
    "max_levels": 5,
    "block_size": 1024,
    "value_threshold": 128,
    "value_log_file_size": 1 << 20,
    "value_log_max_entries": 200,
    "num_compactors": 1,
}


@pytest.fixture
def open_tiny(tmp_path: Path) -> Iterator[Callable[..., meles.DB]]:
    """Opens a database in the test's directory; closed cleanly when the test ends."""
    opened: list[meles.DB] = []

    def make(**options: Any) -> meles.DB:
        db = meles.open(tmp_path / f"db{len(opened)}", **{**TINY, **options})
        opened.append(db)
        with db.write_batch() as batch:  # several levels, made by workers that have booted
            for number in range(4000):
                batch.set(b"m/%05d" % (number * 5), b"%d" % number * 30)
        db.flush(60.0)
        assert db.wait_idle(60.0)
        return db

    yield make
    for db in opened:
        report = db.close(60.0)
        assert report.clean, report

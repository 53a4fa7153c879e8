"""Space that waits for nobody to write: it comes back with no call of any kind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import meles
import pytest
from meles.engine.background import idling, stillness
from waiting import wait_until

OPTIONS = {
    "workers": "thread",
    "sync": "none",
    "value_threshold": 256,
    "num_level_zero_tables": 100,
    "num_level_zero_tables_stall": 200,
}
VALUE = 8_000


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (idling, stillness):
        monkeypatch.setattr(module, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(idling, "DOZE_SECONDS", 0.2)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[meles.DB]:
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        yield db


def write(db: meles.DB, first: int, stop: int) -> None:
    for n in range(first, stop):
        db.set(b"%06d" % n, random.randbytes(VALUE))


def settled(db: meles.DB, alive: int) -> bool:
    """Whether the files hold little more than so many entries."""
    size = db.size()
    return size.lsm_bytes + size.value_log_bytes < 1.2 * alive * VALUE + (1 << 20)


def test_what_level_zero_hides_is_found(db: meles.DB) -> None:
    """Everything is written twice, in tables too few to be due: half of the values are garbage."""
    write(db, 0, 1_000)
    db.flush(60)
    db.flatten(timeout=60)
    write(db, 0, 1_000)
    db.flush(60)
    wait_until(lambda: settled(db, 1_000), what="the values that were overwritten gone")
    assert len(list(db.items())) == 1_000


def test_a_file_below_the_ratio_is_collected_when_nobody_writes(tmp_path: Path) -> None:
    """A third of the sealed file is garbage: less than gc_discard_ratio, more than half of it."""
    with meles.open(tmp_path / "db", value_log_file_size="8MiB", **OPTIONS) as db:
        write(db, 0, 1_200)
        for n in range(0, 1_200, 3):
            db.delete(b"%06d" % n)
        db.flush(60)
        wait_until(lambda: settled(db, 800), what="a third of the values gone")
        wait_until(lambda: db.stats().value_log.gc_relocated_files > 0)
        assert len(list(db.items())) == 800


def test_what_is_written_after_a_long_silence_is_flushed_too(db: meles.DB) -> None:
    """Nothing tells the supervisor of a commit that fills no memtable."""
    wait_until(lambda: db._control._stillness.quiet)  # type: ignore[attr-defined]
    for _ in range(3):
        before = db.stats().flushes
        write(db, 0, 200)
        wait_until(lambda: db.stats().flushes > before, what="a flush")  # noqa: B023

"""`db.space()`: every byte has a kind, and the kind is right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine import space
from meles.engine.clock import now_ms

OpenDB = Callable[..., meles.DB]
SMALL, LARGE = b"s" * 100, b"L" * 5_000
ENTRY = 16  # beside key and value, in a table and in the value log alike


@pytest.fixture
def open_db(tmp_path: Path) -> Iterator[OpenDB]:
    opened: list[meles.DB] = []

    def make(**options: Any) -> meles.DB:
        given = {"workers": "inline", "sync": "none", "num_compactors": 0, "gc": False, **options}
        opened.append(meles.open(tmp_path / "db", **given))
        return opened[-1]

    yield make
    for db in opened:
        db.close()


def kinds(db: meles.DB) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by kind without those that are no entries; their sums are what the files take."""
    report = db.space()
    size = db.size()
    assert sum(report.table_bytes.values()) + report.log_bytes == size.lsm_bytes
    assert sum(report.value_log_bytes.values()) == size.value_log_bytes
    assert report.total_bytes == size.lsm_bytes + size.value_log_bytes
    tables = {kind: n for kind, n in report.table_bytes.items() if kind != "overhead"}
    values = {kind: n for kind, n in report.value_log_bytes.items() if kind != "dead"}
    return tables, values


def test_live_tombstone_expired_superseded(
    open_db: OpenDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = open_db()
    db[b"a"] = SMALL
    db[b"b"] = LARGE
    db[b"c"] = SMALL
    db.set(b"d", LARGE, ttl=100)
    db.flush()
    db[b"a"] = LARGE
    db.delete(b"c")
    db.flush()
    monkeypatch.setattr(space, "now_ms", lambda: now_ms() + 100_000)
    tables, values = kinds(db)
    pointer = 1 + 12 + ENTRY
    assert tables == {
        "live": 2 * pointer,
        "tombstone": 1 + ENTRY,
        "expired": pointer,
        "superseded": 2 * (1 + len(SMALL) + ENTRY),
    }
    assert values == {"live": 2 * (5_000 + ENTRY), "expired": 5_000 + ENTRY}


def test_values_only_a_log_points_to_are_not_dead(open_db: OpenDB) -> None:
    db = open_db()
    db[b"a"] = LARGE
    db.flush()
    db[b"a"] = LARGE
    db[b"b"] = LARGE
    db.delete(b"b")
    tables, values = kinds(db)
    assert tables == {"superseded": 1 + 12 + ENTRY}
    assert values == {"live": 5_000 + ENTRY, "superseded": 2 * (5_000 + ENTRY)}
    report = db.space()
    assert report.value_log_bytes.get("dead", 0) < 1_000  # the header


def test_a_snapshot_pins_what_only_it_sees_and_is_named(open_db: OpenDB) -> None:
    db = open_db()
    found: list[meles.SpaceReport] = []

    def read() -> None:
        with db.view():
            db[b"a"] = SMALL
            db.delete(b"b")
            db.flush()
            found.append(db.space())

    db[b"a"] = LARGE
    db[b"b"] = LARGE
    db.flush()
    reader = threading.Thread(target=read, name="slow report")
    reader.start()
    reader.join(60)
    (pin,) = found[0].pins
    held = 2 * (1 + 12 + ENTRY + 5_000 + ENTRY)
    assert (pin.owner, pin.read_ts, pin.held_bytes) == ("slow report", 2, held)
    assert found[0].value_log_bytes["pinned"] == 2 * (5_000 + ENTRY)
    after = db.space()
    assert after.pins == []
    assert "pinned" not in after.value_log_bytes
    assert after.value_log_bytes["superseded"] == 2 * (5_000 + ENTRY)


def test_versions_to_keep_are_live(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=2)
    entry = 1 + len(SMALL) + ENTRY
    for _ in range(3):
        db[b"a"] = SMALL
        db.flush()
    assert kinds(db)[0] == {"live": 2 * entry, "superseded": entry}
    db.set(b"a", SMALL, discard_earlier=True)
    db.flush()
    assert kinds(db)[0] == {"live": entry, "superseded": 3 * entry}


def test_what_a_drop_hides(open_db: OpenDB) -> None:
    db = open_db()
    db[b"a1"] = LARGE
    db[b"b1"] = LARGE
    db.flush()
    db.drop_prefix(b"a")
    tables, values = kinds(db)
    assert tables == {"live": 2 + 12 + ENTRY, "dropped": 2 + 12 + ENTRY}
    assert values == {"live": 5_000 + ENTRY, "dropped": 5_000 + ENTRY}

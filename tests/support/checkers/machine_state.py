"""What the state machine knows and compares: an open database, the model, transactions, iterators.

The clock is the machine's own. Everything is so small that logs, tables, levels and value-log files
rotate all the time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import meles
import pytest
from checkers.mirror import OpenCursor, OpenTxn
from checkers.model import Entry, Model, Range, Write, narrowed
from hypothesis.stateful import RuleBasedStateMachine, invariant
from meles.engine import clock
from meles.engine.txn.txn import ENTRY_OVERHEAD

PATIENCE = 60.0  # seconds for what workers do
CALM = 12  # steps between two upsets: what they end needs time to grow
TINY: dict[str, Any] = {
    "memtable_size": 64 << 10,
    "base_table_size": 16 << 10,
    "base_level_size": 64 << 10,
    "level_size_multiplier": 2,
    "num_level_zero_tables_stall": 8,
    "max_levels": 5,
    "value_log_file_size": 1 << 20,
    "num_compactors": 1,
}


class MachineState(RuleBasedStateMachine):
    """Without rules. Subclasses set `workers`."""

    workers = "inline"
    always: dict[str, Any] = {}  # noqa: RUF012 - options of every opening

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000_000
        self._real_clock = clock.time_ns
        clock.time_ns = lambda: self.now * 1_000_000
        memory = "/dev/shm"
        self.home = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.generation = 0
        self.written = 0
        self.steps = 0
        self.upset_at = 0
        self.txns: list[OpenTxn] = []
        self.cursors: list[OpenCursor] = []
        self.operators: dict[bytes, Any] = {}
        self.model = Model(1)
        self.db: Any = None

    def _open(self, options: dict[str, Any]) -> None:
        self.model.keep = min(self.model.keep, options["num_versions_to_keep"])
        self.db = meles.open(self.path, workers=self.workers, **TINY, **self.always, **options)
        assert self.db.max_version() == self.model.last_ts

    @property
    def path(self) -> Path:
        return self.home / str(self.generation)

    def teardown(self) -> None:
        try:
            if self.db is not None:
                try:
                    self._check_everything()
                finally:
                    report = self.db.close(PATIENCE)
                    self._end_handles()
                assert report.clean, report
        finally:
            clock.time_ns = self._real_clock
            shutil.rmtree(self.home)

    def _end_handles(self) -> None:
        """After a close: everything that was open says so."""
        for cursor in self.cursors:
            if not cursor.closed:
                with pytest.raises(meles.ClosedError):
                    next(cursor.cursor)
        for open_txn in self.txns:
            with pytest.raises(meles.ClosedError):
                open_txn.txn.get(b"a")
        self.txns, self.cursors, self.operators = [], [], {}

    @invariant()
    def after_each_step(self) -> None:
        self.steps += 1
        self.model.give_up(min((t.read_ts for t in self.txns), default=None))

    def is_calm(self) -> bool:
        return self.steps - self.upset_at >= CALM

    def _value(self, size: int) -> bytes:
        self.written += 1
        return (b"%d." % self.written).ljust(size, b"=")[: max(size, 8)] if size else b""

    def _write(self, size: int, ttl: float | None, meta: int, discard: bool) -> Write:
        expiry = 0 if ttl is None else self.now + round(ttl * 1000)
        return Write(self._value(size), expiry, meta, discard)

    def _fits_a_transaction(self, key: bytes, value: bytes) -> bool:
        """Whether one could write this entry: large values count as pointers."""
        options = self.db.options
        pointed = len(value) >= options.value_threshold
        return pointed or len(key) + len(value) + ENTRY_OVERHEAD <= options.txn_limit

    @staticmethod
    def _keywords(write: Write, ttl: float | None) -> dict[str, Any]:
        return {"ttl": ttl, "meta": write.meta, "discard_earlier": write.discard}

    def _compare_item(self, item: Any, entry: Entry | None) -> None:
        assert (item is None) == (entry is None)
        if entry is not None:
            write = entry.write
            assert (item.value, item.version, item.meta, item.deleted, item.value_size) == (
                write.value, entry.version, write.meta, False, len(write.value or b"")
            )  # fmt: skip
            assert item.expires_at == write.expiry / 1000

    def _source(self, pick: int) -> tuple[Any, OpenTxn | None]:
        """The database for some picks, else one of the transactions."""
        opened = self.txns[pick % len(self.txns)] if self.txns and pick % 3 else None
        return (self.db if opened is None else opened.txn), opened

    def _cursor(
        self, source: Any, owner: OpenTxn | None, wanted: dict[str, Any], since_back: int,
        shape: str,
    ) -> OpenCursor:  # fmt: skip
        source = source if owner is None else owner.txn
        ts = self.model.last_ts if owner is None else owner.read_ts
        since = max(0, ts - since_back) if since_back else 0
        within = narrowed(wanted["prefix"], wanted["start"], wanted["stop"])
        pending = {} if owner is None else owner.pending
        rows = self.model.scan(within, ts, self.now, pending, since)
        if shape == "keys_only":
            cursor = source.iterate(keys_only=True, since=since, **wanted)
        else:
            cursor = getattr(source, shape)(since=since, **wanted)
        mirror = OpenCursor(cursor, rows, within, wanted["reverse"], wanted["limit"], shape, owner)
        if owner is not None:
            owner.cursors.append(mirror)
        return mirror

    def _step(self, mirror: OpenCursor, count: int) -> None:
        given = []
        for _ in range(count):
            row = next(mirror.cursor, None)
            if row is None:
                break
            given.append(row)
        expected = mirror.take(count)
        assert len(given) == len(expected), (given, expected)
        for row, (key, entry) in zip(given, expected, strict=True):
            if mirror.shape == "items":
                assert row == (key, entry.write.value)
            elif mirror.shape == "keys":
                assert row == key
            elif mirror.shape == "values":
                assert row == entry.write.value
            else:
                assert row.key == key
                if not 0 < entry.write.expiry <= self.now:  # else it expired after the snapshot
                    self._compare_item(row, entry)

    def _finish_cursor(self, mirror: OpenCursor, count: int) -> None:
        self._step(mirror, count)
        mirror.cursor.close()
        mirror.note()
        mirror.closed = True
        assert next(mirror.cursor, None) is None

    def _note_covered(self, owner: OpenTxn, prefix: bytes) -> None:
        whole = OpenCursor(None, [], narrowed(prefix, None, None), False, None, "", owner)
        whole.exhausted = True
        owner.cursors.append(whole)
        whole.note()
        whole.closed = True

    def _compare_versions(
        self, key: bytes, items: list[Any], ts: int, since: int, own: Write | None
    ) -> None:
        if own is not None and (ts > since or not since):  # comes first, numbered as the snapshot
            first, *items = items
            assert (first.version, first.deleted) == (ts, Entry(ts, own).gone(self.now))
            assert (first.value, first.meta) == (own.value or b"", own.meta)
        versions = [item.version for item in items]
        assert versions == sorted(set(versions), reverse=True)
        known = {entry.version: entry.write for entry in self.model.versions(key, ts)}
        for item in items:
            write = known[item.version]
            assert item.version > since
            expired = 0 < write.expiry <= self.now
            assert item.deleted == (write.value is None or expired)
            if not expired:  # an expired one may have become a bare tombstone
                assert (item.value, item.meta) == (write.value or b"", write.meta)
                assert item.expires_at == write.expiry / 1000
        must = self.model.must_be_there(key, ts, self.now)
        assert {entry.version for entry in must if entry.version > since} <= set(versions)

    def _check_everything(self) -> None:
        expected = self.model.scan(Range(), self.model.last_ts, self.now)
        pairs = [(key, entry.write.value) for key, entry in expected]
        assert list(self.db.items()) == pairs
        assert list(self.db.items(reverse=True)) == pairs[::-1]
        report = self.db.verify(values=True)
        assert report.ok, report.problems
        assert self.db.wait_idle(PATIENCE)  # a full L0 is a reason too, until it is merged
        assert self.db.health().status == "ok", self.db.health()

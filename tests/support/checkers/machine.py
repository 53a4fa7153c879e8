"""A hypothesis state machine: random use of the public API, every answer compared with the model.

`workers` is set by the subclass that a test runs.
"""

from __future__ import annotations

import shutil
from typing import Any

import meles
import pytest
from checkers.machine_state import PATIENCE, MachineState
from checkers.mirror import OpenTxn
from checkers.model import Entry, Model, Range, Write, narrowed
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

KEYS = [
    b"a", b"a\0", b"a\0b", b"aa", b"ab", b"b", b"b\xff", b"b\xff\xff", b"c/1", b"c/2", b"c/20",
    b"c/3", b"d", b"\xff", b"\xff\xff", b"k" * 300, b"M1", b"M2",
]  # fmt: skip
MERGED = [b"M1", b"M2"]
PREFIXES = [b"", b"a", b"a\0", b"b\xff", b"c/", b"c/2", b"m/", b"m/01", b"M", b"\xff", b"zz"]
BULK = 100  # entries of a bulk load, of several hundred bytes each

keys = st.sampled_from([*KEYS[:6], *KEYS])  # a few are hot
bounds = st.none() | st.sampled_from([*KEYS, b"m/050", b"", b"zzz"])
sizes = st.sampled_from([0, 1, 10, 63, 64, 65, 400, 3000])
lives = st.none() | st.none() | st.sampled_from([0.001, 0.5, 1, 30, 3600])
metas = st.sampled_from([0, 0, 0, 7, 255])
picks = st.integers(0, 7)
flags = st.booleans()
endings = st.sampled_from(["commit", "commit", "commit", "discard", "nothing"])
rivals = st.tuples(st.sampled_from(["", "", "set", "set", "flushed", "delete", "drop"]), picks)
chosen_options = st.fixed_dictionaries(
    {
        "num_versions_to_keep": st.sampled_from([1, 1, 2, 1 << 30]),
        "value_threshold": st.sampled_from([0, 64, 64, 1 << 20]),
        "compression": st.sampled_from(["none", "lz4"]),
        "block_size": st.sampled_from([256, 4096]),
        "block_cache_size": st.sampled_from([0, 1 << 20]),
        "value_log_max_entries": st.sampled_from([3, 40]),
        "num_memtables": st.sampled_from([1, 3]),
        "num_level_zero_tables": st.sampled_from([1, 2, 5]),
        "bloom_false_positive": st.sampled_from([0.0, 0.01]),
    }
)
scans = st.fixed_dictionaries(
    {
        "prefix": st.sampled_from([b"", b"", *PREFIXES]),
        "start": bounds,
        "stop": bounds,
        "reverse": flags,
        "limit": st.none() | st.sampled_from([0, 1, 3, 50]),
    }
)
shapes = st.sampled_from(["iterate", "items", "keys", "values", "keys_only"])


class DatabaseMachine(MachineState):
    """The rules."""

    @initialize(options=chosen_options, loads=st.sampled_from([0, 0, 4]))
    def start(self, options: dict[str, Any], loads: int) -> None:
        """Empty, or with several levels."""
        self.model = Model(options["num_versions_to_keep"])
        self._open(options)
        for number in range(loads):
            self.bulk(number, 1, 300)
            self.db.flush(PATIENCE)

    # -- writing ---------------------------------------------------------------------------------

    @rule(
        key=keys,
        size=sizes,
        ttl=lives,
        meta=metas,
        how=st.sampled_from(["set", "delete", "discard"]),
    )
    def write(self, key: bytes, size: int, ttl: float | None, meta: int, how: str) -> None:
        if how == "delete":
            write = Write(None)
            self.db.delete(key)
        else:
            write = self._write(size, ttl, meta, how == "discard")
            self.db.set(key, write.value, **self._keywords(write, ttl))
        self.model.commit({key: write})

    @rule(ops=st.lists(st.tuples(keys, sizes, lives, flags), max_size=12), cancel=picks)
    def batch(self, ops: list[tuple[bytes, int, float | None, bool]], cancel: int) -> None:
        """Entries become visible split by split; a cancelled batch keeps the splits it made."""
        collected: dict[bytes, Write] = {}
        with self.db.write_batch() as batch:
            for key, size, ttl, delete in ops:
                before = batch.committed
                write = Write(None) if delete else self._write(size, ttl, 0, False)
                if delete:
                    batch.delete(key)
                else:
                    batch.set(key, write.value, ttl=ttl)
                if batch.committed != before:
                    self.model.commit(collected)
                    collected = {}
                collected[key] = write
            if cancel == 0:
                batch.cancel()
                collected = {}
        if collected:
            self.model.commit(collected)
        assert self.db.max_version() == self.model.last_ts

    @rule(first=st.integers(0, 5), step=st.sampled_from([1, 3]), size=st.sampled_from([20, 300]))
    def bulk(self, first: int, step: int, size: int) -> None:
        """Enough to fill a log."""
        collected: dict[bytes, Write] = {}
        with self.db.write_batch() as batch:
            for number in range(first * 10, first * 10 + BULK, step):
                key, write = b"m/%03d" % number, Write(self._value(size))
                before = batch.committed
                batch.set(key, write.value)
                if batch.committed != before:
                    self.model.commit(collected)
                    collected = {}
                collected[key] = write
        self.model.commit(collected)

    @rule(how=st.sampled_from(["ms", "second", "hour", "almost", "exactly", "exactly"]), key=keys)
    def let_time_pass(self, how: str, key: bytes) -> None:
        """Some time, or until a key expires or very nearly does."""
        newest = self.model.live(key, self.model.last_ts, self.now)
        expiry = 0 if newest is None else newest.write.expiry
        if how in ("almost", "exactly"):
            self.now = max(self.now, expiry - (how == "almost"))
        else:
            self.now += {"ms": 1, "second": 1000, "hour": 3_600_000}[how]
        self.look_up([key])

    # -- reading without a transaction -----------------------------------------------------------

    @rule(wanted=st.lists(keys, min_size=1, max_size=6))
    def look_up(self, wanted: list[bytes]) -> None:
        expected = [self.model.value(key, self.model.last_ts, self.now) for key in wanted]
        assert self.db.get_many(wanted) == expected
        assert self.db.get(wanted[0]) == expected[0]
        assert (wanted[0] in self.db) == (expected[0] is not None)

    @rule(back=st.integers(0, 30), wanted=st.lists(keys, min_size=1, max_size=4))
    def read_the_past(self, back: int, wanted: list[bytes]) -> None:
        """Exact where nothing was given up; below, at least never a version that is not there."""
        at = max(0, self.model.last_ts - back)
        with self.db.view(at=at) as txn:
            for key in wanted:
                item = txn.item(key)
                if at >= self.model.floor:
                    self._compare_item(item, self.model.live(key, at, self.now))
                elif item is not None:
                    known = {e.version: e.write.value for e in self.model.versions(key, at)}
                    assert known[item.version] == item.value
            if at >= self.model.floor:
                expected = self.model.scan(Range(), at, self.now)
                assert list(txn.items()) == [(k, e.write.value) for k, e in expected]

    # -- transactions ----------------------------------------------------------------------------

    @precondition(lambda self: len(self.txns) < 5)
    @rule(back=st.none() | picks)
    def begin_view(self, back: int | None) -> None:
        """Of now, or as far back as is sure to be there."""
        ts = (
            self.model.last_ts if back is None else max(self.model.floor, self.model.last_ts - back)
        )
        opened = OpenTxn(self.db.view(at=None if back is None else ts), False)
        assert opened.read_ts == ts
        self.txns.append(opened)

    @rule(data=st.data(), pick=picks, count=st.integers(1, 5), ending=endings, rival=rivals)
    def work(
        self, data: st.DataObject, pick: int, count: int, ending: str, rival: tuple[str, int]
    ) -> None:
        """Several steps of a transaction, an open one or a new one."""
        if pick >= len(self.txns) and len(self.txns) < 5:
            self.txns.append(OpenTxn(self.db.update(), True))
            assert self.txns[-1].read_ts == self.model.last_ts
        at = pick % len(self.txns)
        opened = self.txns[at]
        for _ in range(count):
            act = data.draw(st.sampled_from(["read", "write", "delete", "scan", "seek"]))
            key = data.draw(keys)
            if act == "read":
                self._read(opened, key)
            elif act == "scan":
                wanted = data.draw(scans)
                self._finish_cursor(self._cursor(self.db, opened, wanted, 0, "items"), 1 << 20)
            elif act == "seek":
                mirror = self._cursor(self.db, opened, data.draw(scans), 0, "iterate")
                self._step(mirror, data.draw(picks))
                mirror.cursor.seek(key)
                mirror.seek(key)
                self._finish_cursor(mirror, data.draw(picks))
            elif opened.update:
                size, ttl = (0, None) if act == "delete" else data.draw(st.tuples(sizes, lives))
                self._write_in(opened, key, size, ttl, act == "delete")
            else:
                with pytest.raises(meles.ReadOnlyError):
                    opened.txn.set(key, b"")
        if ending != "nothing":
            self._rival(opened, *rival)
            self._end(self.txns.pop(at), ending)

    def _read(self, opened: OpenTxn, key: bytes) -> None:
        item = opened.txn.item(key)
        if key in opened.pending:
            own = Entry(opened.read_ts, opened.pending[key])
            self._compare_item(item, None if own.gone(self.now) else own)
        else:
            opened.reads.add(key)
            self._compare_item(item, self.model.live(key, opened.read_ts, self.now))

    def _write_in(
        self, opened: OpenTxn, key: bytes, size: int, ttl: float | None, delete: bool
    ) -> None:
        write = Write(None) if delete else self._write(size, ttl, 0, False)
        try:
            if delete:
                opened.txn.delete(key)
            else:
                opened.txn.set(key, write.value, **self._keywords(write, ttl))
        except meles.TransactionTooBigError:
            return  # the transaction stays as it was
        opened.pending[key] = write

    def _rival(self, opened: OpenTxn, how: str, pick: int) -> None:
        """Somebody else commits, most often to what the transaction has read."""
        seen = [row[0] for cursor in opened.cursors for row in cursor.segment[: cursor.at]]
        seen = sorted({*seen, *opened.reads, KEYS[pick]})
        key = seen[pick % len(seen)]
        if how in ("set", "flushed"):
            self.write(key, 10, None, 0, "set")
            if how == "flushed":
                self.db.flush(PATIENCE)
        elif how == "delete":
            self.write(key, 0, None, 0, "delete")
        elif how == "drop":
            self.db.drop_prefix(key)
            self.model.drop([key])

    @precondition(lambda self: self.txns)
    @rule(pick=picks, ending=endings)
    def end(self, pick: int, ending: str) -> None:
        self._end(self.txns.pop(pick % len(self.txns)), ending)

    def _end(self, opened: OpenTxn, ending: str) -> None:
        if ending == "commit":
            self._commit(opened)
        else:
            opened.txn.discard()
        self._ended(opened)

    def _commit(self, opened: OpenTxn) -> None:
        expected: bool | None = False
        if opened.pending:
            expected = self.model.conflicts(
                opened.read_ts, opened.reads, opened.covered(), self.now
            )
        try:
            ts = opened.txn.commit()
        except meles.ConflictError:
            assert expected is not False, "a conflict with nothing"
        else:
            assert expected is not True, "a conflict was missed"
            assert ts == (self.model.commit(opened.pending) if opened.pending else 0)
            assert opened.txn.commit_ts == ts

    def _ended(self, opened: OpenTxn) -> None:
        with pytest.raises(meles.TransactionFinishedError):
            opened.txn.get(b"a")
        for mirror in opened.cursors:
            if not mirror.closed:
                with pytest.raises(meles.TransactionFinishedError):
                    next(mirror.cursor)
        self.cursors = [c for c in self.cursors if c.owner is not opened]

    # -- iterating -------------------------------------------------------------------------------

    @rule(pick=picks, wanted=scans, since_back=st.sampled_from([0, 0, 0, 2, 9]), shape=shapes)
    def scan(self, pick: int, wanted: dict[str, Any], since_back: int, shape: str) -> None:
        source, owner = self._source(pick)
        self._finish_cursor(self._cursor(source, owner, wanted, since_back, shape), 1 << 20)

    @precondition(lambda self: len(self.cursors) < 6)
    @rule(
        pick=picks, wanted=scans, since_back=st.sampled_from([0, 0, 9]), shape=shapes, count=picks
    )
    def open_cursor(
        self, pick: int, wanted: dict[str, Any], since_back: int, shape: str, count: int
    ) -> None:
        source, owner = self._source(pick)
        mirror = self._cursor(source, owner, wanted, since_back, shape)
        self.cursors.append(mirror)
        self._step(mirror, count)

    @precondition(lambda self: self.cursors)
    @rule(pick=picks, count=st.sampled_from([1, 1, 2, 5, 200]))
    def step(self, pick: int, count: int) -> None:
        self._step(self.cursors[pick % len(self.cursors)], count)

    @precondition(lambda self: self.cursors)
    @rule(
        pick=picks,
        key=st.none() | keys | st.sampled_from([b"", b"m/", b"m/055", b"\xff\xff\xff"]),
        count=picks,
        close=flags,
    )
    def move(self, pick: int, key: bytes | None, count: int, close: bool) -> None:
        """Seek, or rewind when there is no key."""
        mirror = self.cursors[pick % len(self.cursors)]
        if key is None:
            mirror.cursor.rewind()
            mirror.rewind()
        else:
            mirror.cursor.seek(key)
            mirror.seek(key)
        if close:
            self.cursors.remove(mirror)
            self._finish_cursor(mirror, count)
        else:
            self._step(mirror, count)

    @rule(pick=picks, prefix=st.sampled_from(PREFIXES), reverse=flags, since_back=picks)
    def all_versions(self, pick: int, prefix: bytes, reverse: bool, since_back: int) -> None:
        source, owner = self._source(pick)
        ts = self.model.last_ts if owner is None else owner.read_ts
        if ts < self.model.floor:
            return
        since = max(0, ts - since_back) if since_back else 0
        found: dict[bytes, list[Any]] = {}
        order = []
        for item in source.iterate(prefix, reverse=reverse, all_versions=True, since=since):
            if not order or order[-1] != item.key:
                order.append(item.key)
            found.setdefault(item.key, []).append(item)
        assert order == sorted(found, reverse=reverse)
        pending = {} if owner is None else owner.pending
        if owner is not None and owner.update:
            self._note_covered(owner, prefix)
        within = narrowed(prefix, None, None)
        for key in sorted(filter(within.holds, self.model.entries.keys() | pending.keys())):
            self._compare_versions(key, found.pop(key, []), ts, since, pending.get(key))
        assert not found

    # -- merge operators -------------------------------------------------------------------------

    def _operator(self, key: bytes) -> Any:
        if key not in self.operators:
            self.operators[key] = self.db.merge_operator(key, bytes.__add__, every=86400.0)
        return self.operators[key]

    @rule(
        key=st.sampled_from(MERGED), size=sizes, how=st.sampled_from(["add", "add", "get", "stop"])
    )
    def merge(self, key: bytes, size: int, how: str) -> None:
        operator = self._operator(key)
        folded, count = self.model.folded(key, self.model.last_ts, self.now)
        if how == "add":
            for _ in range(2):
                value = self._value(size)
                operator.add(value)
                self.model.commit({key: Write(value, merge=True)})
        elif how == "get" and folded is not None:
            assert operator.get() == folded
        elif how == "get":
            with pytest.raises(meles.KeyNotFoundError):
                operator.get()
        else:
            del self.operators[key]
            operator.stop()
            if folded is not None and count > 1 and self._fits_a_transaction(key, folded):
                self.model.commit({key: Write(folded, discard=True)})

    # -- the database as a whole -----------------------------------------------------------------

    @rule(how=st.sampled_from(["flush", "wait_idle", "flatten", "gc", "gc", "verify"]))
    def maintain(self, how: str) -> None:
        if how == "flush":
            self.db.flush(PATIENCE)
        elif how == "flatten":
            self.db.flatten(timeout=PATIENCE)
        elif how == "gc":
            self.db.gc(0.01, timeout=PATIENCE)
        elif how == "verify":
            self._check_everything()
        else:
            assert self.db.wait_idle(PATIENCE)

    @precondition(lambda self: self.is_calm())
    @rule(prefixes=st.lists(st.sampled_from(PREFIXES[1:]), max_size=2))
    def drop(self, prefixes: list[bytes]) -> None:
        if prefixes:
            self.db.drop_prefix(*prefixes)
        else:
            self.db.drop_all()
        self.model.drop(prefixes or [b""])
        self.upset_at = self.steps

    @precondition(lambda self: self.is_calm())
    @rule(options=chosen_options, crash=flags)
    def reopen(self, options: dict[str, Any], crash: bool) -> None:
        """After a crash: with the bytes the kernel has."""
        if crash:  # workers must not change the files while they are copied
            assert self.db.wait_idle(PATIENCE)
            shutil.copytree(self.path, self.home / str(self.generation + 1))
        report = self.db.close(PATIENCE)
        assert report.clean, report
        self._end_handles()
        if crash:
            shutil.rmtree(self.path)
            self.generation += 1
        self._open(options)
        self.upset_at = self.steps

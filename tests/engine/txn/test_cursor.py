"""Iterators: every parameter against a model, wherever the data lies, and how they end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.fs.names import Kind, ids_of

OpenDB = Callable[..., meles.DB]


@dataclass
class Version:
    ts: int
    value: bytes
    deleted: bool


@dataclass
class Model:
    """All versions of all keys, newest first, and a transaction's own writes."""

    keys: dict[bytes, list[Version]] = field(default_factory=dict)
    own: dict[bytes, Version] = field(default_factory=dict)

    def put(self, key: bytes, value: bytes | None, ts: int) -> None:
        versions = self.keys.setdefault(key, [])
        versions.insert(0, Version(ts, value or b"", value is None))

    def rows(
        self,
        read_ts: int,
        *,
        prefix: bytes = b"",
        start: bytes | None = None,
        stop: bytes | None = None,
        reverse: bool = False,
        all_versions: bool = False,
        since: int = 0,
    ) -> list[tuple[bytes, int, bytes]]:
        found = []
        for key in sorted({*self.keys, *self.own}, reverse=reverse):
            if not key.startswith(prefix) or (start is not None and key < start):
                continue
            if stop is not None and key >= stop:
                continue
            seen = [v for v in self.keys.get(key, []) if v.ts <= read_ts]
            if key in self.own:
                seen.insert(0, self.own[key])
            if not all_versions:
                seen = [v for v in seen[:1] if not v.deleted]
            found += [(key, v.ts, v.value) for v in seen if v.ts > since]
        return found


KEYS = [bytes([a, b]) for a in b"ab\xff" for b in b"\x00m\xff"] + [b"a", b"b", b"\xff", b"m" * 300]


def fill(db: meles.DB, seed: int) -> Model:
    """Versions over memtable, sealed logs, L0 and deeper; values on both sides of the threshold."""
    chance, model = random.Random(seed), Model()
    for step in range(120):
        key = chance.choice(KEYS)
        if chance.random() < 0.2:
            db.delete(key)
            model.put(key, None, db.max_version())
        else:
            value = b"%d" % step + bytes(chance.choice([0, 10, 100]))
            db.set(key, value)
            model.put(key, value, db.max_version())
        if step in (20, 40, 70, 95):
            db.flush()
        if step == 40:
            db.flatten()
    return model


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[meles.DB, Model]]:
    home = tmp_path_factory.mktemp("cursor") / "db"
    options: dict[str, Any] = {"num_versions_to_keep": 1000, "value_threshold": 50}
    with meles.open(home, workers="inline", sync="none", **options) as db:
        with db.view():  # a reader that may ask for every version: none is dropped
            model = fill(db, 7)
        assert [level.tables for level in db.levels() if level.tables] == [2, 1]
        yield db, model


bound = st.none() | st.sampled_from(KEYS) | st.binary(max_size=3)
wanted = st.fixed_dictionaries(
    {
        "prefix": st.sampled_from([b"", b"", b"a", b"b", b"\xff", b"\xff\xff", b"m", b"z"]),
        "start": bound,
        "stop": bound,
        "reverse": st.booleans(),
        "all_versions": st.booleans(),
        "since": st.sampled_from([0, 0, 30, 90, 120]),
    }
)
writes = st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=60), max_size=5)


@given(
    wanted=wanted,
    own=writes,
    at=st.none() | st.integers(0, 120),
    limit=st.none() | st.integers(0, 9),
)
def test_every_parameter_against_the_model(
    filled: tuple[meles.DB, Model],
    wanted: dict[str, Any],
    own: dict[bytes, bytes | None],
    at: int | None,
    limit: int | None,
) -> None:
    db, model = filled
    txn = db.update() if at is None else db.view(at=at)
    model.own = {}
    if at is None:
        for key, value in own.items():
            if value is None:
                txn.delete(key)
            else:
                txn.set(key, value)
            model.own[key] = Version(txn.read_ts, value or b"", value is None)
    expected = model.rows(txn.read_ts, **wanted)[:limit]
    items = list(txn.iterate(**wanted, limit=limit))
    assert [(i.key, i.version, i.value) for i in items] == expected
    assert [i.value_size for i in items] == [len(value) for _, _, value in expected]
    assert list(txn.items(**wanted, limit=limit)) == [(key, value) for key, _, value in expected]
    assert list(txn.keys(**wanted, limit=limit)) == [key for key, _, _ in expected]
    assert list(txn.values(**wanted, limit=limit)) == [value for _, _, value in expected]
    only = txn.iterate(**wanted, limit=limit, keys_only=True)
    assert [(i.key, i.version) for i in only] == [row[:2] for row in expected]
    for key in KEYS:
        newest = model.rows(txn.read_ts, start=key, stop=key + b"\0")
        assert txn.get(key) == (newest[0][2] if newest else None)
    txn.discard()


@given(
    wanted=wanted,
    moves=st.lists(st.none() | st.sampled_from(KEYS) | st.binary(max_size=2), max_size=6),
    steps=st.integers(0, 4),
    limit=st.none() | st.integers(1, 4),
)
def test_seeking_against_the_model(
    filled: tuple[meles.DB, Model],
    wanted: dict[str, Any],
    moves: list[bytes | None],
    steps: int,
    limit: int | None,
) -> None:
    """A seek clamps to the range and gives `limit` entries anew; None stands for a rewind."""
    db, model = filled
    model.own = {}
    with db.view() as txn, txn.iterate(**wanted, limit=limit) as cursor:
        rows = model.rows(txn.read_ts, **wanted)
        for move in moves:
            taken = [item for _, item in zip(range(steps), cursor, strict=False)]
            assert len(taken) <= steps
            if move is None:
                cursor.rewind()
                expected = rows
            else:
                cursor.seek(move)
                if wanted["reverse"]:
                    expected = [row for row in rows if not move or row[0] <= move]
                else:
                    expected = [row for row in rows if row[0] >= move]
            first = [item.key for _, item in zip(range(steps), cursor, strict=False)]
            assert first == [row[0] for row in expected[:limit][:steps]]


def test_the_same_of_the_database_itself(filled: tuple[meles.DB, Model]) -> None:
    db, model = filled
    model.own = {}
    rows = model.rows(db.max_version())
    assert list(db.items()) == [(key, value) for key, _, value in rows]
    assert list(db) == list(db.keys()) == [key for key, _, _ in rows]
    assert list(db.values()) == [value for _, _, value in rows]
    assert [(i.key, i.version, i.value) for i in db.iterate()] == rows
    back = model.rows(db.max_version(), prefix=b"a", reverse=True)
    assert list(db.keys(b"a", reverse=True)) == [key for key, _, _ in back]
    assert db.get_many(KEYS) == [dict(db.items()).get(key) for key in KEYS]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"limit": -1}, ValueError), ({"limit": True}, ValueError), ({"limit": 1.0}, ValueError),
        ({"limit": "1"}, ValueError), ({"nonsense": 1}, TypeError), ({"start": 1}, TypeError),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused_at_once(
    db: meles.DB, wanted: dict[str, Any], error: type[Exception]
) -> None:
    with db.view() as txn:
        for make in (txn.iterate, txn.items, txn.keys, txn.values, db.iterate, db.items, db.keys):
            with pytest.raises(error):
                make(**wanted)


def test_an_iterator_sees_the_writes_made_before_it(db: meles.DB) -> None:
    db[b"b"] = b"0"
    with db.update() as txn:
        txn[b"a"] = b"1"
        cursor = txn.keys()
        txn[b"c"] = b"1"
        del txn[b"b"]
        assert list(cursor) == [b"a", b"b"]
        cursor.rewind()
        assert list(cursor) == [b"a", b"b"]
        assert list(txn.keys()) == [b"a", b"c"]


def test_own_writes_do_not_take_the_place_of_a_version(open_db: OpenDB) -> None:
    """Not even of the one whose timestamp the snapshot has."""
    db = open_db(num_versions_to_keep=10)
    db[b"k"] = b"1"
    db[b"k"] = b"2"
    with db.update() as txn:
        txn[b"k"] = b"own"
        versions = [(i.version, i.value) for i in txn.iterate(all_versions=True)]
        assert versions == [(2, b"own"), (2, b"2"), (1, b"1")]
        assert [i.value for i in txn.iterate(all_versions=True, since=1)] == [b"own", b"2"]
        assert list(txn.iterate(all_versions=True, since=2)) == []


def test_own_writes_are_not_dropped_by_a_drop(db: meles.DB) -> None:
    db[b"k"] = b"old"
    db[b"j"] = b"old"
    db.drop_prefix(b"k")
    with db.update() as txn:
        assert list(txn.items()) == [(b"j", b"old")]
        txn[b"k"] = b"own"
        assert list(txn.items()) == [(b"j", b"old"), (b"k", b"own")]
        assert txn[b"k"] == b"own"


# -- iterators that outlive what they read -------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 150])
def test_an_iterator_outlives_flush_compaction_collection_and_the_files(
    open_db: OpenDB, tmp_path: Path, reverse: bool, taken: int
) -> None:
    db = open_db(
        value_threshold=200, value_log_file_size="1MiB", memtable_size="256KiB",
        base_table_size="64KiB", block_size=512,
    )  # fmt: skip

    def write(step: int) -> None:
        for n in range(400):
            large = n % 2
            db[b"%04d" % n] = b"%d.%d " % (step, n) * (500 if large else 2)

    write(1)
    db.flush()
    write(2)
    expected = sorted(db.items(), reverse=reverse)
    names = set(os.listdir(tmp_path / "db"))
    cursors: list[Any] = [
        db.items(reverse=reverse), db.values(reverse=reverse), db.iterate(reverse=reverse),
    ]  # fmt: skip
    heads = [[next(cursor) for _ in range(taken)] for cursor in cursors]
    write(3)
    db.flush()
    write(4)
    db.delete(b"0007")
    db.flush()
    db.flatten()
    db.gc(0.01)
    assert db.stats().gc_runs > 0
    left = names & set(os.listdir(tmp_path / "db"))
    assert ids_of(Kind.TABLE, left) == ids_of(Kind.WAL, left) == ids_of(Kind.VLOG, left) == []
    pairs, values, items = (
        head + list(cursor) for head, cursor in zip(heads, cursors, strict=True)
    )
    assert pairs == expected
    assert values == [value for _, value in expected]
    assert [(item.key, item.value) for item in items] == expected
    assert db.get(b"0007") is None


def test_a_reverse_scan_with_a_prefix_begins_at_its_end(db: meles.DB) -> None:
    for key in (b"a", b"b", b"b\xff", b"b\xff\xff", b"c", b"c0"):
        db[key] = key
    assert list(db.keys(b"b", reverse=True)) == [b"b\xff\xff", b"b\xff", b"b"]
    assert list(db.keys(b"b\xff", reverse=True)) == [b"b\xff\xff", b"b\xff"]
    with db.view() as txn:
        cursor = txn.keys(b"b", reverse=True)
        cursor.seek(b"b\xff")
        assert list(cursor) == [b"b\xff", b"b"]
        cursor.seek(b"")
        assert next(cursor) == b"b\xff\xff"
        cursor.seek(b"z")
        assert next(cursor) == b"b\xff\xff"
        cursor.seek(b"a")
        assert list(cursor) == []


# -- ending --------------------------------------------------------------------------------------


def use(cursor: Any) -> list[Callable[[], object]]:
    return [lambda: next(cursor), lambda: cursor.seek(b"a"), cursor.rewind]


def test_an_iterator_ends_with_its_transaction(db: meles.DB) -> None:
    db[b"a"] = b"1"
    for begin, end in (("view", "discard"), ("update", "discard"), ("update", "commit")):
        txn = getattr(db, begin)()
        cursors = [txn.iterate(), txn.items(), txn.keys(), txn.values()]
        next(cursors[0])
        getattr(txn, end)()
        for cursor in cursors:
            for call in use(cursor):
                with pytest.raises(meles.TransactionFinishedError):
                    call()
            cursor.close()
            with pytest.raises(meles.TransactionFinishedError):
                cursor.rewind()


def test_everything_ends_with_the_database(open_db: OpenDB) -> None:
    """`ClosedError` wins over what a finished transaction says."""
    db = open_db(value_threshold=10)
    db[b"a"] = b"1"
    db[b"b"] = b"2" * 100
    db.flush()
    txn, ended = db.update(), db.view()
    txn[b"a"] = b"own"
    cursors: list[Any] = [db.items(), db.keys(), txn.items(), txn.iterate(), ended.keys()]
    closed = db.keys()
    closed.close()
    item = next(iter(db.iterate(start=b"b")))
    for cursor in cursors[:3]:
        next(cursor)
    ended.discard()
    db.close()
    for cursor in (*cursors, closed):
        for call in use(cursor):
            with pytest.raises(meles.ClosedError):
                call()
        cursor.close()
    calls: list[Callable[[], object]] = [
        lambda: txn.get(b"a"), lambda: txn.set(b"a", b""), txn.commit, txn.keys, txn.__enter__,
        lambda: ended.get(b"a"), lambda: item.value,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(meles.ClosedError):
            call()
    txn.discard()
    ended.discard()


def test_a_closed_iterator_has_nothing_more(db: meles.DB) -> None:
    db[b"a"] = b"1"
    with db.keys() as cursor:
        assert next(cursor) == b"a"
    assert list(cursor) == []
    cursor.close()
    for call in use(cursor)[1:]:
        with pytest.raises(meles.ClosedError):
            call()


def test_an_iterator_that_failed_does_not_go_on_behind_it(open_db: OpenDB, tmp_path: Path) -> None:
    """Who catches the error and asks again must not take what comes for all there is."""
    db = open_db(value_threshold=10)
    for n in range(10):
        db[b"%d" % n] = b"%d" % n * 50
    db.close()
    path = tmp_path / "db" / "000001.vlog"
    data = bytearray(path.read_bytes())
    data[data.index(b"4" * 50)] ^= 1
    path.write_bytes(bytes(data))
    db = open_db(value_threshold=10)
    with db.update() as txn:
        for target in (db, txn):
            for cursor, good in (
                (target.items(), 4), (target.values(), 4), (target.values(reverse=True), 5),
                (target.items(limit=5), 4),
            ):  # fmt: skip
                assert len([next(cursor) for _ in range(good)]) == good
                for _ in range(3):
                    with pytest.raises(meles.CorruptionError) as caught:
                        next(cursor)
                    assert caught.value.path == str(path)
                cursor.seek(b"5")
                assert next(cursor) in (b"5" * 50, (b"5", b"5" * 50))
        txn.discard()


def test_own_writes_stay_in_order_however_many_come_between_two_scans(db: meles.DB) -> None:
    rng = random.Random(3)
    expected: dict[bytes, bytes] = {}
    with db.update() as txn:
        for count in (3, 0, 1, 100, 2, 64, 65, 0, 500, 1):
            for _ in range(count):
                key, value = b"%04d" % rng.randrange(2000), b"%d" % rng.randrange(99)
                txn[key] = expected[key] = value
            ordered = sorted(expected.items())
            assert list(txn.items()) == ordered
            assert list(txn.items(reverse=True)) == ordered[::-1]
            middle = [pair for pair in ordered if b"05" <= pair[0] < b"15"]
            assert list(txn.items(start=b"05", stop=b"15")) == middle
    assert list(db.items()) == sorted(expected.items())

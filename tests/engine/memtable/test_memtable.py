"""The memtable against a plain model, alone and with readers beside the writer."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fault_fs import FailNth, FaultDisk
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE
from meles.engine.errors import DiskFullError
from meles.engine.fs.files import Directory
from meles.engine.ids import MAX_VERSION
from meles.engine.iterators.visible import check_batches
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.memtable import Memtable

Found = tuple[int, int, int, bytes]


@pytest.fixture
def table(directory: Directory) -> Iterator[Memtable]:
    made = Memtable.create(LogWriter(directory, 1))
    yield made
    if made.log is not None:
        made.log.close()


@dataclass
class Model:
    """Every version of every key."""

    versions: dict[bytes, dict[int, Found]] = field(default_factory=dict)

    def put(self, key: bytes, value: bytes, meta: int, expiry: int, version: int) -> None:
        self.versions.setdefault(key, {})[version] = (version, meta, expiry, value)

    def get(self, key: bytes, ts: int) -> Found | None:
        seen = [found for found in self.versions.get(key, {}).values() if found[0] <= ts]
        return max(seen, default=None)

    def scan(
        self, low: bytes | None, high: bytes | None, ts: int, *, all_versions: bool
    ) -> list[tuple[bytes, Found]]:
        rows = []
        for key in sorted(self.versions):
            if (low is not None and key < low) or (high is not None and key >= high):
                continue
            seen = sorted((f for f in self.versions[key].values() if f[0] <= ts), reverse=True)
            rows += [(key, found) for found in (seen if all_versions else seen[:1])]
        return rows


def rows_of(batches: list[Columns], *, reverse: bool = False) -> list[tuple[bytes, Found]]:
    """Entries in ascending order; in reverse the batches come last first."""
    if reverse:
        batches = batches[::-1]
    check_batches(batches)
    return [
        (key, found)
        for b in batches
        for key, *found in zip(b.keys, b.versions, b.metas, b.expiries, b.values, strict=True)
        for found in [tuple(found)]
    ]  # type: ignore[misc]


def agrees(table: Memtable, model: Model, ts: int, low: bytes | None, high: bytes | None) -> None:
    for key in (*model.versions, b"absent"):
        assert table.get(key, ts) == model.get(key, ts)
        assert table.newest_version(key) == max(model.versions.get(key, {}), default=0)
    for all_versions in (False, True):
        expected = model.scan(low, high, ts, all_versions=all_versions)
        for reverse in (False, True):
            batches = list(table.scan(low, high, ts, all_versions=all_versions, reverse=reverse))
            assert rows_of(batches, reverse=reverse) == expected
    table.check()


keys = st.binary(min_size=1, max_size=3)
bounds = st.none() | st.binary(max_size=3)
entry = st.tuples(keys, st.binary(max_size=30), st.integers(0, 1 << 16), st.integers(0, 1 << 62))
frames = st.lists(st.lists(entry, min_size=1, max_size=6, unique_by=lambda e: e[0]), max_size=30)


@given(frames=frames, ts=st.integers(0, 40), low=bounds, high=bounds, single=st.booleans())
def test_equals_the_model(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[list[tuple[bytes, bytes, int, int]]],
    ts: int,
    low: bytes | None,
    high: bytes | None,
    single: bool,
) -> None:
    """One-record frames by `put`, larger ones by `put_many`; read while active and sealed."""
    model = Model()
    with Directory(str(tmp_path_factory.mktemp("mem"))) as directory:
        log = LogWriter(directory, 1)
        table = Memtable.create(log)
        for at, frame in enumerate(frames, 1):
            for key, value, meta, expiry in frame:
                model.put(key, value, meta % (1 << 16), expiry, at)
            if single and len(frame) == 1:
                key, value, meta, expiry = frame[0]
                table.put(key, value, meta & 0xFF, meta >> 8 & 0xFF, expiry, at)
            else:
                names, values, metas, expiries = zip(*frame, strict=True)
                table.put_many(names, values, [m % (1 << 16) for m in metas], expiries, at)
            table.last_ts = at
            if at == len(frames) // 2:
                agrees(table, model, ts, low, high)
        agrees(table, model, ts, low, high)
        agrees(table, model, MAX_VERSION, None, None)
        table.seal()
        log.close()
        agrees(table, model, ts, low, high)
        assert (table.records, table.ordered) == (sum(map(len, frames)), True)
        assert table.size == log.end


managed = st.lists(
    st.tuples(
        st.integers(1, 20),
        st.lists(st.tuples(keys, st.integers(1, 20)), min_size=1, max_size=6),
    ),
    max_size=20,
)


@given(frames=managed, ts=st.integers(0, 22), low=bounds, high=bounds)
def test_equals_the_model_when_the_caller_sets_versions(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[tuple[int, list[tuple[bytes, int]]]],
    ts: int,
    low: bytes | None,
    high: bytes | None,
) -> None:
    """Versions in any order, several of a key in one frame, the same one twice: the last counts."""
    model = Model()
    with Directory(str(tmp_path_factory.mktemp("mem"))) as directory:
        log = LogWriter(directory, 1)
        table = Memtable.create(log)
        for number, (at, entries) in enumerate(frames):
            names = [key for key, _ in entries]
            versions = [version for _, version in entries]
            values = [b"%d.%d" % (number, nth) for nth in range(len(entries))]
            for key, version, value in zip(names, versions, values, strict=True):
                model.put(key, value, 0, 0, version)
            zeros = [0] * len(entries)
            table.put_many(names, values, zeros, zeros, at, versions)
        agrees(table, model, ts, low, high)
        log.close()


def test_chunks_of_a_long_scan_join_without_a_seam(table: Memtable) -> None:
    count = 5000
    names = [b"%05d" % n for n in range(count)]
    table.put_many(names, names, [0] * count, [0] * count, 1)
    for reverse in (False, True):
        batches = list(table.scan(None, None, 1, reverse=reverse))
        assert len(batches) > 3
        assert len(batches[0]) < 100  # a reader who wants little waits for little
        assert [key for key, _ in rows_of(batches, reverse=reverse)] == names
    inner = list(table.scan(b"00100", b"04900", 1))
    assert [key for key, _ in rows_of(inner)] == names[100:4900]


def test_a_scan_sees_nothing_that_came_later(table: Memtable) -> None:
    for n in range(200):
        table.put(b"%03d" % n, b"old", 0, 0, 0, 1)
    scan = table.scan(None, None, 1)
    seen = [key for key, _ in rows_of([next(scan)])]
    for n in range(200):
        table.put(b"%03d" % n, b"new", 0, 0, 0, 2)
        table.put(b"%03d+" % n, b"new", 0, 0, 0, 2)
    rest = rows_of(list(scan))
    assert {found[3] for _, found in rest} == {b"old"}
    assert [*seen, *(key for key, _ in rest)] == [b"%03d" % n for n in range(200)]


def test_tombstones_are_entries(table: Memtable) -> None:
    table.put(b"k", b"v", 0, 5, 0, 1)
    table.put(b"k", b"", META_DELETE, 0, 0, 2)
    assert table.get(b"k", 2) == (2, META_DELETE, 0, b"")
    assert table.get(b"k", 1) == (1, 5 << 8, 0, b"v")
    assert table.get(b"k", 0) is None


def test_it_outgrows_its_mapping_while_read(table: Memtable) -> None:
    table.put(b"first", b"1" * 1000, 0, 0, 0, 1)
    scan = table.scan(None, None, 50)
    before = table.map
    for n in range(2, 40):
        table.put(b"k%02d" % n, bytes([n]) * 20_000, 0, 0, 0, n)
    assert table.map is not before
    assert table.get(b"first", 50) == (1, 0, 0, b"1" * 1000)
    assert len(rows_of(list(scan))) == 39


def test_a_full_disk_leaves_it_as_it_was(directory: Directory, fault_disk: FaultDisk) -> None:
    with fault_disk.open(directory.path) as opened:
        log = LogWriter(opened, 1)
        table = Memtable.create(log)
        table.put(b"k", b"old", 0, 0, 0, 1)
        fault_disk.plan = FailNth(1, errno.ENOSPC, sticky=True)
        with pytest.raises(DiskFullError):
            table.put(b"k", bytes(100_000), 0, 0, 0, 2)
        with pytest.raises(DiskFullError):
            table.put_many([b"k", b"j"], [bytes(100_000), b""], [0, 0], [0, 0], 2)
        assert table.get(b"k", 9) == (1, 0, 0, b"old")
        assert table.get(b"j", 9) is None
        fault_disk.plan = None
        table.put_many([b"k", b"j"], [bytes(100_000), b""], [0, 0], [0, 0], 2)
        assert table.get(b"j", 9) == (2, 0, 0, b"")
        log.close()


# -- one writer, several readers -----------------------------------------------------------------


@pytest.fixture
def impatient_interpreter() -> Iterator[None]:
    """Threads take turns often, so that there is something to get wrong."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient_interpreter")
def test_readers_beside_a_writer_see_snapshots(table: Memtable) -> None:
    """Frame n sets a few shared keys to n: at snapshot n every one of them is n, or absent."""
    rounds, shared = 150, [b"s%d" % n for n in range(5)]
    published = 0
    stop = threading.Event()
    checks: list[int] = [0, 0, 0]
    errors: list[BaseException] = []

    def write() -> None:
        nonlocal published
        for n in range(1, 1000 * rounds):
            if stop.is_set() or (n > rounds and min(checks) >= 6):
                break
            number = b"%d" % n
            names = [*shared, b"only-%06d" % min(n, rounds)]
            table.put_many(names, [number] * 6, [0] * 6, [0] * 6, n)
            published = n
        stop.set()

    def read(nth: int, reverse: bool) -> None:
        last = False
        while not last:
            last = stop.is_set()  # one more round when all is written
            ts = published
            number = b"%d" % ts
            if ts:
                assert [table.get(key, ts) for key in shared] == [(ts, 0, 0, number)] * 5
            rows = rows_of(list(table.scan(None, None, ts, reverse=reverse)), reverse=reverse)
            assert len(rows) == (min(ts, rounds) + 5 if ts else 0)
            assert [found[3] for key, found in rows if key in shared] == [number] * 5 * bool(ts)
            whole = table.scan(b"s", None, ts, all_versions=True)
            assert sum(map(len, whole)) == 5 * ts
            checks[nth] += 1

    def run(target: object, *arguments: object) -> None:
        try:
            target(*arguments)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=run, args=(write,))]
    threads += [threading.Thread(target=run, args=(read, n, n == 1)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert min(checks) > 2
    table.check()


@settings(max_examples=10)
@given(st.lists(st.lists(keys, min_size=1, max_size=20), max_size=10))
def test_the_order_is_brought_up_to_date_whenever_asked(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[bytes]]
) -> None:
    with Directory(str(tmp_path_factory.mktemp("mem"))) as directory:
        log = LogWriter(directory, 1)
        table = Memtable.create(log)
        known: set[bytes] = set()
        for ts, group in enumerate(groups, 1):
            for key in group:
                table.put(key, b"", 0, 0, 0, ts)
            known.update(group)
            assert table.keys.chunk(None, None, 1000) == sorted(known)
            assert table.keys.chunk(None, None, 3, reverse=True) == sorted(known)[::-1][:3]
            assert len(table.index) == len(known)
        log.close()

"""A log read back: the same memtable as before the crash, or that of a prefix of its commits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_POINTER, ValuePointer
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.ids import MAX_VERSION
from meles.engine.log.frame import BODY, KIND_TXN, RECORD
from meles.engine.log.reader import LogReader
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.memtable import Memtable
from meles.engine.memtable.replay import replay

Fill = Callable[[Memtable], None]


def log_of(directory: Directory, fill: Fill, *, seal: bool = False) -> tuple[Memtable, bytes]:
    log = LogWriter(directory, 3)
    table = Memtable.create(log)
    fill(table)
    if seal:
        table.seal()
    log.close()
    return table, directory.read("00003.mem")


def everything(table: Memtable) -> Columns:
    out = Columns()
    for batch in table.scan(None, None, MAX_VERSION, all_versions=True):
        out.extend(batch)
    return out


def ten(table: Memtable) -> None:
    for ts in range(1, 11):
        names = [b"k%d" % (ts % 3), b"n%d" % ts]
        table.put_many(names, [b"%d" % ts, b"x" * ts], [ts << 8, 0], [0, 10**12 + ts], ts)
        table.last_ts = ts
    table.put(b"k1", b"", META_DELETE, 0, 0, 11)
    table.last_ts = 11


@pytest.mark.parametrize("seal", [False, True])
def test_what_was_written_is_there_again(directory: Directory, seal: bool) -> None:
    before, data = log_of(directory, ten, seal=seal)
    found = replay(data, 3, "f", {})
    assert everything(found.memtable) == everything(before)
    names = before.keys.chunk(None, None, 100)
    assert found.memtable.keys.chunk(None, None, 100) == names
    assert [found.memtable.index.offset_of(n) for n in names] == [
        before.index.offset_of(n) for n in names
    ]
    assert (found.problem, found.inside, found.tail.sealed) == (None, False, seal)
    table = found.memtable
    assert (table.id, table.records, table.first_ts, table.last_ts) == (3, 21, 1, 11)
    assert (table.ordered, table.vlog_ids, table.log) == (True, set(), None)
    table.check()


def test_a_log_cut_anywhere_is_a_prefix(directory: Directory) -> None:
    before, data = log_of(directory, ten)
    end = before.size
    whole = everything(before)
    starts = [frame.offset for frame in LogReader(data, "f").frames()]
    for cut in range(HEADER_BYTES, end, 3):
        found = replay(data[:cut], 3, "f", {})
        ts = sum(start < cut for start in starts) - 1 if cut not in starts else starts.index(cut)
        assert found.memtable.last_ts in (ts, ts + 1)  # padding may be all that was cut
        kept = found.memtable.last_ts
        rows = zip(whole.keys, whole.versions, whole.values, strict=True)
        expected = [row for row in rows if row[1] <= kept]
        got = everything(found.memtable)
        assert list(zip(got.keys, got.versions, got.values, strict=True)) == expected
        assert found.inside is False


def test_damage_before_whole_transactions_is_told_from_a_torn_tail(directory: Directory) -> None:
    _, data = log_of(directory, ten)
    frames = list(LogReader(data, "f").frames())
    for nth, frame in enumerate(frames):
        damaged = bytearray(data)
        damaged[frame.start] ^= 1
        found = replay(bytes(damaged), 3, "f", {})
        assert found.tail.end == frame.offset
        assert found.tail.frames == nth
        assert found.problem is not None
        assert found.inside is (frame is not frames[-1])
        assert found.tail.cut == len(data[frame.offset :].rstrip(b"\0"))


def test_a_frame_that_is_wrong_inside_ends_the_prefix_at_its_beginning(
    directory: Directory,
) -> None:
    """Its second record is: nothing of the frame may count, and the cut is before all of it."""

    def fill(table: Memtable) -> None:
        ten(table)
        good = RECORD.pack(12, 0, 1, 0, 1, 0, 0) + b"av"
        bad = RECORD.pack(12, 0, 100, 0, 1, 0, 0) + b"bv"
        assert table.log is not None
        table.log.end = table.end
        table.log.append_body(BODY.pack(12, 2, KIND_TXN, 0) + good + bad)

    before, data = log_of(directory, fill)
    found = replay(data, 3, "f", {})
    last = list(LogReader(data, "f").frames())[-1]
    assert found.problem is not None
    assert "does not fit" in found.problem
    assert (found.tail.end, found.tail.frames, found.memtable.end) == (last.offset, 11, last.offset)
    assert everything(found.memtable) == everything(before)


@pytest.mark.parametrize(("key", "link"), [(b"new", 88), (b"n1", 0), (b"n1", 88), (b"n1", 72)])
def test_a_link_to_anything_but_the_record_before_ends_the_prefix(
    directory: Directory, key: bytes, link: int
) -> None:
    """Readers follow links blindly: into the middle of a record, or to another key."""

    def fill(table: Memtable) -> None:
        ten(table)
        assert table.log is not None
        assert table.index.offset_of(key) != link
        table.log.end = table.end
        bad = RECORD.pack(12, 0, 1, link, len(key), 0, 0) + key + b"v"
        table.log.append_body(BODY.pack(12, 1, KIND_TXN, 0) + bad)

    before, data = log_of(directory, fill)
    found = replay(data, 3, "f", {})
    assert found.problem is not None
    assert f"links to {link}" in found.problem
    assert (found.tail.end, found.tail.frames) == (before.end, 11)
    assert everything(found.memtable) == everything(before)


def pointer(file_id: int, offset: int, length: int) -> bytes:
    return ValuePointer(file_id, offset, length).encode()


@pytest.mark.parametrize(
    ("end", "kept"), [(10_000, 3), (420, 3), (419, 2), (220, 2), (219, 1), (64, 1), (0, 1)]
)
def test_a_value_that_was_not_recovered_ends_the_prefix(
    directory: Directory, end: int, kept: int
) -> None:
    """The last value ends at 200 + 16 + 204 = 420."""

    def fill(table: Memtable) -> None:
        table.put(b"a", b"plain", 0, 0, 0, 1)
        table.put(b"b", pointer(5, 64, 140), META_POINTER, 0, 0, 2)
        table.put(b"c", pointer(5, 200, 204), META_POINTER, 0, 0, 3)

    _, data = log_of(directory, fill, seal=True)
    found = replay(data, 3, "f", {5: end})
    assert found.memtable.last_ts == kept
    assert (found.problem is None, found.tail.sealed) == (kept == 3, kept == 3)
    assert found.memtable.vlog_ids == ({5} if kept > 1 else set())
    if kept < 3:
        assert found.problem is not None
        assert "value-log file 5" in found.problem


def test_a_pointer_of_the_wrong_length_ends_the_prefix(directory: Directory) -> None:
    def fill(table: Memtable) -> None:
        table.put(b"a", b"plain", 0, 0, 0, 1)
        table.put(b"b", b"short", META_POINTER, 0, 0, 2)

    _, data = log_of(directory, fill)
    found = replay(data, 3, "f", {})
    assert (found.memtable.last_ts, found.problem) == (1, "a value pointer of the wrong length")


def test_pointers_into_files_that_were_sealed_are_not_checked_here(directory: Directory) -> None:
    _, data = log_of(
        directory, lambda t: t.put(b"b", pointer(9, 1 << 30, 4), META_POINTER, 0, 0, 2)
    )
    assert replay(data, 3, "f", {5: 64}).problem is None


def test_versions_set_by_the_caller(directory: Directory) -> None:
    def fill(table: Memtable) -> None:
        table.put_many([b"k", b"k"], [b"7", b"5"], [0, 0], [0, 0], 9, [7, 5])
        table.put_many([b"k"], [b"6"], [0], [0], 4, [6])

    before, data = log_of(directory, fill)
    table = replay(data, 3, "f", {}).memtable
    assert (table.ordered, before.ordered) == (False, False)
    assert (table.first_ts, table.last_ts) == (4, 9)
    assert everything(table) == everything(before)
    assert [table.get(b"k", ts) for ts in (4, 5, 6, 7)] == [
        None, (5, 0, 0, b"5"), (6, 0, 0, b"6"), (7, 0, 0, b"7"),
    ]  # fmt: skip


def test_a_log_under_another_name_is_refused(directory: Directory) -> None:
    _, data = log_of(directory, ten)
    with pytest.raises(CorruptionError, match="log says it is 3"):
        replay(data, 4, "f", {})


def test_a_header_that_cannot_be_trusted_is_refused(directory: Directory) -> None:
    _, data = log_of(directory, ten)
    with pytest.raises(CorruptionError, match="header"):
        replay(b"\0" + data[1:], 3, "f", {})

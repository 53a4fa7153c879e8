"""The write-ahead log: what is written comes back, and no damage is ever taken for data."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from fault_fs import FailNth, FaultDisk
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader
from meles.engine.errors import CorruptionError, DiskFullError
from meles.engine.fs.files import Directory
from meles.engine.log.frame import BODY, FRAME_BYTES, KIND_END, KIND_TXN, RECORD, aligned
from meles.engine.log.reader import LogReader, Tail
from meles.engine.log.writer import LogWriter

Entry = tuple[bytes, bytes, int, int]  # key, value, meta, user
Txns = list[list[Entry]]


def body_of(ts: int, entries: Iterable[Entry], kind: int = KIND_TXN) -> bytes:
    parts = [
        RECORD.pack(ts, 0, len(value), 0, len(key), meta, user) + key + value
        for key, value, meta, user in entries
    ]
    return BODY.pack(ts, len(parts), kind, 0) + b"".join(parts)


def write(log: LogWriter, txns: Txns) -> None:
    for ts, entries in enumerate(txns, 1):
        log.append_body(body_of(ts, entries))
        log.records += len(entries)


def content(directory: Directory, txns: Txns, *, seal: bool) -> bytes:
    """A log with these transactions; without a seal, what was allocated ahead is left out."""
    log = LogWriter(directory, 1)
    write(log, txns)
    if seal:
        log.seal(len(txns))
    log.close()
    data = directory.read("00001.mem")[: log.end]
    directory.unlink("00001.mem")
    return data


@dataclass
class Read:
    txns: Txns
    tail: Tail | None
    error: CorruptionError | None


def read(data: bytes) -> Read:
    reader = LogReader(data, "f")
    txns: Txns = []
    try:
        for frame in reader.frames():
            txns.append(
                [(r.key, data[r.value_at : r.stop], r.meta, r.user) for r in reader.records(frame)]
            )
    except CorruptionError as error:
        return Read(txns, reader.tail, error)
    return Read(txns, reader.tail, None)


SMALL: Txns = [
    [(b"a", b"1", 0, 0)],
    [(b"b", b"", 1, 0), (b"cc", b"22", 0, 7), (b"d" * 9, b"333", 4, 0)],
    [(b"e", b"0123456789" * 3, 0, 255)],
    [(b"f", b"4", 0, 0)],
]

entries = st.tuples(
    st.binary(min_size=1, max_size=20), st.binary(max_size=60), st.integers(0, 15),
    st.integers(0, 255),
)  # fmt: skip


@given(txns=st.lists(st.lists(entries, min_size=1, max_size=8), max_size=8), seal=st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, txns: Txns, seal: bool
) -> None:
    with Directory(str(tmp_path_factory.mktemp("log"))) as directory:
        data = content(directory, txns, seal=seal)
    found = read(data)
    assert found.error is None
    assert found.txns == txns
    assert found.tail == Tail(len(data), seal, 0, len(txns), len(txns))


def test_frames_begin_at_multiples_of_eight(directory: Directory) -> None:
    data = content(directory, [[(b"k" * n, b"", 0, 0)] for n in range(1, 20)], seal=False)
    offsets = [frame.offset for frame in LogReader(data, "f").frames()]
    assert len(offsets) == 19
    assert all(offset % 8 == 0 for offset in offsets)


def test_a_log_is_named_allocated_and_grows(directory: Directory) -> None:
    log = LogWriter(directory, 12)
    first = log.map
    assert directory.names() == ["00012.mem"]
    assert directory.size_of("00012.mem") == log.room == 64 << 10
    big = [[(b"k", bytes(300_000), 0, 0)], [(b"j", b"x" * 300_000, 0, 0)]]
    write(log, big)
    assert log.room == directory.size_of("00012.mem") >= log.end > 600_000
    assert log.map is not first
    assert first[:8] == MAGIC_WAL  # a reader's old mapping stays valid
    assert read(bytes(log.map)).txns == big
    log.seal(2)
    assert directory.size_of("00012.mem") == log.end
    log.close()
    log.close()


def test_a_log_that_is_to_be_full_grows_in_few_steps_and_is_not_cut(directory: Directory) -> None:
    expected = 1 << 20
    log = LogWriter(directory, 1, expected)
    first = log.map
    assert log.room == expected + (64 << 10)  # the last frame begins before the end
    txns: Txns = [[(b"%d" % n, bytes(100_000), 0, 0)] for n in range(11)]
    write(log, txns)
    assert log.map is first
    assert log.end > expected
    log.seal(len(txns))
    log.close()
    data = directory.read("00001.mem")
    assert len(data) == log.room > log.end
    found = read(data)
    assert (found.txns, found.error) == (txns, None)
    assert found.tail is not None
    assert (found.tail.sealed, found.tail.end, found.tail.cut) == (True, log.end, 0)


def test_a_log_that_was_to_be_larger_is_cut(directory: Directory) -> None:
    log = LogWriter(directory, 1, 64 << 20)
    assert log.room == (4 << 20) + (64 << 10)
    write(log, [[(b"k", b"v", 0, 0)]])
    log.seal(1)
    log.close()
    assert directory.size_of("00001.mem") == log.end


def test_a_large_log_ends_its_steps_where_it_is_expected_to(directory: Directory) -> None:
    expected = 9 << 20
    log = LogWriter(directory, 1, expected)
    rooms = [log.room]
    for ts in range(1, 10):
        log.append_body(body_of(ts, [(b"k", bytes(1_000_000), 0, 0)]))
        rooms += [log.room] * (log.room != rooms[-1])
    log.close()
    assert rooms == [(4 << 20) + (64 << 10), (8 << 20) + (128 << 10), expected + (64 << 10)]


def test_a_log_on_a_file_system_that_cannot_allocate(
    directory: Directory, fault_disk: FaultDisk
) -> None:
    fault_disk.can_allocate = False
    with fault_disk.open(directory.path) as opened:
        log = LogWriter(opened, 1)
        big = [[(b"k", b"v" * 200_000, 0, 0)]]
        write(log, big)
        assert directory.size_of("00001.mem") == log.room
        assert read(bytes(log.map)).txns == big
        log.close()


def test_a_full_disk_leaves_the_log_as_it_was(directory: Directory, fault_disk: FaultDisk) -> None:
    with fault_disk.open(directory.path) as opened:
        log = LogWriter(opened, 1)
        write(log, SMALL)
        before, mapping = log.end, log.map
        fault_disk.plan = FailNth(1, errno.ENOSPC, sticky=True)
        with pytest.raises(DiskFullError):
            log.append_body(body_of(9, [(b"k", bytes(100_000), 0, 0)]))
        assert (log.end, log.map) == (before, mapping)
        fault_disk.plan = None
        log.append_body(body_of(5, [(b"k", bytes(100_000), 0, 0)]))
        assert len(read(bytes(log.map)).txns) == 5
        log.close()


@pytest.mark.parametrize("kind", ["create", "allocate", "map"])
def test_a_log_that_cannot_be_made_leaves_nothing(
    directory: Directory, fault_disk: FaultDisk, kind: str
) -> None:
    with fault_disk.open(directory.path) as opened:
        fault_disk.plan = FailNth(1, errno.EIO, kinds=frozenset({kind}))
        with pytest.raises(OSError, match="injected"):
            LogWriter(opened, 1)
        assert directory.names() == []


def test_a_log_never_used_is_discarded_with_its_mapping(directory: Directory) -> None:
    log = LogWriter(directory, 1)
    log.discard()
    assert directory.names() == []
    assert log.map.closed


# -- tails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [False, True])
def test_a_log_cut_anywhere_is_a_prefix(directory: Directory, seal: bool) -> None:
    data = content(directory, SMALL, seal=seal)
    ends = [frame.stop for frame in LogReader(data, "f").frames()]
    for cut in range(HEADER_BYTES, len(data)):
        for padded in (data[:cut], data[:cut] + bytes(100)):
            found = read(padded)
            whole = sum(end <= cut for end in ends)
            assert found.error is None
            assert found.txns == SMALL[:whole]
            assert found.tail is not None
            assert found.tail.sealed == (seal and padded[: len(data)] == data)  # zeros end it
            assert found.tail.end <= aligned(cut) or found.tail.sealed
            assert LogReader(padded, "f").whole_frame_after(found.tail.end) is None
    for cut in range(HEADER_BYTES):
        with pytest.raises(CorruptionError, match="shorter than its header"):
            LogReader(data[:cut], "f")


@pytest.mark.parametrize("seal", [False, True])
def test_a_bit_flipped_anywhere_costs_a_suffix_at_most(directory: Directory, seal: bool) -> None:
    data = content(directory, SMALL, seal=seal)
    frames = list(LogReader(data, "f").frames())
    covered = {at for f in frames for at in range(f.offset, f.stop)}
    if seal:
        covered.update(range(aligned(frames[-1].stop), len(data)))
    for at in range(HEADER_BYTES, len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            found = read(bytes(damaged))
            hit = sum(f.stop <= at for f in frames)
            assert found.tail is not None
            if at in covered:
                assert (found.txns, found.tail.sealed) == (SMALL[:hit], False)
                assert found.tail.cut > 0
                after = LogReader(bytes(damaged), "f").whole_frame_after(found.tail.end)
                last = hit >= len(frames) - (not seal)
                assert (after is None) == last
            else:  # between two frames: nothing is read from there
                assert found.txns == SMALL


def test_a_header_is_trusted_only_whole(directory: Directory) -> None:
    data = content(directory, SMALL, seal=True)
    for at in range(HEADER_BYTES):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(CorruptionError):
                LogReader(bytes(damaged), "f")


def test_a_frame_of_another_log_is_none(directory: Directory) -> None:
    data = content(directory, SMALL, seal=True)
    moved = FileHeader(MAGIC_WAL, 2).encode() + data[HEADER_BYTES:]
    assert read(moved).txns == []


def test_what_a_sealed_log_is_followed_by_is_not_read(directory: Directory) -> None:
    data = content(directory, SMALL, seal=True)
    log = LogWriter(directory, 1)
    log.append_body(body_of(9, [(b"late", b"", 0, 0)]))
    late = bytes(log.map[HEADER_BYTES : log.end])
    log.close()
    found = read(data + late)
    assert found.txns == SMALL
    assert found.tail is not None
    assert (found.tail.sealed, found.tail.end, found.tail.cut > 0) == (True, len(data), True)


def test_an_end_record_counts_what_is_before_it(directory: Directory) -> None:
    log = LogWriter(directory, 1)
    write(log, SMALL)
    log.records -= 1
    log.seal(4)
    log.close()
    found = read(directory.read("00001.mem"))
    assert found.txns == SMALL
    assert found.error is not None
    assert "counts 5 records, 6 are there" in str(found.error)
    assert found.error.offset == log.end - FRAME_BYTES


def test_reading_stops_where_it_is_told(directory: Directory) -> None:
    data = content(directory, SMALL, seal=True)
    frames = list(LogReader(data, "f").frames())
    for nth, frame in enumerate(frames):
        reader = LogReader(data, "f", end=frame.stop)
        assert len(list(reader.frames())) == nth + 1
        assert reader.tail is not None
        assert reader.tail.end == frame.stop


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_whole_frame_is_found_behind_a_damaged_one(directory: Directory, size: int) -> None:
    """Also behind one that is larger than what is searched byte by byte."""
    txns: Txns = [[(b"a", b"1", 0, 0)], [(b"b", b"x" * size, 0, 0)], [(b"c", b"3", 0, 0)]]
    data = bytearray(content(directory, txns, seal=False))
    frames = list(LogReader(bytes(data), "f").frames())
    data[frames[1].stop - 1] ^= 1
    reader = LogReader(bytes(data) + bytes(1000), "f")
    assert len(list(reader.frames())) == 1
    assert reader.whole_frame_after(frames[1].offset) == frames[2].offset


# -- frames that check out and are wrong inside --------------------------------------------------


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (body_of(1, [(b"a", b"1", 0, 0)]) + b"x", "left over"),
        (body_of(1, [(b"a", b"1", 0, 0)])[:-1], "does not fit"),
        (body_of(1, [(b"", b"1", 0, 0)]), "does not fit"),
        (body_of(1, [(b"k" * 65_001, b"", 0, 0)]), "does not fit"),
        (BODY.pack(1, 2, KIND_TXN, 0) + body_of(1, [(b"a", b"1", 0, 0)])[16:], "runs out"),
        (BODY.pack(1, 1, KIND_TXN, 0) + RECORD.pack(1, 0, 0, 900, 1, 0, 0) + b"k", "does not fit"),
        (BODY.pack(1, 1, KIND_TXN, 0) + RECORD.pack(1, 0, 1 << 31, 0, 1, 0, 0) + b"k", "not fit"),
        (body_of(1, [(b"a", b"1", 0, 0)], kind=3), "unknown kind"),
        (BODY.pack(1, 0, KIND_TXN, 5), "unknown kind"),
        (BODY.pack(1, 7, KIND_END, 0), "counts 7 records"),
    ],
)
def test_a_frame_that_contradicts_itself_is_damage(
    directory: Directory, body: bytes, what: str
) -> None:
    log = LogWriter(directory, 1)
    log.append_body(body)
    log.close()
    found = read(directory.read("00001.mem"))
    assert found.error is not None
    assert what in str(found.error)
    assert (found.error.path, found.error.kind) == ("f", "wal frame")


def test_reading_a_mapping_and_reading_bytes_agree(directory: Directory) -> None:
    log = LogWriter(directory, 1)
    write(log, SMALL)
    log.close()
    with directory.map("00001.mem") as mapping:
        assert isinstance(mapping, mmap.mmap)
        reader = LogReader(mapping, "f")
        assert [frame.ts for frame in reader.frames()] == [1, 2, 3, 4]
        assert reader.tail == read(mapping[:]).tail

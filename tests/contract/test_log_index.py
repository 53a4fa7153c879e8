"""LogIndex: the same answers and the same bytes in the log from both twins."""

from __future__ import annotations

import mmap
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader
from meles.engine.log.reader import LogReader
from meles.engine.memtable.log_index import LogIndexPy
from twins import NATIVE, needs_native, twins

HEADER = FileHeader(MAGIC_WAL, 1)
ROOM = 1 << 16
both = pytest.mark.parametrize("cls", twins(LogIndexPy, "LogIndex"))


def blank(room: int = ROOM) -> mmap.mmap:
    mapping = mmap.mmap(-1, room)
    mapping[:HEADER_BYTES] = HEADER.encode()
    return mapping


def new(cls: Any, room: int = ROOM, **options: Any) -> Any:
    return cls(blank(room), HEADER_BYTES, HEADER.seed, writable=True, **options)


def state(index: Any) -> tuple[object, ...]:
    return (
        index.end, index.records, index.last_ts, index.ordered, len(index),
        bytes(index.map[: index.end]),
    )  # fmt: skip


# -- each twin by itself -------------------------------------------------------------------------


@both
def test_puts_are_found_at_every_timestamp(cls: Any) -> None:
    index = new(cls)
    assert index.put(b"k", b"one", 0, 0, 0, 3)
    assert index.put(b"k", b"two", 1, 7, 99, 5)
    assert index.get(b"k", 2) is None
    assert index.get(b"k", 3) == index.get(b"k", 4) == (3, 0, 0, b"one")
    assert index.get(b"k", 5) == (5, 7 << 8 | 1, 99, b"two")
    assert index.chain(b"k") == [(5, 7 << 8 | 1, 99, b"two"), (3, 0, 0, b"one")]
    assert index.get(b"other", 9) is None
    assert index.offset_of(b"other") == 0
    assert (len(index), index.records, index.ordered) == (1, 2, True)


@both
def test_a_gap_stays_free_behind_every_frame(cls: Any) -> None:
    """For a tag: written, walked for keys, and read back with the same gap."""
    header = FileHeader(MAGIC_WAL, 1, key_id=3)
    mapping = blank(4096)
    mapping[:HEADER_BYTES] = header.encode()
    index = cls(mapping, HEADER_BYTES, header.seed, writable=True, gap=16)
    assert index.put(b"a", b"1" * 5, 0, 0, 0, 1)
    assert index.put_many([b"b", b"c"], [b"", b"2"], [0, 0], [0, 0], 2)
    assert index.put_plain({b"d": b"3"}, 3)
    assert index.take_fresh() == [b"a", b"b", b"c", b"d"]
    reader = LogReader(mapping, "x")
    frames = list(reader.frames())
    assert [frame.ts for frame in frames] == [1, 2, 3]
    for frame, after in zip(frames, [*(f.offset for f in frames[1:]), index.end], strict=True):
        assert 16 <= after - frame.stop < 24
        assert not any(mapping[frame.stop : after])
    again = cls(mapping, index.end, 0, gap=16)
    for frame in frames:
        for record in reader.records(frame):
            again.add(record.key, record.offset)
    assert again.take_fresh() == [b"a", b"b", b"c", b"d"]
    while index.put(b"e", bytes(100), 0, 0, 0, 4):
        assert index.end <= 4096
    assert 4096 - index.end < 24 + 28 + 100 + 1 + 24


@both
def test_no_room_writes_nothing(cls: Any) -> None:
    index = new(cls, 4096)
    assert index.put(b"k", bytes(1000), 0, 0, 0, 1)
    before = bytes(index.map[:]), state(index)
    assert index.put(b"k", bytes(4000), 0, 0, 0, 2) is False
    assert index.put_many([b"a", b"k"], [b"", bytes(4000)], [0, 0], [0, 0], 2) is False
    assert index.put_plain({b"a": b"", b"k": bytes(4000)}, 2) is False
    assert (bytes(index.map[:]), state(index)) == before
    assert index.take_fresh() == [b"k"]


@both
def test_the_last_byte_of_the_mapping_is_used(cls: Any) -> None:
    free = 4096 - HEADER_BYTES - 24 - 28 - 1
    index = new(cls, 4096)
    assert index.put(b"k", bytes(free + 1), 0, 0, 0, 1) is False
    assert index.put(b"k", b"v" * free, 0, 0, 0, 1)
    assert index.end == 4096
    assert index.get(b"k", 1) == (1, 0, 0, b"v" * free)
    assert index.put(b"j", b"", 0, 0, 0, 2) is False


@both
@pytest.mark.parametrize("expected", [0, 1 << 20])
def test_it_grows_with_its_keys(cls: Any, expected: int) -> None:
    index = new(cls, 1 << 22, expected=expected)
    keys = [b"%d" % (n * 7919 % 20_000) for n in range(20_000)]
    for n, key in enumerate(keys[:5000], 1):
        assert index.put(key, key, 0, 0, 0, n)
    assert index.put_plain(dict(zip(keys[5000:12_000], keys[5000:12_000], strict=True)), 5001)
    rest = keys[12_000:]
    assert index.put_many(rest, rest, [0] * len(rest), [0] * len(rest), 5002)
    assert len(index) == 20_000
    assert all(index.get(key, 1 << 60)[3] == key for key in keys)
    assert index.get(b"20000", 1 << 60) is None
    assert index.take_fresh() == keys
    assert index.take_fresh() == []


@both
def test_sealed_and_released(cls: Any) -> None:
    index = new(cls)
    index.put(b"k", b"v", 0, 0, 0, 1)
    index.seal(index.end)
    assert index.put(b"k", b"v", 0, 0, 0, 2) is False
    assert index.get(b"k", 2) == (1, 0, 0, b"v")
    index.release()
    assert (len(index), index.end, index.get(b"k", 2), index.chain(b"k")) == (0, 0, None, [])
    assert index.take_fresh() == []
    assert index.map == b""


@both
def test_a_released_mapping_can_be_closed(cls: Any) -> None:
    mapping = blank()
    index = cls(mapping, HEADER_BYTES, HEADER.seed, writable=True)
    index.put(b"k", b"v", 0, 0, 0, 1)
    index.release()
    mapping.close()
    assert index.get(b"k", 1) is None


@both
def test_rebased_into_a_larger_mapping(cls: Any) -> None:
    index = new(cls, 4096)
    index.put(b"k", b"v" * 3000, 0, 0, 0, 1)
    assert index.put(b"k", b"w" * 3000, 0, 0, 0, 2) is False
    larger = mmap.mmap(-1, 16_384)
    larger[:4096] = index.map[:]
    index.rebase(larger)
    assert index.map is larger
    assert index.put(b"k", b"w" * 3000, 0, 0, 0, 2)
    assert [found[0] for found in index.chain(b"k")] == [2, 1]


@both
def test_versions_out_of_order(cls: Any) -> None:
    index = new(cls)
    values = [b"five", b"nine", b"two"]
    assert index.put_many([b"k"] * 3, values, [0] * 3, [0] * 3, 9, [5, 9, 2])
    assert not index.ordered
    assert [index.get(b"k", ts) for ts in (1, 2, 8, 9)] == [
        None, (2, 0, 0, b"two"), (5, 0, 0, b"five"), (9, 0, 0, b"nine"),
    ]  # fmt: skip
    assert [found[0] for found in index.chain(b"k")] == [2, 9, 5]
    assert index.newest([b"k"], 99) is None
    assert len(index) == 1
    assert index.take_fresh() == [b"k"]


@both
def test_newest_is_for_readers_that_see_everything(cls: Any) -> None:
    index = new(cls)
    index.put_many([b"a", b"b"], [b"1", b"2"], [1, 3 << 8], [0, 7], 4)
    assert index.newest([b"b", b"a"], 4) == ([4, 4], [3 << 8, 1], [7, 0], [b"2", b"1"])
    assert index.newest([b"b", b"a"], 3) is None
    with pytest.raises(KeyError):
        index.newest([b"c"], 4)


# -- both side by side ---------------------------------------------------------------------------

keys = st.sampled_from([b"a", b"b", b"ab", b"\0", b"\xff" * 40]) | st.binary(
    min_size=1, max_size=20
)
values = st.binary(max_size=60) | st.sampled_from([b"", b"v" * 3000])
metas = st.integers(0, 255)
numbers = st.integers(0, (1 << 64) - 1)
rows = st.tuples(keys, values, st.integers(0, 0xFFFF), numbers, st.integers(1, 60))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, values, metas, metas, numbers),
        st.tuples(st.just("many"), st.lists(rows, max_size=12, unique_by=lambda row: row[0])),
        st.tuples(st.just("versions"), st.lists(rows, min_size=1, max_size=12)),
        st.tuples(st.just("plain"), st.dictionaries(keys, values, max_size=12)),
        st.tuples(st.just("read"), keys, st.integers(0, 80)),
        st.tuples(st.just("newest"), st.integers(0, 80)),
        st.tuples(st.just("fresh")),
        st.tuples(st.just("rebase")),
        st.tuples(st.just("seal")),
    ),
    max_size=40,
)


class Driver:
    """Carries operations out on one twin; what comes back is compared."""

    def __init__(self, cls: Any) -> None:
        self.index = new(cls, 8192)
        self.known: dict[bytes, None] = {}
        self.ts = 0

    def run(self, name: str, *given: Any) -> object:
        return getattr(self, "_" + name)(*given), state(self.index)

    def _written(self, done: bool, names: Any) -> bool:
        if done:
            self.known.update(dict.fromkeys(names))
            self.index.last_ts = self.ts
        return done

    def _put(self, key: bytes, value: bytes, meta: int, user: int, expiry: int) -> bool:
        self.ts += 1
        return self._written(self.index.put(key, value, meta, user, expiry, self.ts), [key])

    def _many(self, found: list[Any]) -> bool:
        self.ts += 1
        names, *columns, _ = map(list, zip(*found, strict=True)) if found else ([], [], [], [], [])
        return self._written(self.index.put_many(names, *columns, self.ts), names)

    def _versions(self, found: list[Any]) -> bool:
        self.ts += 1
        names, *columns, versions = map(list, zip(*found, strict=True))
        return self._written(self.index.put_many(names, *columns, self.ts, versions), names)

    def _plain(self, entries: dict[bytes, bytes]) -> bool:
        self.ts += 1
        return self._written(self.index.put_plain(entries, self.ts), entries)

    def _read(self, key: bytes, ts: int) -> object:
        index = self.index
        return index.get(key, ts), index.chain(key), index.offset_of(key)

    def _newest(self, ts: int) -> object:
        return self.index.newest(list(self.known), ts) if self.known else None

    def _fresh(self) -> object:
        return self.index.take_fresh()

    def _rebase(self) -> None:
        mapping = self.index.map
        larger = mmap.mmap(-1, len(mapping) + 8192)
        larger[: len(mapping)] = mapping[:]
        self.index.rebase(larger)

    def _seal(self) -> None:
        self.index.seal(self.index.end)

    def everything(self) -> object:
        return [self._read(key, ts) for key in self.known for ts in (0, 1, 5, 20, 1 << 60)]


def replayed(cls: Any, mapping: mmap.mmap, end: int) -> Any:
    """An index over a log that is there already, as recovery makes it."""
    index = cls(mapping, len(mapping), 0)
    previous = []
    reader = LogReader(mapping, "log")
    for frame in reader.frames():
        for record in reader.records(frame):
            previous.append(index.add(record.key, record.offset))
    index.seal(end)
    return index, previous


@needs_native
@settings(max_examples=150)
@given(operations)
def test_both_do_the_same(done: list[tuple[Any, ...]]) -> None:
    python, native = Driver(LogIndexPy), Driver(NATIVE.LogIndex)
    for operation in done:
        assert native.run(*operation) == python.run(*operation)
    assert native.everything() == python.everything()
    end = python.index.end
    again, links = replayed(NATIVE.LogIndex, native.index.map, end)
    expected, expected_links = replayed(LogIndexPy, python.index.map, end)
    assert links == expected_links
    again.ordered = expected.ordered = python.index.ordered
    assert state(again) == state(expected)
    assert again.take_fresh() == expected.take_fresh()
    native.index, python.index = again, expected
    assert native.everything() == python.everything()
    for index in (again, expected):
        index.release()
    assert native.everything() == python.everything()


# -- what is refused -----------------------------------------------------------------------------

REFUSED = (TypeError, ValueError, OverflowError, struct.error)


@both
@pytest.mark.parametrize(
    "arguments",
    [
        (b"k" * 65536, b"", 0, 0, 0, 1),
        (b"k", b"", 256, 0, 0, 1),
        (b"k", b"", 0, -1, 0, 1),
        (b"k", b"", 0, 0, 1 << 64, 1),
        (b"k", b"", 0, 0, 0, -1),
        ("k", b"", 0, 0, 0, 1),
        (b"k", None, 0, 0, 0, 1),
    ],
    ids=repr,
)
def test_a_put_that_no_record_can_hold(cls: Any, arguments: tuple[Any, ...]) -> None:
    index = new(cls, 1 << 18)
    before = bytes(index.map[:])
    with pytest.raises(REFUSED):
        index.put(*arguments)
    assert bytes(index.map[:]) == before
    assert (len(index), index.records, index.end) == (0, 0, HEADER_BYTES)


@both
@pytest.mark.parametrize(
    "columns",
    [
        ([b"a", b"k" * 65536], [b"", b""], [0, 0], [0, 0], 1),
        ([b"a", b"b"], [b""], [0, 0], [0, 0], 1),
        ([b"a", b"b"], [b"", None], [0, 0], [0, 0], 1),
        ([b"a", None], [b"", b""], [0, 0], [0, 0], 1),
        ([b"a", b"b"], [b"", b""], [0, 1 << 16], [0, 0], 1),
        ([b"a", b"b"], [b"", b""], [0, -1], [0, 0], 1),
        ([b"a", b"b"], [b"", b""], [0, 0], [0, 1 << 64], 1),
        ([b"a", b"b"], [b"", b""], [0, 0], [0, "x"], 1),
        ([b"a", b"b"], [b"", b""], [0, 0], [0, 0], 1 << 64),
        ([b"a", b"b"], [b"", b""], [0, 0], [0, 0], 1, [1, -1]),
        ([b"a", b"b"], [b"", b""], [0, 0], [0, 0], 1, [1, 1 << 64]),
    ],
    ids=lambda columns: repr(columns)[-60:],
)
def test_columns_that_no_frame_can_hold(cls: Any, columns: tuple[Any, ...]) -> None:
    index = new(cls, 1 << 18)
    before = bytes(index.map[:])
    with pytest.raises(REFUSED):
        index.put_many(*columns)
    assert bytes(index.map[:]) == before
    assert (len(index), index.records, index.end) == (0, 0, HEADER_BYTES)
    assert index.get(b"a", 1 << 60) is None

"""PlainWriter: both twins commit the same entries, decline the same ones, write the same bytes."""

from __future__ import annotations

import mmap
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.memtable.log_index import LogIndexPy
from meles.engine.txn.entry_buffer import EntryBufferPy
from meles.engine.txn.oracle import PublishedPy
from meles.engine.writing.plain_writer import PlainWriterPy
from twins import NATIVE, needs_native

HEADER = FileHeader(MAGIC_WAL, 1)


class Side:
    """One kernel's writer with its parts."""

    def __init__(self, native: bool) -> None:
        lock, published, index, writer, self.buffer = (
            (NATIVE.Lock, NATIVE.Published, NATIVE.LogIndex, NATIVE.PlainWriter, NATIVE.EntryBuffer)
            if native
            else (threading.Lock, PublishedPy, LogIndexPy, PlainWriterPy, EntryBufferPy)
        )
        self.published: Any = published(4)
        mapping = mmap.mmap(-1, 8192)
        self.index: Any = index(mapping, HEADER_BYTES, HEADER.seed, writable=True)
        self.lock: Any = lock()
        self.writer: Any = writer(self.lock, self.published, self.index)
        self.writer.open = self.writer.dirty = True
        self.writer.rotate_at, self.writer.value_limit, self.writer.entry_limit = 8000, 500, 600

    def state(self) -> object:
        writer, index = self.writer, self.index
        return (
            self.published.ts, writer.entries, writer.size, index.last_ts, index.records,
            bytes(index.map[: index.end]), self.lock.locked(),
        )  # fmt: skip

    def put(self, key: Any, value: Any) -> int:
        done: int = self.writer.put(key, value)
        return done

    def commit(self, entries: dict[Any, Any], special: dict[Any, Any], snapshot: int) -> int:
        buffer = self.buffer()
        buffer._writes, buffer._special = entries, special
        done: int = self.writer.commit(buffer, snapshot)
        return done

    def change(self, name: str, value: Any) -> None:
        setattr(self.writer, name, value)

    def held(self, key: Any, value: Any) -> list[int]:
        """What is answered while another thread holds the lock."""
        found: list[int] = []

        def ask() -> None:
            found.append(self.put(key, value))
            found.append(self.commit({key: value}, {}, -1))

        with self.lock:
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        return found


sides = pytest.mark.parametrize(
    "native",
    [pytest.param(False, id="python"), pytest.param(True, id="native", marks=needs_native)],
)


@sides
def test_it_commits(native: bool) -> None:
    side = Side(native)
    assert side.put(b"k", b"v") == 5
    assert side.commit({b"a": b"1", b"b": b"22"}, {}, -1) == 6
    assert side.commit({b"a": b"3"}, {}, 6) == 7
    assert (side.published.ts, side.writer.entries, side.writer.size) == (7, 4, 9)
    assert side.index.get(b"a", 9) == (7, 0, 0, b"3")
    assert not side.lock.locked()


@sides
def test_it_declines_a_snapshot_that_is_not_the_last(native: bool) -> None:
    side = Side(native)
    before = side.state()
    for snapshot in (0, 3, 5):
        assert side.commit({b"a": b"1"}, {}, snapshot) == 0
    assert side.state() == before


@sides
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", b""), (b"k", "v"), (b"k", None), (bytearray(b"k"), b""), (b"", b""), (b"!k", b""),
        (b"k" * (MAX_KEY_BYTES + 1), b""), (b"k", bytes(500)), (b"k" * 200, bytes(401)),
    ],
    ids=lambda given: repr(given)[:20],
)  # fmt: skip
def test_it_declines_what_is_not_plain(native: bool, key: Any, value: Any) -> None:
    side = Side(native)
    before = side.state()
    assert side.put(key, value) == 0
    assert side.state() == before


@sides
@pytest.mark.parametrize(
    ("name", "value"),
    [("open", False), ("dirty", False), ("rotate_at", HEADER_BYTES), ("value_limit", 0)],
)
def test_it_declines_while_something_is_not_as_usual(native: bool, name: str, value: Any) -> None:
    side = Side(native)
    side.change(name, value)
    before = side.state()
    assert side.put(b"k", b"v") == 0
    assert side.commit({b"k": b"v"}, {}, -1) == 0
    assert side.state() == before


@sides
def test_it_declines_while_another_holds_the_lock(native: bool) -> None:
    side = Side(native)
    before = side.state()
    assert side.held(b"k", b"v") == [0, 0]
    assert side.state() == before
    assert side.put(b"k", b"v") == 5


@sides
def test_it_declines_what_is_special_and_what_is_nothing(native: bool) -> None:
    side = Side(native)
    assert side.commit({b"k": b"v"}, {b"k": (0, 5)}, -1) == 0
    assert side.commit({}, {}, -1) == 0


@sides
def test_no_room_declines(native: bool) -> None:
    side = Side(native)
    side.change("rotate_at", 1 << 30)
    done = [side.put(b"%03d" % n, bytes(400)) for n in range(20)]
    fit = done.index(0)
    assert done == [*range(5, 5 + fit), *[0] * (20 - fit)]
    assert side.commit({b"k": bytes(400)}, {}, -1) == 0
    assert (side.writer.entries, side.published.ts) == (fit, 4 + fit)


keys = st.binary(max_size=3) | st.sampled_from(["k", None, b"!k"])
values = st.binary(max_size=40) | st.sampled_from(["v", bytes(499), bytes(500)])
plain = st.dictionaries(st.binary(min_size=1, max_size=3), values.filter(lambda v: v != "v"))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, values),
        st.tuples(
            st.just("commit"), plain, st.sampled_from([{}, {}, {b"k": (0, 1)}]),
            st.just(-1) | st.integers(0, 20),
        ),
        st.tuples(st.just("change"), st.just("open"), st.booleans()),
        st.tuples(st.just("change"), st.just("dirty"), st.booleans()),
        st.tuples(st.just("change"), st.just("value_limit"), st.integers(0, 600)),
        st.tuples(st.just("change"), st.just("entry_limit"), st.integers(0, 600)),
        st.tuples(st.just("change"), st.just("rotate_at"), st.integers(0, 9000)),
    ),
    max_size=40,
)  # fmt: skip


@needs_native
@settings(max_examples=150)
@given(operations)
def test_both_do_the_same(done: list[tuple[Any, ...]]) -> None:
    python, native = Side(False), Side(True)
    for name, *given_ in done:
        assert getattr(native, name)(*given_) == getattr(python, name)(*given_)
        assert native.state() == python.state()

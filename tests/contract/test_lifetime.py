"""Read marks and a transaction's beginning and end: what both twins do."""

from __future__ import annotations

import gc
import mmap
import threading
import warnings
import weakref
from itertools import product
from time import monotonic
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader
from meles.engine.memtable.log_index import LogIndexPy
from meles.engine.txn.lifetime import LifetimePy, TermsPy
from meles.engine.txn.oracle import PublishedPy
from meles.engine.txn.read_marks import ReadersPy
from meles.engine.writing.plain_writer import PlainWriterPy
from twins import NATIVE, needs_native

HEADER = FileHeader(MAGIC_WAL, 1)
PARTS = ("Published", "Readers", "Terms", "Lifetime", "Lock", "LogIndex", "PlainWriter")
PYTHON = (
    PublishedPy, ReadersPy, TermsPy, LifetimePy, threading.Lock, LogIndexPy, PlainWriterPy,
)  # fmt: skip
KERNELS = [
    pytest.param(PYTHON, id="python"),
    pytest.param(
        NATIVE and tuple(getattr(NATIVE, part) for part in PARTS), id="native", marks=needs_native
    ),
]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Any:
    return request.param


class Engine:
    """As far as a lifetime looks at it."""

    def __init__(
        self, kernel: Any, *, managed: bool = False, namespaces: bool = False,
        conflicts: bool = True,
    ) -> None:  # fmt: skip
        published, readers, terms, _, lock, index, plain_writer = kernel
        self.clock = published(7)
        self.readers = readers(self.clock)
        self.terms = terms(self.readers, 1000, 100, 500, conflicts, managed, namespaces)
        self.writer: Any = self
        self.log: list[object] = []  # which hooks were called
        mapping = mmap.mmap(-1, 8192)
        self.index = index(mapping, HEADER_BYTES, HEADER.seed, writable=True)
        self.plain: Any = plain_writer(lock(), self.clock, self.index)  # declines until `takes`

    def takes(self) -> None:
        self.plain.open = self.plain.dirty = True
        self.plain.rotate_at, self.plain.value_limit, self.plain.entry_limit = 8000, 500, 600


def txn_class(kernel: Any) -> Any:
    class Txn(kernel[3]):  # type: ignore[misc]
        @property
        def log(self) -> list[object]:
            return self._engine.log  # type: ignore[no-any-return]

        def _check(self) -> None:
            raise RuntimeError("ended" if self._engine.clock.ended else "finished")

        def _needs_ts(self) -> None:
            raise RuntimeError("needs a timestamp")

        def _ends_elsewhere(self) -> None:
            raise RuntimeError("ends elsewhere")

        def _before_commit(self) -> None:
            self.log.append(f"before at {self._engine.clock.ts}")
            self._end_cursors()

        def _commit_at_length(self, ts: int | None, has_read: bool) -> int:
            self.log.append((ts, has_read, dict(self._writes)))
            if self._writes.get(b"fail"):
                raise ZeroDivisionError
            return 50 if ts is None else ts

        def _end_cursors(self) -> None:
            self.log.append("cursors")
            self._cursors = None

    return Txn


@pytest.fixture
def engine(kernel: Any) -> Any:
    return Engine(kernel)


def held(engine: Engine) -> list[int]:
    return [mark[0] for mark in engine.readers.held()]


# -- marks ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("bpef"), st.integers(0, 5)), max_size=40))
def test_marks_are_in_force_until_they_end(steps: list[tuple[str, int]]) -> None:
    """A model: the snapshots in force are those of the marks that are neither ended nor gone."""
    for param in KERNELS:
        kernel = param.values[0]
        if kernel is None:
            continue
        engine = Engine(kernel)
        marks: list[Any] = []
        ended: list[Any] = []
        for what, number in steps:
            if what == "b":
                marks.append(engine.readers.begin(number if number else None))
                assert marks[-1].ts == (number or engine.clock.ts)
            elif what == "p":
                engine.clock.ts += 1
            elif marks:
                mark = marks.pop(number % len(marks))
                if what == "e":
                    mark.end()
                    mark.end()
                    ended.append(mark)
                del mark
            snapshots = [mark.ts for mark in marks]
            assert sorted(held(engine)) == sorted(snapshots)
            for published in (0, 3, 100):
                assert engine.readers.oldest(published) == min([published, *snapshots])


def test_a_mark_tells_who_and_since_when(engine: Any) -> None:
    before = monotonic()
    marks = [engine.readers.begin()]
    thread = threading.Thread(target=lambda: marks.append(engine.readers.begin(3)))
    thread.start()
    thread.join(60)
    (_, first, ours), (_, second, theirs) = engine.readers.held()
    assert before <= first <= second <= monotonic()
    assert ours == threading.get_ident() != theirs
    assert [mark.ts for mark in marks] == [7, 3]


def test_only_a_watched_mark_warns(engine: Any, recwarn: pytest.WarningsRecorder) -> None:
    for watched in (False, True):
        mark: Any = engine.readers.begin(None, watched)
        assert held(engine) == [7]
        mark = None
        assert held(engine) == []
    ended = engine.readers.begin(None, True)
    ended.end()
    del ended
    late = engine.readers.begin(None, True)
    engine.clock.ended = True
    del late, mark
    assert [str(w.message) for w in recwarn] == [
        "a transaction was neither committed nor discarded"
    ]
    assert recwarn[0].filename == __file__


def test_the_collector_ends_marks_wherever_it_runs(kernel: Any, engine: Any) -> None:
    """Also inside the methods that look at them: each of them makes objects."""
    cls = txn_class(kernel)

    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.txn = cls(engine, update=True)

    def look() -> None:
        kept: list[Any] = []
        for number in range(300):
            Holder()
            kept.append(engine.readers.begin(10 + number))
            if len(kept) > 5:
                kept.pop(2 * number % 5).end()
            mine = {mark.ts for mark in kept}
            assert engine.readers.oldest(1000) in {7, min(mine)}
            assert {snapshot for snapshot in held(engine) if snapshot != 7} == mine
        for mark in kept:
            mark.end()
        gc.collect()

    threshold = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1)
    try:
        with pytest.warns(ResourceWarning, match="neither"):
            look()
    finally:
        gc.set_threshold(*threshold)
    assert held(engine) == []


# -- a transaction -------------------------------------------------------------------------------


def test_it_begins_with_a_mark_and_its_terms(kernel: Any, engine: Any) -> None:
    cls = txn_class(kernel)
    txn = cls(engine, update=True)
    assert (txn._read_ts, txn._commit_ts, txn._finished, txn._update, txn._track) == (
        7, 0, False, True, True,
    )  # fmt: skip
    past = cls(engine, update=False, at=3)
    assert (past._read_ts, past._update, past._track, past._collecting) == (3, False, False, False)
    assert held(engine) == [7, 3]
    with pytest.raises((TypeError, AttributeError)):
        cls(None, update=True)
    for each in (txn, past):
        assert (each._size_limit, each._value_limit, each._large_limit) == (1000, 100, 500)
        assert each._count_limit >= 1 << 62
        assert each._large_shift == 62
        each.discard()
    assert held(engine) == []
    assert weakref.ref(txn)() is txn


@pytest.mark.parametrize("conflicts", [False, True])
def test_who_tracks_what_it_reads(kernel: Any, conflicts: bool) -> None:
    engine = Engine(kernel, conflicts=conflicts)
    for update, checked in product((False, True), repeat=2):
        txn = txn_class(kernel)(engine, update=update, checked=checked)
        assert txn._track == (update and (checked or conflicts))
        txn.discard()


def test_it_begins_once(kernel: Any, engine: Any) -> None:
    txn = txn_class(kernel)(engine, update=True)
    for end in (lambda: None, txn.discard):
        end()
        before = txn._finished, held(engine)
        with pytest.raises(TypeError):
            txn.__init__(engine, update=True)
        assert (txn._finished, held(engine)) == before


def test_a_commit_of_ones_own_is_what_the_block_calls(kernel: Any, engine: Any) -> None:
    class Audited(txn_class(kernel)):  # type: ignore[misc]
        def commit(self) -> int:
            self.log.append("audited")
            return int(super().commit())

    with Audited(engine, update=True) as txn:
        txn.set(b"k", b"v")
        txn.note = "anything"
    assert txn.log == ["audited", (None, False, {b"k": b"v"})]
    assert txn.note == "anything"


def test_the_snapshot_goes_though_a_hook_raises(kernel: Any, engine: Any) -> None:
    class Failing(txn_class(kernel)):  # type: ignore[misc]
        def _end_cursors(self) -> None:
            raise ZeroDivisionError

    txn = Failing(engine, update=True)
    txn._cursors = {1}
    with pytest.raises(ZeroDivisionError):
        txn.discard()
    assert (txn._finished, held(engine)) == (True, [])


@pytest.mark.parametrize("error", ["ZeroDivisionError", "SystemExit"])
def test_what_a_warning_raises_is_reported_and_no_more(
    kernel: Any, engine: Any, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """A forgotten transaction must not end the program, nor say that it failed."""
    seen: list[object] = []

    def show(*_: object, **__: object) -> None:
        raise {"ZeroDivisionError": ZeroDivisionError, "SystemExit": SystemExit}[error]

    monkeypatch.setattr("sys.excepthook", lambda *given: seen.append(given))
    monkeypatch.setattr("sys.unraisablehook", lambda given: seen.append(given.exc_type.__name__))
    mark = engine.readers.begin(None, True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        del mark
    assert seen == [error]
    assert held(engine) == []


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("read", ["nothing", "key", "range"])
def test_a_plain_commit(kernel: Any, engine: Any, read: str, moved: bool) -> None:
    """Who has read takes the long way, with its check, if anything was committed since."""
    engine.takes()
    with txn_class(kernel)(engine, update=True) as txn:
        txn.set(b"k", b"v")
        if read == "key":
            txn._reads = {b"r"}
        elif read == "range":
            txn._covered = object()
        engine.clock.ts += moved
    if moved and read != "nothing":
        assert txn.log == [(None, True, {b"k": b"v"})]
        assert (txn._commit_ts, engine.index.get(b"k", 100)) == (50, None)
    else:
        ts = 8 + moved
        assert (txn.log, txn._commit_ts, engine.clock.ts) == ([], ts, ts)
        assert engine.index.get(b"k", 100) == (ts, 0, 0, b"v")
    assert (txn._finished, txn._writes, txn._size) == (True, {}, 0)
    assert (txn._reads, txn._covered, held(engine)) == (None, None, [])


def test_what_is_not_plain_takes_the_long_way(kernel: Any, engine: Any) -> None:
    cls = txn_class(kernel)
    txn = cls(engine, update=True)
    txn.set(b"k", b"v")
    txn._reads = {b"r"}
    assert txn.commit() == 50 == txn._commit_ts
    assert txn.log.pop() == (None, True, {b"k": b"v"})
    txn = cls(engine, update=True)
    txn.set(b"k", b"v")
    txn._quiet = True
    engine.takes()
    assert txn.commit() == 50
    assert txn.log.pop() == (None, False, {b"k": b"v"})
    txn = cls(engine, update=True)
    txn.set(b"k", b"v")
    assert txn._commit(33) == 33 == txn._commit_ts
    assert txn.log.pop() == (33, False, {b"k": b"v"})
    txn = cls(engine, update=True)
    txn.set(b"k", b"v")
    engine.writer = None
    assert txn.commit() == 50
    assert held(engine) == []


@pytest.mark.parametrize("plain", [False, True])
def test_iterators_and_namespaces_are_seen_to_before(kernel: Any, plain: bool) -> None:
    for namespaces in (False, True):
        engine = Engine(kernel, namespaces=namespaces)
        txn = txn_class(kernel)(engine, update=True)
        assert txn._collecting is not namespaces
        txn._writes[b"k"] = b"v"
        if not namespaces:
            txn._cursors = {1}
        if plain:
            engine.takes()
        assert txn.commit() == (8 if plain else 50)
        assert txn.log[:2] == ["before at 7", "cursors"]
        assert txn.log[2:] == ([] if plain else [(None, False, {b"k": b"v"})])


@pytest.mark.parametrize("managed", [False, True])
def test_managed_mode_needs_a_timestamp(kernel: Any, managed: bool) -> None:
    engine = Engine(kernel, managed=managed)
    txn = txn_class(kernel)(engine, update=True)
    txn.set(b"k", b"v")
    if managed:
        with pytest.raises(RuntimeError, match="needs a timestamp"):
            txn.commit()
        assert not txn._finished
        assert held(engine) == [7]
        with pytest.raises(RuntimeError, match="needs a timestamp"), txn:
            pass
        assert (txn._finished, held(engine)) == (True, [])
    else:
        assert txn.commit() == 50
    assert txn_class(kernel)(engine, update=False).commit() == 0


def test_whatever_comes_out_it_has_ended(kernel: Any, engine: Any) -> None:
    cls = txn_class(kernel)
    for leave in (lambda t: t.commit(), lambda t: t.__exit__(None, None, None)):
        txn = cls(engine, update=True)
        txn.set(b"fail", b"1")
        txn._cursors = {1}
        with pytest.raises(ZeroDivisionError):
            leave(txn)
        assert (txn._finished, txn._collecting, txn._cursors, held(engine)) == (
            True, False, None, [],
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="finished"):
            txn.commit()
        with pytest.raises(RuntimeError, match="ends elsewhere"):
            txn._commit(3)
        with pytest.raises(RuntimeError, match="finished"), txn:
            pass
        txn.discard()


def test_an_error_in_the_block_discards(kernel: Any, engine: Any) -> None:
    txn = txn_class(kernel)(engine, update=True)
    txn.set(b"k", b"v")
    txn._cursors = {1}
    with pytest.raises(ZeroDivisionError), txn:
        raise ZeroDivisionError
    assert (txn.log, txn._writes, held(engine)) == (["cursors"], {}, [])


def test_nothing_written_nothing_committed(kernel: Any, engine: Any) -> None:
    with txn_class(kernel)(engine, update=True) as txn:
        pass
    other = txn_class(kernel)(engine, update=True)
    assert (other.commit(), txn.log, engine.clock.ts, held(engine)) == (0, [], 7, [])


def test_after_the_end_of_the_database(kernel: Any, engine: Any) -> None:
    txn = txn_class(kernel)(engine, update=True)
    txn.set(b"k", b"v")
    engine.clock.ended = True
    for call in (txn.commit, txn.__enter__, lambda: txn.__exit__(None, None, None)):
        with pytest.raises(RuntimeError, match="ended" if not txn._finished else "finished"):
            call()
    assert (txn._finished, held(engine), txn.log) == (True, [], [])


def test_it_ends_once_whoever_asks(kernel: Any, engine: Any) -> None:
    """Threads that end the same one: one of them does, the others are told or do nothing."""
    cls = txn_class(kernel)
    for _ in range(100):
        txn = cls(engine, update=True)
        txn.set(b"k", b"v")
        start = threading.Barrier(3)
        outcomes: list[object] = []

        def end(how: str, txn: Any = txn, start: Any = start, outcomes: Any = outcomes) -> None:
            start.wait(60)
            try:
                outcomes.append(txn.discard() if how == "discard" else txn.commit())
            except RuntimeError as error:
                outcomes.append(str(error))

        threads = [
            threading.Thread(target=end, args=(how,)) for how in ("commit", "commit", "discard")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(outcomes) == 3
        assert len(txn.log) <= 1
        assert outcomes.count(50) == len(txn.log)
        txn.log.clear()
        assert held(engine) == []

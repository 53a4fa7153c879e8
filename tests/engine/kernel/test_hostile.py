"""What no caller should do to the compiled kernel: it raises, it never crashes."""

from __future__ import annotations

import gc
import mmap
import os
import random
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader
from meles.engine.ids import MAX_LEVELS
from meles.engine.log.frame import BODY, FRAME_BYTES, PREFIX, RECORD
from twins import NATIVE, needs_native

pytestmark = needs_native
HUGE = (-1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 200)
REFUSED = (TypeError, ValueError, OverflowError, RuntimeError, MemoryError, BufferError)
HEADER = FileHeader(MAGIC_WAL, 1)


def log_index(size: int = 4096, **options: Any) -> Any:
    return NATIVE.LogIndex(mmap.mmap(-1, size), HEADER_BYTES, 1, writable=True, **options)


# -- objects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LogIndex", "TableBlocks", "Points", "Scan", "PlainWriter"])
def test_no_object_is_made_without_its_arguments(name: str) -> None:
    made = getattr(NATIVE, name)
    for arguments in ((), (None,), (None,) * 3, (1,) * 7, (b"",) * 10):
        with pytest.raises(REFUSED):
            made.__new__(made, *arguments)
    with pytest.raises(TypeError):
        NATIVE.Published.__new__(NATIVE.Published)


def test_a_second_init_changes_nothing() -> None:
    index = log_index()
    index.put(b"k", b"v", 0, 0, 0, 1)
    try:
        index.__init__(b"", 0, 0)
    except TypeError:
        pass
    assert index.get(b"k", 1) == (1, 0, 0, b"v")
    lock = NATIVE.Lock()
    with lock:
        try:
            lock.__init__()
        except TypeError:
            pass
        assert lock.locked()


def test_a_source_that_was_never_begun() -> None:
    scan = NATIVE.Scan([NATIVE._Source(), NATIVE._Source()], None, None, 1, 0, 0, None)
    for _ in range(2):
        with pytest.raises(TypeError):
            scan.next_batch()


def test_the_interpreter_ends_with_everything_alive() -> None:
    code = (
        "import mmap, threading, meles.engine.kernel as k\n"
        "n = k.choose({})\n"
        "m = mmap.mmap(-1, 4096)\n"
        "i = n.LogIndex(m, 64, 1, writable=True)\n"
        "i.put(b'k', b'v', 0, 0, 0, 1)\n"
        "p = n.Points([i], (), [], None, None)\n"
        "s = n.Scan([], None, None, 1, 0, 0, None)\n"
        "l = n.Lock(); l.acquire()\n"
        "w = n.PlainWriter(l, n.Published(1), i)\n"
        "r = n.Readers(n.Published(1)); marks = [r.begin(watched=True) for _ in range(3)]\n"
        "class B(n.EntryBuffer): pass\n"
        "b = B(); b.me = b\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], timeout=60, check=False, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_second_interpreter_runs_in_plain_python() -> None:
    """The module belongs to one interpreter; another one does without, or has one of its own."""
    code = (
        "try:\n    import _xxsubinterpreters as subs\n"
        "except ImportError:\n    import _interpreters as subs\n"
        "import meles.engine.kernel\n"
        "for _ in range(2):\n"
        "    sub = subs.create()\n"
        "    failure = subs.run_string(sub, 'import meles.engine.kernel as k; "
        'assert k.KIND in ("python", "native"); import gc; gc.collect()\')\n'
        "    assert failure is None, failure\n"
        "    subs.destroy(sub)\n"
        "assert meles.engine.kernel.KIND == 'native'\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code], capture_output=True, text=True,
        timeout=60, check=False, env={**os.environ, "MELES_KERNEL": "native"},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    if done.returncode:  # a dependency that refuses second interpreters is not ours to mend
        assert "ImportError" in done.stderr or "ConfigError" in done.stderr, done.stderr


# -- LogIndex ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", HUGE)
def test_numbers_that_lead_out_of_the_log(number: int) -> None:
    index = log_index()
    index.put(b"k", b"v", 0, 0, 0, 1)
    before = index.end
    for call in (
        lambda: index.seal(number),
        lambda: index.add(b"k", number),
        lambda: NATIVE.LogIndex(bytes(4096), number, 1),
        lambda: setattr(index, "end", number),
    ):
        with pytest.raises((*REFUSED, AttributeError)):
            call()
    assert index.end == before
    assert index.get(b"k", 1) == (1, 0, 0, b"v")
    if number < 0 or number >= 1 << 64:
        with pytest.raises(OverflowError):
            index.get(b"k", number)
        with pytest.raises(OverflowError):
            index.newest([b"k"], number)
        with pytest.raises(OverflowError):
            index.put_plain({b"k": b"v"}, number)


@pytest.mark.parametrize("expected", [0, 1, 1 << 31])
def test_any_expected_size(expected: int) -> None:
    index = log_index(expected=expected)
    assert index.put(b"k", b"v", 0, 0, 0, 1)
    index.release()


def test_a_mapping_that_does_not_fit() -> None:
    index = log_index()
    index.put(b"k", b"v", 0, 0, 0, 1)
    with pytest.raises(ValueError, match="smaller"):
        index.rebase(mmap.mmap(-1, 1024))
    for wrong in (None, b"read only" * 1000, "text", 5):
        with pytest.raises((TypeError, BufferError)):
            index.rebase(wrong)
    assert index.get(b"k", 1) == (1, 0, 0, b"v")
    with pytest.raises(ValueError, match="multiple of 8"):
        NATIVE.LogIndex(mmap.mmap(-1, 4096), 65, 1, writable=True)


def test_keys_that_are_none() -> None:
    index = log_index()
    for call in (
        lambda: index.get(None, 1), lambda: index.chain(None), lambda: index.offset_of(None),
        lambda: index.newest([None], 1), lambda: index.add(None, 64), lambda: index.newest(None, 1),
        lambda: index.put_plain({None: b""}, 1), lambda: index.put_plain({b"k": None}, 1),
        lambda: index.put_plain(None, 1), lambda: index.put_many(None, [], [], [], 1),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()


def test_numbers_that_change_the_columns_while_they_are_read() -> None:
    index = log_index(1 << 16)
    keys, values = [b"a", b"b"], [b"1", b"2"]

    class Clearing:
        def __index__(self) -> int:
            keys.clear()
            values[:] = [bytes(60_000)] * 2
            return 0

    with pytest.raises(TypeError):
        index.put_many(keys, values, [0, Clearing()], [0, 0], 1)
    assert len(index) == 0


def record(key: bytes, *, previous: int = 0, key_size: int | None = None, value: int = 0) -> bytes:
    size = len(key) if key_size is None else key_size
    return RECORD.pack(5, 0, value, previous, size, 0, 0) + key


def log_of(*records: bytes) -> tuple[bytes, list[int]]:
    """A log of one frame, its size no byte more than it needs; where the records are."""
    body = BODY.pack(5, len(records), 1, 0) + b"".join(records)
    places = [HEADER_BYTES + FRAME_BYTES + sum(map(len, records[:n])) for n in range(len(records))]
    return HEADER.encode().ljust(HEADER_BYTES, b"\0") + PREFIX.pack(len(body), 0) + body, places


def test_records_that_leave_the_log_are_not_indexed() -> None:
    for wrong in (
        record(b"k", value=1), record(b"k", value=0xFFFFFFFF), record(b"k", key_size=2),
        record(b"k", key_size=0xFFFF), record(b"k", previous=0xFFFFFFFF),
        record(b"k", previous=HEADER_BYTES + FRAME_BYTES),
    ):  # fmt: skip
        data, (place,) = log_of(wrong)
        index = NATIVE.LogIndex(data, len(data), 1)
        with pytest.raises(ValueError, match="does not hold"):
            index.add(b"k", place)
        assert index.get(b"k", 9) is None
        assert index.take_fresh() in ([], [b"k"])


@pytest.mark.parametrize("previous", [1, 8, 63, 64, 70, 88, 92, 116])
def test_links_to_anywhere(previous: int) -> None:
    """A link into the middle of something is an error or a record, and every chain ends."""
    rng = random.Random(previous)
    for _ in range(50):
        data, (_, place) = log_of(
            RECORD.pack(*(rng.getrandbits(n) for n in (64, 64, 32, 32)), 1, 0, 0) + b"x",
            record(b"k", previous=previous),
        )
        index = NATIVE.LogIndex(data, len(data), 1)
        index.add(b"k", place)
        for ask in (lambda i=index: i.get(b"k", 1), lambda i=index: i.chain(b"k")):
            try:
                ask()
            except ValueError:
                pass
        index.ordered = False
        try:
            index.get(b"k", 1 << 60)
        except ValueError:
            pass


def test_frames_of_noise() -> None:
    rng = random.Random(2)
    for size in (0, 1, 63, 64, 65, 87, 88, 100, 116, 117, 400):
        for _ in range(40):
            data = bytes(rng.choice((0, 1, 24, 28, 255, rng.randrange(256))) for _ in range(size))
            NATIVE.LogIndex(data, len(data), 1).take_fresh()


def test_released_in_the_middle_of_a_chain() -> None:
    """The collector may run in between, and with it anything."""
    mapping = mmap.mmap(-1, 1 << 20)
    index = NATIVE.LogIndex(mapping, HEADER_BYTES, 1, writable=True)
    for n in range(1, 2000):
        index.put(b"k", b"v", 0, 0, 0, n)

    class Last:
        def __del__(self) -> None:
            index.release()
            mapping.close()

    thresholds = gc.get_threshold()
    gc.set_threshold(500, 1, 1)
    try:
        cycle: Any = Last()
        cycle.me = cycle
        del cycle
        try:
            found = index.chain(b"k")
            assert [entry[0] for entry in found] == list(range(1999, 0, -1))
        except ValueError:
            assert len(index) == 0
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()


# -- Points, Scan, PlainWriter -------------------------------------------------------------------


def table(low: Any = b"a", high: Any = b"z", blocks: Any = None) -> Any:
    return SimpleNamespace(meta=SimpleNamespace(min_key=low, max_key=high), blocks=lambda: blocks)


class FreshBounds:
    """Bounds that nobody else holds on to."""

    @property
    def meta(self) -> Any:
        number = random.randrange(10**9)
        return SimpleNamespace(min_key=b"a%d" % number, max_key=b"b%d" % number)

    def blocks(self) -> Any:
        raise LookupError


def test_tables_that_are_none() -> None:
    for wrong in (table(None), table("a"), table(b"a", 5), None, 5):
        with pytest.raises((*REFUSED, AttributeError)):
            NATIVE.Points([], [wrong], [], None, None)
        with pytest.raises((*REFUSED, AttributeError)):
            NATIVE.Points([], [], [[wrong]], None, None)
    for memtables in ([None], [5], None, (log_index(),)):
        with pytest.raises(TypeError):
            NATIVE.Points(memtables, [], [], None, None)
    for blocks in (None, 5, log_index()):
        points = NATIVE.Points([], [], [[table(blocks=blocks)]], None, None)
        for _ in range(2):
            with pytest.raises(TypeError):
                points.find(b"k", 1)
        scan = NATIVE.Scan([[table(blocks=blocks)]], None, None, 1, 0, 0, None)
        for _ in range(2):
            with pytest.raises(TypeError):
                scan.next_batch()


def test_as_many_levels_as_there_may_be() -> None:
    many: list[list[Any]] = [[] for _ in range(MAX_LEVELS)]
    assert NATIVE.Points([], [], many, None, None).find(b"k", 1) is None
    with pytest.raises(ValueError, match="more levels"):
        NATIVE.Points([], [], [*many, []], None, None)


def test_bounds_and_lists_that_only_the_lookup_holds() -> None:
    index = log_index()
    index.put(b"k", b"v", 0, 0, 0, 1)
    memtables = [index]
    points = NATIVE.Points(memtables, [FreshBounds()], [[FreshBounds()]], None, None)
    memtables[:] = ["not an index"]
    gc.collect()
    junk = [b"x%d" % n for n in range(1000)]
    assert points.find(b"k", 1) == (1, 0, 0, b"v")
    assert points.find(b"zzz", 1) is None
    with pytest.raises(LookupError):
        points.find(b"a999999999999", 1)
    del junk


@pytest.mark.parametrize(
    "columns",
    [
        Columns([b"a", b"b"], [1], [0], [0], [b""]),
        Columns([b"a"], [1], [0], [0], []),
        Columns([b"a"], [-1], [0], [0], [b""]),
        Columns([b"a"], [1], [1 << 40], [0], [b""]),
        Columns([None], [1], [0], [0], [b""]),  # type: ignore[list-item]
        Columns([b"a"], [1], [0], [0], [None]),  # type: ignore[list-item]
        Columns(["a"], [1], [0], [0], [b""]),  # type: ignore[list-item]
        Columns((b"a",), [1], [0], [0], [b""]),  # type: ignore[arg-type]
        SimpleNamespace(keys=[b"a"]),
        7,
    ],
    ids=repr,
)
def test_columns_that_contradict_themselves(columns: Any) -> None:
    scan = NATIVE.Scan([iter([columns])], None, None, 9, 0, 0, None)
    for _ in range(2):
        with pytest.raises((*REFUSED, AttributeError)):
            scan.next_batch()


def pointers(count: int) -> Any:
    return iter([Columns([b"%03d" % n for n in range(count)], [1] * count, [2] * count,
                         [0] * count, [b"p"] * count)])  # fmt: skip


@pytest.mark.parametrize("answer", [None, "text", 5, bytearray(b"x")])
def test_a_value_that_is_no_bytes(answer: object) -> None:
    scan = NATIVE.Scan([pointers(3)], None, None, 9, 0, 0, lambda pointer, version: answer)
    _, values = scan.next_batch()
    for at in range(3):
        with pytest.raises(TypeError, match="a value is bytes"):
            values[at]


def test_a_scan_that_advances_itself() -> None:
    def columns() -> Any:
        with pytest.raises(ValueError, match="already executing"):
            scan.next_batch()
        yield from pointers(3)

    scan = NATIVE.Scan([columns()], None, None, 9, 0, 0, lambda pointer, version: b"v")
    keys, values = scan.next_batch()
    assert (keys, list(values)) == ([b"000", b"001", b"002"], [b"v"] * 3)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, LookupError])
def test_an_interrupted_scan_does_not_go_on(error: type[BaseException]) -> None:
    """What was merged and not given yet would be missing without a word."""

    def columns() -> Any:
        yield from pointers(1)
        raise error

    scan = NATIVE.Scan([columns()], None, None, 9, 0, 0, lambda pointer, version: b"v")
    if issubclass(error, Exception):
        assert scan.next_batch()[0] == [b"000"]
    for _ in range(3):
        with pytest.raises(error):
            scan.next_batch()


@pytest.mark.parametrize("at", [-1, 3, -(1 << 40), 1 << 40, *HUGE])
def test_places_of_values(at: int) -> None:
    scan = NATIVE.Scan([pointers(3)], None, None, 9, 0, 0, lambda pointer, version: b"v")
    _, values = scan.next_batch()
    assert len(values) == 3
    with pytest.raises((IndexError, OverflowError)):
        values[at]
    with pytest.raises((IndexError, OverflowError)):
        values.__getitem__(at)


def test_values_made_by_hand() -> None:
    with pytest.raises(TypeError):
        NATIVE.LazyValues()
    with pytest.raises(TypeError):
        NATIVE.LazyValues([], 4, lambda pointer, version: b"v")
    for room in (1, 0, -1, -(1 << 40)):
        with pytest.raises(IndexError, match="more values"):
            NATIVE.LazyValues([b"a", b"b"], room, NATIVE.ValueMap((), None))
    at_hand = [b"a"]
    values = NATIVE.LazyValues(at_hand, 1, NATIVE.ValueMap((), None))
    at_hand += [b"b"] * 100  # its own list grows under it
    assert values[0] == b"a"
    for at in (1, 50, 100):
        with pytest.raises(IndexError):
            values[at]


def test_two_threads_on_one_scan() -> None:
    begun, go = threading.Event(), threading.Event()

    def columns() -> Any:
        begun.set()
        go.wait(30)
        yield from pointers(40)

    scan = NATIVE.Scan([columns()], None, None, 9, 0, 0, lambda pointer, version: b"v")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(iter(scan.next_batch, None)))
    thread.start()
    assert begun.wait(30)
    with pytest.raises(ValueError, match="already executing"):
        scan.next_batch()
    go.set()
    thread.join()
    assert sum(len(keys) for keys, _ in found) == 40


@pytest.mark.parametrize("number", HUGE)
def test_numbers_of_a_scan(number: int) -> None:
    for arguments in ((number, 0, 0), (0, number, 0), (0, 0, number)):
        if 0 <= number < 1 << 64:
            assert NATIVE.Scan([pointers(1)], b"z", b"a", *arguments, None) is not None
        else:
            with pytest.raises(OverflowError):
                NATIVE.Scan([pointers(1)], None, None, *arguments, None)


def test_a_writer_whose_index_was_taken_away() -> None:
    writer = NATIVE.PlainWriter(NATIVE.Lock(), NATIVE.Published(1), log_index())
    writer.open = writer.dirty = True
    writer.rotate_at = writer.value_limit = writer.entry_limit = 1000
    buffer = NATIVE.EntryBuffer()
    with pytest.raises(TypeError):
        writer.commit(None)
    assert writer.commit(buffer) == 0
    buffer._writes = {b"k": b"v"}
    writer.index = None
    assert writer.put(b"k", b"v") == 0
    assert writer.commit(buffer) == 0
    assert not writer.lock.locked()
    for wrong in (5, "x"):
        with pytest.raises(TypeError):
            writer.index = wrong
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            writer.rotate_at = number


# -- marks and transactions ----------------------------------------------------------------------


class Obliging(NATIVE.Lifetime if NATIVE is not None else object):  # type: ignore[misc]
    """Its hooks refuse nothing."""

    def _check(self) -> None: ...
    def _needs_ts(self) -> None: ...
    def _ends_elsewhere(self) -> None: ...
    def _before_commit(self) -> None: ...
    def _end_cursors(self) -> None: ...
    def _commit_at_length(self, *_: object) -> int:
        return 9


def test_a_transaction_that_did_not_begin() -> None:
    txn = Obliging.__new__(Obliging)
    for call in (
        txn.commit, txn.__enter__, lambda: txn._commit(None), lambda: txn._commit(3),
        lambda: Obliging(None, update=True), lambda: Obliging(5, update=True), Obliging,
    ):  # fmt: skip
        with pytest.raises((TypeError, AttributeError)):
            call()
    txn.discard()
    assert txn.__exit__(None, None, None) is False
    with pytest.raises(AttributeError):
        txn._finished = False
    with pytest.raises(AttributeError):
        txn.set(b"k", b"v")


def test_a_transaction_that_ends_again() -> None:
    terms = NATIVE.Terms(NATIVE.Readers(NATIVE.Published(1)), 1000, 100, 100, True, False, False)
    engine = SimpleNamespace(terms=terms, writer=SimpleNamespace(plain=5))
    txn = Obliging(engine, update=True)
    with pytest.raises(TypeError):
        txn.__init__(engine, update=True)
    txn._writes = None
    assert txn.commit() == 0
    for call in (txn.commit, lambda: txn._commit(None)):
        with pytest.raises(TypeError):
            call()
    assert terms.readers.held() == []
    txn = Obliging(engine, update=True)
    txn._writes = {1: 2}
    assert txn.commit() == 9
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            Obliging(engine, update=True, at=number)
        with pytest.raises(OverflowError):
            terms.readers.oldest(number)
    assert terms.readers.held() == []
    engine.terms = None
    with pytest.raises(TypeError):
        Obliging(engine, update=True)


def test_terms_in_a_cycle_keep_what_they_have() -> None:
    """The collector takes fields away, and Python code runs while it does: a warning's."""
    readers = NATIVE.Readers(NATIVE.Published(1))
    engine = SimpleNamespace(terms=NATIVE.Terms(readers, 9, 9, 9, True, False, False), writer=None)
    made: list[Any] = []

    def show(*_: object, **__: object) -> None:
        made.extend(
            Obliging(SimpleNamespace(terms=each, writer=None), update=True)
            for each in gc.get_objects()
            if type(each) is NATIVE.Terms
        )
        for each in gc.get_objects():
            if type(each) is Obliging:
                each.discard()

    for _ in range(20):
        cycle: list[Any] = [engine.terms, readers.begin(None, True), Obliging(engine, update=True)]
        cycle.append(cycle)
        engine.terms = NATIVE.Terms(readers, 9, 9, 9, True, False, False)
        del cycle
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            gc.collect()
    made.clear()
    assert readers.held() == []


def test_a_map_of_values_is_made_once() -> None:
    """Compiled code borrows what is in it."""
    values = NATIVE.ValueMap((), lambda *_: b"first")
    values.__init__((), lambda *_: b"second")
    assert values(bytes(12), 1) == b"first"
    with pytest.raises(TypeError):
        NATIVE.ValueMap()


def test_what_was_collected_is_not_pickled() -> None:
    for made in (NATIVE.EntryBuffer(), Obliging.__new__(Obliging)):
        assert not hasattr(made, "__setstate_cython__")
        with pytest.raises(TypeError):
            made.__reduce_ex__(2)


def test_marks_nobody_made() -> None:
    with pytest.raises(TypeError):
        NATIVE.Mark()
    mark = NATIVE.Mark.__new__(NATIVE.Mark)
    mark.end()
    for wrong in (None, 5):
        with pytest.raises(TypeError):
            NATIVE.Readers(wrong)
        with pytest.raises(TypeError):
            NATIVE.Terms(wrong, 1, 1, 1, True, False, False)
    with pytest.raises(TypeError):
        NATIVE.Readers(NATIVE.Published(1)).begin("x")

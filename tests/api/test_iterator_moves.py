"""`seek`, `rewind` and `close` of iterators, in every shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
SHAPES: dict[str, Callable[..., Any]] = {
    "iterate": lambda t, **kw: t.iterate(**kw),
    "items": lambda t, **kw: t.items(**kw),
    "keys": lambda t, **kw: t.keys(**kw),
    "values": lambda t, **kw: t.values(**kw),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def name(given: Any) -> bytes:
    """The key of whatever an iterator gave; values spell their keys out."""
    if isinstance(given, meles.Item):
        return given.key
    return bytes(given[0]) if isinstance(given, tuple) else bytes(given)


def rest(cursor: Iterator[Any]) -> list[bytes]:
    return [name(given) for given in cursor]


@pytest.fixture(params=["db", "view", "update"])
def target(request: pytest.FixtureRequest, open_db: OpenDB) -> Iterator[meles.DB | meles.Txn]:
    """Keys b, d, f, h, j, some on a table and some not; in an update, h and j are own writes."""
    db = open_db()
    for key in (b"b", b"f"):
        db[key] = key
    db.flush()
    db[b"d"] = b"d"
    last = (b"h", b"j")
    if request.param == "update":
        with db.update() as txn:
            for key in last:
                txn[key] = key
            yield txn
            txn.discard()
        return
    for key in last:
        db[key] = key
    if request.param == "view":
        with db.view() as txn:
            yield txn
        return
    yield db


@each_shape
@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"", b"bdfhj"), (b"a", b"bdfhj"), (b"b", b"bdfhj"), (b"c", b"dfhj"), (b"j", b"j"),
     (b"j\0", b""), (b"z", b""), (b"z" * 70_000, b"")],
)  # fmt: skip
def test_forward_seek_goes_to_the_first_key_at_or_after(
    target: meles.DB, shape: Callable[..., Any], key: bytes, expected: bytes
) -> None:
    cursor = shape(target)
    cursor.seek(key)
    assert b"".join(rest(cursor)) == expected
    cursor.seek(key)
    assert b"".join(rest(cursor)) == expected


@each_shape
@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"", b"jhfdb"), (b"a", b""), (b"b", b"b"), (b"c", b"b"), (b"f", b"fdb"), (b"f\0", b"fdb"),
     (b"j", b"jhfdb"), (b"z", b"jhfdb"), (b"z" * 70_000, b"jhfdb")],
)  # fmt: skip
def test_reverse_seek_goes_to_the_last_key_at_or_before(
    target: meles.DB, shape: Callable[..., Any], key: bytes, expected: bytes
) -> None:
    """And `seek(b"")` in reverse is `rewind()`."""
    cursor = shape(target, reverse=True)
    next(cursor)
    cursor.seek(key)
    assert b"".join(rest(cursor)) == expected


@each_shape
def test_seeking_outside_the_range_clamps(target: meles.DB, shape: Callable[..., Any]) -> None:
    forward = shape(target, start=b"d", stop=b"h")
    for key, expected in ((b"a", b"df"), (b"f", b"f"), (b"g", b""), (b"h", b""), (b"j", b"")):
        forward.seek(key)
        assert b"".join(rest(forward)) == expected
    backward = shape(target, start=b"d", stop=b"h", reverse=True)
    for key, expected in ((b"z", b"fd"), (b"h", b"fd"), (b"e", b"d"), (b"c", b""), (b"a", b"")):
        backward.seek(key)
        assert b"".join(rest(backward)) == expected
    prefixed = shape(target, prefix=b"f")
    for key, expected in ((b"a", b"f"), (b"f", b"f"), (b"g", b"")):
        prefixed.seek(key)
        assert b"".join(rest(prefixed)) == expected
    reversed_ = shape(target, prefix=b"f", reverse=True)
    for key, expected in ((b"a", b""), (b"f", b"f"), (b"z", b"f"), (b"", b"f")):
        reversed_.seek(key)
        assert b"".join(rest(reversed_)) == expected


@each_shape
@pytest.mark.parametrize("reverse", [False, True])
def test_rewind_begins_again(target: meles.DB, shape: Callable[..., Any], reverse: bool) -> None:
    cursor = shape(target, reverse=reverse)
    whole = rest(cursor)
    assert rest(cursor) == []
    cursor.rewind()
    assert rest(cursor) == whole
    cursor.seek(b"f")
    cursor.rewind()
    assert rest(cursor) == whole


@each_shape
def test_limit_counts_anew_after_seek_and_rewind(
    target: meles.DB, shape: Callable[..., Any]
) -> None:
    cursor = shape(target, limit=2)
    assert rest(cursor) == [b"b", b"d"]
    assert rest(cursor) == []
    cursor.seek(b"e")
    assert rest(cursor) == [b"f", b"h"]
    cursor.rewind()
    assert name(next(cursor)) == b"b"
    cursor.seek(b"b")
    assert rest(cursor) == [b"b", b"d"]


@each_shape
def test_closing_is_idempotent_and_a_context_manager_does_it(
    target: meles.DB, shape: Callable[..., Any]
) -> None:
    with shape(target) as cursor:
        next(cursor)
    for _ in range(2):
        assert rest(cursor) == []
        with pytest.raises(meles.ClosedError):
            cursor.seek(b"b")
        with pytest.raises(meles.ClosedError):
            cursor.rewind()
        cursor.close()


def test_next_at_the_end_stays_at_the_end(target: meles.DB) -> None:
    """Badger dereferences nil."""
    cursor = target.keys()
    rest(cursor)
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(cursor)


def test_all_versions_seek_lands_on_the_newest_version(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=10)
    for value in (b"1", b"2", b"3"):
        for key in (b"a", b"b"):
            db[key] = value
    for reverse in (False, True):
        cursor = db.iterate(all_versions=True, reverse=reverse)
        cursor.seek(b"b")
        assert [next(cursor).value for _ in range(3)] == [b"3", b"2", b"1"]


def test_an_iterator_needs_no_closing(db: meles.DB) -> None:
    db[b"k"] = b"v"
    for _ in range(1000):
        next(db.keys())
    assert db.stats().readers == 0

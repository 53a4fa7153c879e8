"""What iterators have read: ranges joined, however the iterators end, in bounded memory."""

from __future__ import annotations

import gc
from itertools import pairwise

import meles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.iterators.range_scan import KeyRange
from meles.engine.read_view import ReadView
from meles.engine.txn.coverage import Coverage, Covered, union
from meles.engine.txn.cursor import Cursor

KEYS = [bytes([first, second]) for first in range(6) for second in range(3)]
bounds = st.none() | st.sampled_from([b"", *KEYS])
key_ranges = st.builds(KeyRange, bounds, bounds)


@given(st.lists(key_ranges, max_size=8))
def test_a_union_holds_the_same_keys_in_ranges_apart(ranges: list[KeyRange]) -> None:
    joined = union(ranges)
    for key in [b"", *KEYS, b"\xff"]:
        real = [keys for keys in ranges if not keys.is_empty()]
        assert any(keys.holds(key) for keys in joined) == any(keys.holds(key) for keys in real)
    for before, after in pairwise(joined):
        assert before.high is not None
        assert after.low is not None
        assert before.high < after.low


def test_one_that_has_not_ended_may_have_read_everything() -> None:
    coverage = Coverage(KeyRange(b"a", b"z"))
    coverage.add(KeyRange(b"a", b"c"))
    assert coverage.ranges() == [KeyRange(b"a", b"z")]
    coverage.ended = True
    assert coverage.ranges() == [KeyRange(b"a", b"c")]


def test_ended_iterators_are_joined_and_open_ones_stay() -> None:
    covered = Covered()
    still = covered.new(KeyRange(b"x", b"z"))
    for number in range(10_000):
        coverage = covered.new(KeyRange(None, None))
        coverage.add(KeyRange(b"a", b"b%d" % (number % 7)) if number else KeyRange(b"m", b"n"))
        coverage.ended = True
    assert sum(isinstance(held, Coverage) for held in gc.get_objects()) < 300
    read = [KeyRange(b"a", b"b6"), KeyRange(b"m", b"n")]
    assert covered.ranges() == [*read, KeyRange(b"x", b"z")]
    still.ended = True
    assert covered.ranges() == read


def test_one_iterator_that_seeks_for_ever_stays_small() -> None:
    coverage = Coverage(KeyRange(b"a", b"z"))
    for _ in range(10_000):
        coverage.add(KeyRange(b"a", b"b"))
    coverage.ended = True
    assert len(coverage.ranges()) < 100


@pytest.mark.parametrize("kind", ["view", "update"])
def test_a_transaction_keeps_no_iterator_that_was_forgotten(db: meles.DB, kind: str) -> None:
    """Each held a read view, and with it files that were long gone."""
    db[b"a"] = db[b"b"] = b""
    with getattr(db, kind)() as txn:
        for _ in range(1000):
            assert list(txn.keys()) == [b"a", b"b"]
            assert next(txn.items(reverse=True)) == (b"b", b"")
        gc.collect()
        assert not [held for held in gc.get_objects() if isinstance(held, Cursor)]


def test_what_a_forgotten_iterator_read_conflicts(db: meles.DB) -> None:
    db[b"a"] = db[b"c"] = b""
    with db.update() as txn:
        for _ in range(500):
            assert list(txn.keys(b"a")) == [b"a"]
            assert next(txn.keys(reverse=True)) == b"c"
        db[b"d"] = b"phantom"
        txn[b"x"] = b""
        with pytest.raises(meles.ConflictError):
            txn.commit()
    with db.update() as txn:
        for _ in range(500):
            assert list(txn.keys(b"a")) == [b"a"]
            assert next(txn.keys(reverse=True)) == b"d"
        db[b"c"] = b"between what was read"
        txn[b"x"] = b""
        txn.commit()


@pytest.mark.parametrize("limit", [None, 10])
def test_a_closed_iterator_keeps_no_view(db: meles.DB, limit: int | None) -> None:
    closed = []
    for number in range(20):
        db[b"%02d" % number] = b""
        db.flush()  # makes a view of its own
        cursor = db.items(limit=limit)
        next(cursor)
        cursor.close()
        closed.append(cursor)
    gc.collect()
    assert sum(isinstance(held, ReadView) for held in gc.get_objects()) < 5

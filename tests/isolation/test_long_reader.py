"""A snapshot is the same to the byte however long it is held, whatever happens to the files."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable

import meles
import pytest

KEYS = 400
FLUSHES = [20, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
OpenTiny = Callable[..., meles.DB]


def digest(pairs: list[tuple[bytes, bytes]]) -> str:
    found = hashlib.sha256()
    for key, value in pairs:
        found.update(b"%d %d " % (len(key), len(value)) + key + value)
    return found.hexdigest()


def churn(db: meles.DB, rng: random.Random) -> None:
    """Overwrite or delete half of the keys, some of their values in the value log."""
    with db.write_batch() as batch:
        for number in rng.sample(range(KEYS), KEYS // 2):
            key = b"k%04d" % number
            if rng.random() < 0.2:
                batch.delete(key)
            else:
                batch.set(key, rng.randbytes(rng.choice((10, 90, 300))))


class Upheaval:
    """Churns, flushes, compacts and collects; counts what became of the files."""

    def __init__(self, db: meles.DB) -> None:
        self.db = db
        self.rng = random.Random(7)
        for flush in (False, True, True, False, False):
            churn(db, self.rng)
            if flush:
                db.flush(60.0)
        self.files = set(os.listdir(db.path))
        self.start = db.stats()
        self.rewritten = 0

    def go_on(self) -> int:
        """Flushes so far."""
        churn(self.db, self.rng)
        self.db.flush(60.0)
        self.rewritten += self.db.gc(0.05, timeout=60.0).rewritten
        return self.db.stats().flushes - self.start.flushes

    def deleted(self) -> set[str]:
        """Kinds of files that were there when it began and are gone."""
        gone = self.files - set(os.listdir(self.db.path))
        return {name.rsplit(".", 1)[1] for name in gone}

    @property
    def compactions(self) -> int:
        return self.db.stats().compactions - self.start.compactions


@pytest.mark.parametrize("workers", ["process", "inline"])
@pytest.mark.parametrize("flushes", FLUSHES)
def test_a_held_transaction_never_changes(open_tiny: OpenTiny, flushes: int, workers: str) -> None:
    db = open_tiny(workers=workers, value_log_max_entries=50)
    upheaval = Upheaval(db)
    held = db.view()
    expected = list(held.items())
    before = digest(expected)
    half_way = held.items()
    done = 0
    while done < flushes:
        done = upheaval.go_on()
        assert next(half_way) == expected[done - 1]
        forward = list(held.items())
        assert digest(forward) == before
        assert list(held.items(reverse=True)) == forward[::-1]
        there = dict(forward)
        for number in range(0, KEYS, 7):  # another path than scanning
            key = b"k%04d" % number
            assert held.get(key) == there.get(key)
    assert upheaval.compactions >= flushes // 3
    assert upheaval.deleted() >= {"sst", "mem"}
    held.discard()
    with db.view() as now:
        assert digest(list(now.items())) != before


@pytest.mark.parametrize("workers", ["process", "inline"])
@pytest.mark.parametrize("flushes", FLUSHES)
def test_a_held_iterator_never_changes(open_tiny: OpenTiny, flushes: int, workers: str) -> None:
    """It pins no timestamp, so all that it reads is given up, rewritten and unlinked meanwhile."""
    db = open_tiny(workers=workers, value_log_max_entries=50)
    upheaval = Upheaval(db)
    iterator, mirrored = db.items(), db.items(reverse=True)
    expected = list(iterator)
    before = digest(expected)
    items = db.iterate(b"k")
    kept = list(items)  # values are read when they are asked for
    done = 0
    while done < flushes:
        done = upheaval.go_on()
        iterator.rewind()
        assert digest(list(iterator)) == before
        mirrored.rewind()
        assert list(mirrored) == expected[::-1]
        there = dict(expected)
        assert all(item.value == there[item.key] for item in kept)
    assert upheaval.compactions >= flushes // 3
    assert upheaval.rewritten >= 5
    assert upheaval.deleted() >= {"sst", "vlog", "mem"}
    assert digest(list(db.items())) != before

"""A snapshot is the same to the byte however long it is held, whatever happens to the files."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable

import meles
import pytest

KEYS = 400


def digest(txn: meles.Txn) -> str:
    """Of everything there is, both ways; and of single reads, which take another path."""
    found = hashlib.sha256()
    forward = list(txn.items())
    assert list(txn.items(reverse=True)) == forward[::-1]
    for key, value in forward:
        found.update(b"%d %d " % (len(key), len(value)) + key + value)
    for number in range(KEYS):
        found.update(txn.get(b"k%04d" % number, b"-"))
    return found.hexdigest()


def churn(db: meles.DB, rng: random.Random) -> None:
    """Overwrite, delete and expire about half of the keys, a part of the values in the value log."""
    with db.write_batch() as batch:
        for number in rng.sample(range(KEYS), KEYS // 2):
            key = b"k%04d" % number
            if rng.random() < 0.2:
                batch.delete(key)
            else:
                batch.set(key, rng.randbytes(rng.choice((10, 90, 300))))


@pytest.mark.parametrize("workers", ["process", "inline"])
@pytest.mark.parametrize(
    "flushes", [20, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_a_held_snapshot_never_changes(
    open_tiny: Callable[..., meles.DB], flushes: int, workers: str
) -> None:
    db = open_tiny(workers=workers, value_log_max_entries=50)
    rng = random.Random(7)
    churn(db, rng)
    churn(db, rng)
    held = db.view()
    inside = held.items()
    iterator = db.items()  # has a snapshot of its own
    begun = [next(iterator) for _ in range(5)]
    expected = list(held.items())
    before, rewritten = digest(held), 0
    assert begun == expected[:5]
    files = set(os.listdir(db.path))
    start = db.stats()
    while (stats := db.stats()).flushes - start.flushes < flushes:
        churn(db, rng)
        db.flush(60.0)
        rewritten += db.gc(0.1, timeout=60.0).rewritten
        assert next(inside) == expected[stats.flushes - start.flushes]
        assert digest(held) == before
    assert db.wait_idle(60.0)
    assert digest(held) == before
    assert begun + list(iterator) == expected
    assert stats.compactions - start.compactions >= flushes // 3
    assert rewritten >= 5
    kinds = {name.split(".")[-1] for name in files - set(os.listdir(db.path))}
    assert {"sst", "vlog", "mem"} <= kinds
    held.discard()
    with db.view() as now:
        assert digest(now) != before

"""Deletes, overwrites, collection and compaction against a model: nothing comes back, nothing goes.

The default run takes seconds; `make test-long` runs for MELES_CHURN_MINUTES (10).
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import meles
import pytest

KEYS = 2_000
OPTIONS = {
    "memtable_size": "256KiB",
    "value_log_file_size": "1MiB",
    "base_table_size": "64KiB",
    "base_level_size": "256KiB",
    "value_threshold": 256,
    "gc_discard_ratio": 0.2,
}


class Churn:
    """A database and the dict it must equal."""

    def __init__(self, path: Path, workers: str, seed: int) -> None:
        self.path = path
        self.workers = workers
        self.random = random.Random(seed)
        self.model: dict[bytes, bytes] = {}
        self.db = self.open()
        self.collected = 0
        self.compacted = 0

    def open(self) -> meles.DB:
        return meles.open(self.path, workers=self.workers, **OPTIONS)

    def key(self) -> bytes:
        return b"key-%06d" % self.random.randrange(KEYS)

    def step(self) -> None:
        """Some hundred operations of one kind."""
        choice = self.random.random()
        if choice < 0.45:
            for _ in range(300):
                value = self.random.randbytes(self.random.choice((0, 20, 300, 2_000)))
                key = self.key()
                self.db.set(key, value)
                self.model[key] = value
        elif choice < 0.75:
            for _ in range(300):
                key = self.key()
                self.db.delete(key)
                self.model.pop(key, None)
        elif choice < 0.85:
            with self.db.write_batch() as batch:
                for _ in range(1_000):
                    key, value = self.key(), self.random.randbytes(400)
                    batch.set(key, value)
                    self.model[key] = value
        elif choice < 0.9:
            self.db.flush(60)
        elif choice < 0.95:
            self.db.gc(0.1, timeout=60)
        else:
            self.reopen()

    def reopen(self) -> None:
        self.note()
        assert self.db.close(60).clean
        self.db = self.open()

    def note(self) -> None:
        stats = self.db.stats()
        self.collected += stats.gc_runs
        self.compacted += stats.compactions

    def check(self) -> None:
        """Every key, by every way of reading it."""
        assert dict(self.db.items()) == self.model
        for _ in range(200):
            key = self.key()
            assert self.db.get(key) == self.model.get(key)
        first = self.key()
        backward = list(self.db.keys(start=first, reverse=True))
        assert backward == sorted((k for k in self.model if k >= first), reverse=True)


@pytest.mark.parametrize("workers", ["process", "inline"])
def test_no_deleted_key_is_seen_and_no_live_key_is_missing(tmp_path: Path, workers: str) -> None:
    churn = Churn(tmp_path / "db", workers, seed=2026)
    for number in range(120):
        churn.step()
        if number % 10 == 0:
            churn.check()
    churn.db.flush(60)
    churn.db.flatten(timeout=60)
    churn.check()
    churn.note()
    assert churn.collected, "the value log was never collected: this run proves nothing"
    assert churn.compacted, "nothing was compacted: this run proves nothing"
    assert churn.db.verify(values=True).ok
    churn.db.close(60)


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_ten_minutes_of_churn(tmp_path: Path) -> None:
    seed = int(os.environ.get("MELES_CHURN_SEED", str(time.time_ns())))
    print(f"MELES_CHURN_SEED={seed}")
    churn = Churn(tmp_path / "db", "process", seed)
    end = time.monotonic() + 60 * float(os.environ.get("MELES_CHURN_MINUTES", "10"))
    while time.monotonic() < end:
        for _ in range(20):
            churn.step()
        churn.check()
    churn.note()
    assert churn.collected > 10
    assert churn.compacted > 10
    assert churn.db.verify(values=True).ok
    churn.db.close(60)

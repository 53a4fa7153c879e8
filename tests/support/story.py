"""A scripted load over one database, the same at every telling, and what must be there afterwards.

It sees rotation, flushes, a compaction past L0, the value log filling and being collected, MANIFEST
rewrites where the test makes them frequent, and closing. Jobs run on the telling thread, so the
n-th operation on the disk is the same one every time. What was committed is known exactly, so the
directory may be judged whatever happened in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import meles

COMMITS: Final = 26
EVERYTHING: Final = ("flushes", "compactions", "deep", "collections", "relocated")
OPTIONS: Final[dict[str, Any]] = {
    "workers": "inline", "sync": "commit", "memtable_size": "64KiB", "value_threshold": 1000,
    "value_log_max_entries": 6, "base_table_size": "16KiB", "block_size": 1024,
    "num_level_zero_tables": 2, "num_level_zero_tables_stall": 4, "num_memtables": 2,
}  # fmt: skip
Data = dict[bytes, bytes]
# Nothing was written and the handle goes on: what a full disk or a lack of descriptors may raise.
REFUSALS: Final = (meles.DiskFullError, meles.WriteStallError)


def content(path: Path, options: dict[str, Any] = OPTIONS) -> Data:
    """Everything in a directory, by an opening that changes nothing."""
    with meles.open(path, mode="read_only", **options) as db:
        return dict(db.items())


@dataclass
class Story:
    """`states[n]` is what there is after n commits; `acknowledged` and `begun` count them."""

    options: dict[str, Any] = field(default_factory=lambda: dict(OPTIONS))
    states: list[Data] = field(default_factory=lambda: [{}])
    acknowledged: int = 0
    begun: int = 0
    errors: list[Exception] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # what happened, see `saw_everything`

    def commit(self, db: meles.DB, changes: dict[bytes, bytes | None]) -> None:
        """One transaction. Whether one that failed happened is known after the next opening."""
        after = dict(self.states[-1])
        for key, value in changes.items():
            if value is None:
                after.pop(key, None)
            else:
                after[key] = value
        with db.update() as txn:
            for key, value in changes.items():
                if value is None:
                    txn.delete(key)
                else:
                    txn.set(key, value)
            self.states.append(after)
            self.begun += 1
            txn.commit()
        self.acknowledged = self.begun

    def steps(self) -> Iterator[Callable[[meles.DB], object]]:
        """What to do, one after the other."""
        for n in range(COMMITS):
            changes: dict[bytes, bytes | None] = {
                b"n": b"%d" % n,
                b"k%d" % (n % 7): b"%d " % n * 400,
                b"v%d" % (n % 5): b"%d " % n * 1000,
                b"k%d" % ((n + 3) % 7): None,
            }
            yield lambda db, changes=changes: self.commit(db, changes)  # type: ignore[misc]
            if n % 5 == 2:
                yield self.read
            if n in (8, 15, 21):
                yield lambda db: db.flush()
            if n == 21:
                yield lambda db: db.flatten()
                yield lambda db: db.gc(0.1)

    def read(self, db: meles.DB) -> None:
        """What is shown is right, or the call raises."""
        expected = self.states[-1]
        for key in sorted(expected):
            assert db.get(key) == expected[key]
        assert dict(db.items()) == expected

    def tell(self, home: Path) -> None:
        """Open, do everything, close; errors that are none of ours go up."""
        try:
            db = meles.open(home, **self.options)
        except OSError as error:  # the file system's own errors come as they are from open
            self.errors.append(error)
            return
        self.go_on(db)
        self.note(db)
        db.close()

    def go_on(self, db: meles.DB) -> None:
        """All steps; up to the first commit of which it is not known whether it happened."""
        for step in self.steps():
            try:
                step(db)
            except meles.ConflictError:
                raise
            except meles.Error as error:
                self.errors.append(error)
                if self.begun > self.acknowledged:
                    if not isinstance(error, REFUSALS):
                        return  # in doubt from here on
                    self.take_back()

    def take_back(self) -> None:
        """The last commit was refused: nothing of it may ever appear."""
        self.states.pop()
        self.begun -= 1

    def note(self, db: meles.DB) -> None:
        """Keep the counters of a run."""
        stats = db.stats()
        self.seen = {
            "flushes": stats.flushes,
            "compactions": stats.compactions,
            "deep": sum(level.tables for level in stats.levels[1:]),
            "collections": stats.gc_runs,
            "relocated": stats.value_log.gc_relocated_files + stats.value_log.gc_dropped_files,
        }

    def saw(self, needs: tuple[str, ...]) -> bool:
        """Whether all of it was committed, and these things happened on the way."""
        return self.acknowledged == COMMITS and all(self.seen.get(name) for name in needs)

    def saw_everything(self) -> bool:
        """A trial in which one of these did not happen counts for nothing."""
        return self.saw(EVERYTHING)

    def judge(self, home: Path) -> None:
        """Everything acknowledged is there; of what is in doubt, all or nothing. And it works."""
        with meles.open(home, **self.options) as db:
            found = dict(db.items())
            assert found in self.states[self.acknowledged : self.begun + 1]
            assert list(db.items(reverse=True)) == list(found.items())[::-1]
            assert [db.get(key) for key in sorted(found)] == [found[k] for k in sorted(found)]
            assert db.verify(values=True).ok
            db[b"again"] = b"works"
            db.flush()
            assert db.health().status == "ok"
        assert content(home) == {**found, b"again": b"works"}

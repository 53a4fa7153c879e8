"""Timestamps, and which superseded versions somebody may still ask for.

Runs in: supervisor.
Invariants: (1) `published` only grows and every commit up to it can be read; commits are numbered
and published under the write lock, so their order is their number; (2) while a reader at R is
marked, `discard_ts()` is at most R: compaction then keeps the newest version <= R of every key and
everything newer, which is also what conflict detection looks at.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meles.engine.kernel import NATIVE
from meles.engine.txn.read_marks import Mark, Readers


class PublishedPy:
    """The timestamp up to which every commit can be read; whether the database has `ended`."""

    __slots__ = ("ended", "ts")

    def __init__(self, ts: int) -> None:
        self.ts = ts
        self.ended = False  # closing, or in a forked child


if TYPE_CHECKING or NATIVE is None:
    Published = PublishedPy
else:
    Published = NATIVE.Published


@dataclass(frozen=True, slots=True)
class ReadMark:
    """A reader: its snapshot, when it began (monotonic seconds) and who holds it."""

    ts: int
    since: float
    owner: str


class Oracle:
    """Issues read timestamps and knows the oldest one in use."""

    def __init__(self, published: int, *, managed: bool = False) -> None:
        self.clock = Published(published)
        self._managed = managed
        self._managed_discard = 0
        self._lock = threading.Lock()  # of `_managed_discard`
        self.marks = Readers(self.clock)

    @property
    def published(self) -> int:
        """Every commit up to this timestamp can be read."""
        return self.clock.ts

    @published.setter
    def published(self, ts: int) -> None:
        self.clock.ts = ts

    def begin(self, at: int | None = None) -> Mark:
        """A new reader, of the snapshot `at` or of everything published. Takes no lock.

        Whoever asked for `discard_ts` before the mark was there got nothing above it either.
        """
        return self.marks.begin(at)

    def forget_in_child(self) -> None:
        """After fork: the thread that may have held the lock is not here to let go of it."""
        self._lock = threading.Lock()

    def discard_ts(self) -> int:
        """The highest timestamp whose superseded versions nobody can ask for any more."""
        oldest = self.marks.oldest(self.published)  # who begins now may not see less than this
        return min(self._managed_discard, oldest) if self._managed else oldest

    def set_discard_ts(self, ts: int) -> None:
        """Managed mode: the caller says which versions may go. Only grows."""
        with self._lock:
            self._managed_discard = max(self._managed_discard, ts)

    def readers(self) -> list[ReadMark]:
        """Readers in use, oldest snapshot first."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        marks = [
            ReadMark(ts, since, names.get(owner, f"thread {owner}, which has ended"))
            for ts, since, owner in self.marks.held()
        ]
        return sorted(marks, key=lambda mark: (mark.ts, mark.since))

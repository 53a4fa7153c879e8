"""Timestamps and read marks.

Runs in: supervisor.
Invariants: (1) `published` only grows and every commit up to it can be read; commits are numbered
and published under the write lock, so their order is their number; (2) while a reader at R is
marked,
`discard_ts()` is at most R: compaction then keeps the newest version <= R of every key and
everything newer, which is also what conflict detection looks at; (3) `end` takes no lock: the
collector may call it for a forgotten reader at any point, also inside the other methods.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReadMark:
    """A reader: its snapshot, when it began (monotonic seconds) and who holds it."""

    ts: int
    since: float
    owner: str


class Oracle:
    """Issues read timestamps and knows the oldest one in use."""

    def __init__(self, published: int, *, managed: bool = False) -> None:
        self.published = published
        self._managed = managed
        self._managed_discard = 0
        self._lock = threading.Lock()
        self._marks: dict[int, ReadMark] = {}
        self._next_mark = 1

    def begin(self, owner: str, at: int | None = None) -> tuple[int, int]:
        """A new reader: its mark and timestamp (`at`, or everything published)."""
        with self._lock:
            ts = self.published if at is None else at
            mark = self._next_mark
            self._next_mark += 1
            self._marks[mark] = ReadMark(ts, time.monotonic(), owner)
            return mark, ts

    def end(self, mark: int) -> None:
        """The reader is gone; a second call does nothing."""
        self._marks.pop(mark, None)

    def forget_in_child(self) -> None:
        """After fork: the thread that may have held the lock is not here to let go of it."""
        self._lock = threading.Lock()

    def discard_ts(self) -> int:
        """The highest timestamp whose superseded versions nobody can ask for any more."""
        with self._lock:
            oldest = min((mark.ts for mark in self._held()), default=self.published)
            if self._managed:
                return min(self._managed_discard, oldest)
            return min(oldest, self.published)

    def set_discard_ts(self, ts: int) -> None:
        """Managed mode: the caller says which versions may go. Only grows."""
        with self._lock:
            self._managed_discard = max(self._managed_discard, ts)

    def readers(self) -> list[ReadMark]:
        """Readers in use, oldest snapshot first."""
        return sorted(self._held(), key=lambda mark: (mark.ts, mark.since))

    def _held(self) -> list[ReadMark]:
        """The marks at one moment: a copy made in one step, whoever ends meanwhile."""
        return list(self._marks.values())

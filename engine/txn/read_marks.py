"""Who reads at which snapshot: a mark for each, from its beginning to its end.

Runs in: supervisor, on the thread that reads.
Invariants: (1) a mark is in force before its timestamp is read, so it is never above it; (2) no
method takes a lock, and a mark may end at any point, also inside the other methods: the collector
ends those that were forgotten.

`ReadersPy` and `MarkPy` are the readable definition, the compiled twins are in
engine/kernel/lifetime.pxi: every transaction has a mark.
"""

from __future__ import annotations

import itertools
import warnings
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING

from meles.engine.kernel import NATIVE

if TYPE_CHECKING:
    from meles.engine.txn.oracle import Published

FORGOTTEN = "a transaction was neither committed nor discarded"


class MarkPy:
    """A reader of the snapshot `ts`. It ends when `end` is called, or when it is let go of.

    One that is `watched` and was only let go of says so with a `ResourceWarning`, unless the
    database has ended: its marks are nobody's any more.
    """

    __slots__ = ("_number", "_readers", "_watched", "ts")

    def __init__(self, readers: ReadersPy, number: int, ts: int, watched: bool) -> None:
        self._readers, self._number, self._watched = readers, number, watched
        self.ts = ts

    def end(self) -> None:
        """The reader is gone; a second call does nothing."""
        self._readers.marks.pop(self._number, None)

    def __del__(self) -> None:
        readers = getattr(self, "_readers", None)
        if readers is None or readers.marks.pop(self._number, None) is None:
            return
        if self._watched and not readers.clock.ended:
            warnings.warn(FORGOTTEN, ResourceWarning, stacklevel=2)


class ReadersPy:
    """The marks in force. `marks` has snapshot, beginning (monotonic seconds) and thread."""

    __slots__ = ("_numbers", "clock", "marks")

    def __init__(self, clock: Published) -> None:
        self.clock = clock
        self.marks: dict[int, tuple[int, float, int]] = {}
        self._numbers = itertools.count(1)

    def begin(self, at: int | None = None, watched: bool = False) -> MarkPy:
        """A new reader of the snapshot `at`, or of everything published."""
        clock = self.clock
        number = next(self._numbers)
        held = clock.ts if at is None else at
        self.marks[number] = (held, monotonic(), get_ident())
        return MarkPy(self, number, clock.ts if at is None else at, watched)

    def oldest(self, published: int) -> int:
        """The oldest snapshot in use, `published` when that is older or there is none."""
        return min([published, *(mark[0] for mark in self.held())])

    def held(self) -> list[tuple[int, float, int]]:
        """The marks at one moment: a copy made in one step, whoever ends meanwhile."""
        return list(self.marks.values())


if TYPE_CHECKING or NATIVE is None:
    Mark = MarkPy
    Readers = ReadersPy
else:
    Mark = NATIVE.Mark
    Readers = NATIVE.Readers

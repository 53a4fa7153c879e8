"""How much of mapped files is resident because readers looked at it, and letting go of the rest.

Runs in: supervisor, when there is a memory budget: pages read in place are its largest part.
Owns: the marks of every file that is read through its mapping.
Invariants: (1) marking takes no lock; (2) whoever adds to what is resident says so (`took`), and
lets go of the coldest pages itself once there is no room: no other thread could keep up with one
that reads, and what it would do it would do holding the interpreter; (3) a mapping is only looked
after here, never kept or closed.

Marks say what is cold, not how much is resident: looking at a page maps 64 KiB around it, or up to
2 MiB where the cache holds the file in large pages. So the system is asked, and what a page that
was not there brings is learnt from one look to the next. What the process had resident of other
files when there was nothing of ours is taken off.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable
from typing import Final
from weakref import ref

from meles.engine.fs.files import AROUND_BYTES, forget_pages, resident_of_files
from meles.engine.fs.page_clock import ABSENT, CHUNK_BITS, CHUNK_BYTES, USED, aged, resident

_SPARE_SHARE: Final = 8  # of the room, as a divisor: let go of beyond what is needed
_LEAST_SPARE: Final = 1 << 20
_MOST_SPARE: Final = 4 << 20  # who lets go waits for it: about 0.2 ms
_MOST_MISSES: Final = 16  # between two looks: what one brings may be more, all of a sudden
_FORGOTTEN_SHARE: Final = 8  # of what a miss was known to bring, as a divisor, from look to look


class PageMarks:
    """What is resident of one mapping; the compiled kernel writes into `marks`, too."""

    __slots__ = ("__weakref__", "_mapping", "listed", "marks", "pages")

    def __init__(self, mapping: mmap.mmap, pages: Pages) -> None:
        self._mapping = mapping
        self.pages = pages
        self.marks = bytearray((len(mapping) + CHUNK_BYTES - 1) >> CHUNK_BITS)
        self.listed = False

    def used(self, start: int, stop: int) -> None:
        """Somebody has just looked at bytes [start, stop) of the file."""
        marks = self.marks
        for chunk in range(start >> CHUNK_BITS, ((stop - 1) >> CHUNK_BITS) + 1):
            if marks[chunk] != USED:
                absent = marks[chunk] == ABSENT
                marks[chunk] = USED
                if absent:
                    self.missed()

    def missed(self) -> None:
        """A chunk was marked that had no mark before."""
        self.pages.missed(self)

    def age(self) -> None:
        """One round of the clock: let go of what was not used since the last."""
        after, going = aged(bytes(self.marks))
        self.marks[:] = after
        for start, stop in going:
            forget_pages(self._mapping, start, stop)

    def release(self) -> None:
        """The mapping is closed: its pages are gone, or go with its last reader."""
        self.marks[:] = bytes(len(self.marks))


class Pages:
    """Files that readers look at in place, in the order in which they are to let go of pages."""

    def __init__(self, room: Callable[[], int]) -> None:
        """`room()`: bytes of mapped files that may be resident now."""
        self._room = room
        self._busy = threading.Lock()  # held by who lets go of pages
        self._listed: deque[ref[PageMarks]] = deque()  # those with marks, the next one first
        self._others = resident_of_files() or 0
        self._each = CHUNK_BYTES  # bytes that one chunk that was missed makes resident
        self._misses = 0  # since the last look
        self._left = 0  # bytes that may still be taken until the next
        self._before = 0  # bytes that were resident after the last

    def watch(self, mapping: mmap.mmap) -> PageMarks:
        """Marks for a file that is about to be read in place."""
        return PageMarks(mapping, self)

    def missed(self, marks: PageMarks) -> None:
        """A chunk was looked at that had no mark. Listed twice by two threads, a file's turn only
        comes more often.
        """
        if not marks.listed:
            marks.listed = True
            self._listed.append(ref(marks))
        self._misses += 1
        self.took(self._each)

    def took(self, size: int) -> None:
        """Memory was taken from what resident pages may have. Approximate, as no lock is taken."""
        self._left -= size
        if self._left < 0:
            self.shrink()

    def marked(self) -> int:
        """Bytes of chunks with a mark."""
        return sum(resident(marks.marks) for place in self._listed.copy() if (marks := place()))

    def _held(self) -> int:
        """Bytes that are resident of files, as the system says or, if it does not, by the marks."""
        found = resident_of_files()
        if found is None:
            return self.marked()
        self._others = min(self._others, found)
        return found - self._others

    def shrink(self) -> None:
        """Let go of the coldest pages until there is room for what readers touch next."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            room, held = self._room(), self._held()
            each = max(CHUNK_BYTES, self._grown(held), self._each - self._each // _FORGOTTEN_SHARE)
            self._each = min(each, AROUND_BYTES)
            spare = min(_MOST_SPARE, max(_LEAST_SPARE, room // _SPARE_SHARE))
            if held + _LEAST_SPARE > room:
                held = self._let_go(room - spare)
            self._left = min(max(_LEAST_SPARE, room - held), _MOST_MISSES * self._each)
            self._before, self._misses = held, 0
        finally:
            self._busy.release()

    def _grown(self, held: int) -> int:
        """Bytes that each miss since the last look has brought."""
        return (held - self._before) // max(1, self._misses)

    def _let_go(self, aim: int) -> int:
        """Have files let go of pages until no more than `aim` is resident; what then is."""
        held = self._held()
        for _ in range(2 * len(self._listed)):  # one round takes the marks, one the pages
            if held <= aim or not self._listed:
                break
            self._age_next()
            held = self._held()
        if held > aim and not self._listed:  # then these are not ours
            self._others += held
            held = 0
        return held

    def _age_next(self) -> None:
        """A round of the clock for the next file in line."""
        listed = self._listed
        place = listed[0]
        listed.rotate(-1)
        marks = place()
        if marks is not None:
            marks.age()
        if marks is None or not resident(marks.marks):
            listed.remove(place)
            if marks is not None:
                marks.listed = False
                if resident(marks.marks):  # marked before it was off the list
                    marks.listed = True
                    listed.append(place)

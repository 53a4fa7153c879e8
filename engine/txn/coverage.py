"""What a transaction's iterators have really read, kept for the conflict check.

Runs in: supervisor, on the thread that uses the transaction.
Invariants: (1) a range is covered up to the last item given, not what was fetched ahead; (2) what
was read counts however the iterator ended, also when it was only forgotten; (3) a transaction keeps
a record for each iterator still in use and, of the others, ranges that neither overlap nor touch:
scanning the same keys over and over takes no more memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from meles.engine.iterators.range_scan import KeyRange

_FIRST_TIDY: Final = 64  # records; later whenever they have doubled


class Coverage:
    """What one iterator has read. It sets `last` and `exhausted` as it goes and `ended` when it
    ends; it does not keep the iterator.
    """

    __slots__ = ("_from", "_noted", "_reverse", "ended", "exhausted", "last")

    def __init__(self, *, reverse: bool) -> None:
        self._reverse = reverse
        self._from = KeyRange(b"", b"")
        self._noted: list[KeyRange] = []
        self.last: bytes | None = None  # key of the last item given since it began
        self.exhausted = False  # there is nothing more in the range
        self.ended = False

    def begin(self, keys: KeyRange) -> None:
        """From here on it reads `keys`, from one end to the other."""
        current = self._current()
        if current is not None:
            self._noted.append(current)
            if len(self._noted) > _FIRST_TIDY:
                self._noted = union(self._noted)
        self._from, self.last, self.exhausted = keys, None, False

    def _current(self) -> KeyRange | None:
        if self.exhausted:
            return self._from
        if self.last is None:
            return None
        if self._reverse:
            return replace(self._from, low=self.last)
        return replace(self._from, high=self.last + b"\0")

    def ranges(self) -> list[KeyRange]:
        current = self._current()
        return self._noted if current is None else [*self._noted, current]


class Covered:
    """What all iterators of one transaction have read."""

    def __init__(self) -> None:
        self._ranges: list[KeyRange] = []
        self._open: list[Coverage] = []
        self._tidy_at = _FIRST_TIDY

    def new(self, *, reverse: bool) -> Coverage:
        """The record of one more iterator."""
        if len(self._open) >= self._tidy_at:
            self._tidy()
        made = Coverage(reverse=reverse)
        self._open.append(made)
        return made

    def _tidy(self) -> None:
        read, still_open = list(self._ranges), []
        for coverage in self._open:
            if coverage.ended:
                read += coverage.ranges()
            else:
                still_open.append(coverage)
        self._ranges, self._open = union(read), still_open
        self._tidy_at = max(_FIRST_TIDY, 2 * len(still_open))

    def ranges(self) -> list[KeyRange]:
        """Every key read by scanning, once."""
        read = list(self._ranges)
        for coverage in self._open:
            read += coverage.ranges()
        return union(read)


def union(ranges: Iterable[KeyRange]) -> list[KeyRange]:
    """The same keys in ranges that ascend and neither overlap nor touch."""
    joined: list[KeyRange] = []
    for keys in sorted((r for r in ranges if not r.is_empty()), key=lambda r: r.low or b""):
        before = joined[-1] if joined else None
        if before is None or (before.high is not None and (keys.low or b"") > before.high):
            joined.append(keys)
        elif before.high is not None and (keys.high is None or keys.high > before.high):
            joined[-1] = replace(before, high=keys.high)
    return joined

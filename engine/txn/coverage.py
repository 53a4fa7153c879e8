"""What a transaction's iterators have really read, kept for the conflict check.

Runs in: supervisor, on the thread that uses the transaction.
Invariants: (1) what was read counts however the iterator ended, also when it was only forgotten:
one that the collector is about to finalise counts with its whole range; (2) a transaction keeps a
record for each iterator still in use and, of the others, ranges that neither overlap nor touch:
scanning the same keys over and over takes no more memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from meles.engine.iterators.range_scan import KeyRange

_FIRST_TIDY: Final = 64  # records; later whenever they have doubled


class Coverage:
    """What one iterator has read; it tells when it moves and when it ends. Does not keep it."""

    __slots__ = ("_noted", "_whole", "ended")

    def __init__(self, whole: KeyRange) -> None:
        self._whole = whole
        self._noted: list[KeyRange] = []
        self.ended = False

    def add(self, keys: KeyRange) -> None:
        """It has read these keys."""
        self._noted.append(keys)
        if len(self._noted) > _FIRST_TIDY:
            self._noted = union(self._noted)

    def ranges(self) -> list[KeyRange]:
        """What it has read; everything it may have, as long as it has not ended."""
        return self._noted if self.ended else [self._whole]


class Covered:
    """What all iterators of one transaction have read."""

    def __init__(self) -> None:
        self._ranges: list[KeyRange] = []
        self._open: list[Coverage] = []
        self._tidy_at = _FIRST_TIDY

    def new(self, whole: KeyRange) -> Coverage:
        """The record of one more iterator, over this range."""
        if len(self._open) >= self._tidy_at:
            self._tidy()
        made = Coverage(whole)
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
        """Every key read by scanning, once. When all iterators that are left were ended."""
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

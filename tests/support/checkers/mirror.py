"""The model's side of an open transaction and of an open iterator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from checkers.model import Entry, Range, Write


@dataclass
class OpenTxn:
    """A transaction and what it has done so far."""

    txn: Any
    update: bool
    pending: dict[bytes, Write] = field(default_factory=dict)
    reads: set[bytes] = field(default_factory=set)
    cursors: list[OpenCursor] = field(default_factory=list)

    @property
    def read_ts(self) -> int:
        return int(self.txn.read_ts)

    def covered(self) -> list[Range]:
        return [part for cursor in self.cursors for part in cursor.covered()]


@dataclass
class OpenCursor:
    """An iterator and everything it will ever give. `rows` ascend by key."""

    cursor: Any
    rows: list[tuple[bytes, Entry]]
    keys: Range
    reverse: bool
    limit: int | None
    shape: str
    owner: OpenTxn | None = None
    segment: list[tuple[bytes, Entry]] = field(init=False)
    at: int = 0
    span: Range = field(init=False)
    exhausted: bool = False
    closed: bool = False
    earlier: list[Range] = field(default_factory=list)  # covered before a seek or rewind

    def __post_init__(self) -> None:
        self._begin(self.keys)

    def _begin(self, span: Range) -> None:
        self.span, self.at, self.exhausted = span, 0, False
        self.segment = [row for row in self.rows if span.holds(row[0])]
        if self.reverse:
            self.segment.reverse()

    def take(self, count: int) -> list[tuple[bytes, Entry]]:
        """What the next `count` steps give; fewer at the end or at the limit."""
        stop = len(self.segment) if self.limit is None else min(self.limit, len(self.segment))
        given = self.segment[self.at : min(self.at + count, stop)]
        if len(given) < count and self.at + len(given) != self.limit:
            self.exhausted = True
        self.at += len(given)
        return given

    def seek(self, key: bytes) -> None:
        self.note()
        low, high = self.keys
        if not self.reverse:
            self._begin(Range(max(low or b"", key), high))
        elif not key:
            self._begin(self.keys)
        else:
            after = key + b"\0"
            self._begin(Range(low, after if high is None else min(high, after)))

    def rewind(self) -> None:
        self.note()
        self._begin(self.keys)

    def note(self) -> None:
        """Keep what the segment covered."""
        self.earlier += self._current()

    def _current(self) -> list[Range]:
        if self.exhausted:
            return [self.span]
        if not self.at:
            return []
        last = self.segment[self.at - 1][0]
        low, high = self.span
        return [Range(last, high) if self.reverse else Range(low, last + b"\0")]

    def covered(self) -> list[Range]:
        """The ranges the items given so far prove something about."""
        return self.earlier if self.closed else [*self.earlier, *self._current()]

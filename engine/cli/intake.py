"""One endless input turned into units of records that can be committed with their position.

Runs in: supervisor.
Owns: its follower.
Invariants: (1) a unit's position is the place right after its last line, so committing the two
together neither loses nor repeats a line; (2) a line without its newline is in no unit until its
input ends; (3) a unit's cost stays within the budget unless it is a single record.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from meles.engine.cli.follow import FileMark, Follower
from meles.engine.cli.lines import LineSplitter
from meles.engine.cli.position import Position
from meles.engine.cli.records import Chunk
from meles.engine.cli.sources import SourceFormat, line_records

READ_BYTES: Final = 256 << 10
ENTRY_BYTES: Final = 64  # what an entry costs in a transaction besides key and value


@dataclass(frozen=True, slots=True)
class Unit:
    """Records of consecutive lines and the position after them.

    `cost` is about their bytes in a transaction, at least half of them.
    """

    intake: Intake
    chunks: list[Chunk]
    position: Position
    cost: int


class Intake:
    """`position` is where reading stands; `torn` the bytes of the line not yet ended."""

    def __init__(
        self, source: Follower, key_name: bytes, how: SourceFormat, position: Position, budget: int
    ) -> None:
        self.source = source
        self.position = position
        self._key_bytes = how.key.fixed_bytes(key_name) + ENTRY_BYTES
        self._budget = budget
        self._splitter = LineSplitter(how.max_record)
        self._records = line_records(how, source.name, key_name)

    @property
    def torn(self) -> int:
        return self._splitter.pending

    def take(self) -> list[Unit] | None:
        """Read once: the units that this completes, None when there was nothing to read."""
        piece = self.source.read(min(READ_BYTES, self._budget))
        if piece is None:
            return None
        lines = self._splitter.feed(piece.data)
        if piece.ends:
            lines += self._splitter.finish()
        return list(self._units(lines, piece.mark))

    def _units(self, lines: list[bytes], mark: FileMark | None) -> Iterator[Unit]:
        """Cut lines into units. `mark` is the end of what was read."""
        count = len(lines)
        text = [0, *accumulate(map(len, lines))]
        start = 0
        while start < count:
            base = text[start] - self._budget - start * self._key_bytes
            fits = bisect_right(
                range(start + 1, count + 1), -base, key=lambda at: text[at] + at * self._key_bytes
            )
            stop = start + max(1, fits)
            place = None
            if mark is not None:
                # Counted from the end: only the first line can have been kept cut short.
                behind = text[count] - text[stop] + (count - stop) + self._splitter.pending
                place = dataclasses.replace(mark, offset=mark.offset - behind)
            first = self.position.line + 1
            self.position = Position(self.position.line + stop - start, place)
            chunks = list(self._records.chunks(lines[start:stop], first))
            cost = text[stop] - text[start] + (stop - start) * self._key_bytes
            yield Unit(self, chunks, self.position, cost)
            start = stop

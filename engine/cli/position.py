"""How far a source has been ingested, stored in the database beside its records.

Runs in: supervisor.
Invariants: (1) a position is committed in the transaction of the records it stands for, so after
any crash both are there or neither; (2) a stored position that does not parse is refused.
Fails with: `PositionError`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Final

from meles.engine.cli.follow import FileMark
from meles.engine.errors import Error

DEFAULT_PREFIX: Final = b"_serve/position/"


class PositionError(Error):
    """A stored position that is none."""

    hint = "delete that key to begin the source anew, or choose another --position-prefix"


@dataclass(frozen=True, slots=True)
class Position:
    """`line` lines of the source are in; `mark` is the place in the file, if it is a file."""

    line: int = 0
    mark: FileMark | None = None

    def encode(self) -> bytes:
        mark = None if self.mark is None else dataclasses.asdict(self.mark)
        return json.dumps({"line": self.line, "mark": mark}).encode()

    @staticmethod
    def decode(data: bytes) -> Position:
        try:
            stored = json.loads(data)
            mark = stored["mark"]
            position = Position(stored["line"], None if mark is None else FileMark(**mark))
        except (ValueError, TypeError, KeyError):
            raise PositionError(f"stored position {data[:80]!r} does not parse") from None
        numbers = [position.line]
        if position.mark is not None:
            numbers += dataclasses.astuple(position.mark)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise PositionError(f"stored position {data[:80]!r} is out of range")
        return position


def position_key(prefix: bytes, source: str) -> bytes:
    """Where the position of a source is stored."""
    return prefix + os.fsencode(source)

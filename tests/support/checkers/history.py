"""What clients of a database did and saw, as the checkers read it.

Tickets stand for real time: they are handed out in order, one before a transaction begins and one
after its end is known, so a transaction whose `ended` is below another's `began` was over by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

COMMITTED = "committed"
ABORTED = "aborted"  # the commit was refused
DISCARDED = "discarded"


class Read(NamedTuple):
    """A look at one key. `version` and `value` are None when it was absent."""

    key: bytes
    version: int | None
    value: bytes | None


class Scan(NamedTuple):
    """The items of an iterator, (key, version, value) as given; they prove all of [low, high)."""

    low: bytes | None
    high: bytes | None
    reverse: bool
    items: tuple[tuple[bytes, int, bytes], ...]


class Write(NamedTuple):
    """A set, or a delete when `value` is None. Set values are never written twice."""

    key: bytes
    value: bytes | None


Op = Read | Scan | Write


@dataclass(slots=True)
class Transaction:
    """One transaction, in the order in which it did things. `commit_ts` is 0 without a commit."""

    number: int
    client: int
    began: int
    read_ts: int
    ops: list[Op] = field(default_factory=list)
    outcome: str = DISCARDED
    commit_ts: int = 0
    ended: int = 0

    @property
    def wrote(self) -> bool:
        return any(isinstance(op, Write) for op in self.ops)

    def writes(self) -> dict[bytes, bytes | None]:
        """The last write of each key."""
        return {op.key: op.value for op in self.ops if isinstance(op, Write)}


class Anomaly(NamedTuple):
    """Something no serial execution could have shown."""

    kind: str
    what: str


class Stored(NamedTuple):
    """A version found by a scan of all versions when everything was over."""

    key: bytes
    version: int
    value: bytes | None

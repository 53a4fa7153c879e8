"""Slowing writers down before they must be stopped.

Runs in: supervisor, on the committing threads.
Invariants: (1) no delay below half of the room there is; (2) the delay grows with what waits, so
that writers approach the rate of the background work instead of running into a wall; (3) time is
paid in sleeps of at least a millisecond, outside the write lock.
RocksDB's delayed writes are the idea; the share of the room used replaces its byte estimates.
"""

from __future__ import annotations

import time
from typing import Final

_EASY: Final = 0.5  # share of the room that may be used without any delay
_SLOWEST_RATE: Final = 8 << 20  # bytes a second shortly before the stop
_LEAST_SLEEP: Final = 0.001
_LONGEST_SLEEP: Final = 0.1


def room_used(
    *, sealed: int, max_sealed: int, level_zero: int, due: int, stall: int, compacting: bool
) -> float:
    """How near the stop is, 0 to 1: the fuller of sealed memtables and (if compacted) L0.

    `due` L0 tables make a compaction, at `stall` flushing stops. Pure.
    """
    memory = sealed / max_sealed
    if not compacting:
        return min(1.0, memory)
    tables = max(0, level_zero - due) / max(1, stall - due)
    return min(1.0, max(memory, tables))


class Brake:
    """`set` on the control thread, `pay` on committing threads."""

    __slots__ = ("_debt", "seconds", "seconds_per_byte", "sleeps")

    def __init__(self) -> None:
        self.seconds_per_byte = 0.0  # read by the writer: 0 means no delay, the common case
        self._debt = 0.0
        self.sleeps = 0
        self.seconds = 0.0

    def set(self, used: float) -> None:
        """`used` is what `room_used` says."""
        hard = max(0.0, (used - _EASY) / (1 - _EASY))
        self.seconds_per_byte = hard / _SLOWEST_RATE

    def pay(self, size: int) -> None:
        """Delay the thread for the bytes it committed."""
        debt = self._debt + size * self.seconds_per_byte
        if debt < _LEAST_SLEEP:
            self._debt = debt
            return
        self._debt = 0.0
        debt = min(debt, _LONGEST_SLEEP)
        self.sleeps += 1
        self.seconds += debt
        time.sleep(debt)

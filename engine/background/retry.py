"""When a failed job may be tried again. Pure.

Runs in: supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from meles.engine.errors import CorruptionError, DiskFullError

WORKER_OUTPUT: Final = "worker output"  # kind of damage that running the job again may cure
_FIRST_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 60.0
_LOOK_FOR_SPACE_SECONDS: Final = 1.0  # a full disk heals at any moment, and writers wait for it


@dataclass(slots=True)
class Retry:
    """Back-off of one thing that keeps failing. Times are monotonic seconds."""

    failures: int = 0
    not_before: float = 0.0
    parked: str = ""
    last: str = field(default="")

    def failed(self, error: Exception, now: float, *, poisoned: bool) -> None:
        """Note a failure: damage and poison park at once, a full disk is looked at again and again,
        anything else waits longer each time.
        """
        self.failures += 1
        self.last = f"{type(error).__name__}: {error}"
        if poisoned or (isinstance(error, CorruptionError) and error.kind != WORKER_OUTPUT):
            self.parked = self.last
        delay = min(_FIRST_SECONDS * 2 ** (self.failures - 1), _LONGEST_SECONDS)
        if isinstance(error, DiskFullError):
            delay = min(delay, _LOOK_FOR_SPACE_SECONDS)
        self.not_before = now + delay

    def may_run(self, now: float) -> bool:
        return not self.parked and now >= self.not_before

    def delay(self, now: float) -> float:
        """Seconds until another try."""
        return max(0.0, self.not_before - now)

    def succeeded(self) -> None:
        self.failures, self.not_before, self.parked, self.last = 0, 0.0, "", ""

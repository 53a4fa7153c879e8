"""Stopping workers: a ladder with a clock on each rung.

Runs in: supervisor; the rungs on the control thread, the waiting on the caller's.
Invariants: (1) every rung is tried before the next: ask, hang up and SIGTERM, SIGKILL; (2) whoever
waits is let go when all workers are reaped or its time is up, whichever comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meles.workers.parent.handle import Phase, Worker

# Shares of the time allowed. Most goes to asking: a job is told to stop at its next sign of life.
ASK_SHARE: Final = 0.6
TERM_SHARE: Final = 0.2
LEAST_KILL_WAIT: Final = 0.2  # seconds for the kernel to end a killed process, whatever the budget


@dataclass(frozen=True, slots=True)
class Rungs:
    """Seconds after the beginning at which each rung is due."""

    terminate: float
    kill: float
    give_up: float


def rungs(timeout: float) -> Rungs:
    """The ladder for a budget of seconds."""
    timeout = max(0.0, timeout)
    kill = timeout * (ASK_SHARE + TERM_SHARE)
    return Rungs(timeout * ASK_SHARE, kill, max(timeout, kill + LEAST_KILL_WAIT))


class Stopping:
    """One request to stop some workers, shared by who waits and who works."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = tuple(workers)
        self._over = threading.Event()

    def check(self) -> None:
        """Control thread: let the waiting go once every worker is dead."""
        if all(worker.phase is Phase.STOPPED for worker in self.workers):
            self._over.set()

    @property
    def over(self) -> bool:
        """Whether nobody has to wait any more."""
        return self._over.is_set()

    def release(self) -> None:
        """Let the waiting go whatever became of the workers."""
        self._over.set()

    def wait(self, timeout: float) -> bool:
        """True if all are dead and left by themselves."""
        self._over.wait(timeout)
        return all(w.phase is Phase.STOPPED and w.polite for w in self.workers)

"""What is wrong with a pool, in words, for `health()`.

Runs in: supervisor, any thread.
Invariant: a problem goes away by itself when what it speaks of is over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from meles.workers.parent.handle import Phase, Worker

REMEMBER_POISON: Final = 60.0  # seconds at least, even if other jobs of the kind go well meanwhile
_MOST_POISONED: Final = 20  # kept; the oldest go first


@dataclass(frozen=True, slots=True)
class _Poisoned:
    kind: str
    at: float
    text: str


class Poisoned:
    """Jobs that ended too many workers. Forgotten once their kind has done a job well, later on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: list[_Poisoned] = []

    def add(self, kind: str, now: float, text: str) -> None:
        with self._lock:
            self._jobs = [*self._jobs[-_MOST_POISONED + 1 :], _Poisoned(kind, now, text)]

    def went_well(self, kind: str, now: float) -> None:
        """A job of the kind succeeded."""
        if self._jobs:
            with self._lock:
                self._jobs = [
                    job for job in self._jobs
                    if job.kind != kind or now - job.at < REMEMBER_POISON
                ]  # fmt: skip

    def texts(self) -> list[str]:
        with self._lock:
            return [job.text for job in self._jobs]


def of_workers(workers: Iterable[Worker]) -> list[str]:
    """One line for each worker that is not well."""
    lines = []
    for worker in workers:
        restarts = worker.restarts
        if worker.phase is Phase.CONDEMNED and worker.verdict:
            lines.append(f"{worker.name} {worker.verdict}; it is being replaced")
        elif restarts.shortages:
            lines.append(f"{worker.name} waits to be started: {worker.last_words}")
        elif restarts.gave_up:
            lines.append(
                f"{worker.name} failed to start {restarts.boot_failures} times: {worker.last_words}"
            )
        elif restarts.worrying and worker.phase is not Phase.STOPPED:
            lines.append(
                f"{worker.name} died {restarts.deaths} times in a row: {worker.last_words}"
            )
    return lines

"""What the engine asks of whoever runs its background jobs.

Runs in: supervisor.
The engine knows no process: the supervisor hands it a `JobPool` (worker processes, threads, or the
calling thread), all of which pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from meles.engine.jobs import Job
from meles.engine.worker_info import WorkerInfo


class JobPool(Protocol):
    """Runs jobs and, on one control thread, the engine's scheduling."""

    def submit(self, job_id: int, job: Job) -> None:
        """Run the job when a worker of its kind is free. Never blocks."""

    def cancel(self, job_id: int) -> None:
        """Ask a job to stop; it then fails with `JobCancelledError`."""

    def free(self, kind: str) -> int:
        """Workers of the kind that could take a job now."""

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the control thread."""

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        """Run `fn` on the control thread after a while."""

    def infos(self) -> list[WorkerInfo]:
        """One entry a worker."""

    def problems(self) -> list[str]:
        """Reasons why the pool is not at its best, for `health()`."""

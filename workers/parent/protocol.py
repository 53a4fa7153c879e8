"""What the supervisor may ask of whoever runs its jobs: processes, threads, or the calling thread.

Runs in: supervisor.
Promises of every pool, kept by one contract suite: (1) a job that was submitted is answered exactly
once, by `on_result` or `on_failure`, also when it is cancelled or the pool closes; (2) callbacks,
and what `call_soon` and `call_later` were given, run one at a time on the control thread (inline:
on the thread that calls); (3) jobs of one kind start in the order they were submitted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meles.engine.jobs import Job, JobContext, JobResult
from meles.engine.worker_info import WorkerInfo

OnResult = Callable[[int, JobResult], None]
# Job id, why, and whether the job is poisoned: it ended too many workers to be tried again.
OnFailure = Callable[[int, Exception, bool], None]
# A worker died with this job: clean up after it and say what to run instead. It may raise.
OnRerun = Callable[[int, Job], Job]
# A callback raised: a contradiction, to be logged and acted upon by whoever owns the pool.
OnError = Callable[[Exception], None]
# Runs one job; for pools within this process.
RunJob = Callable[[Job, JobContext], JobResult]


@dataclass(frozen=True, slots=True)
class PoolDirs:
    """The directories workers inherit, their names for messages, and the data keys for a job.

    The descriptors stay the caller's. `keys` is None where nothing is encrypted.
    """

    tables_fd: int
    values_fd: int
    tables: str = "."
    values: str = "."
    keys: Callable[[], bytes] | None = None


class Pool(Protocol):
    """Runs jobs and, on one control thread, whatever schedules them."""

    def start(self) -> None:
        """Begin to work. What was submitted or called before runs then."""

    def submit(self, job_id: int, job: Job) -> None:
        """Run the job when a worker of its kind is free. Any thread; never blocks.

        After `close` this raises `ClosedError`; for a kind that was stopped the job is cancelled.
        """

    def cancel(self, job_id: int) -> None:
        """Ask a job to stop; it then fails with `JobCancelledError`, unless it was done already."""

    def free(self, kind: str) -> int:
        """Workers of the kind that are idle or soon will be, less the jobs that wait for one."""

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the control thread. Nothing happens once the pool is closed."""

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        """Run `fn` on the control thread after a while. Nothing happens once the pool is closed."""

    def stop_kind(self, kind: str, timeout: float) -> bool:
        """Cancel the jobs of a kind and end its workers; True if they all left by themselves.

        Blocks the calling thread, at most a little longer than `timeout` seconds. Not to be called
        on the control thread.
        """

    def close(self, timeout: float) -> None:
        """Stop every kind, then the control thread; not to be called on it. Idempotent."""

    def hurry(self, timeout: float) -> None:
        """Whoever waits in `stop_kind` or `close` gets about `timeout` more seconds. Any thread."""

    def infos(self) -> list[WorkerInfo]:
        """One entry a worker. Any thread."""

    def problems(self) -> list[str]:
        """Reasons why the pool is not at its best, for `health()`. Any thread."""

    def forget(self) -> None:
        """In a forked child of the host: let go of descriptors, touch no process and no thread."""

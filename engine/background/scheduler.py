"""The scheduler: asks each kind of background work what is due, hands jobs out, takes answers in.

Runs in: supervisor, on the control thread (inline: on the calling thread).
Owns: job numbers, which job belongs to which work.
Invariants: (1) everything here happens on one thread at a time; (2) an answer for a job that is not
running is dropped; (3) after every event each kind of work is asked again, so nothing waits for a
tick; (4) a failure to write durable state ends writing, a failure of a job ends only that job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from meles.engine.background.pool import JobPool
from meles.engine.errors import (
    DiskFullError,
    Error,
    InvariantError,
    JobCancelledError,
    StoreFailedError,
)
from meles.engine.fs.files import is_shortage
from meles.engine.giving_way import give_way
from meles.engine.jobs import Job, JobResult

log = logging.getLogger("meles.scheduler")
_LOOK_AGAIN_SECONDS: Final = 0.2  # how often who waits looks whether the deadline was drawn closer


class Work(Protocol):
    """One kind of background work."""

    def start_due(self) -> None:
        """Decide what is due and submit it, as far as workers are free."""

    def is_idle(self) -> bool:
        """Nothing runs and nothing is due."""

    def done(self, job_id: int, job: Job, result: JobResult) -> None:
        """A job succeeded: verify and install."""

    def failed(self, job_id: int, job: Job, error: Exception, *, poisoned: bool) -> None:
        """A job failed, or was given up on (`poisoned`); its outputs are to be removed."""

    def rerun(self, job_id: int, job: Job) -> Job:
        """A worker died with this job: clean up and give the job to run instead."""

    def problems(self) -> list[str]:
        """Reasons for `health()`."""


def _countdown(timeout: float | None) -> Callable[[], float]:
    """Seconds that are left of `timeout`; None never ends."""
    if timeout is None:
        return lambda: float("inf")
    deadline = time.monotonic() + timeout
    return lambda: deadline - time.monotonic()


@dataclass(slots=True)
class _Running:
    work: Work
    job: Job


class Scheduler:
    """Drives every `Work` over one `JobPool`."""

    def __init__(
        self,
        on_fatal: Callable[[Exception], None],
        *,
        inline: bool,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stopped` says whether writing has ended for good: then nothing is due any more."""
        self._on_fatal = on_fatal
        self.stopped = stopped
        self._inline = inline  # nothing happens between calls: waiting would wait for ever
        self._driving = threading.RLock()  # inline: who pokes waits for what others poked
        self._pool: JobPool | None = None
        self._works: list[Work] = []
        self._running: dict[int, _Running] = {}
        self._next_job = 1
        self._poked = False
        self._inside = threading.RLock()  # inline: several host threads may drive it
        self._idle_changed = threading.Condition()
        self._started = 0
        self._finished = 0
        self._idle = False

    def attach(self, pool: JobPool, works: list[Work]) -> None:
        """Before the first poke."""
        self._pool = pool
        self._works = works

    @property
    def pool(self) -> JobPool:
        if self._pool is None:
            raise InvariantError("the scheduler has no pool yet")
        return self._pool

    # -- from any thread -------------------------------------------------------------------------

    def poke(self) -> None:
        """Something may be due."""
        if self._inline:
            with self._driving:
                self.pool.call_soon(self.run)
        elif not self._poked:
            self._poked = True
            self.pool.call_soon(self.run)

    def wait_idle(self, timeout: float | Callable[[], float] | None) -> bool:
        """Wait until nothing runs or is due. False when time ran out."""
        return self.wait_for(lambda: self._idle, timeout)

    def wait_for(
        self, reached: Callable[[], bool], timeout: float | Callable[[], float] | None
    ) -> bool:
        """Wait until `reached()` holds after a run of the scheduler that began after this call.

        `timeout` in seconds, or a function that says how many are left: it may be drawn closer.
        """
        left_of = timeout if callable(timeout) else _countdown(timeout)
        with self._idle_changed:
            begun = self._started
        self.poke()
        with self._idle_changed:
            while not (self._finished > begun and reached()):
                left = left_of()
                if self._inline or left <= 0:
                    return False
                self._idle_changed.wait(min(left, _LOOK_AGAIN_SECONDS))
        return True

    # -- on the control thread -------------------------------------------------------------------

    def new_job_id(self) -> int:
        """A job number, to be known before an answer can come."""
        job_id = self._next_job
        self._next_job += 1
        return job_id

    def submit(self, work: Work, job: Job, job_id: int) -> None:
        """Hand a job to the pool."""
        self._running[job_id] = _Running(work, job)
        self.pool.submit(job_id, job)

    def cancel(self, job_id: int) -> None:
        self.pool.cancel(job_id)

    def later(self, seconds: float) -> None:
        """Look again after a while (a failed job is retried then)."""
        self.pool.call_later(seconds, self.poke)

    def run(self) -> None:
        """Ask every kind of work what is due."""
        with self._inside:
            self._poked = False
            with self._idle_changed:
                self._started += 1
                begun = self._started
            for work in self._works:
                self._guarded(work.start_due)
                give_way()
            with self._idle_changed:
                idle = self.stopped() or all(work.is_idle() for work in self._works)
                self._idle = idle and not self._running
                self._finished = begun
                self._idle_changed.notify_all()

    def on_result(self, job_id: int, result: JobResult) -> None:
        """The pool says that a job is done."""
        with self._inside:
            running = self._running.pop(job_id, None)
            if running is not None:
                self._guarded(lambda: self._take(job_id, running, result))
        give_way()
        self.run()

    def _take(self, job_id: int, running: _Running, result: JobResult) -> None:
        try:
            running.work.done(job_id, running.job, result)
        except StoreFailedError:
            raise
        except Error as error:  # a refused output is a failed job
            log.warning("%s: result refused: %s", running.job.title(), error)
            running.work.failed(job_id, running.job, error, poisoned=False)
        except OSError as error:
            if not is_shortage(error):
                raise
            log.warning("%s: result cannot be opened yet: %s", running.job.title(), error)
            running.work.failed(job_id, running.job, error, poisoned=False)

    def on_failure(self, job_id: int, error: Exception, poisoned: bool) -> None:
        """The pool says that a job failed."""
        with self._inside:
            running = self._running.pop(job_id, None)
            if running is not None:
                if not isinstance(error, JobCancelledError):
                    log.warning("%s failed: %s", running.job.title(), error)
                self._guarded(
                    lambda: running.work.failed(job_id, running.job, error, poisoned=poisoned)
                )
        self.run()

    def on_rerun(self, job_id: int, job: Job) -> Job:
        """The pool says that a worker died with this job and asks what to run instead."""
        with self._inside:
            running = self._running.get(job_id)
            if running is None:
                return job
            running.job = running.work.rerun(job_id, job)
            return running.job

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except DiskFullError as error:
            log.warning("background work waits for disk space: %s", error)
            self.later(1.0)
        except (OSError, InvariantError) as error:
            if is_shortage(error):
                log.warning("background work waits for descriptors: %s", error)
                self.later(1.0)
                return
            log.exception("background work cannot go on")
            self._on_fatal(error)

    def problems(self) -> list[str]:
        """Reasons for `health()`, from the pool and from every kind of work."""
        own = [reason for work in self._works for reason in work.problems()]
        return [*self.pool.problems(), *own] if self._pool is not None else own

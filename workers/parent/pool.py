"""The pool of worker processes.

Runs in: supervisor. Public methods on any thread unless they say otherwise; the rest on the control
thread.
Owns: the control thread, and descriptors of its own of the two directories.
Invariants: (1) whatever a worker does or suffers, its job is answered exactly once; (2) a job runs
again only when the worker that had it is dead and reaped, never beside it; (3) the control thread
never waits for a worker; (4) after `close` no process, thread or descriptor remains, except a
process the kernel cannot end.
Fails with: nothing: what goes wrong with a worker is repaired, reported in `problems`, and logged.

     submit --> queue --> worker (crew.py) --> answer --> on_result / on_failure
                  ^          | died, hung, talked nonsense
                  |          v
                  +---- on_rerun, unless it ended three workers
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from meles.engine.errors import ClosedError, InvariantError, JobCancelledError, WorkerFailedError
from meles.engine.jobs import Job
from meles.engine.worker_info import WorkerInfo
from meles.workers.parent.control import ControlLoop
from meles.workers.parent.crew import BOOT_TIMEOUT, Crew, CrewOptions
from meles.workers.parent.handle import STATES, Phase, Task, Worker
from meles.workers.parent.problems import Poisoned, of_workers
from meles.workers.parent.protocol import OnError, OnFailure, OnRerun, OnResult, PoolDirs
from meles.workers.parent.queue import JobQueue
from meles.workers.parent.restart import POISON_DEATHS
from meles.workers.parent.spawn import reopen_directory
from meles.workers.parent.stop import LEAST_KILL_WAIT, Stopping
from meles.workers.parent.usage import Usage
from meles.workers.wire.errors import LocalProtocolError, rebuild
from meles.workers.wire.messages import JobDone, JobFailed, JobRequest, encode

_JOIN_SECONDS: Final = 5.0  # for the control thread's last callbacks
_log = logging.getLogger("meles.workers")


def log_error(error: Exception) -> None:
    """What is done with an exception of a callback when nobody else wants it."""
    _log.error("a callback of the worker pool raised", exc_info=error)


class ProcessPool:
    """Runs jobs in worker processes; see `Pool` for what it promises.

    `counts` is the number of workers by kind. Times are seconds, `memory_limit` bytes of
    memory of its own a worker may use. `on_rerun` is told before a job runs again after its
    worker died; `on_ready` that a worker of a kind became ready; `on_error` of exceptions that
    callbacks let out. `command` replaces what starts a worker's Python.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        dirs: PoolDirs,
        *,
        heartbeat: float,
        hang_timeout: float,
        memory_limit: int | None,
        on_result: OnResult,
        on_failure: OnFailure,
        on_rerun: OnRerun | None = None,
        on_ready: Callable[[str], None] | None = None,
        on_error: OnError = log_error,
        boot_timeout: float = BOOT_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
        command: Sequence[str] | None = None,
    ) -> None:
        # fixed after construction
        self._on_result = on_result
        self._on_failure = on_failure
        self._on_rerun = on_rerun
        self._on_ready = on_ready
        self._on_error = on_error
        self._clock = clock
        self._loop = ControlLoop("meles-control", on_error, clock)
        self._usage = Usage()
        self._tables_fd = reopen_directory(dirs.tables_fd)
        try:
            self._values_fd = reopen_directory(dirs.values_fd)
        except OSError:
            os.close(self._tables_fd)
            raise
        self._keys = dirs.keys
        own = replace(dirs, tables_fd=self._tables_fd, values_fd=self._values_fd)
        options = CrewOptions(own, heartbeat, hang_timeout, memory_limit, boot_timeout, command)
        workers = [
            Worker(kind, f"{kind}-{number}")
            for kind, count in counts.items()
            for number in range(1, count + 1)
        ]
        self._crew = Crew(workers, self._loop, self, options, clock)
        # thread-safe by themselves
        self._queue = JobQueue()
        self._poisoned = Poisoned()
        # under _lock
        self._lock = threading.Lock()  # also makes taking a job and giving it one step for `free`
        self._stopped_kinds: set[str] = set()
        self._started = False
        # under _close_lock
        self._close_lock = threading.Lock()
        self._closed = False
        # control thread only
        self._generation = 0

    # -- public ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the control thread, and on it the workers. Does not wait for them."""
        with self._lock:
            if self._started:
                raise InvariantError("the pool was started twice")
            self._started = True
        self._loop.call_soon(self._crew.start)
        self._loop.start()

    def submit(self, job_id: int, job: Job) -> None:
        """See `Pool`. `InvariantError` for an id that is in use."""
        self._queue.add(job_id, job)
        if not self._loop.call_soon(partial(self._pump, job.kind)):
            self._queue.withdraw(job_id)
            raise ClosedError("the worker pool is closed")

    def cancel(self, job_id: int) -> None:
        """See `Pool`. An unknown id is no error: the job may just have been answered."""
        self._loop.call_soon(partial(self._cancel, job_id))

    def free(self, kind: str) -> int:
        """See `Pool`."""
        with self._lock:
            if kind in self._stopped_kinds:
                return 0
            hopeful = sum(1 for w in self._crew.workers if w.kind == kind and w.available)
            return max(0, hopeful - self._queue.waiting(kind))

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `Pool`."""
        self._loop.call_soon(fn)

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        """See `Pool`."""
        self._loop.call_later(seconds, fn)

    def stop_kind(self, kind: str, timeout: float) -> bool:
        """See `Pool`."""
        return self._stop([kind], timeout)

    def close(self, timeout: float) -> None:
        """See `Pool`."""
        self._refuse_control_thread()
        with self._close_lock:
            if self._closed:
                return
            self._stop(
                [*{worker.kind for worker in self._crew.workers}, *self._queue.kinds()], timeout
            )
            if self._started:
                self._loop.call_soon(self._crew.abandon)
                self._loop.call_soon(self._cancel_all)
                self._loop.stop()
                self._loop.join(_JOIN_SECONDS)
            else:
                self._loop.end_unstarted()
                self._cancel_all()
            os.close(self._tables_fd)
            os.close(self._values_fd)
            self._closed = True

    def hurry(self, timeout: float) -> None:
        """See `Pool`."""
        self._loop.call_soon(partial(self._crew.hurry, timeout))

    def infos(self) -> list[WorkerInfo]:
        """See `Pool`."""
        infos = []
        for worker in self._crew.workers:
            child, task = worker.child, worker.task
            pid = child.pid if child is not None else None
            rss, cpu = self._usage.of(pid)
            infos.append(
                WorkerInfo(
                    kind=worker.kind,
                    name=worker.name,
                    pid=pid,
                    state=STATES[worker.phase],
                    job=task.job.title() if task is not None else None,
                    rss_bytes=rss,
                    cpu_seconds=cpu,
                    restarts=max(0, worker.starts - 1),
                )
            )
        return infos

    def problems(self) -> list[str]:
        """See `Pool`."""
        return [*of_workers(self._crew.workers), *self._poisoned.texts()]

    def forget(self) -> None:
        """In a forked child of the host: close the copies of all descriptors, touch no process.

        Nothing else may be called on the pool there.
        """
        self._loop.forget()
        self._crew.forget()
        os.close(self._tables_fd)
        os.close(self._values_fd)

    # -- jobs, control thread --------------------------------------------------------------------

    def _pump(self, kind: str) -> None:
        """Give waiting jobs to idle workers."""
        if kind in self._stopped_kinds:
            for task in self._queue.take_all(kind):
                self._cancelled(task)
            return
        for worker in self._crew.workers:
            while worker.kind == kind and worker.phase is Phase.IDLE and not worker.stopping:
                if not self._give_next(worker):
                    return

    def _give_next(self, worker: Worker) -> bool:
        """Give the worker the next job of its kind; False if there is none."""
        keys = b"" if self._keys is None else self._keys()
        with self._lock:
            task = self._queue.take(worker.kind)
            if task is None:
                return False
            self._generation += 1
            try:
                frame = encode(JobRequest(task.job_id, self._generation, task.job, keys))
            except LocalProtocolError as error:
                too_big = error
            else:
                worker.given(task, self._generation, self._clock())
                self._crew.send(worker, frame)
                return True
        self._failed(task, too_big)
        return True

    def _cancel(self, job_id: int) -> None:
        task = self._queue.find(job_id)
        if task is None:
            return
        task.cancelled = True
        if self._queue.remove(task):
            self._cancelled(task)
            return
        for worker in self._crew.workers:
            if worker.task is task:
                self._crew.cancel(worker, job_id)

    def _cancelled(self, task: Task) -> None:
        self._failed(task, JobCancelledError(f"{task.job.title()} was cancelled"))

    def _failed(self, task: Task, error: Exception, *, poisoned: bool = False) -> None:
        self._queue.answered(task)
        self._loop.guard(lambda: self._on_failure(task.job_id, error, poisoned))

    def _cancel_all(self) -> None:
        for kind in self._queue.kinds():
            for task in self._queue.take_all(kind):
                self._cancelled(task)

    # -- what becomes of workers, told by the crew -----------------------------------------------

    def on_idle(self, worker: Worker) -> None:
        """A worker is ready."""
        self._pump(worker.kind)
        on_ready = self._on_ready
        if on_ready is not None:
            self._loop.guard(lambda: on_ready(worker.kind))

    def on_answer(self, worker: Worker, answer: JobDone | JobFailed) -> None:
        """A worker has answered for its job."""
        pid = worker.child.pid if worker.child is not None else None
        task = worker.freed()
        if isinstance(answer, JobDone):
            self._queue.answered(task)
            self._poisoned.went_well(worker.kind, self._clock())
            self._loop.guard(lambda: self._on_result(task.job_id, answer.result))
        else:
            title = task.job.title()
            self._failed(task, rebuild(answer.failure, worker=worker.kind, pid=pid, job=title))
        self._pump(worker.kind)

    def on_death(self, worker: Worker, task: Task | None, words: str) -> None:
        """A worker is dead; run its job again, or say why not."""
        if task is None:
            return
        title = task.job.title()
        task.deaths += 1
        failure = WorkerFailedError(f"{worker.name} {words}", kind=worker.kind, job=title)
        if task.cancelled or worker.kind in self._stopped_kinds:
            cancelled = JobCancelledError(f"{title} was cancelled, and its worker died")
            cancelled.__cause__ = failure
            self._failed(task, cancelled)
        elif task.deaths >= POISON_DEATHS:
            text = f"{title} ended {task.deaths} workers and was given up: {words}"
            self._poisoned.add(worker.kind, self._clock(), text)
            _log.error("%s", text)
            self._failed(task, failure, poisoned=True)
        elif self._prepare_rerun(task):
            self._queue.put_back(task)
            self._pump(worker.kind)

    def _prepare_rerun(self, task: Task) -> bool:
        """Let the scheduler clean up; False if that failed, and so the job."""
        if self._on_rerun is None:
            return True
        try:
            task.job = self._on_rerun(task.job_id, task.job)
        except Exception as error:  # noqa: BLE001 - handed on as the job's failure
            self._failed(task, error)
            return False
        return True

    # -- stopping --------------------------------------------------------------------------------

    def _refuse_control_thread(self) -> None:
        if self._loop.is_current:
            raise InvariantError("the control thread cannot wait for itself")

    def _stop(self, kinds: Sequence[str], timeout: float) -> bool:
        """Any thread but the control thread."""
        self._refuse_control_thread()
        with self._lock:
            self._stopped_kinds.update(kinds)
            started = self._started
        stopping = Stopping([w for w in self._crew.workers if w.kind in kinds])
        if not started or not self._loop.call_soon(
            partial(self._begin_stop, kinds, stopping, timeout)
        ):
            return True
        return stopping.wait(max(0.0, timeout) + LEAST_KILL_WAIT + _JOIN_SECONDS)

    def _begin_stop(self, kinds: Sequence[str], stopping: Stopping, timeout: float) -> None:
        for kind in kinds:
            self._pump(kind)
        self._crew.stop(stopping, timeout)

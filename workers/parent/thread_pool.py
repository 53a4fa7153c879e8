"""The same jobs on threads of this process.

Runs in: supervisor. Public methods on any thread unless they say otherwise.
Owns: the control thread and one thread a worker.
Invariants: (1) as for every pool: each job is answered exactly once, on the control thread; (2) a
thread cannot be killed: a job that reports no progress outlives `stop_kind`, is answered as
cancelled, and what it says later is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from meles.engine.errors import ClosedError, InvariantError, JobCancelledError
from meles.engine.jobs import Job, JobResult
from meles.engine.worker_info import WorkerInfo
from meles.workers.parent.control import ControlLoop
from meles.workers.parent.handle import Task
from meles.workers.parent.pool import log_error
from meles.workers.parent.protocol import OnError, OnFailure, OnResult, RunJob
from meles.workers.parent.queue import JobQueue
from meles.workers.wire.errors import as_typed

_JOIN_SECONDS: Final = 5.0  # for the control thread's last callbacks


class LocalJob:
    """One job while it runs in this process: the `JobContext` its code sees."""

    __slots__ = ("done_bytes", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.done_bytes = 0

    def progress(self, done_bytes: int) -> None:
        """A sign of life; raises `JobCancelledError` when the job was told to stop."""
        self.done_bytes = done_bytes
        if self.task.cancelled:
            raise JobCancelledError(f"{self.task.job.title()} was cancelled")


def run_locally(run: RunJob, task: Task) -> JobResult | Exception:
    """Run a job here; its result, or a failure of the types other pools give."""
    try:
        return run(task.job, LocalJob(task))
    except Exception as error:  # noqa: BLE001 - whatever a job raises is its answer
        return as_typed(error, worker=task.job.kind, job=task.job.title())


class _Worker:
    """A thread that takes jobs of one kind."""

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        self.task: Task | None = None  # under the pool's _changed
        self.thread: threading.Thread | None = None

    @property
    def state(self) -> str:
        if self.thread is None:
            return "starting"
        if not self.thread.is_alive():
            return "stopped"
        return "busy" if self.task is not None else "idle"

    def ended(self, timeout: float) -> bool:
        """Wait for the thread, if there is one; False if it lives on."""
        if self.thread is None:
            return True
        self.thread.join(max(0.0, timeout))
        return not self.thread.is_alive()


class ThreadPool:
    """Runs jobs with `run` on threads; see `Pool` for what it promises."""

    def __init__(
        self,
        counts: Mapping[str, int],
        run: RunJob,
        *,
        on_result: OnResult,
        on_failure: OnFailure,
        on_error: OnError = log_error,
    ) -> None:
        # fixed after construction
        self._run = run
        self._on_result = on_result
        self._on_failure = on_failure
        self._loop = ControlLoop("meles-control", on_error)
        self._workers = [
            _Worker(kind, f"{kind}-{number}")
            for kind, count in counts.items()
            for number in range(1, count + 1)
        ]
        # thread-safe by itself
        self._queue = JobQueue()
        # under _changed
        self._changed = threading.Condition()  # a job came, or a kind was stopped
        self._stopped_kinds: set[str] = set()
        self._started = False
        # under _close_lock
        self._close_lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Start all threads."""
        with self._changed:
            if self._started:
                raise InvariantError("the pool was started twice")
            self._started = True
        self._loop.start()
        for worker in self._workers:
            worker.thread = threading.Thread(
                target=self._work, args=(worker,), name=f"meles-{worker.name}", daemon=True
            )
            worker.thread.start()

    def submit(self, job_id: int, job: Job) -> None:
        """See `Pool`. `InvariantError` for an id that is in use."""
        with self._changed:
            self._queue.add(job_id, job)
            self._changed.notify_all()
        if not self._loop.call_soon(partial(self._cancel_if_stopped, job.kind)):
            self._queue.withdraw(job_id)
            raise ClosedError("the worker pool is closed")

    def cancel(self, job_id: int) -> None:
        """See `Pool`."""
        self._loop.call_soon(partial(self._cancel, job_id))

    def free(self, kind: str) -> int:
        """See `Pool`."""
        with self._changed:
            if kind in self._stopped_kinds:
                return 0
            idle = sum(1 for w in self._workers if w.kind == kind and w.task is None)
            return max(0, idle - self._queue.waiting(kind))

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `Pool`."""
        self._loop.call_soon(fn)

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        """See `Pool`."""
        self._loop.call_later(seconds, fn)

    def stop_kind(self, kind: str, timeout: float) -> bool:
        """See `Pool`. False when a job took no notice: its thread is left behind."""
        return self._stop({kind}, timeout)

    def close(self, timeout: float) -> None:
        """See `Pool`."""
        self._refuse_control_thread()
        with self._close_lock:
            if self._closed:
                return
            kinds = {worker.kind for worker in self._workers} | set(self._queue.kinds())
            self._stop(kinds, timeout)
            if self._started:
                self._loop.stop()
                self._loop.join(_JOIN_SECONDS)
            else:
                self._loop.end_unstarted()
                for kind in kinds:
                    self._cancel_waiting(kind)
            self._closed = True

    def hurry(self, timeout: float) -> None:
        """See `Pool`. A job on a thread cannot be ended, only waited for."""

    def infos(self) -> list[WorkerInfo]:
        """See `Pool`. Threads have no process id, memory or CPU time of their own."""
        infos = []
        for worker in self._workers:
            task = worker.task
            title = task.job.title() if task is not None else None
            infos.append(WorkerInfo(worker.kind, worker.name, None, worker.state, title, 0, 0.0, 0))
        return infos

    def problems(self) -> list[str]:
        """See `Pool`. Threads neither die nor hang in a way that could be told."""
        return []

    def forget(self) -> None:
        """In a forked child of the host, which has none of the threads."""
        self._loop.forget()

    # -- worker threads --------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        while (task := self._next(worker)) is not None:
            outcome = run_locally(self._run, task)
            self._loop.call_soon(partial(self._answer, worker, task, outcome))
            del outcome  # a failure knows this frame: nobody would let go of it before the next job
            with self._changed:
                while worker.task is task and not self._loop.ended:
                    self._changed.wait()

    def _next(self, worker: _Worker) -> Task | None:
        """Wait for a job; None when the kind was stopped."""
        with self._changed:
            while worker.kind not in self._stopped_kinds:
                worker.task = self._queue.take(worker.kind)
                if worker.task is not None:
                    return worker.task
                self._changed.wait()
        return None

    # -- control thread --------------------------------------------------------------------------

    def _answer(self, worker: _Worker, task: Task, outcome: JobResult | Exception) -> None:
        self._free(worker)
        if self._queue.find(task.job_id) is not task:
            return  # it was given up on before it ended
        self._queue.answered(task)
        if isinstance(outcome, JobResult):
            result = outcome
            self._loop.guard(lambda: self._on_result(task.job_id, result))
        else:
            self._failed(task, outcome)

    def _free(self, worker: _Worker) -> None:
        with self._changed:
            worker.task = None
            self._changed.notify_all()

    def _failed(self, task: Task, error: Exception) -> None:
        self._queue.answered(task)
        self._loop.guard(lambda: self._on_failure(task.job_id, error, False))

    def _cancelled(self, task: Task) -> None:
        self._failed(task, JobCancelledError(f"{task.job.title()} was cancelled"))

    def _cancel(self, job_id: int) -> None:
        task = self._queue.find(job_id)
        if task is not None:
            task.cancelled = True
            if self._queue.remove(task):
                self._cancelled(task)

    def _cancel_if_stopped(self, kind: str) -> None:
        if kind in self._stopped_kinds:
            self._cancel_waiting(kind)

    def _cancel_waiting(self, kind: str) -> None:
        for task in self._queue.take_all(kind):
            self._cancelled(task)

    # -- stopping --------------------------------------------------------------------------------

    def _refuse_control_thread(self) -> None:
        if self._loop.is_current:
            raise InvariantError("the control thread cannot wait for itself")

    def _stop(self, kinds: set[str], timeout: float) -> bool:
        self._refuse_control_thread()
        until = time.monotonic() + max(0.0, timeout)
        with self._changed:
            self._stopped_kinds |= kinds
            workers = [worker for worker in self._workers if worker.kind in kinds]
            for worker in workers:
                if worker.task is not None:
                    worker.task.cancelled = True
            self._changed.notify_all()
        for kind in kinds:
            self._loop.call_soon(partial(self._cancel_waiting, kind))
        left = [worker for worker in workers if not worker.ended(until - time.monotonic())]
        for worker in left:
            self._loop.call_soon(partial(self._give_up, worker))
        return not left

    def _give_up(self, worker: _Worker) -> None:
        task = worker.task
        if task is not None and self._queue.find(task.job_id) is task:
            self._cancelled(task)

"""The same jobs on the thread that asks for them: deterministic, for tests and tiny databases.

Runs in: supervisor, on whatever thread calls. Public methods on any thread.
Owns: nothing.
Invariants: (1) one thing runs at a time: what is asked for while something runs is queued, and done
by the outermost call before it returns, in order; (2) timers are looked at only then.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

from meles.engine.errors import ClosedError, JobCancelledError
from meles.engine.jobs import Job, JobResult
from meles.engine.worker_info import WorkerInfo
from meles.workers.parent.handle import Task
from meles.workers.parent.pool import log_error
from meles.workers.parent.protocol import OnError, OnFailure, OnResult, RunJob
from meles.workers.parent.queue import JobQueue
from meles.workers.parent.thread_pool import run_locally


class InlinePool:
    """Runs jobs with `run` at once; see `Pool` for what it promises.

    `counts` says which kinds there are; whatever the number, one job runs at a time.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        run: RunJob,
        *,
        on_result: OnResult,
        on_failure: OnFailure,
        on_error: OnError = log_error,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # fixed after construction
        self._run = run
        self._on_result = on_result
        self._on_failure = on_failure
        self._on_error = on_error
        self._clock = clock
        self._kinds = [kind for kind, count in counts.items() if count > 0]
        # thread-safe by itself
        self._queue = JobQueue()
        # under _changed
        self._changed = threading.Condition()  # the outermost call has come to its end
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._runner: int | None = None  # ident of the thread that is inside
        self._running: Task | None = None
        self._stopped_kinds: set[str] = set()
        self._started = False
        self._closed = False

    def start(self) -> None:
        """Do what was asked for before."""
        with self._changed:
            self._started = True
        self._drain()

    def submit(self, job_id: int, job: Job) -> None:
        """See `Pool`: the job is done when this returns, unless it was called by a callback."""
        if self._closed:
            raise ClosedError("the worker pool is closed")
        self._queue.add(job_id, job)
        self.call_soon(partial(self._do_next, job.kind))

    def cancel(self, job_id: int) -> None:
        """See `Pool`."""
        task = self._queue.find(job_id)
        if task is not None:
            task.cancelled = True
            self.call_soon(partial(self._cancel, task))

    def free(self, kind: str) -> int:
        """See `Pool`."""
        with self._changed:
            running = self._running
            if kind not in self._kinds or kind in self._stopped_kinds:
                return 0
            if running is not None and running.job.kind == kind:
                return 0
            return max(0, 1 - self._queue.waiting(kind))

    def call_soon(self, fn: Callable[[], None]) -> None:
        """See `Pool`: `fn` was called when this returns, unless something else runs."""
        with self._changed:
            if self._closed:
                return
            self._calls.append(fn)
        self._drain()

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        """See `Pool`: `fn` is called by the first call after it is due."""
        with self._changed:
            self._sequence += 1
            due = self._clock() + max(0.0, seconds)
            heapq.heappush(self._timers, (due, self._sequence, fn))

    def stop_kind(self, kind: str, timeout: float) -> bool:
        """See `Pool`. False when a job on another thread took no notice."""
        return self._stop({kind}, timeout)

    def close(self, timeout: float) -> None:
        """See `Pool`."""
        kinds = {*self._kinds, *self._queue.kinds()}
        self._stop(kinds, timeout)
        if not self._started:
            self._cancel_waiting(kinds)
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._timers.clear()

    def hurry(self, timeout: float) -> None:
        """See `Pool`. A job on a thread of the host cannot be ended."""

    def infos(self) -> list[WorkerInfo]:
        """See `Pool`."""
        infos = []
        for kind in self._kinds:
            task = self._running
            busy = task is not None and task.job.kind == kind
            title = task.job.title() if task is not None and busy else None
            stopped = kind in self._stopped_kinds
            state = "busy" if busy else "stopped" if stopped else "idle"
            infos.append(WorkerInfo(kind, f"{kind}-1", None, state, title, 0, 0.0, 0))
        return infos

    def problems(self) -> list[str]:
        """See `Pool`."""
        return []

    def forget(self) -> None:
        """In a forked child of the host: nothing is owned, so nothing is to be closed."""

    # -- inside ----------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Do everything queued, unless something runs already: then that does it."""
        with self._changed:
            if self._runner is not None or not self._started:
                return
            self._runner = threading.get_ident()
        while (fn := self._next_call()) is not None:
            try:
                fn()
            except Exception as error:  # noqa: BLE001 - as on a control thread
                self._on_error(error)
            except BaseException:
                self._leave()
                raise

    def _next_call(self) -> Callable[[], None] | None:
        """The next thing to do; None, and nobody inside any more, when there is nothing."""
        with self._changed:
            if self._calls:
                return self._calls.popleft()
            if self._timers and self._timers[0][0] <= self._clock():
                return heapq.heappop(self._timers)[2]
            self._leave_locked()
            return None

    def _leave(self) -> None:
        with self._changed:
            self._leave_locked()

    def _leave_locked(self) -> None:
        self._runner = None
        self._changed.notify_all()

    def _do_next(self, kind: str) -> None:
        task = self._take(kind)
        if task is None:
            return
        if kind in self._stopped_kinds or task.cancelled:
            self._cancelled(task)
            return
        try:
            outcome = run_locally(self._run, task)
        except BaseException:  # Ctrl-C is the host's, but the job is not left unanswered
            self._cancelled(task)
            raise
        with self._changed:
            self._running = None
        self._queue.answered(task)
        try:
            if isinstance(outcome, JobResult):
                self._on_result(task.job_id, outcome)
            else:
                self._on_failure(task.job_id, outcome, False)
        finally:
            del outcome  # a failure knows this frame, and with it all that its callers hold

    def _take(self, kind: str) -> Task | None:
        with self._changed:
            self._running = self._queue.take(kind)
            return self._running

    def _cancelled(self, task: Task) -> None:
        with self._changed:
            self._running = None
        self._queue.answered(task)
        cancelled = JobCancelledError(f"{task.job.title()} was cancelled")
        self._on_failure(task.job_id, cancelled, False)

    def _cancel(self, task: Task) -> None:
        if self._queue.remove(task):
            self._cancelled(task)

    def _stop(self, kinds: set[str], timeout: float) -> bool:
        with self._changed:
            self._stopped_kinds |= kinds
            running = self._running
            if running is not None and running.job.kind in kinds:
                running.cancelled = True
        self.call_soon(partial(self._cancel_waiting, kinds))
        with self._changed:
            if self._runner == threading.get_ident():
                return True  # called by a callback: the outermost call does the rest
            self._changed.wait_for(lambda: self._runner is None, timeout)
            running = self._running
            return running is None or running.job.kind not in kinds

    def _cancel_waiting(self, kinds: set[str]) -> None:
        for kind in kinds:
            for task in self._queue.take_all(kind):
                self._cancelled(task)

"""Jobs that wait for a worker, per kind, in order.

Runs in: supervisor, any thread.
Invariants: (1) a job id is known from `add` until `answered`; (2) `waiting` counts a job from the
moment it was added, so whoever asks for free workers right after sees it.
"""

from __future__ import annotations

import threading
from collections import deque

from meles.engine.errors import InvariantError
from meles.engine.jobs import Job
from meles.workers.parent.handle import Task


class JobQueue:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: dict[int, Task] = {}
        self._waiting: dict[str, deque[Task]] = {}

    def add(self, job_id: int, job: Job) -> None:
        """A new job, behind the others of its kind."""
        with self._lock:
            if job_id in self._tasks:
                raise InvariantError(f"job {job_id} was submitted twice")
            task = self._tasks[job_id] = Task(job_id, job)
            self._waiting.setdefault(job.kind, deque()).append(task)

    def put_back(self, task: Task) -> None:
        """A job whose worker died goes before the others of its kind."""
        with self._lock:
            self._waiting.setdefault(task.job.kind, deque()).appendleft(task)

    def take(self, kind: str) -> Task | None:
        """The next job of a kind, if any."""
        with self._lock:
            waiting = self._waiting.get(kind)
            return waiting.popleft() if waiting else None

    def take_all(self, kind: str) -> list[Task]:
        with self._lock:
            return list(self._waiting.pop(kind, ()))

    def remove(self, task: Task) -> bool:
        """Take one job out of its queue; False if it is not in it."""
        with self._lock:
            try:
                self._waiting[task.job.kind].remove(task)
            except (KeyError, ValueError):
                return False
            return True

    def find(self, job_id: int) -> Task | None:
        """A job that has not been answered."""
        with self._lock:
            return self._tasks.get(job_id)

    def withdraw(self, job_id: int) -> None:
        """Undo `add` of a job nobody will take."""
        task = self.find(job_id)
        if task is not None and self.remove(task):
            self.answered(task)

    def answered(self, task: Task) -> None:
        with self._lock:
            self._tasks.pop(task.job_id, None)

    def waiting(self, kind: str) -> int:
        with self._lock:
            return len(self._waiting.get(kind, ()))

    def kinds(self) -> list[str]:
        """Kinds with jobs that wait."""
        with self._lock:
            return [kind for kind, waiting in self._waiting.items() if waiting]

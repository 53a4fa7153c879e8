"""The worker's two threads: one does jobs, the pilot listens and shows signs of life.

Runs in: worker.
Invariants: (1) heartbeats go out, and Cancel, Stop and the end of the pipe are noticed, while a job
computes; (2) every job received is answered exactly once, unless the process dies; (3) a job sees
cancellation only where it reports progress.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from meles.engine.errors import JobCancelledError
from meles.engine.jobs import Job, JobContext, JobResult
from meles.workers.child.channel import Channel
from meles.workers.child.guard import leave
from meles.workers.wire.errors import LocalProtocolError, describe
from meles.workers.wire.exit_codes import EXIT_INTERNAL, EXIT_OK, EXIT_PARENT_GONE
from meles.workers.wire.messages import (
    Cancel,
    Heartbeat,
    JobDone,
    JobFailed,
    JobRequest,
    Message,
    Setup,
    Stop,
)

Run = Callable[[Job, JobContext, bytes], JobResult]  # the last are packed data keys, or nothing
_STACK_BYTES: Final = 512 * 1024  # of the pilot; a memory limit counts stacks as if they were used


class RunningJob:
    """One job while it is here: the `JobContext` its code sees. Single words, so no lock."""

    __slots__ = ("cancelled", "done_bytes", "finished", "request", "ticks")

    def __init__(self, request: JobRequest) -> None:
        self.request = request
        self.done_bytes = 0
        self.ticks = 0
        self.cancelled = False
        self.finished = False

    def progress(self, done_bytes: int) -> None:
        """A sign of life; raises `JobCancelledError` when the job was told to stop."""
        self.done_bytes = done_bytes
        self.ticks += 1
        if self.cancelled:
            raise JobCancelledError(f"job {self.request.job_id} was cancelled")


class Pilot:
    """Reads the job pipe and beats, on a thread of its own."""

    def __init__(self, channel: Channel, setup: Setup, parent: int) -> None:
        self.inbox: queue.SimpleQueue[RunningJob | None] = queue.SimpleQueue()  # None: leave
        self._channel = channel
        self._interval = max(setup.heartbeat, 0.001)
        self._parent = parent
        self._latest: RunningJob | None = None

    def start(self) -> None:
        previous = threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._fly, name="pilot", daemon=True).start()
        threading.stack_size(previous)

    def _fly(self) -> None:
        try:
            self._listen()
        except BaseException:  # noqa: BLE001 - a worker that cannot listen must not live on
            traceback.print_exc()
            leave(EXIT_INTERNAL)

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._channel.jobs_fd, select.POLLIN)
        due = time.monotonic() + self._interval
        while True:
            wait = due - time.monotonic()
            if wait > 0 and poll.poll(wait * 1000):
                for message in self._channel.receive():
                    self._obey(message)
                continue
            if wait > 0:
                continue
            if os.getppid() != self._parent:
                leave(EXIT_PARENT_GONE)
            self._beat()
            due = time.monotonic() + self._interval

    def _beat(self) -> None:
        job = self._latest
        if job is None or job.finished:
            self._channel.send(Heartbeat(0, 0, 0, 0))
        else:
            request = job.request
            self._channel.send(
                Heartbeat(request.job_id, request.generation, max(0, job.done_bytes), job.ticks)
            )

    def _obey(self, message: Message) -> None:
        job = self._latest
        if isinstance(message, JobRequest):
            if job is not None and not job.finished:
                self._channel.refuse(f"job {message.job_id} came while another runs")
            self._latest = RunningJob(message)
            self.inbox.put(self._latest)
        elif isinstance(message, Cancel):
            if job is not None and job.request.job_id == message.job_id:
                job.cancelled = True
        elif isinstance(message, Stop):
            if job is not None:
                job.cancelled = True
            self.inbox.put(None)
        else:
            self._channel.refuse(f"{type(message).__name__} came out of turn")


def do_jobs(pilot: Pilot, channel: Channel, run: Run) -> int:
    """Do what comes until told to leave; returns the exit code."""
    while True:
        job = pilot.inbox.get()
        if job is None:
            return EXIT_OK
        answer = _answer(job, run)
        # Before it is sent: the next job may come as soon as the answer is out.
        job.finished = True
        try:
            channel.send(answer)
        except LocalProtocolError as error:
            request = job.request
            channel.send(JobFailed(request.job_id, request.generation, describe(error)))


def _answer(job: RunningJob, run: Run) -> JobDone | JobFailed:
    request = job.request
    try:
        if job.cancelled:
            raise JobCancelledError(f"job {request.job_id} was cancelled before it began")
        result = run(request.job, job, request.keys)
    except Exception as error:  # noqa: BLE001 - whatever a job raises is its answer
        return JobFailed(request.job_id, request.generation, describe(error))
    return JobDone(request.job_id, request.generation, result)

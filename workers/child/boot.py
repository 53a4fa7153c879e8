"""From a bare process to a worker that takes jobs: the handshake and what it asks for.

Runs in: worker.
Invariant: what runs jobs is imported before `Ready` is said, so that a broken installation is a
failure to start and not a failed job. (What only one kind of job needs is imported by its first
job.)
Fails with: `OSError`, `ImportError`, `MemoryError`; the worker then ends with EXIT_BOOT.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from meles.engine.jobs import Job, JobContext, JobResult
from meles.engine.kernel import KIND
from meles.workers.child import log_pipe
from meles.workers.child.channel import Channel
from meles.workers.child.guard import forbid_core_dumps, limit_memory
from meles.workers.child.loop import Pilot, Run
from meles.workers.wire.messages import (
    PACKAGE_VERSION,
    PROTOCOL_VERSION,
    Hello,
    Message,
    Ready,
    Setup,
)

# Makes what runs jobs from the two directory descriptors and their names for messages.
MakeRun = Callable[[int, int, Setup], Run]


def make_run(tables_fd: int, values_fd: int, setup: Setup) -> Run:
    """What runs real jobs."""
    from meles.engine.fs.files import Directory
    from meles.engine.run_job import JobDirs, run_job

    tables = Directory.from_fd(tables_fd, setup.tables)
    dirs = JobDirs(tables, Directory.from_fd(values_fd, setup.values))

    def run(job: Job, context: JobContext, _keys: bytes) -> JobResult:
        return run_job(job, dirs, context)

    if not setup.encrypted:
        return run
    from meles.engine.crypt.keys import KeyRing

    def run_sealed(job: Job, context: JobContext, keys: bytes) -> JobResult:
        dirs.tables.keys = dirs.values.keys = KeyRing.unpack(keys) if keys else None
        return run_job(job, dirs, context)

    return run_sealed


def boot(role: str, parent: int, fds: Sequence[int], make: MakeRun) -> tuple[Pilot, Channel, Run]:
    """Introduce the worker, do as Setup says, say Ready."""
    jobs_fd, answers_fd, log_fd, tables_fd, values_fd = fds
    channel = Channel(jobs_fd, answers_fd)
    channel.send(Hello(PROTOCOL_VERSION, PACKAGE_VERSION, KIND, os.getpid(), role))
    setup = _first_message(channel)
    log_pipe.install(log_fd, setup.log_level)
    pilot = Pilot(channel, setup, parent)
    pilot.start()
    run = make(tables_fd, values_fd, setup)
    limit_memory(setup.memory_limit)
    if setup.encrypted:
        forbid_core_dumps()
    channel.send(Ready())
    return pilot, channel, run


def _first_message(channel: Channel) -> Setup:
    messages: list[Message] = []
    while not messages:
        messages = channel.receive()
    first = messages[0]
    if len(messages) != 1 or not isinstance(first, Setup):
        channel.refuse("the first message is not Setup")
    return first

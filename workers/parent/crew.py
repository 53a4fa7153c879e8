"""The workers of a pool: starting, hearing, judging, burying and stopping them.

Runs in: supervisor, control thread.
Owns: the worker processes and this side's descriptors.
Invariants: (1) a worker's place is empty before its next process starts; (2) nothing here waits;
(3) whatever happens to a worker, the owner learns of its job: `on_answer` or `on_death`.
"""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from meles.engine.errors import Error
from meles.engine.giving_way import give_way
from meles.workers.parent.control import READ, WRITE, ControlLoop
from meles.workers.parent.handle import ALIVE, EXPECTED, Phase, Task, Worker
from meles.workers.parent.log_pipe import logger_of
from meles.workers.parent.protocol import PoolDirs
from meles.workers.parent.restart import Silence
from meles.workers.parent.spawn import spawn
from meles.workers.parent.stop import Stopping, rungs
from meles.workers.wire.errors import ProtocolError
from meles.workers.wire.exit_codes import EXIT_OK, EXIT_PARENT_GONE, describe_exit
from meles.workers.wire.messages import (
    PACKAGE_VERSION,
    PROTOCOL_VERSION,
    Cancel,
    Hello,
    JobDone,
    JobFailed,
    Message,
    Ready,
    Setup,
    Stop,
)

BOOT_TIMEOUT: Final = 30.0  # seconds from spawn to Ready, on a loaded machine
_BEATS_PER_TIMEOUT: Final = 3  # at least: one late heartbeat is no silence
_REAP_GAP: Final = 0.02  # seconds between looks for a death the kernel cannot announce
_POLITE: Final = (EXIT_OK, EXIT_PARENT_GONE)

_log = logging.getLogger("meles.workers")


@dataclass(frozen=True, slots=True)
class CrewOptions:
    """Times in seconds, `memory_limit` in bytes. `command` replaces what starts Python."""

    dirs: PoolDirs
    heartbeat: float
    hang_timeout: float
    memory_limit: int | None = None
    boot_timeout: float = BOOT_TIMEOUT
    command: Sequence[str] | None = None


class Owner(Protocol):
    """Who is told what becomes of workers and their jobs."""

    def on_idle(self, worker: Worker) -> None:
        """The worker has just become ready for its first job."""

    def on_answer(self, worker: Worker, answer: JobDone | JobFailed) -> None:
        """The worker's job is answered; `worker.task` is still the job."""

    def on_death(self, worker: Worker, task: Task | None, words: str) -> None:
        """The worker is dead and reaped; `task` is the job it left unanswered."""


class Crew:
    """All workers of one pool."""

    def __init__(
        self,
        workers: Sequence[Worker],
        loop: ControlLoop,
        owner: Owner,
        options: CrewOptions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = tuple(workers)
        self._loop = loop
        self._owner = owner
        self._options = options
        self._clock = clock
        self._silence = Silence(options.hang_timeout)
        self._heartbeat = min(options.heartbeat, options.hang_timeout / _BEATS_PER_TIMEOUT)
        self._stoppings: list[Stopping] = []

    # -- birth -----------------------------------------------------------------------------------

    def start(self) -> None:
        for worker in self.workers:
            self._start_worker(worker)

    def _start_worker(self, worker: Worker) -> None:
        if worker.phase is not Phase.RESTARTING or worker.stopping:
            return
        now = self._clock()
        try:
            child = spawn(worker.kind, worker.name, self._options.dirs, self._options.command)
        except OSError as error:
            worker.last_words = f"cannot be spawned: {error}"
            dice = random.random()  # noqa: S311 - spreads restarts, no secret
            self._start_later(worker, worker.restarts.not_spawned(error, now, dice))
            return
        if not worker.restarts.first_in_a_row:  # three interpreters that boot are felt by the host
            child.give_way()
        worker.spawned(child, now)
        self._loop.watch(child.answers_fd, READ, partial(self._on_answers, worker, child.pid))
        self._loop.watch(child.log_fd, READ, partial(self._on_log, worker, child.pid))
        if child.death_fd >= 0:
            self._loop.watch(child.death_fd, READ, partial(self._on_death, worker, child.pid))
        if self._silence.look_at is None:
            self._plan_look(now)

    def _restart_later(self, worker: Worker, now: float) -> None:
        dice = random.random()  # noqa: S311 - spreads restarts, no secret
        self._start_later(worker, worker.restarts.died(now, dice))

    def _start_later(self, worker: Worker, gap: float) -> None:
        worker.phase = Phase.RESTARTING
        _log.warning("%s %s; next start in %.1f s", worker.name, worker.last_words, gap)
        self._loop.call_later(gap, partial(self._start_worker, worker))

    # -- what workers say ------------------------------------------------------------------------

    def _on_answers(self, worker: Worker, pid: int, _events: int = 0) -> None:
        child, channel = worker.child, worker.channel
        if child is None or channel is None or child.pid != pid:
            return
        try:
            messages = channel.read()
            if messages is None:  # dying, or as good as dead: it can say nothing any more
                self._loop.unwatch(child.answers_fd)
                self._condemn(worker, "")
                return
            for message in messages:
                give_way()
                self._hear(worker, message)
        except ProtocolError as error:
            self._condemn(worker, f"broke the protocol: {error.message}")

    def _hear(self, worker: Worker, message: Message) -> None:
        wanted = worker.hear(message, self._clock())
        if isinstance(wanted, Hello):
            self._greet(worker, wanted)
        elif isinstance(wanted, Ready):
            worker.phase = Phase.IDLE
            if worker.child is not None:
                worker.child.give_way()
            worker.restarts.ready(self._clock())
            self._owner.on_idle(worker)
        elif isinstance(wanted, JobDone | JobFailed):
            self._owner.on_answer(worker, wanted)

    def _greet(self, worker: Worker, hello: Hello) -> None:
        ours, theirs = (PROTOCOL_VERSION, PACKAGE_VERSION), (hello.protocol, hello.package)
        if ours != theirs or hello.role != worker.kind:
            self._condemn(
                worker,
                f"is a {hello.role} of release {hello.package}, protocol {hello.protocol}; this "
                f"process is {PACKAGE_VERSION}, protocol {PROTOCOL_VERSION}: restart it",
            )
            return
        options = self._options
        worker.phase = Phase.PREPARING
        setup = Setup(
            heartbeat=self._heartbeat,
            log_level=logger_of(worker.name).getEffectiveLevel(),
            memory_limit=options.memory_limit,
            tables=options.dirs.tables,
            values=options.dirs.values,
            encrypted=options.dirs.keys is not None,
        )
        self.send(worker, setup)

    def _on_log(self, worker: Worker, pid: int, _events: int = 0) -> None:
        child, log = worker.child, worker.log
        if child is not None and log is not None and child.pid == pid and not log.read():
            self._loop.unwatch(child.log_fd)

    # -- what is said to workers -----------------------------------------------------------------

    def send(self, worker: Worker, message: Message | bytes) -> None:
        """A message, or one that is encoded already. Never waits."""
        child, channel = worker.child, worker.channel
        if child is None or channel is None or child.jobs_fd < 0:
            return
        try:
            if isinstance(message, bytes):
                channel.send_frame(message)
            else:
                channel.send(message)
        except ProtocolError as error:
            self._condemn(worker, f"does not read: {error.message}")
            return
        if channel.pending:
            self._loop.watch(child.jobs_fd, WRITE, partial(self._on_room, worker, child.pid))

    def _on_room(self, worker: Worker, pid: int, _events: int = 0) -> None:
        child, channel = worker.child, worker.channel
        if child is None or channel is None or child.pid != pid or child.jobs_fd < 0:
            return
        channel.flush()
        if not channel.pending:
            self._loop.unwatch(child.jobs_fd)

    def cancel(self, worker: Worker, job_id: int) -> None:
        self.send(worker, Cancel(job_id))

    def _hang_up(self, worker: Worker) -> None:
        if worker.child is not None and worker.child.jobs_fd >= 0:
            self._loop.unwatch(worker.child.jobs_fd)
            worker.child.hang_up()

    # -- silence ---------------------------------------------------------------------------------

    def _plan_look(self, now: float) -> None:
        alive = [worker for worker in self.workers if worker.phase in ALIVE]
        if alive:
            look_at = self._silence.plan(now, min(map(self._due, alive)))
            self._loop.call_later(look_at - now, self._look)

    def _due(self, worker: Worker) -> float:
        if worker.phase in (Phase.GREETING, Phase.PREPARING):
            return worker.spawned_at + self._boot_timeout
        busy = worker.phase is Phase.BUSY
        return self._silence.next_look(worker.heard_at, worker.progressed_at if busy else None)

    @property
    def _boot_timeout(self) -> float:
        return max(self._options.boot_timeout, self._options.hang_timeout)

    def _look(self) -> None:
        """Condemn the silent. While this loop slept itself nobody was."""
        now = self._clock()
        slept = self._silence.slept(now)
        for worker in self.workers:
            if worker.phase not in ALIVE:
                continue
            worker.forgive(slept, now)
            if self._due(worker) <= now:
                self._condemn(worker, self._accusation(worker, now))
        self._plan_look(now)

    def _accusation(self, worker: Worker, now: float) -> str:
        if worker.phase in (Phase.GREETING, Phase.PREPARING):
            return f"was not ready after {self._boot_timeout:.0f} s"
        if self._silence.silent(now, worker.heard_at):
            return f"was silent for {now - worker.heard_at:.1f} s"
        return f"made no progress for {now - worker.progressed_at:.1f} s"

    # -- death -----------------------------------------------------------------------------------

    def _condemn(self, worker: Worker, verdict: str) -> None:
        """Kill it. What it says from here on does not count; its death is still to come."""
        child = worker.child
        if child is None or worker.phase is Phase.CONDEMNED:
            return
        worker.phase = Phase.CONDEMNED
        worker.verdict = verdict
        if verdict:
            worker.polite = False
            _log.warning("%s (pid %d) %s: killed", worker.name, child.pid, verdict)
        child.signal(signal.SIGKILL)
        if child.death_fd < 0:
            self._loop.call_later(_REAP_GAP, partial(self._on_death, worker, child.pid))

    def _on_death(self, worker: Worker, pid: int, _events: int = 0) -> None:
        child = worker.child
        if child is None or child.pid != pid:
            return
        if child.poll() is None:
            if child.death_fd < 0:
                self._loop.call_later(_REAP_GAP, partial(self._on_death, worker, pid))
            return
        self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        child, log = worker.child, worker.log
        assert child is not None and log is not None and child.exit is not None  # noqa: S101, PT018
        answer = self._last_answer(worker)
        log.read_rest()
        for fd in (child.answers_fd, child.log_fd, child.death_fd, child.jobs_fd):
            if fd >= 0:
                self._loop.unwatch(fd)
        child.close()
        words = worker.verdict or describe_exit(child.exit)
        last_line = log.tail.rpartition("\n")[2]
        worker.last_words = f"{words}: {last_line}" if last_line else words
        worker.polite = worker.polite and child.exit in _POLITE
        worker.phase = Phase.STOPPED
        if answer is not None:
            self._owner.on_answer(worker, answer)
        task, worker.task = worker.task, None
        full = f"{words}; its last words:\n{log.tail}" if log.tail else words
        worker.child = worker.channel = worker.log = None
        if worker.stopping:
            _log.debug("%s %s", worker.name, words)
            self._check_stoppings()
        else:
            self._restart_later(worker, self._clock())
        self._owner.on_death(worker, task, full)

    def _last_answer(self, worker: Worker) -> JobDone | JobFailed | None:
        """An answer still in the pipe of a dead worker counts, unless it was condemned before."""
        channel = worker.channel
        try:
            while channel is not None and worker.phase in EXPECTED:
                messages = channel.read()
                if not messages:
                    break
                for message in messages:
                    heard = worker.hear(message, self._clock())
                    if isinstance(heard, JobDone | JobFailed):
                        return heard
        except Error:
            pass  # its last words were nonsense; it is dead already
        return None

    # -- stopping --------------------------------------------------------------------------------

    def stop(self, stopping: Stopping, timeout: float) -> None:
        """Begin the ladder for some workers; `stopping` is told when they are dead."""
        self._stoppings.append(stopping)
        for worker in stopping.workers:
            self._ask(worker)
        self._climb(stopping, timeout)
        self._check_stoppings()

    def hurry(self, timeout: float) -> None:
        """A second, shorter ladder beside each that is still being climbed."""
        for stopping in self._stoppings:
            if not stopping.over:
                self._climb(stopping, timeout)

    def _climb(self, stopping: Stopping, timeout: float) -> None:
        ladder = rungs(timeout)
        self._loop.call_later(ladder.terminate, partial(self._terminate, stopping))
        self._loop.call_later(ladder.kill, partial(self._kill, stopping))
        self._loop.call_later(ladder.give_up, stopping.release)

    def _ask(self, worker: Worker) -> None:
        if worker.phase is Phase.STOPPED:
            return
        worker.stopping = True
        worker.polite = worker.phase is not Phase.CONDEMNED
        if worker.child is None:
            worker.phase = Phase.STOPPED
        elif worker.phase in (Phase.GREETING, Phase.PREPARING):
            self._hang_up(worker)  # it listens to nothing yet but the end of its pipe
        else:
            self.send(worker, Stop())

    def _terminate(self, stopping: Stopping) -> None:
        for worker in stopping.workers:
            if worker.child is not None:
                worker.polite = False
                worker.child.signal(signal.SIGTERM)
                self._hang_up(worker)

    def _kill(self, stopping: Stopping) -> None:
        for worker in stopping.workers:
            if worker.child is not None:
                self._condemn(worker, "did not leave when told")

    def _check_stoppings(self) -> None:
        for stopping in self._stoppings:
            stopping.check()

    def abandon(self) -> None:
        """Let go of workers the kernel could not end; they die with this thread at last."""
        for worker in self.workers:
            child = worker.child
            if child is None:
                continue
            _log.error("%s (pid %d) cannot be ended", worker.name, child.pid)
            for fd in (child.answers_fd, child.log_fd, child.death_fd, child.jobs_fd):
                if fd >= 0:
                    self._loop.unwatch(fd)
            child.signal(signal.SIGKILL)
            child.disown()
            worker.child = worker.channel = worker.log = None
            worker.phase = Phase.STOPPED
            task, worker.task = worker.task, None
            self._owner.on_death(worker, task, "cannot be ended")

    def forget(self) -> None:
        """In a forked child: close the copies of descriptors; the processes are the parent's."""
        for worker in self.workers:
            if worker.child is not None:
                worker.child.disown()

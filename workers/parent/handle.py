"""One worker as the supervisor sees it: a state machine as data, and the job it has.

Runs in: supervisor, control thread; other threads only read single fields for display.
Invariants: (1) `EXPECTED` says which message is allowed in which phase, anything else fails the
worker; (2) an answer counts only with the generation of the job at hand: an older one is dropped, a
newer one is nonsense; (3) once a worker is condemned nothing it says counts.
Fails with: `RemoteProtocolError` for what a worker should not have said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from meles.engine.jobs import Job
from meles.workers.parent.channel import Channel
from meles.workers.parent.log_pipe import LogReader
from meles.workers.parent.restart import Restarts
from meles.workers.parent.spawn import ChildProcess
from meles.workers.wire.errors import RemoteProtocolError
from meles.workers.wire.messages import Heartbeat, Hello, JobDone, JobFailed, Message, Ready


class Phase(Enum):
    """Where a worker is in its life."""

    GREETING = auto()  # spawned, has not said Hello
    PREPARING = auto()  # was sent Setup, has not said Ready
    IDLE = auto()
    BUSY = auto()
    CONDEMNED = auto()  # killed by us, not dead yet
    RESTARTING = auto()  # dead, waits for its next start
    STOPPED = auto()  # dead for good


# What `WorkerInfo.state` calls them.
STATES: Final[dict[Phase, str]] = {
    Phase.GREETING: "starting",
    Phase.PREPARING: "starting",
    Phase.IDLE: "idle",
    Phase.BUSY: "busy",
    Phase.CONDEMNED: "hung",
    Phase.RESTARTING: "restarting",
    Phase.STOPPED: "stopped",
}

EXPECTED: Final[dict[Phase, tuple[type[Message], ...]]] = {
    Phase.GREETING: (Hello,),
    Phase.PREPARING: (Ready, Heartbeat),
    Phase.IDLE: (Heartbeat, JobDone, JobFailed),
    Phase.BUSY: (Heartbeat, JobDone, JobFailed),
}

ALIVE: Final = frozenset({Phase.GREETING, Phase.PREPARING, Phase.IDLE, Phase.BUSY})
# Those whose worker can take a job now or will soon.
HOPEFUL: Final = frozenset({Phase.GREETING, Phase.PREPARING, Phase.IDLE, Phase.RESTARTING})


@dataclass(slots=True, eq=False)
class Task:
    """A submitted job until it is answered. `deaths` counts the workers that died with it."""

    job_id: int
    job: Job
    generation: int = 0  # of the attempt at hand; 0 while it waits
    deaths: int = 0
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class Worker:
    """One place in the pool; the process in it comes and goes."""

    kind: str
    name: str
    phase: Phase = Phase.RESTARTING
    child: ChildProcess | None = None
    channel: Channel | None = None
    log: LogReader | None = None
    task: Task | None = None
    restarts: Restarts = field(default_factory=Restarts)
    generation: int = 0  # of the last job it was given
    starts: int = 0  # times a process was spawned
    start_at: float = 0.0  # when the next start is due, while RESTARTING
    spawned_at: float = 0.0
    heard_at: float = 0.0
    progressed_at: float = 0.0
    ticks: int = 0
    stopping: bool = False
    polite: bool = True  # left by itself when told; also if it was not there to be told
    verdict: str = ""  # why it was condemned
    last_words: str = ""  # how the previous process ended

    @property
    def available(self) -> bool:
        """Whether it counts as free: idle, or soon to be."""
        return self.phase in HOPEFUL and not self.stopping and not self.restarts.gave_up

    def spawned(self, child: ChildProcess, now: float) -> None:
        self.child = child
        self.channel = Channel(child)
        self.log = LogReader(child.log_fd, self.name, child.pid)
        self.phase = Phase.GREETING
        self.starts += 1
        self.restarts.spawned()
        self.spawned_at = self.heard_at = now
        self.generation = 0
        self.verdict = ""

    def given(self, task: Task, generation: int, now: float) -> None:
        """The worker was sent a job."""
        task.generation = self.generation = generation
        self.task = task
        self.ticks = 0
        self.progressed_at = now
        self.phase = Phase.BUSY

    def freed(self) -> Task:
        """The job was answered; returns it."""
        task = self.task
        if task is None:
            raise RemoteProtocolError(f"{self.name} answered without a job")
        self.task = None
        if self.phase is Phase.BUSY:  # and not dead: the answer may be its last word
            self.phase = Phase.IDLE
        return task

    def hear(self, message: Message, now: float) -> Message | None:
        """Judge a message; returns it if the pool has to act on it."""
        if self.phase not in EXPECTED:
            return None
        if not isinstance(message, EXPECTED[self.phase]):
            raise RemoteProtocolError(
                f"{self.name} said {type(message).__name__} while {self.phase.name.lower()}"
            )
        self.heard_at = now
        if isinstance(message, Heartbeat):
            self._beat(message, now)
            return None
        if isinstance(message, JobDone | JobFailed) and not self._is_current(message):
            return None
        return message

    def forgive(self, seconds: float, now: float) -> None:
        """The last `seconds` up to now do not count against it."""
        self.spawned_at = min(now, self.spawned_at + seconds)
        self.heard_at = min(now, self.heard_at + seconds)
        self.progressed_at = min(now, self.progressed_at + seconds)

    def _beat(self, beat: Heartbeat, now: float) -> None:
        task = self.task
        if task is None or beat.generation != task.generation:
            return  # idle, or it left before the request arrived
        if beat.ticks != self.ticks:
            self.ticks = beat.ticks
            self.progressed_at = now

    def _is_current(self, answer: JobDone | JobFailed) -> bool:
        if answer.generation > self.generation:
            raise RemoteProtocolError(f"{self.name} answered generation {answer.generation}")
        task = self.task
        if task is None or answer.generation != task.generation:
            return False
        if answer.job_id != task.job_id:
            raise RemoteProtocolError(f"{self.name} answered for job {answer.job_id}")
        return True

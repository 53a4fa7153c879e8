"""The scheduler: who is asked when, what becomes of answers, and what an error ends."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from meles.engine.background.scheduler import Scheduler
from meles.engine.errors import (
    CorruptionError,
    DiskFullError,
    InvariantError,
    JobCancelledError,
    StoreFailedError,
)
from meles.engine.jobs import BuildOptions, FlushJob, Job, JobResult
from meles.workers.parent.inline_pool import InlinePool

JOB = FlushJob(1, 2, 3, BuildOptions(), 0)
DONE = JobResult((), {})


class Wanted:
    """Work that wants so many jobs run, one after the other, and does what it is told to."""

    def __init__(self, scheduler: Scheduler, jobs: int = 0) -> None:
        self.scheduler = scheduler
        self.left = jobs
        self.running = 0
        self.asked = 0
        self.heard: list[str] = []
        self.on_start: Callable[[], None] = lambda: None
        self.on_done: Callable[[], None] = lambda: None

    def start_due(self) -> None:
        self.asked += 1
        self.on_start()
        if self.left and not self.running:
            self.left -= 1
            self.running += 1
            self.scheduler.submit(self, JOB, self.scheduler.new_job_id())

    def is_idle(self) -> bool:
        return not self.left and not self.running

    def done(self, job_id: int, job: Job, result: JobResult) -> None:
        self.on_done()
        self.running -= 1
        self.heard.append(f"done {job_id}")

    def failed(self, job_id: int, job: Job, error: Exception, *, poisoned: bool) -> None:
        self.running -= 1
        self.heard.append(f"failed {job_id} {type(error).__name__}{' poisoned' * poisoned}")

    def rerun(self, job_id: int, job: Job) -> Job:
        self.heard.append(f"rerun {job_id}")
        return job

    def problems(self) -> list[str]:
        return ["slow"] if self.left else []


class Rig:
    """A scheduler on an inline pool whose jobs do what `run` does."""

    def __init__(self, works: int = 1, jobs: int = 0) -> None:
        self.fatal: list[Exception] = []
        self.run: Callable[[], JobResult] = lambda: DONE
        self.scheduler = Scheduler(self.fatal.append, inline=True, stopped=lambda: bool(self.fatal))
        self.pool = InlinePool(
            {"flusher": 1},
            lambda job, context: self.run(),
            on_result=self.scheduler.on_result,
            on_failure=self.scheduler.on_failure,
        )
        self.works = [Wanted(self.scheduler, jobs) for _ in range(works)]
        self.scheduler.attach(self.pool, list(self.works))
        self.pool.start()


def test_it_goes_on_until_nothing_is_due() -> None:
    rig = Rig(works=2, jobs=3)
    assert rig.scheduler.problems() == ["slow", "slow"]
    assert rig.scheduler.wait_idle(None)
    assert [len(work.heard) for work in rig.works] == [3, 3]
    heard = sorted(line for work in rig.works for line in work.heard)
    assert heard == [f"done {n}" for n in range(1, 7)]
    assert rig.scheduler.problems() == []


def test_a_scheduler_without_a_pool_says_so() -> None:
    with pytest.raises(InvariantError):
        _ = Scheduler(lambda error: None, inline=True).pool


def test_waiting_looks_at_a_run_that_began_after_the_call() -> None:
    rig = Rig()
    assert rig.scheduler.wait_idle(None)
    asked = rig.works[0].asked
    assert rig.scheduler.wait_for(lambda: True, None)
    assert rig.works[0].asked == asked + 1
    assert not rig.scheduler.wait_for(lambda: False, 10)  # inline: nothing would ever come


def test_a_failed_job_ends_only_that_job() -> None:
    rig = Rig(jobs=2)
    answers = [OSError(errno.EIO, "disk"), DONE]

    def run() -> JobResult:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    rig.run = run
    assert rig.scheduler.wait_idle(None)
    assert rig.works[0].heard == ["failed 1 OSError", "done 2"]
    assert rig.fatal == []


def raising(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


REFUSED = CorruptionError("bad", path="f", offset=0, kind="worker output")


@pytest.mark.parametrize(
    ("error", "heard", "fatal"),
    [
        (REFUSED, ["failed 1 CorruptionError"], False),
        (DiskFullError("full"), ["failed 1 DiskFullError"], False),
        (StoreFailedError("sync"), [], True),
        (OSError(errno.EIO, "disk"), [], True),
        (InvariantError("two"), [], True),
    ],
)
def test_an_error_while_installing(error: Exception, heard: list[str], fatal: bool) -> None:
    """A refused output is a failed job; a failure of durable state ends writing."""
    rig = Rig(jobs=1)
    rig.works[0].on_done = raising(error)
    assert rig.scheduler.wait_idle(None)
    assert rig.works[0].heard == heard
    assert rig.fatal == [error] * fatal


def test_an_error_in_one_kind_of_work_does_not_keep_the_others_from_being_asked() -> None:
    rig = Rig(works=3, jobs=1)
    rig.works[0].on_start = raising(DiskFullError("full"))
    rig.scheduler.poke()
    assert [work.heard for work in rig.works] == [[], ["done 1"], ["done 2"]]
    assert rig.fatal == []
    assert not rig.scheduler.wait_idle(None)
    rig.works[0].on_start = lambda: None
    assert rig.scheduler.wait_idle(None)


def test_when_writing_has_ended_nothing_is_waited_for() -> None:
    rig = Rig(jobs=5)
    rig.works[0].on_start = raising(OSError(errno.EIO, "disk"))
    assert rig.scheduler.wait_idle(None)
    assert len(rig.fatal) >= 1


def test_answers_to_jobs_nobody_knows_are_dropped() -> None:
    rig = Rig()
    rig.scheduler.on_result(99, DONE)
    rig.scheduler.on_failure(99, OSError("x"), True)
    assert rig.scheduler.on_rerun(99, JOB) is JOB
    assert (rig.works[0].heard, rig.fatal) == ([], [])


def test_a_poisoned_and_a_cancelled_job_are_told_as_such() -> None:
    rig = Rig()
    for n, (error, poisoned) in enumerate([(OSError("x"), True), (JobCancelledError(""), False)]):
        rig.scheduler._running[50 + n] = rig_running(rig)
        rig.works[0].running += 1
        rig.scheduler.on_failure(50 + n, error, poisoned)
    assert rig.works[0].heard == ["failed 50 OSError poisoned", "failed 51 JobCancelledError"]


def rig_running(rig: Rig) -> Any:
    from meles.engine.background.scheduler import _Running

    return _Running(rig.works[0], JOB)


def test_a_job_that_is_run_again_is_the_one_the_work_says() -> None:
    rig = Rig(jobs=1)

    def run() -> JobResult:
        assert rig.scheduler.on_rerun(1, JOB) is JOB
        return DONE

    rig.run = run
    assert rig.scheduler.wait_idle(None)
    assert rig.works[0].heard == ["rerun 1", "done 1"]


def test_inline_a_thread_waits_for_what_another_one_drives() -> None:
    """It would else be told that nothing can come, while it is on its way."""
    rig = Rig()
    entered, release = threading.Event(), threading.Event()

    def run() -> JobResult:
        entered.set()
        assert release.wait(60)
        return DONE

    rig.run = run
    rig.works[0].left = 1
    first = threading.Thread(target=rig.scheduler.poke)
    first.start()
    assert entered.wait(60)
    answers: list[bool] = []
    second = threading.Thread(target=lambda: answers.append(rig.scheduler.wait_idle(None)))
    second.start()
    assert answers == []
    release.set()
    first.join(60)
    second.join(60)
    assert answers == [True]

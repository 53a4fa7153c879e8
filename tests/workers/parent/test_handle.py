"""One worker's state machine, without a process."""

import pytest
from meles.engine.jobs import BuildOptions, FlushJob, JobResult
from meles.workers.parent.handle import ALIVE, EXPECTED, STATES, Phase, Task, Worker
from meles.workers.wire.errors import Failure, RemoteProtocolError
from meles.workers.wire.messages import Heartbeat, Hello, JobDone, JobFailed, Ready

JOB = FlushJob(1, 2, 3, BuildOptions(), 0)
DONE = JobResult((), {})


@pytest.fixture
def busy():
    worker = Worker("flusher", "flusher-1", phase=Phase.IDLE)
    worker.given(Task(7, JOB), 40, now=1.0)
    return worker


def test_every_phase_has_a_public_state():
    assert set(STATES) == set(Phase)
    assert set(STATES.values()) == {"starting", "idle", "busy", "hung", "restarting", "stopped"}
    assert set(EXPECTED) == ALIVE


@pytest.mark.parametrize("phase", sorted(EXPECTED, key=lambda p: p.value))
def test_what_is_not_expected_in_a_phase_is_refused(phase):
    said = [Hello(1, "", "", 1, ""), Ready(), Heartbeat(0, 0, 0, 0), JobDone(0, 0, DONE),
            JobFailed(0, 0, Failure("OSError", ""))]  # fmt: skip
    for message in said:
        worker = Worker("flusher", "flusher-1", phase=phase)
        if isinstance(message, EXPECTED[phase]):
            worker.hear(message, 5.0)
            assert worker.heard_at == 5.0
        else:
            with pytest.raises(RemoteProtocolError):
                worker.hear(message, 5.0)


@pytest.mark.parametrize("phase", [Phase.CONDEMNED, Phase.RESTARTING, Phase.STOPPED])
def test_the_condemned_and_the_dead_are_not_heard(phase):
    worker = Worker("flusher", "flusher-1", phase=phase)
    worker.task, worker.generation = Task(7, JOB, 40), 40
    assert worker.hear(JobDone(7, 40, DONE), 5.0) is None
    assert worker.heard_at == 0.0


def test_the_answer_to_the_job_at_hand_is_taken(busy):
    answer = JobDone(7, 40, DONE)
    assert busy.hear(answer, 2.0) is answer
    assert busy.freed().job_id == 7
    assert (busy.phase, busy.task) == (Phase.IDLE, None)


def test_an_older_generation_is_dropped(busy):
    assert busy.hear(JobDone(7, 39, DONE), 2.0) is None
    assert busy.phase is Phase.BUSY


def test_a_second_answer_is_dropped(busy):
    busy.hear(JobDone(7, 40, DONE), 2.0)
    busy.freed()
    assert busy.hear(JobDone(7, 40, DONE), 2.0) is None


def test_an_answer_from_the_future_is_refused(busy):
    with pytest.raises(RemoteProtocolError, match="generation 41"):
        busy.hear(JobDone(7, 41, DONE), 2.0)


def test_an_answer_for_another_job_is_refused(busy):
    with pytest.raises(RemoteProtocolError, match="job 8"):
        busy.hear(JobDone(8, 40, DONE), 2.0)


def test_progress_is_a_tick_that_changed(busy):
    busy.hear(Heartbeat(7, 40, 100, 0), 5.0)
    assert (busy.heard_at, busy.progressed_at) == (5.0, 1.0)
    busy.hear(Heartbeat(7, 40, 100, 3), 6.0)
    assert busy.progressed_at == 6.0
    busy.hear(Heartbeat(7, 40, 100, 3), 7.0)
    assert busy.progressed_at == 6.0
    busy.hear(Heartbeat(6, 39, 100, 9), 8.0)
    assert busy.progressed_at == 6.0


def test_a_dead_worker_stays_dead_when_its_last_word_was_an_answer(busy):
    busy.phase = Phase.STOPPED
    assert busy.freed().job_id == 7
    assert busy.phase is Phase.STOPPED

"""Waiting jobs."""

import pytest
from meles.engine.errors import InvariantError
from meles.workers.parent.queue import JobQueue


@pytest.fixture
def queue(job):
    queue = JobQueue()
    for job_id in (1, 2, 3):
        queue.add(job_id, job(job_id))
    return queue


def test_jobs_come_out_in_order_of_their_kind(queue, compact_job):
    queue.add(4, compact_job())
    assert queue.waiting("flusher") == 3
    assert [queue.take("flusher").job_id for _ in range(3)] == [1, 2, 3]
    assert queue.take("flusher") is None
    assert queue.kinds() == ["compactor"]


def test_a_job_put_back_goes_before_the_others(queue):
    first = queue.take("flusher")
    queue.put_back(first)
    assert [queue.take("flusher").job_id for _ in range(3)] == [1, 2, 3]


def test_an_id_is_known_until_it_is_answered(queue, job):
    task = queue.take("flusher")
    assert queue.find(1) is task
    with pytest.raises(InvariantError):
        queue.add(1, job(1))
    queue.answered(task)
    assert queue.find(1) is None
    queue.add(1, job(1))


def test_a_waiting_job_can_be_taken_out_and_a_taken_one_cannot(queue):
    taken = queue.take("flusher")
    assert not queue.remove(taken)
    assert queue.remove(queue.find(3))
    queue.withdraw(2)
    queue.withdraw(77)
    assert queue.find(2) is None
    assert queue.waiting("flusher") == 0

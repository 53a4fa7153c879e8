"""What a pool says is wrong with it, and when it stops saying so."""

import errno

from meles.workers.parent.handle import Phase, Worker
from meles.workers.parent.problems import REMEMBER_POISON, Poisoned, of_workers


def test_a_poisoned_job_is_forgotten_when_its_kind_does_well_later():
    poisoned = Poisoned()
    poisoned.add("compactor", 100.0, "compact L0>L1 was given up")
    poisoned.add("flusher", 100.0, "flush was given up")
    poisoned.went_well("compactor", 100.0 + REMEMBER_POISON - 1)
    assert len(poisoned.texts()) == 2
    poisoned.went_well("compactor", 100.0 + REMEMBER_POISON)
    assert poisoned.texts() == ["flush was given up"]


def test_the_list_of_poisoned_jobs_is_bounded():
    poisoned = Poisoned()
    for number in range(100):
        poisoned.add("compactor", 0.0, f"job {number}")
    assert poisoned.texts() == [f"job {number}" for number in range(80, 100)]


def test_a_worker_that_is_well_is_not_mentioned():
    workers = [Worker("flusher", f"flusher-{phase.name}", phase=phase) for phase in Phase]
    assert of_workers(workers) == []


def test_each_trouble_has_its_words():
    hung = Worker("flusher", "flusher-1", phase=Phase.CONDEMNED, verdict="was silent for 30.0 s")
    unfit = Worker("flusher", "flusher-2", last_words="could not start (exit code 3)")
    weak = Worker("flusher", "flusher-3", last_words="was killed by SIGKILL")
    gone = Worker("flusher", "flusher-4", phase=Phase.STOPPED)
    poor = Worker("flusher", "flusher-5", last_words="cannot be spawned: no descriptors")
    poor.restarts.not_spawned(OSError(errno.EMFILE, "no descriptors"), 0.0, 0.5)
    for _ in range(3):
        unfit.restarts.died(0.0, 0.5)
        for worker in (weak, gone):
            worker.restarts.ready(0.0)
            worker.restarts.died(0.0, 0.5)
    assert of_workers([hung, unfit, weak, gone, poor]) == [
        "flusher-1 was silent for 30.0 s; it is being replaced",
        "flusher-2 failed to start 3 times: could not start (exit code 3)",
        "flusher-3 died 3 times in a row: was killed by SIGKILL",
        "flusher-5 waits to be started: cannot be spawned: no descriptors",
    ]

"""The ladder's arithmetic."""

import pytest
from meles.workers.parent.handle import Phase, Worker
from meles.workers.parent.stop import LEAST_KILL_WAIT, Stopping, rungs


@pytest.mark.parametrize("timeout", [-1, 0, 0.01, 1, 10])
def test_rungs_come_in_order_and_within_the_budget(timeout):
    ladder = rungs(timeout)
    assert 0 <= ladder.terminate <= ladder.kill < ladder.give_up
    assert ladder.give_up <= max(timeout, 0) + LEAST_KILL_WAIT


def test_waiting_ends_when_all_are_dead():
    workers = [Worker("flusher", f"flusher-{n}", phase=Phase.STOPPED) for n in (1, 2)]
    workers[1].phase = Phase.BUSY
    stopping = Stopping(workers)
    stopping.check()
    assert not stopping.wait(0)
    workers[1].phase = Phase.STOPPED
    stopping.check()
    assert stopping.wait(40)
    workers[0].polite = False
    assert not stopping.wait(40)


def test_nobody_waits_for_no_workers():
    stopping = Stopping([])
    stopping.check()
    assert stopping.wait(40)

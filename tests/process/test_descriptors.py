"""No descriptors left, for a running database and its next workers: it waits, and goes on after."""

from __future__ import annotations

import os

import psutil
import pytest
from waiting import wait_until

LONG = int(os.environ.get("MELES_LIMITS", "50"))
KINDS = ("flusher", "compactor", "value_gc")


def states(load):
    load.say("workers")
    rows, status = load.reply("workers")
    return status == "ok" and all(state in ("idle", "busy") for *_, state in rows)


def limit_again_and_again(campaign, tally, times):
    """With so few left above what is open now; workers are killed meanwhile and need a start."""
    rng = campaign.rng
    for _ in range(times):
        load = campaign.start(patient=True)
        load.expect("open")
        wait_until(lambda load=load: states(load), 30, "all workers at work")
        process = psutil.Process(load.pid)
        before = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + rng.randrange(6), before[1]))
        for worker in load.workers():
            if rng.random() < 0.5:
                worker.kill()
        campaign.pause(1.0)
        process.rlimit(psutil.RLIMIT_NOFILE, before)
        tally("no descriptors left", 1)
        wait_until(lambda load=load: states(load), 60, "being well again")
        if rng.random() < 0.5:
            campaign.stop()
        else:
            campaign.crash()
    campaign.last_look()
    campaign.done()


def test_a_lack_of_descriptors_heals(campaign, tally):
    limit_again_and_again(campaign, tally, 1)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_times_without_descriptors(campaign, tally):
    limit_again_and_again(campaign, tally, LONG)

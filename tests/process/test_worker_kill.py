"""Workers killed at work: the job is done by another, and nothing that was promised suffers.

The same directory throughout. A worker is started again at once, then after growing pauses, so each
run kills few of each kind. `MELES_KILLS` sets how many runs the long campaign has.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

KINDS = ("flusher", "compactor", "value_gc")
LONG = int(os.environ.get("MELES_KILLS", "200"))


def kill_workers(campaign, tally, kills, how="kill", **options):
    """Kill at least so many of each kind; end each run by closing, or by killing it too.

    With `how="hang"` they are stopped instead: silence must be noticed, and late answers dropped.
    """
    rng = campaign.rng
    killed, busy = Counter(), Counter()
    while any(killed[kind] < kills for kind in KINDS):
        load = campaign.start(sync=rng.choice(["none", "interval"]), **options)
        load.expect("open")
        waiting = Counter()
        for kind in KINDS:
            load.say(how, kind)
            waiting[kind] = 2 if killed[kind] + 2 < kills + 2 else 1
        while waiting:
            word, kind, *rest = load.line().split()
            if word == "killed":
                killed[kind] += 1
                busy[kind] += rest[1] == "busy"
                continue
            assert word == "replaced", (word, kind, rest, load.errors())
            waiting[kind] -= 1
            if waiting[kind]:
                load.say(how, kind)
            else:
                del waiting[kind]
        if rng.random() < 0.5:
            campaign.stop()
        else:
            campaign.crash()
    totals = campaign.last_look()
    for kind in KINDS:
        assert busy[kind] >= kills // 2, f"void: {busy} of {killed} at work; {campaign.where()}"
    assert totals["relocated"], f"void: {totals}"
    for kind in KINDS:
        signal = {"kill": "SIGKILL", "hang": "SIGSTOP"}[how]
        tally(f"{signal} of a {kind}", killed[kind], busy[kind])
    campaign.done()


@pytest.mark.timeout(400)
def test_the_death_of_a_worker_costs_nothing(campaign, tally):
    kill_workers(campaign, tally, 8)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_the_deaths_of_many_workers_cost_nothing(campaign, tally):
    kill_workers(campaign, tally, LONG)


HANG = {"worker_hang_timeout": 0.5, "worker_heartbeat": 0.1}


@pytest.mark.timeout(400)
def test_a_worker_that_hangs_costs_nothing(campaign, tally):
    kill_workers(campaign, tally, 2, "hang", **HANG)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_workers_that_hang_cost_nothing(campaign, tally):
    kill_workers(campaign, tally, LONG // 2, "hang", **HANG)

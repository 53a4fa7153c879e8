"""Power cuts by the real kernel: an ext4 file system that loses what was not synced.

With sync="commit" everything acknowledged is there afterwards, without holes; whatever else is
there was begun.
"""

from __future__ import annotations

import os

import pytest
from meles.engine.stress.judge import Checker
from mounts import PowerDisk

LONG = int(os.environ.get("MELES_CUTS", "300"))


@pytest.fixture
def disk(tmp_path):
    made = PowerDisk(tmp_path)
    made.make()
    yield made
    made.remove()


def cut_again_and_again(campaign, tally, disk, times):
    campaign.path = disk.path / "db"
    campaign.checker = Checker(gaps=True)
    campaign.unheard = {"W"}  # readers see a commit before it is durable; its writer does not
    for _ in range(times):
        load = campaign.start(sync="commit", patient=True, memtable_size=128 << 10)
        load.expect("open")
        campaign.pause(1.0)
        load.hold_still()  # a sync that is under way while ext4 is shut down may succeed and lie
        disk.cut()
        load.kill_tree(campaign.rng)
        disk.again()
        campaign.judge()
        tally("power cut of ext4 under load", 1)
    totals = campaign.last_look(power_cuts=True)
    assert campaign.checker.acked > times, "void: nothing was acknowledged"
    assert times < 10 or (totals["flushes"] and totals["compactions"]), f"void: {totals}"
    campaign.done()


def test_a_power_cut_takes_nothing_that_was_acknowledged(campaign, tally, disk):
    cut_again_and_again(campaign, tally, disk, 3)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_power_cuts_take_nothing(campaign, tally, disk):
    cut_again_and_again(campaign, tally, disk, LONG)

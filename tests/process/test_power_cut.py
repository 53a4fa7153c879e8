"""Power cuts by the real kernel: an ext4 file system that loses what was not synced.

With sync="commit" everything acknowledged is there afterwards, without holes; whatever else is
there was begun.
"""

from __future__ import annotations

import os

import pytest
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
    campaign.unheard = {"W"}  # readers see a commit before it is durable; its writer does not
    for _ in range(times):
        load = campaign.start(sync="commit", patient=True)
        load.expect("open")
        campaign.pause(1.0)
        disk.cut()
        load.kill_tree(campaign.rng)
        disk.again()
        campaign.judge()
        tally("power cut of ext4 under load", 1)
    totals = campaign.last_look(power_cuts=True)
    assert totals["flushes"], f"void: {totals}"
    assert totals["compactions"] or times < 10, f"void: {totals}"
    campaign.done()


def test_a_power_cut_takes_nothing_that_was_acknowledged(campaign, tally, disk):
    cut_again_and_again(campaign, tally, disk, 3)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_power_cuts_take_nothing(campaign, tally, disk):
    cut_again_and_again(campaign, tally, disk, LONG)

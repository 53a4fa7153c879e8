"""Killing everything, at any moment, over and over in the same directory.

`MELES_KILLS` sets how often; the campaign has fifty in each of its directories.
"""

from __future__ import annotations

import os

import pytest

SAMPLE = int(os.environ.get("MELES_KILLS", "20"))
LONG = int(os.environ.get("MELES_KILLS", "500"))
# Files that die whole ("dropped") are not required: mostly they are collected before they do.
REQUIRED = ("flushes", "compactions", "deep", "relocated", "conflicts")


def kills_under_load(campaign, tally, times):
    """Kill under load; now and then also before it has begun, and while it closes.

    A busy machine does less between two kills: it gets more and longer runs, until the directory
    has seen what it has to.
    """
    rng = campaign.rng
    for nth in range(3 * times):
        if nth >= times and campaign.is_ripe():
            break
        campaign.start(sync=rng.choice(["none", "interval", "interval", "commit"]))
        if rng.random() < 0.3:
            campaign.pause(0.15)  # while it recovers
            campaign.crash()
            campaign.start()
        campaign.load.expect("open")
        campaign.pause(rng.choice([0.1, 0.6, 1.2]) if nth < times else 2.0)
        if rng.random() < 0.3:
            campaign.load.say("stop")
            campaign.load.expect("closing")
            campaign.pause(0.15)  # while it closes
        campaign.crash()
        if rng.random() < 0.3 and campaign.checker.observations:
            campaign.look()
    totals = campaign.last_look()
    checker = campaign.checker
    assert all(totals[name] for name in REQUIRED), f"void: {totals}; {campaign.where()}"
    assert checker.acked > 20 * times, f"void: {checker.acked} commits"
    assert checker.observations > times
    for what, count in campaign.crashes.items():
        tally(what, count, campaign.ripe[what])
    campaign.done()


@pytest.mark.timeout(600)
def test_everything_acknowledged_survives_kills(campaign, tally):
    kills_under_load(campaign, tally, SAMPLE)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_everything_acknowledged_survives_many_kills(campaign, tally):
    kills_under_load(campaign, tally, LONG)

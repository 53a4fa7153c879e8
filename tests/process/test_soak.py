"""A soak: a load that goes on while something fails once a minute; nothing grows, nothing is lost.

`MELES_SOAK_MINUTES` sets how long. Judged like all loads by its ledger; besides, the process has at
its end the descriptors it had when it was warm, hardly more memory, and the disk holds at most
three times the live data a minute after the load has stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import meles
import psutil
import pytest
from waiting import wait_until

MINUTES = float(os.environ.get("MELES_SOAK_MINUTES", "25"))
PACE = 0.02  # seconds between the commits of each of four clients: nothing falls behind
EVERY = 60.0  # seconds between two faults
GROWTH = 1 << 20  # bytes of private memory in ten minutes
WARM = 0.2  # of the time, before memory counts
ALLOWED = 3.0  # times the live data
QUIET_SECONDS = 60.0
DEADLINE = 60.0
KINDS = ("flusher", "compactor", "value_gc")


class Soak:
    def __init__(self, campaign, tally):
        self.campaign, self.tally = campaign, tally
        self.load = campaign.start(worker_hang_timeout=2.0, patient=True, pace=PACE)
        self.load.expect("open")
        self.samples = []

    def trouble(self):
        """One fault, drawn by lot."""
        rng, load = self.campaign.rng, self.load
        what = rng.choice(["kill", "hang", "pause", "descriptors"])
        if what in ("kill", "hang"):
            kind = rng.choice(KINDS)
            load.say(what, kind)
            load.expect("killed", kind)
            load.expect("replaced", kind)
        elif what == "pause":
            os.kill(load.pid, signal.SIGSTOP)
            threading.Event().wait(3.0)
            os.kill(load.pid, signal.SIGCONT)
        else:
            process = psutil.Process(load.pid)
            before = process.rlimit(psutil.RLIMIT_NOFILE)
            process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 1, before[1]))
            threading.Event().wait(2.0)
            process.rlimit(psutil.RLIMIT_NOFILE, before)
        self.tally(f"soak: {what}", 1)
        self.campaign.expect_commits()

    def sample(self):
        process = psutil.Process(self.load.pid)
        self.samples.append((time.monotonic(), process.memory_full_info().uss, process.num_fds()))

    def run(self, minutes):
        began = time.monotonic()
        trouble_at = began + EVERY / 2
        while time.monotonic() < began + minutes * 60:
            threading.Event().wait(2.0)
            self.sample()
            self.campaign.judge()
            if time.monotonic() > trouble_at:
                self.trouble()
                trouble_at += EVERY

    def slope(self):
        """Growth in bytes in ten minutes, by least squares over what came after warming up."""
        rows = [row[:2] for row in self.samples[int(len(self.samples) * WARM) :]]
        middle = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        over = sum((at - middle[0]) * (size - middle[1]) for at, size in rows)
        return over / sum((at - middle[0]) ** 2 for at, _ in rows) * 600

    def descriptors(self, part):
        return sorted(row[2] for row in part)[len(part) // 2]


def soak(campaign, tally, minutes):
    run = Soak(campaign, tally)
    run.run(minutes)
    cut = len(run.samples) // 5
    early, late = run.samples[cut : 2 * cut], run.samples[-cut:]
    tally(f"soak: grown by {run.slope() / 1024:.0f} KiB in ten minutes", 1)
    assert run.descriptors(late) <= run.descriptors(early) + 4, campaign.where()
    if minutes >= 10:
        assert run.slope() < GROWTH, campaign.where()
    campaign.stop()
    with meles.open(campaign.path) as db:
        wait_until(lambda: overhead(db) <= ALLOWED, QUIET_SECONDS, "space given back")
    totals = campaign.last_look()
    assert totals["relocated"], totals
    campaign.done()


def overhead(db):
    live = sum(len(key) + len(value) for key, value in db.items())
    files = sum(entry.stat().st_size for entry in os.scandir(db.path) if entry.name[-4:] != ".mem")
    return files / max(live, 1)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_soak(campaign, tally):
    soak(campaign, tally, MINUTES)

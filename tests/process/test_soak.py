"""A soak: a load that goes on while something fails once a minute; nothing grows, nothing is lost.

`MELES_SOAK_MINUTES` sets how long, `MELES_SOAK_PACE` how long each client waits between commits (0:
not at all). Judged like all loads by its ledger; besides, the process has at its end hardly more
memory and no more descriptors than its files explain, and the disk holds at most three times the
live data a minute after the load has stopped.

Before Python 3.13 every mapped file keeps a descriptor, so their number goes up and down with that
of the tables. What must not grow is counted apart: descriptors of files that were removed (a reader
or a job that began before may have some) and descriptors of anything else.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from statistics import median
from typing import NamedTuple

import meles
import psutil
import pytest
from waiting import wait_until

MINUTES = float(os.environ.get("MELES_SOAK_MINUTES", "25"))
# Seconds between the commits of each of four clients: nothing falls behind.
PACE = float(os.environ.get("MELES_SOAK_PACE", "0.02"))
EVERY = 60.0  # seconds between two faults
GROWTH = 1 << 20  # bytes of private memory in ten minutes
WARM = 0.2  # of the time, before memory counts
ALLOWED = 3.0  # times the live data
QUIET_SECONDS = 60.0
DEADLINE = 60.0
KINDS = ("flusher", "compactor", "value_gc")


SLACK = 4  # descriptors: what is just being opened, read or replaced
REMOVED = 10  # descriptors of removed files at most: what a snapshot or a job began with
WRITTEN = 6  # files that are written, at most: they have a descriptor beside that of their mapping
SUFFIXES = (".sst", ".vlog", ".mem")


class Sample(NamedTuple):
    """What the process holds at a moment. `files` are in the directory, the rest descriptors."""

    at: float
    size: int
    files: int
    live: int
    removed: int
    other: int


def sample(pid, directory):
    names = [name for name in os.listdir(directory) if name.endswith(SUFFIXES)]
    live = removed = other = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:  # closed meanwhile
            continue
        gone = target.endswith(" (deleted)")
        ours = target.removesuffix(" (deleted)").endswith(SUFFIXES)
        live += ours and not gone
        removed += ours and gone
        other += not ours
    size = psutil.Process(pid).memory_full_info().uss
    return Sample(time.monotonic(), size, len(names), live, removed, other)


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

    def run(self, minutes):
        began = time.monotonic()
        trouble_at = began + EVERY / 2
        while time.monotonic() < began + minutes * 60:
            threading.Event().wait(2.0)
            self.samples.append(sample(self.load.pid, self.campaign.path))
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

    def check_descriptors(self):
        cut = len(self.samples) // 5
        early, late = self.samples[cut : 2 * cut], self.samples[-cut:]
        names = ("files", "live", "removed", "other")
        then, now = (
            {name: median(getattr(each, name) for each in part) for name in names}
            for part in (early, late)
        )
        words = ", ".join(f"{then[name]:g} to {now[name]:g} {name}" for name in names)
        self.tally(f"soak: descriptors: {words}", 1)
        assert now["live"] <= now["files"] + WRITTEN + SLACK, (then, now)
        assert now["removed"] <= REMOVED, (then, now)
        assert now["other"] <= then["other"] + SLACK, (then, now)


def soak(campaign, tally, minutes):
    run = Soak(campaign, tally)
    run.run(minutes)
    tally(f"soak: grown by {run.slope() / 1024:.0f} KiB in ten minutes", 1)
    run.check_descriptors()
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

"""The wall clock jumps, for the host and its workers: only expiry follows it."""

from __future__ import annotations

import os
import struct
from functools import partial
from pathlib import Path

import meles
import pytest
from waiting import wait_until

SHIM = str(Path(__file__).parents[1] / "support" / "clock")
DAY = 86_400 * 10**9  # nanoseconds
JUMPS = [DAY, -DAY, 0, -400 * DAY]
ROUNDS = int(os.environ.get("MELES_JUMPS", "12"))  # of the long run, four jumps each
DEADLINE = 80.0


class Clock:
    def __init__(self, path, monkeypatch):
        self._path = path
        self.turn(0)
        monkeypatch.setenv("PYTHONPATH", SHIM)
        monkeypatch.setenv("TEST_CLOCK", str(path))

    def turn(self, nanoseconds):
        """So far from the machine's clock, from now on; the file is mapped, so not replaced."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("<q", nanoseconds))


@pytest.fixture
def clock(tmp_path, monkeypatch):
    return Clock(tmp_path / "clock", monkeypatch)


def jump(campaign, tally, clock, rounds):
    """Under load; commits go on, no worker is blamed, and timestamps only grow."""
    for _ in range(rounds):
        load = campaign.start(worker_hang_timeout=30.0)
        load.expect("open")
        before = wait_until(partial(workers, load), DEADLINE)
        for nanoseconds in JUMPS:
            clock.turn(nanoseconds)
            campaign.expect_commits()
            tally("wall clock jumps", 1)
        assert wait_until(partial(workers, load), DEADLINE) == before
        campaign.stop() if campaign.rng.random() < 0.5 else campaign.crash()
        clock.turn(campaign.rng.choice(JUMPS))
    campaign.last_look()
    campaign.done()


def workers(load):
    load.say("workers")
    rows, status = load.reply("workers")
    assert status == "ok"
    if any(state not in ("idle", "busy") for *_, state in rows):
        return None
    return {name: pid for name, _, pid, _ in rows}


def test_commits_and_workers_do_not_mind(campaign, tally, clock):
    jump(campaign, tally, clock, 1)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_jumps(campaign, tally, clock):
    jump(campaign, tally, clock, ROUNDS)


EXPIRING = """
import sys
import meles
db = meles.open(sys.argv[1], memtable_size=65536, sync="none")
for n in range(100):
    db.set(b"hour%02d" % n, b"x" * 100, ttl=3600)
    db.set(b"year%02d" % n, b"y" * 2000, ttl=366 * 86400)
    db.set(b"ever%02d" % n, b"z")
for line in sys.stdin:
    if line == "rewrite\\n":
        db.flush(60)
        db.flatten(timeout=60)
        db.gc(0.1, timeout=60)
    print(*(sum(1 for _ in db.keys(p)) for p in (b"hour", b"year", b"ever")), flush=True)
"""


def test_expiry_follows_the_clock_and_what_is_gone_stays_gone(program, tmp_path, clock):
    host = program("-c", EXPIRING, str(tmp_path / "db"))

    def seen(what="look"):
        host.say(what)
        return [int(word) for word in host.line().split()]

    assert seen() == [100, 100, 100]
    clock.turn(-400 * DAY)
    assert seen("rewrite") == [100, 100, 100]
    clock.turn(DAY)
    assert seen() == [0, 100, 100]
    clock.turn(0)
    assert seen() == [100, 100, 100]  # nothing was rewritten meanwhile
    clock.turn(DAY)
    assert seen("rewrite") == [0, 100, 100]
    clock.turn(0)
    hours, years, ever = seen()
    assert (years, ever) == (100, 100)
    assert hours in (0, 100)
    host.kill()
    with meles.open(tmp_path / "db", workers="inline", wait=30.0) as db:
        assert len(list(db.keys(b"hour"))) == hours
        assert len(list(db.keys(b"year"))) == 100
        assert db.verify(values=True).ok

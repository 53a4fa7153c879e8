"""A disk that is really full, filled by us and by others: typed errors, reads, and it heals."""

from __future__ import annotations

import contextlib
import logging
import os

import meles
import pytest
from mounts import small_disk
from waiting import wait_until

LONG = int(os.environ.get("MELES_FULL", "50"))


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """A kept log record keeps what its error points to, mappings of the small disk too."""
    caplog.set_level(logging.CRITICAL + 1, "meles")


class Hog:
    """Somebody else's file, which takes all the room there is."""

    def __init__(self, path):
        self.path = path

    def fill(self):
        with self.path.open("wb", buffering=0) as file:
            size = 1 << 20
            while size >= 4096:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def leave(self):
        self.path.unlink(missing_ok=True)


def full_again_and_again(campaign, tally, disk, rounds):
    """Filled under load: healed, killed while full, opened while full."""
    hog = Hog(disk / "hog")
    campaign.path = disk / "db"
    for number in range(rounds):
        load = campaign.start(patient=True, memtable_size=128 << 10, write_stall_timeout=0.5)
        load.expect("open")
        campaign.pause(0.3)
        hog.fill()
        wait_until(lambda: campaign.judge() or campaign.checker.current.get("refused"), 60)
        campaign.pause(0.3)
        tally("disk full under load", 1)
        if number % 2:
            campaign.crash()
            tally("SIGKILL on a full disk", 1)
            with contextlib.suppress(meles.DiskFullError, OSError):
                meles.open(campaign.path, workers="inline").close()
            tally("opened on a full disk", 1)
            campaign.look()
            hog.leave()
        else:
            hog.leave()
            campaign.expect_commits()
            campaign.stop()
    campaign.last_look()
    campaign.done()


def test_a_full_disk_costs_nothing_but_time(campaign, tally, tmp_path):
    with small_disk(tmp_path / "small", 40) as disk:
        full_again_and_again(campaign, tally, disk, 2)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_disk_that_is_full_again_and_again(campaign, tally, tmp_path):
    with small_disk(tmp_path / "small", 40) as disk:
        full_again_and_again(campaign, tally, disk, LONG)

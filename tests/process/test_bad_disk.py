"""A disk with bad sectors, and one that stops answering: an ext4 image that loses its back end.

A sector that cannot be read is an error where the engine reads, and SIGBUS where it touches a
mapping: that risk is known (ARCHITECTURE.md section 16). Wrong or missing data it never is.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections import Counter

import meles
import pytest
from mounts import PowerDisk

BAD = int(os.environ.get("MELES_BAD", "50"))
FREEZES = int(os.environ.get("MELES_FREEZES", "15"))
DEADLINE = 60.0


@pytest.fixture
def disk(tmp_path):
    made = PowerDisk(tmp_path)
    made.make()
    yield made
    made.remove()


# -- sectors that cannot be read -----------------------------------------------------------------

FILLING = """
import sys
import meles
with meles.open(sys.argv[1], memtable_size=256 << 10, sync="none", base_table_size=65536,
                value_log_file_size=1 << 20) as db:
    for n in range(2500):
        db.set(b"k%04d" % n, b"%d " % n * (300 if n % 3 else 1500))
    db.flush(60)
"""

READING = """
import os, sys
import meles
right = raised = 0
mode = sys.argv[2]
try:
    db = meles.open(sys.argv[1], mode=mode, close_timeout=5.0)
except (meles.Error, OSError):
    print("refused", flush=True)
    sys.exit(0)
for n in range(2500):
    try:
        value = db.get(b"k%04d" % n)
    except meles.CorruptionError:
        raised += 1
        continue
    assert value == b"%d " % n * (300 if n % 3 else 1500), (n, value and value[:20])
    right += 1
if mode == "own":
    try:
        db.flatten(timeout=2.0)
    except (meles.Error, OSError):
        pass
db.close()
print("read", right, raised, flush=True)
"""


def read_with_bad_sectors(program, tally, disk, times):
    home = disk.path / "db"
    filling = program("-c", FILLING, str(home))
    assert filling.wait() == 0, filling.errors()
    whole = shutil.copyfile(disk.image, disk.image.with_suffix(".whole")) if disk.settle() else None
    rng, outcomes = random.Random(times), Counter()
    try:
        for n in range(times):
            disk.lose(rng.uniform(0.05, 0.6))
            reader = program("-c", READING, str(home), "read_only" if n % 2 else "own")
            said = reader.line().split()
            code = reader.wait(DEADLINE)
            assert code in (0, -signal.SIGBUS), reader.errors()
            outcomes[said[0] if said else "SIGBUS"] += 1
            outcomes["raised"] += bool(said[2:] and int(said[2]))
            disk.mend(whole)
            with meles.open(home, mode="read_only", wait=30.0) as db:
                assert db.verify(values=True).ok
                assert sum(1 for _ in db.items()) == 2500
        struck = outcomes["SIGBUS"] + outcomes["raised"] + outcomes["refused"]
        tally("sectors that cannot be read", times, struck)
        assert struck, f"void: {outcomes}"
    finally:
        whole.unlink()


def test_what_cannot_be_read_is_never_wrong(program, tally, disk):
    read_with_bad_sectors(program, tally, disk, 4)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_what_cannot_be_read_is_never_wrong_for_long(program, tally, disk):
    read_with_bad_sectors(program, tally, disk, BAD)


# -- a disk that stops answering -----------------------------------------------------------------


def freeze(campaign, tally, disk, longest, times):
    """Workers that hang in the kernel cannot be killed: nobody else gets their job meanwhile."""
    campaign.path = disk.path / "db"
    for _ in range(times):
        load = campaign.start(patient=True, worker_hang_timeout=0.5, worker_heartbeat=0.1)
        load.expect("open")
        campaign.expect_commits()
        with disk.frozen():
            threading.Event().wait(campaign.rng.uniform(1.0, longest))  # that long it hangs
        tally("disk that hangs, then answers", 1)
        campaign.expect_commits()
        campaign.stop()
    campaign.last_look()
    campaign.done()


def test_a_disk_that_hangs_costs_nothing_but_time(campaign, tally, disk):
    freeze(campaign, tally, disk, 2.0, 1)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_disk_that_hangs_again_and_again(campaign, tally, disk):
    freeze(campaign, tally, disk, 20.0, FREEZES)

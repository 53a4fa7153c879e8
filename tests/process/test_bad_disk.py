"""A disk with bad sectors, and one that stops answering: an ext4 image that loses its back end.

A sector that cannot be read is an error where the engine reads, and SIGBUS where it touches a
mapping: that risk is known (ARCHITECTURE.md section 16). Wrong or missing data it never is.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import threading
from collections import Counter
from pathlib import Path

import meles
import pytest
from mounts import PowerDisk
from waiting import wait_until

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


DYING = """
import os
import sys
import meles
db = meles.open(sys.argv[1], sync="none", workers="inline")
for n in range(2000):
    db.set(b"k%04d" % n, b"%d " % n * 30)
print("filled", flush=True)
sys.stdin.read()
os._exit(9)
"""

LOOKING = """
import sys
import meles
print("looking", flush=True)
try:
    db = meles.open(sys.argv[1], mode="read_only")
except (meles.Error, OSError) as error:
    print("refused", type(error).__name__, flush=True)
    sys.exit(0)
for n in range(2000):
    value = db.get(b"k%04d" % n)
    assert value == b"%d " % n * 30, (n, value and value[:20])
db.close()
print("read", flush=True)
"""


def test_a_log_that_cannot_be_read_is_not_taken_for_an_empty_one(program, tally, disk):
    """What was acknowledged and is in a log alone: all of it is there, or nothing is opened."""
    home = disk.path / "db"
    filling = program("-c", DYING, str(home))
    filling.expect("filled")
    filling.kill()
    disk.settle()
    whole = shutil.copyfile(disk.image, disk.image.with_suffix(".whole"))
    outcomes = Counter()
    try:
        for percent in range(4, 40, 3):
            disk.lose(percent / 100)
            reader = program("-c", LOOKING, str(home))
            reader.expect("looking")
            outcomes[reader.line()] += 1
            assert reader.wait(DEADLINE) in (0, -signal.SIGBUS), reader.errors()
            disk.mend(whole)
    finally:
        whole.unlink()
    tally("logs that cannot be read", sum(outcomes.values()), outcomes["refused OSError"])
    assert outcomes["refused OSError"], f"void: {outcomes}"


# -- a disk that stops answering -----------------------------------------------------------------

HANG = {"worker_hang_timeout": 0.5, "worker_heartbeat": 0.1}
# Nothing is due but what is asked for: else the control thread may hang too, and judge nobody.
QUIET = {
    **HANG,
    "memtable_size": 8 << 20,
    "base_table_size": 256 << 10,
    "num_level_zero_tables": 100,
    "num_level_zero_tables_stall": 200,
    "value_log_file_size": 1 << 20,
    "gc_discard_ratio": 0.99,
    "num_compactors": 2,
    "sync": "none",
    "close_timeout": 60.0,
}
TRIES = 200  # freezes until one finds the worker at work: its job may be done a moment before
KEYS = range(1000)


def fill(db, rng, number, times=1):
    """Overwrite half of the keys, once there are any: garbage in every file. Returns the values,
    which are so many times larger."""
    keys = rng.sample(KEYS, len(KEYS) // 2) if number else KEYS
    values = {b"k%04d" % key: rng.randbytes(rng.choice([400, 1500 * times])) for key in keys}
    with db.write_batch() as batch:
        for key, value in values.items():
            batch.set(key, value)
    return values


def work(db, kind):
    """Something for this kind of worker to do: a function that waits until it is done."""
    if kind == "flusher":
        return lambda: db.flush(DEADLINE)
    db.flush(DEADLINE)
    if kind == "compactor":
        return lambda: db.flatten(timeout=DEADLINE)
    db.flatten(timeout=DEADLINE)
    return lambda: db.gc(0.1, timeout=DEADLINE)


def in_state(db, kind, state):
    return [worker for worker in db.workers() if worker.kind == kind and worker.state == state]


def told_apart(db, hung):
    """While a worker hangs it is said so, and nobody else has its job; returns what it is to make.

    The title of a flush names its table; what else is written is to be seen in descriptors.
    """
    assert db.health().status == "degraded"
    assert any(hung.name in reason for reason in db.health().reasons), db.health()
    assert not db.wait_idle(1.0)  # the control thread is well, and could do something wrong
    assert [worker.pid for worker in in_state(db, hung.kind, "hung")] == [hung.pid]
    assert not in_state(db, hung.kind, "busy"), db.workers()
    table = re.search(r"to table (\d+)", hung.job)
    return {f"{int(table[1]):06d}.sst"} if table else outputs(hung.pid)


def outputs(pid):
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        flags = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().partition("flags:")[2].split()[0]
        if int(flags, 8) & os.O_ACCMODE and target.endswith((".sst", ".vlog")):
            found.add(os.path.basename(target))
    return found


@pytest.mark.parametrize("kind", ["flusher", "compactor", "value_gc"])
def test_a_worker_that_the_disk_holds_is_replaced_when_it_is_let_go(tally, disk, kind):
    """It cannot be killed meanwhile: what it was to make gets another name, and is made once.

    Nothing is written here meanwhile: a log is mapped, and who waits for its page holds the
    interpreter, so that nobody in this process could end the freeze.
    """
    rng, expected, hung = random.Random(kind), {}, None
    times = 8 if kind == "value_gc" else 1  # or it copies them in less than a look at it takes
    with meles.open(disk.path / "db", **QUIET) as db:
        wait_until(lambda: all(worker.state == "idle" for worker in db.workers()), DEADLINE)
        for number in range(TRIES):
            expected |= fill(db, rng, number, times)
            working = threading.Thread(target=work(db, kind))
            working.start()
            alive = working.is_alive
            wait_until(lambda alive=alive: in_state(db, kind, "busy") or not alive(), DEADLINE)
            with disk.frozen():
                wait_until(lambda: not in_state(db, kind, "busy"), DEADLINE, "a verdict")
                if caught := in_state(db, kind, "hung"):
                    hung, names = caught[0], told_apart(db, caught[0])
            if hung:
                break
            working.join()
        tally(f"disk that hangs with a {kind} at work", number + 1, int(hung is not None))
        assert hung, "void: no worker was caught"
        wait_until(lambda: hung.name in {w.name for w in in_state(db, kind, "idle")}, DEADLINE)
        working.join()
        expected |= fill(db, rng, number + 1)
        assert hung.pid not in {worker.pid for worker in db.workers()}
        wait_until(lambda: db.health().status == "ok", DEADLINE, "health")
        assert not names & set(os.listdir(db.path)), "made under the name the hung one had"
        assert dict(db.items()) == expected
        assert db.close().clean
    with meles.open(disk.path / "db", mode="read_only") as db:
        assert db.verify(values=True).ok
        assert dict(db.items()) == expected


def ready_workers(load, *, at_work=False):
    """Process ids by name, as soon as all are ready (and one of them is at work)."""

    def look():
        load.say("workers")
        rows, status = load.reply("workers")
        states = {state for *_, state in rows}
        ready = states <= {"idle", "busy"} and status == "ok" and (not at_work or "busy" in states)
        return {name: pid for name, _, pid, _ in rows} if ready else None

    return wait_until(look, DEADLINE, "workers")


def freeze(campaign, tally, disk, longest, times):
    """Under load, whatever hangs then: clients, workers, and whoever would judge them."""
    campaign.path = disk.path / "db"
    struck = 0
    for _ in range(times):
        load = campaign.start(patient=True, **HANG)
        load.expect("open")
        before = ready_workers(load, at_work=True)
        with disk.frozen():
            threading.Event().wait(campaign.rng.uniform(1.0, longest))  # that long it hangs
        campaign.expect_commits()
        struck += ready_workers(load) != before
        campaign.stop()
    tally("disk that hangs, then answers", times, struck)
    campaign.last_look()
    campaign.done()
    return struck


def test_a_disk_that_hangs_costs_nothing_but_time(campaign, tally, disk):
    freeze(campaign, tally, disk, 2.0, 1)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_a_disk_that_hangs_again_and_again(campaign, tally, disk):
    assert freeze(campaign, tally, disk, 20.0, FREEZES), "void: no worker was caught"

"""What was acknowledged lasts: group commit, syncs that fail, full disks that heal."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meles
import pytest
from fault_fs import GROWING, FailNth, FaultDisk, Operation, injected
from leaks import Held, assert_nothing_left
from story import OPTIONS, REFUSALS, Data, Story, content
from waiting import wait_until


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: how long a sync takes is not what is tested."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="meles-test-", dir=home) as path:
        yield Path(path)


# -- group commit --------------------------------------------------------------------------------


@dataclass
class HoldFirstSync:
    """Keeps the first sync of a log waiting until it is let go, then fails it if told to."""

    error: OSError | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    syncs: int = 0

    def __call__(self, operation: Operation) -> None:
        if operation.kind != "sync" or not operation.name.endswith(".mem"):
            return
        self.syncs += 1
        if self.syncs == 1:
            self.entered.set()
            assert self.release.wait(60)
            if self.error is not None:
                raise self.error


@dataclass
class Committers:
    """Threads that commit one entry each; the first alone, until its sync is under way."""

    db: meles.DB
    plan: HoldFirstSync
    done: list[int] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def commit(self, n: int) -> None:
        try:
            if n % 2:
                self.db[b"%03d" % n] = b"v"
            else:
                with self.db.update() as txn:
                    txn[b"%03d" % n] = b"v"
            self.done.append(n)
        except Exception as error:  # noqa: BLE001 - told to the test
            self.errors.append(error)

    def start(self, count: int) -> None:
        before = self.db.max_version()
        self.threads = [threading.Thread(target=self.commit, args=(n,)) for n in range(count)]
        self.threads[0].start()
        assert self.plan.entered.wait(60)
        for thread in self.threads[1:]:
            thread.start()
        wait_until(lambda: self.db.max_version() == before + count)

    def finish(self) -> None:
        self.plan.release.set()
        for thread in self.threads:
            thread.join(60)


def test_one_sync_serves_everybody_who_waits(tmp_path: Path, fault_disk: FaultDisk) -> None:
    with meles.open(tmp_path / "db", **{**OPTIONS, "workers": "thread"}) as db:
        db.wait_idle()
        fault_disk.plan = plan = HoldFirstSync()
        committers = Committers(db, plan)
        committers.start(40)
        assert committers.done == []  # nobody is told before it is on the medium
        committers.finish()
        fault_disk.plan = None
        assert sorted(committers.done) == list(range(40))
        assert committers.errors == []
        assert plan.syncs == 2  # the first one's, and one for the 39 that came meanwhile
        assert db.stats().syncs >= 2


def test_a_sync_that_fails_fails_everybody_who_waits(tmp_path: Path, fault_disk: FaultDisk) -> None:
    db = meles.open(tmp_path / "db", **{**OPTIONS, "workers": "thread"})
    db[b"before"] = b"v"
    db.wait_idle()
    fault_disk.plan = plan = HoldFirstSync(OSError(errno.EIO, "injected"))
    committers = Committers(db, plan)
    committers.start(10)
    committers.finish()
    fault_disk.plan = None
    assert committers.done == []
    assert len(committers.errors) == 10
    for error in committers.errors:
        assert isinstance(error, meles.StoreFailedError)
        assert isinstance(error.__cause__, OSError)
    assert db[b"before"] == b"v"
    db.close()
    assert b"before" in content(tmp_path / "db")


def test_threads_that_commit_share_syncs_in_the_wild(tmp_path: Path, fault_disk: FaultDisk) -> None:
    with meles.open(tmp_path / "db", **{**OPTIONS, "workers": "thread"}) as db:
        start = threading.Barrier(8)

        def commit(nth: int) -> None:
            start.wait()
            for n in range(25):
                db[b"%d.%d" % (nth, n)] = b"v"

        threads = [threading.Thread(target=commit, args=(nth,)) for nth in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert 0 < db.stats().syncs <= 200
        assert len(list(db.keys())) == 200


def test_managed_commits_are_synced_whatever_their_timestamps(
    tmp_path: Path, fault_disk: FaultDisk
) -> None:
    with meles.open(tmp_path / "db", managed=True, **OPTIONS) as db:
        for ts in (100, 50, 70, 10):
            before = db.stats().syncs
            txn = db.update()
            txn.set(b"k", b"%d" % ts)
            txn.commit_at(ts)
            assert db.stats().syncs == before + 1
    fault_disk.plan = None


@pytest.mark.parametrize("sync", ["none", "interval"])
def test_sync_makes_everything_last(tmp_path: Path, fault_disk: FaultDisk, sync: str) -> None:
    options = {**OPTIONS, "sync": sync, "sync_interval": 3600}
    home = tmp_path / "db"
    with meles.open(home, **options) as db:
        for n in range(30):
            db[b"%02d" % n] = b"%d" % n * 700
        db.sync()
        fault_disk.power_loss(str(home), str(tmp_path / "synced"))
        db[b"late"] = b"x"
        count = db.stats().syncs
        db.sync()
        db.sync()  # nothing to do
        assert db.stats().syncs == count + 1
        expected = dict(db.items())
        fault_disk.power_loss(str(home), str(tmp_path / "all"))
    assert content(tmp_path / "all") == expected
    del expected[b"late"]
    assert content(tmp_path / "synced") == expected


def test_what_was_recovered_lasts_too(tmp_path: Path, fault_disk: FaultDisk) -> None:
    """It may have been in no more than the page cache when its owner was killed."""
    home, options = tmp_path / "db", {**OPTIONS, "sync": "none", "memtable_size": "1MiB"}
    with meles.open(tmp_path / "first", **options) as db:
        for n in range(20):
            db[b"%02d" % n] = b"x" * 500
        shutil.copytree(tmp_path / "first", home)
    expected = content_of_killed(home)
    with fault_disk_on(home) as disk, meles.open(home, **options) as db:
        assert dict(db.items()) == expected
        db.sync()
        disk.power_loss(str(home), str(tmp_path / "after"))
    assert content(tmp_path / "after") == expected


def fault_disk_on(home: Path) -> Any:
    """A disk on which nothing in the directory has been synced yet."""
    disk = FaultDisk()
    names = disk.open(str(home))._names
    names.durable.clear()
    for name, inode in names.now.items():
        inode.durable = b""
        names.changes.append((None, name, inode))
    return disk.installed()


def content_of_killed(home: Path) -> Data:
    (home / "LOCK").unlink()
    return content(home)


def test_time_makes_everything_last(tmp_path: Path, fault_disk: FaultDisk) -> None:
    home = tmp_path / "db"
    with meles.open(home, **{**OPTIONS, "sync": "interval", "sync_interval": 0.01}) as db:
        db[b"k"] = b"v" * 3000
        wait_until(lambda: db.stats().syncs > 0)
        fault_disk.power_loss(str(home), str(tmp_path / "after"))
    assert content(tmp_path / "after") == {b"k": b"v" * 3000}


# -- after a failure -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["inline", "thread"])
def test_after_a_failed_sync_nothing_is_written_and_everything_is_read(
    tmp_path: Path, fault_disk: FaultDisk, workers: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "meles")
    held = Held.now()
    home = tmp_path / "db"
    db = meles.open(home, **{**OPTIONS, "workers": workers})
    for n in range(50):
        db[b"%02d" % n] = b"%d" % n * 900
    expected = dict(db.items())
    txn = db.update()
    txn[b"begun"] = b"v"
    db.wait_idle()
    fault_disk.plan = FailNth(1, kinds=frozenset({"sync"}))
    with pytest.raises(meles.StoreFailedError) as caught:
        db[b"doubt"] = b"v"
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert "injected" in str(cause)
    fault_disk.plan = None
    written = fault_disk.count
    calls: list[Callable[[], object]] = [
        lambda: db.set(b"k", b"v"), lambda: db.delete(b"k"), txn.commit, db.sync, db.flush,
        db.flatten, db.gc, db.drop_all, lambda: db.drop_prefix(b"k"),
        lambda: db.transact(lambda t: t.set(b"k", b"v")), lambda: batch(db),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(meles.StoreFailedError) as again:
            call()
        assert again.value.__cause__ is cause
    assert db.wait_idle(10)
    assert fault_disk.count == written
    health = db.health()
    assert health.status == "read_only"
    assert "injected" in health.reasons[0]
    assert {key: db[key] for key in expected} == expected
    assert {k: v for k, v in db.items() if k != b"doubt"} == expected
    report = db.close()
    assert not report.clean
    del cause, caught, again, calls, call, txn  # errors hold the frames they were raised in
    assert_nothing_left(held)
    with meles.open(home, **OPTIONS) as db:
        assert {k: v for k, v in db.items() if k != b"doubt"} == expected
        db[b"again"] = b"works"
        assert db.health().status == "ok"


def batch(db: meles.DB) -> None:
    with db.write_batch() as target:
        target.set(b"k", b"v")


# -- a full disk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [5, 25, 50, 85])
def test_a_full_disk_heals(tmp_path: Path, fault_disk: FaultDisk, at: int) -> None:
    """Nothing grows from some point on, then there is room again: nobody has to reopen."""
    home, story = tmp_path / "db", Story()
    with meles.open(home, **OPTIONS) as db:
        fault_disk.plan = plan = FailNth(at, errno.ENOSPC, sticky=True, kinds=GROWING)
        refused = 0
        for step in story.steps():
            try:
                step(db)
            except REFUSALS:
                refused += 1
                if story.begun > story.acknowledged:
                    story.take_back()
        assert plan.fired > 0
        assert refused > 0 or at == 85
        assert dict(db.items()) == story.states[-1]
        assert db.health().status in ("ok", "degraded")
        fault_disk.plan = None
        for n in range(20):
            wait_until(lambda n=n: succeeded(story, db, n))  # type: ignore[misc]
        wait_until(lambda: flushed(db))
        wait_until(lambda: db.wait_idle(1) and db.health().status == "ok", 30, str(db.health()))
        assert dict(db.items()) == story.states[-1]
    story.judge(home)


def test_writers_hear_of_a_disk_too_full_for_tables(tmp_path: Path, fault_disk: FaultDisk) -> None:
    """They are not kept waiting for a flush that cannot be, and go on as soon as there is room."""
    options = {**OPTIONS, "workers": "thread", "write_stall_timeout": 3600.0}

    def no_room_for_tables(operation: Operation) -> None:
        if operation.name.endswith(".sst") and operation.kind in GROWING:
            raise injected(errno.ENOSPC, operation.name)

    value = b"v" * 900  # stays out of the value log
    with meles.open(tmp_path / "db", **options) as db:
        fault_disk.plan = no_room_for_tables
        written = 0

        def write_on() -> None:
            nonlocal written
            while True:
                db.set(b"%06d" % written, value)
                written += 1

        with pytest.raises(meles.DiskFullError, match="flushing waits"):
            write_on()
        assert db.get(b"%06d" % (written - 1)) == value
        fault_disk.plan = None

        def goes_on() -> bool:
            with contextlib.suppress(meles.DiskFullError):
                db.set(b"more", value)
            return db.get(b"more") is not None

        wait_until(goes_on)
        assert len(list(db)) == written + 1


def succeeded(story: Story, db: meles.DB, n: int) -> bool:
    try:
        story.commit(db, {b"healed%d" % n: b"x" * 3000})
    except REFUSALS:
        story.take_back()
        return False
    return True


def flushed(db: meles.DB) -> bool:
    try:
        db.flush()
    except (meles.DiskFullError, meles.WriteStallError, meles.WorkerFailedError):
        return False
    return True

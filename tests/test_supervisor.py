"""Opening and closing: all or nothing, whatever fails and whoever else is there."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import meles
import psutil
import pytest
from leaks import Held, assert_nothing_left
from meles import supervisor
from meles.engine.fs.names import Kind, parse_name
from meles.engine.opening import Opening, Step
from waiting import wait_until

OPTIONS: dict[str, Any] = {"workers": "inline", "value_threshold": 100}
DATA = {b"%03d" % n: b"%d " % n * (n % 40 + 1) for n in range(300)}
STEPS = [name for name, _ in supervisor.OPEN_STEPS]


class Boom(Exception):
    pass


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: how long a sync takes is not what is tested."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="meles-test-", dir=home) as path:
        yield Path(path)


def files(path: Path) -> dict[str, bytes]:
    """Every file below, with its content."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="session")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as a killed owner leaves it: tables, value log, a sealed log and an open one."""
    home = tmp_path_factory.mktemp("crashed")
    with meles.open(home / "live", **OPTIONS) as db:
        for n, (key, value) in enumerate(DATA.items()):
            db[key] = value
            if n in (100, 200):
                db.flush()
        shutil.copytree(home / "live", home / "image")
    os.unlink(home / "image" / "LOCK")
    kinds = {parsed[0] for name in os.listdir(home / "image") if (parsed := parse_name(name))}
    assert kinds == set(Kind)
    return home / "image"


@pytest.fixture
def image(crashed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(crashed, tmp_path / "db"))


# -- every step of opening fails -----------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, when: str) -> None:
    """Make a step raise, instead of being done or right after it."""

    def make(step: Callable[[Opening], None]) -> Callable[[Opening], None]:
        def fail(opening: Opening) -> None:
            if when == "after":
                step(opening)
            raise Boom

        return fail

    steps: list[Step] = [
        (found, make(step) if found == name else step) for found, step in supervisor.OPEN_STEPS
    ]
    monkeypatch.setattr(supervisor, "OPEN_STEPS", steps)


def mapped() -> set[str]:
    """The paths of database files that are mapped, deleted ones too."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if ".mem" in line or ".sst" in line
            or ".vlog" in line}  # fmt: skip


@dataclass
class Before:
    """What is held and mapped before an opening that fails; `check` finds nothing new after it."""

    held: Held = field(default_factory=Held.now)
    maps: set[str] = field(default_factory=mapped)

    def check(self) -> None:
        assert_nothing_left(self.held)
        assert mapped() - self.maps == set()


@pytest.mark.parametrize("when", ["instead", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_a_fresh_directory_is_gone_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    before = Before()
    path = tmp_path / "new" / "deep" / "db"
    values = tmp_path / "values"
    with monkeypatch.context() as patch:
        spoil(patch, name, when)
        with pytest.raises(Boom):
            meles.open(path, value_dir=values, **OPTIONS)
    before.check()
    assert os.listdir(tmp_path) == []
    with meles.open(path, value_dir=values, **OPTIONS) as db:
        db[b"k"] = b"v"


@pytest.mark.parametrize("when", ["instead", "after"])
@pytest.mark.parametrize("name", STEPS)
def test_a_database_is_as_it_was(
    image: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    """Byte for byte until everything was found and opened; from then on recovered, still whole."""
    before, found = Before(), files(image)
    with monkeypatch.context() as patch:
        spoil(patch, name, when)
        with pytest.raises(Boom):
            meles.open(image, **OPTIONS)
    before.check()
    changed = STEPS.index(name) + (when == "after") > STEPS.index("settle")
    if not changed:
        assert files(image) == found
    assert "LOCK" not in files(image)
    with meles.open(image, **OPTIONS) as db:
        assert dict(db.items()) == DATA
        named = {(Kind.TABLE, table.id) for table in db.tables()}
        named |= {(Kind.VLOG, vlog.id) for vlog in db._store.version.vlogs}
    assert numbered(image) == named


@pytest.mark.parametrize("name", STEPS)
def test_a_reader_leaves_everything_as_it_was(
    image: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, found = Before(), files(image)
    with monkeypatch.context() as patch:
        spoil(patch, name, "after")
        with pytest.raises(Boom):
            meles.open(image, mode="read_only", **OPTIONS)
    before.check()
    assert files(image) == found
    with meles.open(image, **OPTIONS) as db:
        assert dict(db.items()) == DATA


@pytest.mark.parametrize("name", STEPS)
def test_a_database_in_memory_is_gone_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = Before()
    monkeypatch.setattr("meles.engine.opening._MEMORY_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        spoil(patch, name, "after")
        with pytest.raises(Boom):
            meles.open(None, mode="memory", **OPTIONS)
    before.check()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fresh", [True, False])
def test_worker_processes_are_gone_again(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    before = Before()
    path = tmp_path / "fresh" if fresh else image
    options = {**OPTIONS, "workers": "process"}
    with monkeypatch.context() as patch:
        spoil(patch, "start workers", "after")
        with pytest.raises(Boom):
            meles.open(path, **options)
    before.check()
    assert [p for p in psutil.Process().children(recursive=True) if p.is_running()] == []
    if fresh:
        assert not path.exists()
    with meles.open(path, **options) as db:
        assert dict(db.items()) == ({} if fresh else DATA)
        assert not fresh or numbered(path) != set()
    before.check()


def test_a_manifest_that_can_not_be_made_durable_is_not_left(
    tmp_path: Path, fault_disk: Any
) -> None:
    from fault_fs import FailNth

    fault_disk.plan = FailNth(1, kinds=frozenset({"sync_dir"}))
    with pytest.raises(OSError, match="injected"):
        meles.open(tmp_path / "db", **OPTIONS)
    assert os.listdir(tmp_path) == []


def numbered(path: Path) -> set[tuple[Kind, int]]:
    return {parsed for name in os.listdir(path) if (parsed := parse_name(name)) is not None}


# -- who else is there ---------------------------------------------------------------------------


HOLDER = """
import sys, meles
db = meles.open(sys.argv[1], workers="inline")
db[b"k"] = b"v"
print("open", flush=True)
sys.stdin.read()
db.close()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns `tmp_path/db` until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process


@pytest.mark.parametrize("mode", ["own", "read_only"])
def test_the_owner_is_named(tmp_path: Path, owner: subprocess.Popen[str], mode: str) -> None:
    path = tmp_path / "db"
    before = files(path)
    with pytest.raises(meles.LockedError, match=str(owner.pid)) as caught:
        meles.open(path, mode=mode, **OPTIONS)
    error = caught.value
    assert (error.path, error.pid) == (str(path), owner.pid)
    assert error.command is not None
    assert "meles.open(sys.argv[1]" in error.command
    assert error.since is not None
    assert isinstance(error, OSError)
    assert files(path) == before


def test_waiting_for_the_owner_to_leave(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    with pytest.raises(meles.LockedError):
        meles.open(tmp_path / "db", wait=0.05, **OPTIONS)
    opened: list[meles.DB] = []
    waiting = threading.Thread(
        target=lambda: opened.append(meles.open(tmp_path / "db", wait=60, **OPTIONS))
    )
    waiting.start()
    assert owner.stdin is not None
    owner.stdin.close()
    owner.wait(80)
    waiting.join(60)
    assert opened[0][b"k"] == b"v"
    opened[0].close()


def test_an_owner_that_was_killed_holds_nothing(
    tmp_path: Path, owner: subprocess.Popen[str]
) -> None:
    owner.kill()
    owner.wait(80)
    assert (tmp_path / "db" / "LOCK").exists()
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        assert db[b"k"] == b"v"
        assert json.loads((tmp_path / "db" / "LOCK").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "db" / "LOCK").exists()


def test_a_second_opening_in_the_same_process(tmp_path: Path) -> None:
    """Also by another name of the directory; and with only the value directory in common."""
    values = tmp_path / "values"
    with meles.open(tmp_path / "db", value_dir=values, **OPTIONS):
        (tmp_path / "link").symlink_to("db")
        for path in (tmp_path / "db", tmp_path / "link", tmp_path / "values" / ".." / "db"):
            with pytest.raises(meles.LockedError) as caught:
                meles.open(path, **OPTIONS)
            assert caught.value.pid == os.getpid()
        with pytest.raises(meles.LockedError):
            meles.open(tmp_path / "other", value_dir=values, **OPTIONS)
        assert not (tmp_path / "other").exists()


def test_the_lock_can_be_left_to_the_host(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", bypass_lock_guard=True, **OPTIONS):
        assert not (tmp_path / "db" / "LOCK").exists()
        meles.open(tmp_path / "db", mode="read_only", **OPTIONS).close()


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b'{"pid": 1}', b'{"pid": %d}' % os.getpid(), b"\xff" * 5000],
    ids=["empty", "garbage", "pid of another", "own pid", "no text"],
)
def test_a_stale_or_forged_lock_file_locks_nobody_out(image: Path, content: bytes) -> None:
    (image / "LOCK").write_bytes(content)
    with meles.open(image, **OPTIONS) as db:
        assert len(list(db.keys())) == len(DATA)
        os.unlink(image / "LOCK")
        with pytest.raises(meles.LockedError):
            meles.open(image, **OPTIONS)
        (image / "LOCK").write_bytes(content)
        with pytest.raises(meles.LockedError):
            meles.open(image, mode="read_only", **OPTIONS)


@pytest.mark.parametrize("kind", ["link", "hard link", "directory", "fifo"])
def test_a_lock_file_that_leads_elsewhere_harms_nobody(
    image: Path, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = image / "LOCK"
    if kind == "link":
        lock.symlink_to(victim)
    elif kind == "hard link":
        lock.hardlink_to(victim)
    elif kind == "directory":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with meles.open(image, **OPTIONS) as db:
        assert len(list(db.keys())) == len(DATA)
    assert victim.read_text() == "precious"


# -- reading only --------------------------------------------------------------------------------


def test_a_reader_sees_what_a_killed_owner_left_and_changes_nothing(image: Path) -> None:
    before = files(image)
    times = {name: (image / name).stat().st_mtime_ns for name in before}
    with meles.open(image, mode="read_only", **OPTIONS) as db:
        assert dict(db.items()) == DATA
        assert [db[key] for key in DATA] == list(DATA.values())
        assert list(db.keys(reverse=True)) == sorted(DATA, reverse=True)
        assert db.stats().recovery.transactions == 99
        assert db.verify(values=True).ok
        assert db.health() == meles.Health("read_only", ["opened with mode='read_only'"])
        assert (db.workers(), db.wait_idle()) == ([], True)
        assert db.size().lsm_bytes > 0
        assert len(db.levels()) > 0
        with meles.open(image, mode="read_only", **OPTIONS) as second:
            assert len(list(second.keys())) == len(DATA)
        with pytest.raises(meles.LockedError):
            meles.open(image, **OPTIONS)
    assert files(image) == before
    assert {name: (image / name).stat().st_mtime_ns for name in before} == times


def test_a_reader_writes_nothing(image: Path) -> None:
    with meles.open(image, mode="read_only", **OPTIONS) as db:
        calls: list[Callable[[], object]] = [
            lambda: db.set(b"k", b"v"), lambda: db.delete(b"k"), db.update, db.write_batch,
            db.flush, db.sync, db.flatten, db.gc, db.drop_all, lambda: db.drop_prefix(b"k"),
            lambda: db.ban_namespace(1), lambda: db.sequence(b"s"), lambda: db.set_discard_ts(1),
            lambda: db.transact(lambda txn: None), lambda: db.merge_operator(b"m", max),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(meles.ReadOnlyError):
                call()


@pytest.mark.parametrize("made", [False, True])
def test_a_reader_of_nothing_creates_nothing(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "db").mkdir()
    with pytest.raises(meles.DirectoryMissingError) as caught:
        meles.open(tmp_path / "db", mode="read_only", **OPTIONS)
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, meles.Error)
    assert [path.name for path in tmp_path.rglob("*")] == ["db"] * made


EXITS = """
import os, sys, meles
db = meles.open(sys.argv[1], workers="inline", sync="none", value_threshold=100)
for n in range(200):
    db[b"%03d" % n] = b"%d " % n * (n % 60)
os._exit(0)
"""


def test_what_a_process_wrote_before_it_died_is_there(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", EXITS, str(tmp_path / "db")], check=True)
    expected = {b"%03d" % n: b"%d " % n * (n % 60) for n in range(200)}
    before = files(tmp_path / "db")
    for mode in ("read_only", "own", "read_only"):
        with meles.open(tmp_path / "db", mode=mode, **OPTIONS) as db:
            assert dict(db.items()) == expected
        if mode == "read_only":
            assert files(tmp_path / "db") == before
        before = files(tmp_path / "db")


# -- in memory -----------------------------------------------------------------------------------


def test_a_database_in_memory_lives_while_it_is_open() -> None:
    with meles.open(None, mode="memory", **OPTIONS) as db:
        path = Path(db.path)
        assert path.stat().st_mode & 0o777 == 0o700
        for key, value in DATA.items():
            db[key] = value
        db.flush()
        assert dict(db.items()) == DATA
    assert not path.exists()


def test_a_path_goes_with_every_mode_but_memory(tmp_path: Path) -> None:
    for bad in ({"path": tmp_path / "x", "mode": "memory"}, {"path": None}, {"path": None,
                "mode": "read_only"}, {"path": tmp_path / "x", "mode": "rw"}):  # fmt: skip
        with pytest.raises(meles.ConfigError):
            meles.open(**bad, **OPTIONS)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


# -- closing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["inline", "thread"])
def test_a_closed_directory_holds_what_the_manifest_names(image: Path, workers: str) -> None:
    options = {**OPTIONS, "workers": workers}
    before = Before()
    db = meles.open(image, **options)
    for n in range(300):
        db[b"more%03d" % n] = bytes(200)
    report = db.close()
    assert report.clean, report
    assert {stage.outcome for stage in report.stages} <= {"done", "skipped"}
    assert report.stages[-1].name == "release_locks"
    assert report.stages[0].name == "refuse_writes"
    before.check()
    with meles.open(image, mode="read_only", **options) as db:
        named = {(Kind.TABLE, table.id) for table in db.tables()}
        named |= {(Kind.VLOG, vlog.id) for vlog in db._store.version.vlogs}
        assert all(vlog.sealed for vlog in db._store.version.vlogs)
        assert db.stats().recovery.logs == 0
    assert numbered(image) == named
    others = {name for name in os.listdir(image) if parse_name(name) is None}
    assert others == {"MANIFEST"}


def test_closing_again_gives_the_same_report(tmp_path: Path) -> None:
    db = meles.open(tmp_path / "db", **OPTIONS)
    assert not db.closed
    report = db.close()
    assert db.closed
    assert db.close() is report
    assert db.close(timeout=1) is report
    assert db.health().status == "closed"
    assert (db.path, db.options.value_threshold) == (str(tmp_path / "db"), 100)
    assert "closed" in repr(db)


def test_closing_from_many_threads(tmp_path: Path) -> None:
    db = meles.open(tmp_path / "db", **{**OPTIONS, "workers": "thread"})
    for key, value in DATA.items():
        db[key] = value
    reports: list[object] = []
    start = threading.Barrier(8)

    def close() -> None:
        start.wait()
        reports.append(db.close())

    threads = [threading.Thread(target=close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(reports) == 8
    assert len(set(map(id, reports))) == 1
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        assert dict(db.items()) == DATA


def test_nothing_works_on_a_closed_database(tmp_path: Path) -> None:
    db = meles.open(tmp_path / "db", **OPTIONS)
    db[b"k"] = b"v"
    db.close()
    calls: list[Callable[[], object]] = [
        lambda: db.get(b"k"), lambda: db[b"k"], lambda: b"k" in db, lambda: db.get_many([b"k"]),
        lambda: db.set(b"k", b""), lambda: db.delete(b"k"), db.view, db.update, db.write_batch,
        db.items, db.keys, db.values, db.iterate, lambda: iter(db), db.flush, db.sync,
        db.wait_idle, db.flatten, db.gc, db.verify, db.stats, db.levels, db.tables, db.size,
        lambda: db.estimate_size(b""), db.max_version, db.workers, db.drop_all,
        lambda: db.drop_prefix(b"k"), lambda: db.sequence(b"k"), db.subscribe,
        lambda: db.ban_namespace(1), db.banned_namespaces, lambda: db.set_discard_ts(1),
        lambda: db.transact(lambda txn: None), db.__enter__,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(meles.ClosedError):
            call()


@pytest.mark.parametrize("workers", ["inline", "thread"])
def test_reads_that_race_closing_are_right_or_refused(image: Path, workers: str) -> None:
    db = meles.open(image, **{**OPTIONS, "workers": workers})
    errors: list[BaseException] = []
    rounds = [0] * 6
    started = threading.Barrier(7)

    def read(nth: int) -> None:
        keys = sorted(DATA)
        started.wait()
        try:
            while True:
                key = keys[rounds[nth] * 7 % len(keys)]
                if nth == 0:
                    assert db[key] == DATA[key]
                elif nth == 1:
                    assert list(db.items(b"1")) == [(k, DATA[k]) for k in keys if k[:1] == b"1"]
                elif nth == 2:
                    with db.view() as txn:
                        assert txn[key] == DATA[key]
                        assert sum(1 for _ in txn.values(reverse=True)) == len(DATA)
                elif nth == 3:
                    assert db.get_many([key, b"absent"]) == [DATA[key], None]
                elif nth == 4:
                    db.stats()
                    db.verify(values=True)
                else:
                    assert [item.value for item in db.iterate(key, limit=1)] == [DATA[key]]
                rounds[nth] += 1
        except meles.ClosedError:
            return
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=read, args=(nth,)) for nth in range(6)]
    for thread in threads:
        thread.start()
    started.wait()
    wait_until(lambda: min(rounds) > 2 or bool(errors))
    db.close()
    for thread in threads:
        thread.join(60)
    assert errors == []


@pytest.mark.parametrize("sync", ["none", "interval", "commit"])
def test_writes_that_race_closing_are_there_or_refused(tmp_path: Path, sync: str) -> None:
    options = {**OPTIONS, "workers": "thread", "sync": sync, "memtable_size": "64KiB"}
    db = meles.open(tmp_path / "db", **options)
    errors: list[BaseException] = []
    acknowledged: list[int] = [0] * 4

    def write(nth: int) -> None:
        try:
            while True:
                n = acknowledged[nth] + 1
                key, value = b"%d.%05d" % (nth, n), b"%d" % n * 50
                if nth == 0:
                    db[key] = value
                elif nth == 1:
                    with db.update() as txn:
                        txn.get(key)
                        txn[key] = value
                elif nth == 2:
                    with db.write_batch() as batch:
                        batch[key] = value
                else:
                    db.transact(lambda txn: txn.set(key, value))  # noqa: B023 - run at once
                    db.sync()
                acknowledged[nth] = n
        except meles.ClosedError:
            return
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=write, args=(nth,)) for nth in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: min(acknowledged) > 30 or bool(errors))
    report = db.close()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert report.clean, report
    with meles.open(tmp_path / "db", **options) as db:
        for nth, count in enumerate(acknowledged):
            found = list(db.keys(b"%d." % nth))
            assert found[:count] == [b"%d.%05d" % (nth, n) for n in range(1, count + 1)]
            assert len(found) - count in (0, 1)


def test_a_database_that_is_forgotten_is_closed_with_a_warning(tmp_path: Path) -> None:
    db: Any = meles.open(tmp_path / "db", **OPTIONS)
    db[b"k"] = b"v"
    with pytest.warns(ResourceWarning, match="was not closed"):
        db = gc.collect()
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        assert db[b"k"] == b"v"
        assert db.stats().recovery.logs == 0


def test_opening_and_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    before = Before()
    for n in range(5):
        with meles.open(tmp_path / "db", **OPTIONS) as db:
            db[b"%d" % n] = bytes(1000)
    before.check()


def test_iterators_opened_while_it_closes_end_with_it(image: Path) -> None:
    """Every one of them, whichever came first, it or the closing."""
    db = meles.open(image, **OPTIONS)
    made: list[Any] = []
    errors: list[BaseException] = []

    def make() -> None:
        try:
            while True:
                made.extend((db.keys(), db.view(), db.subscribe()))
        except meles.ClosedError:
            return
        except BaseException as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: len(made) > 300)
        report = db.close()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert report.clean, report
    for item in made:
        if isinstance(item, meles.Txn):
            with pytest.raises(meles.ClosedError):
                item.get(b"k")
        elif isinstance(item, meles.Subscription):
            assert list(item) == []
        else:
            with pytest.raises(meles.ClosedError):
                next(item)

"""`mode="read_only"`: writes nothing, starts nothing, works after a crash, shares with readers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
State = dict[str, tuple[int, int, int, bytes]]

CRASH = """
import os, sys, meles
db = meles.open(sys.argv[1], workers="inline", sync="none", value_threshold=100)
db[b"flushed"] = b"v" * 1000
db.flush()
db[b"logged"], db[b"large"] = b"v", b"w" * 1000
db.delete(b"flushed")
db.set(b"late", b"x", ttl=1000)
os._exit(1)
"""


def state(directory: Path) -> State:
    """Names, sizes, modes, times and bytes of everything in it, and of itself."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        stat = path.stat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (stat.st_size, stat.st_mode, stat.st_mtime_ns, data)
    return found


@pytest.fixture(scope="module")
def crash_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crash") / "db"
    ran = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False)
    assert ran.returncode == 1
    return path


@pytest.fixture
def crashed(tmp_path: Path, crash_site: Path) -> Path:
    return Path(shutil.copytree(crash_site, tmp_path / "db"))


@pytest.mark.leak_guard
def test_it_works_after_a_crash_and_changes_nothing(open_db: OpenDB, crashed: Path) -> None:
    before = state(crashed)
    with open_db(mode="read_only") as db:
        assert sorted(os.listdir(crashed)) == sorted(p.name for p in crashed.iterdir())
        assert (db[b"logged"], db[b"large"]) == (b"v", b"w" * 1000)
        assert db.get(b"flushed") is None
        assert list(db.keys()) == [b"large", b"late", b"logged"]
        with db.view(at=1) as txn:
            assert list(txn.keys()) == [b"flushed"]
        assert db.verify(values=True).ok
        assert db.stats().recovery.logs == 1
        assert state(crashed) == before
    assert state(crashed) == before


def test_readers_share_and_exclude_an_owner(open_db: OpenDB) -> None:
    open_db().close()
    first, second = open_db(mode="read_only"), open_db(mode="read_only")
    with pytest.raises(meles.LockedError):
        open_db()
    first.close()
    with pytest.raises(meles.LockedError):
        open_db()
    second.close()
    open_db().close()


def test_it_is_refused_while_an_owner_is_alive(open_db: OpenDB) -> None:
    open_db()
    with pytest.raises(meles.LockedError):
        open_db(mode="read_only")


@pytest.mark.leak_guard
@pytest.mark.parametrize("there", [True, False])
def test_where_there_is_no_database_nothing_is_made(
    open_db: OpenDB, tmp_path: Path, there: bool
) -> None:
    if there:
        (tmp_path / "db").mkdir()
    before = state(tmp_path)
    with pytest.raises(meles.Error) as caught:
        open_db(mode="read_only")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, meles.DirectoryMissingError)
    assert state(tmp_path) == before


@pytest.mark.leak_guard
def test_it_starts_no_process_and_no_thread(open_db: OpenDB) -> None:
    open_db().close()
    before = threading.enumerate()
    with open_db(mode="read_only", workers="process", sync="interval") as db:
        assert threading.enumerate() == before
        assert db.workers() == []
        assert db.wait_idle(timeout=0)


WRITES: dict[str, Callable[[meles.DB], Any]] = {
    "set": lambda db: db.set(b"k", b"v"),
    "setitem": lambda db: db.__setitem__(b"k", b"v"),
    "delete": lambda db: db.delete(b"k"),
    "delitem": lambda db: db.__delitem__(b"k"),
    "update": lambda db: db.update(),
    "transact": lambda db: db.transact(lambda txn: None),
    "transactional": lambda db: db.transactional()(lambda txn: None)(),
    "write_batch": lambda db: db.write_batch(),
    "view": lambda db: db.view().set(b"k", b"v"),
    "view delete": lambda db: db.view().delete(b"k"),
    "flush": lambda db: db.flush(),
    "gc": lambda db: db.gc(),
    "flatten": lambda db: db.flatten(),
    "drop_all": lambda db: db.drop_all(),
    "drop_prefix": lambda db: db.drop_prefix(b"k"),
    "ban_namespace": lambda db: db.ban_namespace(1),
    "sequence": lambda db: db.sequence(b"s"),
    "merge_operator": lambda db: db.merge_operator(b"m", lambda a, b: a + b),
    "set_discard_ts": lambda db: db.set_discard_ts(1),
}


@pytest.mark.filterwarnings("ignore:a transaction was neither:ResourceWarning")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_raises_read_only_error(
    open_db: OpenDB, crashed: Path, write: Callable[[meles.DB], Any]
) -> None:
    before = state(crashed)
    db = open_db(mode="read_only", namespace_offset=0)
    with pytest.raises(meles.ReadOnlyError):
        write(db)
    db.close()
    assert state(crashed) == before


def test_everything_that_reads_works(open_db: OpenDB, crashed: Path) -> None:
    with open_db(mode="read_only") as db:
        assert db.get_many([b"logged", b"none"]) == [b"v", None]
        assert b"logged" in db
        with db.view() as txn:
            item = txn.item(b"large")
            assert item is not None
            assert (item.value_size, item.value) == (1000, b"w" * 1000)
            assert list(txn.keys(reverse=True)) == [b"logged", b"late", b"large"]
            assert txn.commit() == 0
        assert db.max_version() == 5
        assert db.banned_namespaces() == []
        assert db.tables()[0].min_key == b"flushed"
        assert [level.level for level in db.levels()] == list(range(7))
        assert db.size().value_log_bytes > 1000
        assert db.estimate_size(b"") > 0
        assert db.stats().flushes == 0
        assert db.health().status == "read_only"
        assert db.health().reasons
        report = db.close()
        assert report.clean
        assert db.close() is report


def test_a_reader_may_open_where_it_may_not_write(tmp_path: Path, open_db: OpenDB) -> None:
    """As another user, of a directory that nobody may write to."""
    with open_db() as db:
        db[b"k"] = b"v" * 5000
    directory = tmp_path / "db"
    for path in directory.iterdir():
        path.chmod(0o444)
    directory.chmod(0o555)
    look = f"""
import os, meles
meles.open(None, mode="memory", workers="inline").close()  # all is imported by now
if os.getuid() == 0: os.setgid(65534), os.setuid(65534)
with meles.open({str(directory)!r}, mode="read_only") as db: assert len(db[b"k"]) == 5000
"""
    parents = [p for p in directory.parents if p.stat().st_uid == os.getuid() and p != Path("/")]
    modes = {parent: parent.stat().st_mode for parent in parents}
    try:
        for parent in parents:
            parent.chmod(modes[parent] | 0o055)
        subprocess.run([sys.executable, "-c", look], check=True)
    finally:
        for parent in parents:
            parent.chmod(modes[parent])
        directory.chmod(0o755)

"""`db.backup`, `meles.restore`, `meles.check_backup`: what they do and what they refuse."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import meles
import pytest
from backups import CALM, backup, beside, content_of, entries, files, restored
from waiting import wait_until

OpenDB = Callable[..., meles.DB]


def test_a_backup_tells_what_it_wrote(db: meles.DB) -> None:
    db[b"k"] = b"v"
    db[b"k"] = b"w"
    sink = io.BytesIO()
    report = db.backup(sink)
    assert (report.since, report.version, report.entries) == (0, 2, 2)
    assert report.bytes == len(sink.getvalue())
    sink = io.BytesIO()
    report = db.backup(sink, since=report.version)
    assert (report.since, report.version, report.entries) == (2, 2, 2)  # both are still there


def test_restoring_tells_what_it_made(db: meles.DB, tmp_path: Path) -> None:
    db[b"k"] = b"v"
    report = meles.restore(io.BytesIO(backup(db)), tmp_path / "new")
    assert (report.path, report.version, report.entries) == (str(tmp_path / "new"), 1, 1)
    assert report.leftovers == ()
    with meles.open(tmp_path / "new", **CALM) as again:
        assert dict(again.items()) == {b"k": b"v"}
        again[b"l"] = b"w"
        assert again.max_version() == 2


def test_a_path_or_a_file_one_or_several(db: meles.DB, tmp_path: Path) -> None:
    db[b"k"] = b"v"
    full = tmp_path / "full"
    full.write_bytes(backup(db))
    del db[b"k"]
    more = backup(db, since=1)
    (tmp_path / "more").write_bytes(more)
    assert meles.restore(full, tmp_path / "a").version == 1
    assert meles.restore(str(full), tmp_path / "b").version == 1
    assert meles.restore([str(full), tmp_path / "more"], tmp_path / "c").version == 2
    assert meles.restore((full, io.BytesIO(more)), tmp_path / "d").version == 2
    with full.open("rb") as file:
        assert meles.restore(file, tmp_path / "e").version == 1
    with open(full, "rb", buffering=0) as file:
        assert meles.restore(iter([file]), tmp_path / "f").version == 1
    for source in (b"bytes", 7, None, [None]):
        with pytest.raises(TypeError, match="a path or a file of bytes"):
            meles.restore(source, tmp_path / "g")  # type: ignore[arg-type]
    with pytest.raises(meles.ConfigError, match="0 backups"):
        meles.restore([], tmp_path / "g")
    with pytest.raises(FileNotFoundError):
        meles.restore(tmp_path / "missing", tmp_path / "g")
    with full.open() as text, pytest.raises(TypeError, match="text mode"):
        meles.restore(text, tmp_path / "g")
    assert beside(tmp_path / "g") == ["a", "b", "c", "d", "db", "e", "f", "full", "more"]


def test_a_backup_can_be_checked_without_restoring_it(db: meles.DB, tmp_path: Path) -> None:
    db[b"k"] = b"v"
    first = backup(db)
    db[b"l"] = b"w"
    second = backup(db, since=1)
    report = meles.check_backup(files([first, second]))
    assert (report.path, report.version, report.entries) == (None, 2, 2)
    with pytest.raises(meles.CorruptionError, match="ends before its end"):
        meles.check_backup(files([first, second[:-1]]))
    with pytest.raises(meles.ConfigError):
        meles.check_backup(io.BytesIO(second))


# -- increments ----------------------------------------------------------------------------------


def test_a_deleted_key_does_not_come_back(open_db: OpenDB, tmp_path: Path) -> None:
    """Also when its tombstone, or the expired entry, was compacted away before the increment."""
    db = open_db(num_versions_to_keep=1)
    for key in (b"deleted", b"dropped/1", b"kept", b"replaced"):
        db[key] = b"old"
    chain = [backup(db)]
    since = db.max_version()
    del db[b"deleted"]
    db[b"replaced"] = b"new"
    db.drop_prefix(b"dropped/")
    db.flush()
    db.flatten()
    assert [item.key for item in db.iterate(all_versions=True)] == [b"kept", b"replaced"]
    chain.append(backup(db, since=since))
    restored(tmp_path / "new", *chain)
    assert content_of(tmp_path / "new") == entries(db)
    assert [entry[0] for entry in entries(db)] == [b"kept", b"replaced"]


def test_increments_of_a_restored_database_go_on(db: meles.DB, tmp_path: Path) -> None:
    db[b"a"] = b"1"
    chain = [backup(db)]
    restored(tmp_path / "one", *chain)
    with meles.open(tmp_path / "one", **CALM) as one:
        assert one.max_version() == 1
        one[b"b"] = b"2"
        del one[b"a"]
        chain.append(backup(one, since=1))
        wanted = entries(one)
    restored(tmp_path / "two", *chain)
    assert content_of(tmp_path / "two") == wanted


def test_streams_that_do_not_follow_one_another(db: meles.DB, tmp_path: Path) -> None:
    db[b"a"] = b"1"
    full = backup(db)
    db[b"b"] = b"2"
    first, whole = backup(db, since=1), backup(db)
    db[b"c"] = b"3"
    second = backup(db, since=2)
    for chain, what in (
        ([first], "is an increment since version 1"),
        ([full, second], "since version 2, and <stream 1> ends at version 1"),
        ([full, first, first], "since version 1, and <stream 2> ends at version 2"),
        ([full, full], "since version 0, and <stream 1> ends at version 1"),
        ([first, full], "is an increment since version 1"),
        ([whole, first], "since version 1, and <stream 1> ends at version 2"),
    ):
        with pytest.raises(meles.ConfigError, match=what):
            restored(tmp_path / "new", *chain)
    assert beside(tmp_path / "new") == ["db"]
    for chain in ([full, first, second], [whole, second]):
        assert restored(tmp_path / str(len(chain)), *chain).version == 3


def test_an_increment_of_another_database_is_refused(open_db: OpenDB, tmp_path: Path) -> None:
    one, other = open_db(tmp_path / "one"), open_db(tmp_path / "other")
    one[b"a"], other[b"a"] = b"1", b"22"
    full = backup(one)
    other[b"b"] = b"2"
    with pytest.raises(meles.CorruptionError, match="not of one database"):
        restored(tmp_path / "new", full, backup(other, since=1))
    assert not (tmp_path / "new").exists()


def test_a_since_that_no_backup_can_have_told(db: meles.DB) -> None:
    db[b"a"] = b"1"
    sink = io.BytesIO()
    with pytest.raises(meles.ConfigError, match="since=2: the newest commit of this database is 1"):
        db.backup(sink, since=2)
    for wrong in (-1, 1.5, "1", None, True):
        with pytest.raises(ValueError, match="since"):
            db.backup(sink, since=wrong)  # type: ignore[arg-type]
    assert sink.getvalue() == b""


# -- snapshots -----------------------------------------------------------------------------------


class Interrupted(io.BytesIO):
    """A sink that lets something happen before each write."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens = happens

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._happens()
        return super().write(data)


def test_the_stream_is_one_snapshot(open_db: OpenDB, tmp_path: Path) -> None:
    """Commits, deletions, a flush, a compaction and a collection between its writes change nothing
    of what it holds."""
    db = open_db(num_versions_to_keep=1, value_threshold=100)
    for number in range(2000):
        db[b"k%04d" % number] = b"%d " % number * 100
    wanted, told = entries(db), []

    def meanwhile() -> None:
        told.append(db.max_version())
        for number in range(0, 2000, 100):
            db[b"k%04d" % number] = b"other"
            del db[b"k%04d" % (number + 1)]
        db.flush()
        db.flatten()
        db.gc(0.01)

    sink = Interrupted(meanwhile)
    report = db.backup(sink)
    assert len(told) > 4
    assert report.version == 2000
    restored(tmp_path / "new", sink.getvalue())
    assert content_of(tmp_path / "new") == wanted
    assert db.stats().readers == 0


def test_writers_go_on_meanwhile(db: meles.DB, tmp_path: Path) -> None:
    """Whatever threads commit, a backup has all of it up to its version and nothing behind it."""
    over, streams = threading.Event(), []

    def write(who: int) -> None:
        number = 0
        while not over.is_set():
            with db.update() as txn:
                for half in (b"a", b"b"):
                    txn[b"%s/%d" % (half, who)] = b"%d" % number
            number += 1

    threads = [threading.Thread(target=write, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    try:
        while len(streams) < 4 or db.max_version() < 100:
            streams.append(backup(db))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    for number, stream in enumerate(streams[-4:]):
        report = restored(tmp_path / str(number), stream)
        with meles.open(tmp_path / str(number), mode="read_only") as again:
            found = dict(again.items())
            newest = max((item.version for item in again.iterate(all_versions=True)), default=0)
        assert newest == report.version
        for who in range(2):
            assert found.get(b"a/%d" % who) == found.get(b"b/%d" % who)


def test_what_a_backup_holds_is_on_the_medium(open_db: OpenDB) -> None:
    db = open_db()
    db[b"a"] = b"1"
    before = db.stats().syncs
    backup(db)
    assert db.stats().syncs == before + 1


def test_a_commit_that_can_be_read_is_waited_for(db: meles.DB) -> None:
    """Publishing comes before counting what is to be synced; both are done under one lock."""
    db[b"a"] = b"1"
    db.sync()
    sink, engine = io.BytesIO(), db._engine
    thread = threading.Thread(target=db.backup, args=(sink,))
    assert engine.writer is not None
    with engine.writer.lock:
        thread.start()
        wait_until(lambda: engine.oracle.readers() or not thread.is_alive())
        thread.join(0.2)  # one that does not wait is done by then, or the bug is missed this time
        assert sink.getvalue() == b""
    thread.join()
    assert sink.getvalue()


def test_closing_ends_a_backup(db: meles.DB) -> None:
    for number in range(5000):
        db[b"k%04d" % number] = b"v" * 500
    with pytest.raises(meles.ClosedError):
        db.backup(Interrupted(db.close))
    with pytest.raises(meles.ClosedError):
        db.backup(io.BytesIO())


# -- sinks ---------------------------------------------------------------------------------------


class Sips(io.RawIOBase):
    """A file without a buffer, which takes little at a time."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.taken += data[:1000]
        return min(len(data), 1000)


def test_a_sink_may_take_less_at_a_time(db: meles.DB, tmp_path: Path) -> None:
    db[b"k"] = os.urandom(100_000)
    sink = Sips()
    db.backup(sink)
    restored(tmp_path / "new", sink.taken)
    assert content_of(tmp_path / "new") == entries(db)


@pytest.mark.parametrize("answer", [None, 0, -1, 1 << 20, "1"])
def test_a_sink_that_does_not_say_how_much_it_took(db: meles.DB, answer: object) -> None:
    class Odd:
        def write(self, data: bytes) -> object:
            return answer

    with pytest.raises((BlockingIOError, TypeError), match="sink"):
        db.backup(Odd())
    assert db.stats().readers == 0


def test_what_a_sink_raises_comes_out(db: meles.DB) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        db.backup(Interrupted(fail))
    assert db.stats().readers == 0
    db[b"k"] = b"v"
    assert backup(db)


# -- kinds of databases --------------------------------------------------------------------------


def test_a_read_only_handle_can_be_backed_up(open_db: OpenDB, tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", **CALM) as db:
        db[b"k"] = b"v"
        wanted = entries(db)
    with meles.open(tmp_path / "db", mode="read_only") as db:
        restored(tmp_path / "new", backup(db))
    assert content_of(tmp_path / "new") == wanted


def test_memory_mode_can_be_backed_up(tmp_path: Path) -> None:
    with meles.open(None, mode="memory", **CALM) as db:
        db[b"k"] = b"v"
        restored(tmp_path / "new", backup(db))
    assert len(content_of(tmp_path / "new")) == 1


def test_an_empty_database(db: meles.DB, tmp_path: Path) -> None:
    empty = backup(db)
    assert restored(tmp_path / "new", empty).entries == 0
    with meles.open(tmp_path / "new", **CALM) as again:
        assert list(again) == []
        assert again.max_version() == 0
    db[b"k"] = b"v"
    assert restored(tmp_path / "more", empty, backup(db)).entries == 1


def test_timestamps_go_on_where_they_were(db: meles.DB, tmp_path: Path) -> None:
    """Also when nothing is left that has them."""
    for number in range(10):
        db[b"%d" % number] = b"v"
    db.drop_all()
    newest = db.max_version()
    restored(tmp_path / "new", backup(db))
    with meles.open(tmp_path / "new", **CALM) as again:
        assert again.max_version() == newest
        again[b"k"] = b"v"
        assert again.max_version() == newest + 1


def test_managed_databases(open_db: OpenDB, tmp_path: Path) -> None:
    db = open_db(managed=True, num_versions_to_keep=9)
    for ts in (5, 3, 9):
        with db.write_batch(at=ts) as batch:
            batch.set(b"k", b"%d" % ts)
            batch.set(b"k%d" % ts, b"v")
    chain = [backup(db)]
    with db.write_batch(at=12) as batch:
        batch.delete(b"k")
    chain.append(backup(db, since=9))
    restored(tmp_path / "new", *chain)
    with meles.open(tmp_path / "new", managed=True, num_versions_to_keep=9, **CALM) as again:
        assert entries(again) == entries(db)
        for ts, value in ((4, b"3"), (8, b"5"), (11, b"9"), (12, None)):
            with again.view(at=ts) as txn:
                assert txn.get(b"k") == value
        with again.write_batch(at=4) as batch:  # below what is there
            batch.set(b"k", b"4")
        with again.view(at=4) as txn:
            assert txn[b"k"] == b"4"
    with db.write_batch(at=2) as batch:
        batch.set(b"late", b"v")
    chain.append(backup(db, since=12))
    with pytest.raises(meles.CorruptionError, match="committed below their versions"):
        restored(tmp_path / "other", *chain)


def test_bans_stay(open_db: OpenDB, tmp_path: Path) -> None:
    db = open_db(namespace_offset=0)
    key = (7).to_bytes(8, "big") + b"k"
    db[key] = b"v"
    chain = [backup(db)]
    db.ban_namespace(7)
    db.ban_namespace(3)
    db[(8).to_bytes(8, "big") + b"k"] = b"v"
    chain.append(backup(db, since=1))
    restored(tmp_path / "new", *chain)
    with meles.open(tmp_path / "new", namespace_offset=0, **CALM) as again:
        assert again.banned_namespaces() == [3, 7]
        assert dict(again.items()) == dict(db.items())
        with pytest.raises(meles.BannedKeyError):
            again.get(key)


def test_an_encrypted_database_has_to_be_asked_for(open_db: OpenDB, tmp_path: Path) -> None:
    key, other = bytes(32), bytes(range(16))
    db = open_db(encryption_key=key)
    db[b"k"] = b"canary" * 500
    sink = io.BytesIO()
    with pytest.raises(meles.ConfigError, match="would not be") as caught:
        db.backup(sink)
    assert "plain=True" in str(caught.value)
    assert sink.getvalue() == b""
    stream = backup(db, plain=True)
    assert b"canary" in stream
    restored(tmp_path / "new", stream, encryption_key=other)
    assert content_of(tmp_path / "new", encryption_key=other) == entries(db)
    with pytest.raises(meles.EncryptionKeyError):
        meles.open(tmp_path / "new", mode="read_only")
    for path in (tmp_path / "new").iterdir():
        assert b"canary" not in path.read_bytes()
    restored(tmp_path / "plain", stream)
    assert content_of(tmp_path / "plain") == entries(db)


# -- the directory -------------------------------------------------------------------------------


def test_only_into_a_new_or_empty_directory(db: meles.DB, tmp_path: Path) -> None:
    db[b"k"] = b"v"
    stream = backup(db)
    (tmp_path / "empty").mkdir(mode=0o755)
    restored(tmp_path / "empty", stream)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    for name in ("db", "empty", "full", "file"):
        with pytest.raises(meles.ConfigError, match=r"is not empty|is no directory"):
            restored(tmp_path / name, stream)
    with pytest.raises(meles.DirectoryMissingError, match="no directory"):
        restored(tmp_path / "missing" / "new", stream)
    for wrong in (None, "", "a\0b"):
        with pytest.raises(meles.ConfigError):
            meles.restore(io.BytesIO(stream), wrong)  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "full") == ["x"]
    assert beside(tmp_path / "new") == ["db", "empty", "file", "full"]


def test_a_directory_for_values_of_its_own_is_refused(db: meles.DB, tmp_path: Path) -> None:
    with pytest.raises(meles.ConfigError, match="value_dir"):
        restored(tmp_path / "new", backup(db), value_dir=str(tmp_path / "values"))
    assert beside(tmp_path / "new") == ["db"]


def test_options_say_how_the_files_are_made(db: meles.DB, tmp_path: Path) -> None:
    for number in range(2000):
        db[b"k%04d" % number] = b"v" * 200
    stream = backup(db)
    restored(
        tmp_path / "new", stream, compression="zstd", value_threshold=100, base_table_size="64KiB"
    )
    with meles.open(tmp_path / "new", mode="read_only") as again:
        assert {table.compression for table in again.tables()} == {"zstd"}
        assert again.stats().value_log.files == 1
        assert entries(again) == entries(db)
    with pytest.raises(meles.ConfigError, match="compression"):
        restored(tmp_path / "other", stream, compression="none such")
    (tmp_path / "conf.toml").write_text('[meles]\ncompression = "zstd"\n')
    meles.restore(io.BytesIO(stream), tmp_path / "third", config=tmp_path / "conf.toml")
    with meles.open(tmp_path / "third", mode="read_only") as again:
        assert {table.compression for table in again.tables()} == {"zstd"}

"""Odd surroundings: paths, directories that move, copies of a live directory, races to open."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import meles
import pytest
from meles.engine.background import idling
from story import OPTIONS, Story
from waiting import wait_until

NAMES = [
    b"with space", b"new\nline", b"\xff\xfe not utf-8", "grün".encode(), b"x" * 255, b"-rf",
    b"%s{}$(true)`", b"'quoted\"",
]  # fmt: skip
ROUND = """
import os, sys
import meles
where = os.fsdecode(bytes.fromhex(sys.argv[1]))
for n in range(2):
    with meles.open(where, sync="none") as db:
        for key in range(50):
            db[b"%d" % key] = b"v" * 2000
        db.flush(60)
        db.flatten(timeout=60)
        assert db.workers()[0].pid
        assert db.verify(values=True).ok
        assert db.health().status == "ok", db.health()
with meles.open(where, mode="read_only") as db:
    assert len(list(db.items())) == 50
print("fine")
"""


def run(where: bytes, **how: object) -> None:
    command = [sys.executable, "-W", "error", "-c", ROUND, where.hex()]
    done = subprocess.run(command, capture_output=True, check=False, timeout=100, **how)  # type: ignore[call-overload]
    assert done.stdout == b"fine\n", done.stderr.decode()


def test_names_of_directories(tmp_path):
    run(os.path.join(os.fsencode(tmp_path), *NAMES))


@pytest.mark.parametrize(("locale", "umask"), [("POSIX", 0o777), ("C.UTF-8", 0)], ids=str)
def test_locales_and_umasks(tmp_path, locale, umask):
    run(os.fsencode(tmp_path / "db"), env={**os.environ, "LANG": locale, "LC_ALL": locale},
        umask=umask)  # fmt: skip


def test_a_relative_path_from_a_directory_that_is_left_and_removed(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with meles.open("db", **OPTIONS) as db:
        monkeypatch.chdir("/")
        story = Story()
        story.go_on(db)
    assert story.errors == []
    assert (tmp_path / "here" / "db" / "MANIFEST").exists()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with meles.open(tmp_path / "here" / "db", mode="read_only") as db:
        assert dict(db.items()) == story.states[-1]


# -- directories that move -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_a_directory_that_is_renamed_while_open(tmp_path, workers):
    """Names are those of the open directory: nothing lands in another that takes its path."""
    home, story = tmp_path / "db", Story({**OPTIONS, "workers": workers})
    with meles.open(home, **story.options) as db:
        story.commit(db, {b"before": b"x" * 2000})
        home.rename(tmp_path / "moved")
        home.mkdir(mode=0o700)
        story.go_on(db)
        assert story.errors == []
        with meles.open(home, **OPTIONS) as other:  # another directory, another database
            assert list(other.items()) == []
    story.judge(tmp_path / "moved")


def away(where: Path) -> None:
    where.rename(where.with_name("elsewhere"))


def replaced(where: Path) -> None:
    away(where)
    where.mkdir(mode=0o700)


def replaced_by_a_link(where: Path) -> None:
    where.with_name("other").mkdir(mode=0o700)
    away(where)
    where.symlink_to(where.with_name("other"))


def under_a_file(where: Path) -> None:
    where.parent.rename(where.parent.with_name("up"))
    where.parent.touch()


def written_by(begin):
    def write(key, value):
        with begin() as changes:
            changes[key] = value

    return write


@pytest.mark.parametrize("which", ["db", "values"])
@pytest.mark.parametrize("move", [away, replaced, replaced_by_a_link, under_a_file])
def test_a_directory_that_moves_is_noticed(tmp_path, monkeypatch, move, which):
    """`health()` and the error of each write name its path, nothing is put there, and what was
    written is in the directory. Once it is back, so are writes."""
    monkeypatch.setattr(idling, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(idling, "DOZE_SECONDS", 0.05)
    for name in ("db", "values"):
        (tmp_path / f"home of {name}").mkdir()
    homes = {name: tmp_path / f"home of {name}" / name for name in ("db", "values")}
    where = homes[which]
    options = {**OPTIONS, "workers": "process", "value_dir": homes["values"]}
    with meles.open(homes["db"], **options) as db:
        assert db.health().status == "ok"
        db[b"early"] = bytes(2000)
        move(where)
        health = wait_until(lambda: (found := db.health()).status == "degraded" and found, 60)
        assert [str(where) in reason for reason in health.reasons] == [True]
        for write in (db.set, written_by(db.update), written_by(db.write_batch)):
            with pytest.raises(meles.DirectoryMissingError) as refused:
                write(b"late", b"v")
            assert str(where) in refused.value.message
        assert db.get(b"early") == bytes(2000)
        assert db.get(b"late") is None
        db.flush(60)
        if move is away:
            monkeypatch.setattr(idling, "DOZE_SECONDS", 1e6)
            monkeypatch.setattr(idling, "QUIET_SECONDS", 1e6)
            where.with_name("elsewhere").rename(where)
            db[b"late"] = bytes(2000)  # a write looks for itself
            assert db.health().status == "ok"
        assert db.close().clean
    if move is replaced:
        assert os.listdir(where) == []


def test_a_directory_that_moves_and_comes_back_while_nobody_writes(tmp_path, monkeypatch):
    """Inline nobody looks by himself: the first call does that has something else to do, too."""
    monkeypatch.setattr(idling, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(idling, "DOZE_SECONDS", 0.05)
    home = tmp_path / "db"
    with meles.open(home, **{**OPTIONS, "workers": "inline"}) as db:
        db[b"k"] = b"v"
        home.rename(tmp_path / "elsewhere")
        wait_until(lambda: db.wait_idle(10) and db.health().status == "degraded", 60)
        with pytest.raises(meles.DirectoryMissingError):
            db[b"k"] = b"w"
        (tmp_path / "elsewhere").rename(home)
        db[b"k"] = b"w"
        assert db.health().status == "ok"
        home.rename(tmp_path / "elsewhere")
        wait_until(lambda: db.wait_idle(10) and db.health().status == "degraded", 60)
        (tmp_path / "elsewhere").rename(home)
        wait_until(lambda: db.wait_idle(10) and db.health().status == "ok", 60)
        db[b"k"] = b"x"
        assert db.close().clean


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_a_directory_that_is_removed_while_open(tmp_path, workers):
    home, story = tmp_path / "db", Story({**OPTIONS, "workers": workers})
    db = meles.open(home, **{**story.options, "write_stall_timeout": 1.0, "close_timeout": 5.0})
    story.commit(db, {b"before": b"x" * 2000})
    while home.exists():  # a worker may add a file between the last unlink and the rmdir
        shutil.rmtree(home, ignore_errors=True)
    story.go_on(db)
    assert story.errors  # typed, or `go_on` would have raised
    assert db.health().status != "ok"
    assert not db.close().clean
    assert not home.exists()


def test_directories_that_others_replace_while_open(tmp_path):
    """Both of them, by another directory and by a link; workers that start afterwards know only
    the open ones too, and the others stay as they are."""
    home, values = tmp_path / "db", tmp_path / "values"
    story = Story({**OPTIONS, "workers": "process", "value_dir": values})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with meles.open(home, **story.options) as db:
        story.commit(db, {b"before": b"x" * 2000})
        home.rename(tmp_path / "moved")
        values.rename(tmp_path / "moved values")
        home.mkdir(mode=0o700)
        values.symlink_to(foreign)
        wait_until(lambda: all(worker.state == "idle" for worker in db.workers()), 60)
        for worker in db.workers():
            os.kill(worker.pid, signal.SIGKILL)
        story.go_on(db)
        assert story.errors == []
        assert {worker.restarts for worker in db.workers()} == {1}
    assert os.listdir(home) == os.listdir(foreign) == []
    values.unlink()
    (tmp_path / "moved values").rename(values)
    with meles.open(tmp_path / "moved", **story.options) as db:
        assert dict(db.items()) == story.states[-1]
        assert db.verify(values=True).ok


# -- copies and races ----------------------------------------------------------------------------


def test_copies_of_a_live_directory_are_consistent_or_refused(shm_path):
    """Copied file by file while it is written: a prefix of the commits, or a typed error."""
    home, over = shm_path / "db", threading.Event()
    options = {**OPTIONS, "workers": "thread", "sync": "none"}
    outcomes = {"opened": 0, "refused": 0}
    with meles.open(home, **options) as db:

        def write():
            number = 0
            while not over.is_set():
                number += 1
                with db.update() as txn:
                    txn[b"n"] = b"%d" % number
                    txn[b"k%d" % (number % 50)] = b"%d " % number * 300
                    txn[b"m%d" % (number % 50)] = b"%d" % number

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for n in range(12):
                copy = shm_path / f"copy{n}"
                copy.mkdir(mode=0o700)
                for name in sorted(os.listdir(home)):
                    try:
                        shutil.copyfile(home / name, copy / name)
                    except FileNotFoundError:
                        continue
                outcomes[look(copy)] += 1
                shutil.rmtree(copy)
        finally:
            over.set()
            writer.join()
    assert sum(outcomes.values()) == 12


def look(copy: Path) -> str:
    try:
        with meles.open(copy, mode="read_only") as db:
            newest = int(db.get(b"n", b"0"))
            for slot in range(50):
                number = int(db.get(b"m%d" % slot, b"0"))
                assert number <= newest
                assert number == 0 or number > newest - 50
                assert number == 0 or db.get(b"k%d" % slot) == b"%d " % number * 300
    except meles.CorruptionError:
        return "refused"
    return "opened"


RACER = """
import sys, time
import meles
print("here", flush=True)
sys.stdin.readline()
try:
    with meles.open(sys.argv[1], workers="inline") as db:
        print("won", flush=True)
        sys.stdin.readline()
except meles.LockedError as error:
    print("lost", error.pid, flush=True)
"""


def test_of_many_that_open_at_once_one_wins(tmp_path):
    """By its path, through a link, and by a relative path."""
    home = tmp_path / "db"
    meles.open(home, workers="inline").close()
    (tmp_path / "link").symlink_to(home)
    paths = [str(home), str(tmp_path / "link"), "db", "./link/../db"]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, paths[n % 4]], cwd=tmp_path, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for n in range(6)
    ]  # fmt: skip
    try:
        for racer in racers:
            assert racer.stdout.readline() == b"here\n"
        for racer in racers:
            racer.stdin.write(b"\n")
        said = [racer.stdout.readline().split() for racer in racers]
        won = [racer for racer, words in zip(racers, said, strict=True) if words == [b"won"]]
        assert len(won) == 1
        assert {words[1] for words in said if words[0] == b"lost"} <= {b"%d" % won[0].pid, b"None"}
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.wait(60)
            racer.stdout.close()

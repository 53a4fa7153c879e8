"""SIGKILL of a restore at a system call that changes files: before it, or after a third of a write.

At the path is nothing or all of it. What is left beside it is one directory whose name says what it
is; it is locked by nobody, and the next restore names it and does not mind it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import meles
import pytest
from backups import CALM, Entry, backup, beside, content_of, entries
from syscalls import start_watched
from tally import Tally

pytestmark = pytest.mark.usefixtures("syscalls_watched")

DEADLINE = 60.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Entry]]:
    """A full backup and an increment as files, and what they add up to."""
    home = tmp_path_factory.mktemp("made")
    with meles.open(home / "db", **CALM) as db:
        for number in range(600):
            db[b"k%04d" % number] = b"%d " % number * (1000 if number % 60 == 0 else 40)
        (home / "full").write_bytes(backup(db))
        since = db.max_version()
        for number in range(0, 600, 7):
            del db[b"k%04d" % number]
        (home / "more").write_bytes(backup(db, since=since))
        return [home / "full", home / "more"], entries(db)


class Restoring:
    """A restore in a process of its own, struck at its n-th call."""

    def __init__(self, path: Path, sources: list[Path]) -> None:
        self.popen, self.watcher = start_watched(
            "watched_restore.py", str(path), *map(str, sources), directory=str(path.parent)
        )
        self.kinds: Counter[str] = Counter()
        self.writes = 0
        self.struck = ""

    def strike_at(self, number: int, share: float) -> bool:
        """Let all calls pass but that one, with a `share` that write; returns whether it said that
        it was done."""
        for call in self.watcher.calls(DEADLINE):
            self.kinds[call.name] += 1
            self.writes += call.writes
            count = self.writes if share else self.kinds.total()
            if count == number and (call.writes or not share):
                self.struck = call.name
                if share:
                    call.do_part(share)
                os.kill(self.popen.pid, signal.SIGKILL)
            else:
                call.allow()
        out, err = self.popen.communicate(timeout=DEADLINE)
        assert err == b"", err.decode()
        assert (out == b"restored\n") == (self.popen.returncode == 0)
        return out == b"restored\n"

    def close(self) -> None:
        self.watcher.close()
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.communicate()


def strike(
    home: Path, made: tuple[list[Path], list[Entry]], number: int, share: float = 0.0
) -> Restoring:
    """One trial; what it struck is empty when there was no such call."""
    sources, wanted = made
    path = home / "db"
    with contextlib.closing(Restoring(path, sources)) as restoring:
        done = restoring.strike_at(number, share)
    if path.exists():
        assert content_of(path) == wanted
        assert beside(path) == []
    else:
        assert not done
        left = beside(path)
        assert len(left) <= 1
        assert all(name.startswith(".db.restoring-") for name in left)
        report = meles.restore(sources, path)
        assert [Path(name).name for name in report.leftovers] == left
        assert content_of(path) == wanted
    return restoring


@pytest.fixture(scope="module", params=[0.0, 1 / 3], ids=["before", "within"])
def share(request: pytest.FixtureRequest) -> float:
    """How much of the call is done before the kill."""
    return float(request.param)


@pytest.fixture(scope="module")
def calls(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[list[Path], list[Entry]], share: float
) -> int:
    """How many calls a restore has, or writes; it must have met every kind of change."""
    whole = strike(tmp_path_factory.mktemp("whole"), made, 0)
    wanted = {"mkdirat", "openat", "pwrite64", "fdatasync", "fsync", "renameat"}
    assert wanted <= whole.kinds.keys(), whole.kinds
    assert whole.kinds["renameat"] == 2  # the MANIFEST, and the directory
    return whole.writes if share else whole.kinds.total()


def strike_each(
    shm_path: Path, tally: Tally, made: tuple[list[Path], list[Entry]], share: float,
    numbers: list[int],
) -> None:  # fmt: skip
    for number in numbers:
        home = shm_path / str(number)
        home.mkdir()
        try:
            restoring = strike(home, made, number, share)
        except BaseException as error:
            error.add_note(f"call {number}, share {share}")
            raise
        assert restoring.struck, "void"
        tally(f"SIGKILL of a restore {'within a write' if share else 'before a call'}", 1)
        shutil.rmtree(home)


def test_some_calls(
    shm_path: Path, tally: Tally, made: tuple[list[Path], list[Entry]], calls: int, share: float
) -> None:
    """A sample, and always the last ones, when it gets its name."""
    some = random.Random(share).sample(range(1, calls - 2), 3)
    strike_each(shm_path, tally, made, share, [*some, calls - 2, calls - 1, calls])


@pytest.mark.long
@pytest.mark.timeout(0)
def test_each_call(
    shm_path: Path, tally: Tally, made: tuple[list[Path], list[Entry]], calls: int, share: float
) -> None:
    strike_each(shm_path, tally, made, share, list(range(1, calls + 1)))

"""A small directory that holds every kind of file, and ways to damage a file of it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import meles
from fault_fs import FaultDisk, Operation
from story import OPTIONS, Data, Story

KINDS = ("MANIFEST", "table", "value log", "open value log", "log", "open log")


@dataclass(frozen=True)
class Whole:
    """The undamaged directory, an older copy of it, and every state it ever was in."""

    path: Path
    older: Path
    states: list[Data]
    kinds: dict[str, str]  # name of each file: its kind

    def names(self, kind: str) -> list[str]:
        return sorted(name for name, its in self.kinds.items() if its == kind)


def no_more_tables(operation: Operation) -> None:
    """Flushes fail from now on, so sealed logs stay."""
    if operation.kind == "create" and operation.name.endswith(".sst"):
        raise OSError(errno.EMFILE, "injected")


def build(home: Path, *, closed: bool) -> Whole:
    """A database as a kill leaves it, with every kind of file; or as closing does."""
    story, path = Story(), home / "db"
    with FaultDisk(remember=False).installed() as disk:
        db = meles.open(path, **OPTIONS)
        story.go_on(db)
        for n in range(6):
            story.commit(db, {b"flushed%d" % n: b"%d" % n * 1200, b"small%d" % n: b"s"})
        db.flush()
        shutil.copytree(path, home / "older")
        disk.plan = None if closed else no_more_tables
        for n in range(4):
            story.commit(db, {b"late%d" % n: b"%d" % n * 1500, b"k%d" % n: b"late"})
        with contextlib.suppress(meles.WriteStallError):
            db.flush()
        for n in range(4):
            story.commit(db, {b"last%d" % n: b"%d" % n * 1500, b"k%d" % n: b"last"})
        if closed:
            db.close()
        shutil.copytree(path, home / "whole")
        disk.plan = None
        db.close()
    for copy in ("older", "whole"):
        (home / copy / "LOCK").unlink(missing_ok=True)
    return Whole(home / "whole", home / "older", story.states, kinds_in(home / "whole", closed))


def kinds_in(path: Path, closed: bool) -> dict[str, str]:
    """The kind of each file; after a kill the newest log and value-log file are open."""
    plain = {"": "MANIFEST", ".sst": "table", ".vlog": "value log", ".mem": "log"}
    kinds = {name: plain[os.path.splitext(name)[1]] for name in sorted(os.listdir(path))}
    for kind in () if closed else ("value log", "log"):
        newest = max(name for name, its in kinds.items() if its == kind)
        kinds[newest] = f"open {kind}"
    return kinds


def listing(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in sorted(os.listdir(path))}


# -- damage to a whole file ----------------------------------------------------------------------

Change = Callable[[Whole, Path, str], bool]  # damages path/name; False when it does not apply


def shortened(_: Whole, path: Path, name: str) -> bool:
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])
    return True


def without_its_last_byte(_: Whole, path: Path, name: str) -> bool:
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    return True


def lengthened(_: Whole, path: Path, name: str) -> bool:
    with (path / name).open("ab") as file:
        file.write(b"something else" * 50)
    return True


def empty(_: Whole, path: Path, name: str) -> bool:
    (path / name).write_bytes(b"")
    return True


def zeroed(_: Whole, path: Path, name: str) -> bool:
    (path / name).write_bytes(bytes((path / name).stat().st_size))
    return True


def missing(_: Whole, path: Path, name: str) -> bool:
    (path / name).unlink()
    return True


def swapped(whole: Whole, path: Path, name: str) -> bool:
    kind = whole.kinds[name]
    others = [other for other in whole.names(kind) if other != name]
    if not others:
        return False
    one, other = path / name, path / others[0]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return True


def of_an_older_copy(whole: Whole, path: Path, name: str) -> bool:
    old = whole.older / name
    if not old.exists() or old.read_bytes() == (path / name).read_bytes():
        return False
    (path / name).write_bytes(old.read_bytes())
    return True


def a_directory(_: Whole, path: Path, name: str) -> bool:
    (path / name).unlink()
    (path / name).mkdir()
    return True


def random_bytes(_: Whole, path: Path, name: str) -> bool:
    size = (path / name).stat().st_size
    (path / name).write_bytes(random.Random(name).randbytes(size))
    return True


CHANGES: list[Change] = [
    shortened, without_its_last_byte, lengthened, empty, zeroed, missing, swapped,
    of_an_older_copy, random_bytes,
]  # fmt: skip

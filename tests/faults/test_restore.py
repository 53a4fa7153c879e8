"""Restoring whose n-th call fails, or is the last before a kill or a power cut; a sink that fails.

At the path is nothing, or the empty directory that was there, or all of it. A call that fails costs
this restore and leaves nothing; a kill leaves what the next restore names.
"""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meles
import pytest
from backups import CALM, Entry, backup, beside, content_of, entries, restored
from fault_fs import GROWING, MUTATING, FailNth, FaultDisk, Operation
from tally import Tally

KEY = bytes(range(32))
OPTIONS: dict[str, Any] = {"base_table_size": "64KiB", "value_log_max_entries": 8}
CASES = pytest.mark.parametrize(
    ("there", "key"), [(False, None), (True, KEY)], ids=["new", "empty, encrypted"]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[Entry]]:
    """A chain that restores into some tables and value-log files, and what is in it."""
    with meles.open(tmp_path_factory.mktemp("made") / "db", **CALM) as db:
        for number in range(1200):
            db[b"k%04d" % number] = b"%d " % number * (1000 if number % 60 == 0 else 30)
        chain = [backup(db)]
        since = db.max_version()
        for number in range(0, 1200, 7):
            del db[b"k%04d" % number]
        db[b"large"] = b"v" * 300_000
        chain.append(backup(db, since=since))
        return chain, entries(db)


def options(key: bytes | None) -> dict[str, Any]:
    return OPTIONS | ({} if key is None else {"encryption_key": key})


def place(home: Path, there: bool) -> Path:
    """The path to restore to: absent, or an empty directory."""
    home.mkdir()
    if there:
        (home / "db").mkdir()
    return home / "db"


def state(path: Path, wanted: list[Entry], key: bytes | None) -> str:
    """What is at a path: nothing, an empty directory, or everything. There is nothing else."""
    if not path.exists():
        return "absent"
    if not list(path.iterdir()):
        return "empty"
    assert content_of(path, encryption_key=key) == wanted
    return "whole"


def operations(home: Path, chain: list[bytes], there: bool, key: bytes | None) -> list[str]:
    """The kinds of calls a restore makes."""
    path = place(home, there)
    with FaultDisk(remember=False).installed() as disk:
        restored(path, *chain, **options(key))
        kinds = [operation.kind for operation in disk.log]
    assert len(list(path.glob("*.sst"))) >= 2
    assert len(list(path.glob("*.vlog"))) >= 2
    assert {"make_dir", "create", "write", "sync", "sync_dir", "rename", "put_dir"} <= set(kinds)
    return kinds


@CASES
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "for good"])
def test_whatever_call_fails(
    made: tuple[list[bytes], list[Entry]], shm_path: Path, tally: Tally, code: int, sticky: bool,
    there: bool, key: bytes | None,
) -> None:  # fmt: skip
    chain, wanted = made
    kinds = frozenset(
        {errno.ENOSPC: GROWING, errno.EMFILE: frozenset({"create", "open"})}.get(code, MUTATING)
    )
    calls = [kind for kind in operations(shm_path / "first", chain, there, key) if kind in kinds]
    before = "empty" if there else "absent"
    for nth in range(1, len(calls) + 1):
        path = place(shm_path / str(nth), there)
        with FaultDisk(remember=False).installed() as disk:
            disk.plan = plan = FailNth(nth, code, sticky=sticky, kinds=kinds)
            with pytest.raises(OSError, match="injected") as caught:
                restored(path, *chain, **options(key))
            assert plan.fired
        assert isinstance(caught.value, meles.DiskFullError) == (
            code == errno.ENOSPC and calls[nth - 1] != "sync"
        )
        late = "put_dir" in calls[: nth - 1]  # it has its name, but perhaps not after a power cut
        assert state(path, wanted, key) == ("whole" if late else before), calls[nth - 1]
        if not sticky:
            assert beside(path) == []
        elif not late:
            report = restored(path, *chain, **options(key))  # the disk was repaired
            assert [Path(left).name for left in report.leftovers] == beside(path)
        shutil.rmtree(shm_path / str(nth))
    tally(f"{errno.errorcode[code]} in restoring", len(calls))


@CASES
def test_a_write_that_is_torn(
    made: tuple[list[bytes], list[Entry]], shm_path: Path, there: bool, key: bytes | None
) -> None:
    chain, wanted = made
    writes = operations(shm_path / "first", chain, there, key).count("write")
    for nth in range(1, writes + 1):
        path = place(shm_path / str(nth), there)
        with FaultDisk(remember=False).installed() as disk:
            disk.plan = FailNth(nth, kinds=frozenset({"write"}), torn=0.4)
            with pytest.raises(OSError, match="injected"):
                restored(path, *chain, **options(key))
        assert state(path, wanted, key) == ("empty" if there else "absent")
        assert beside(path) == []


@CASES
def test_a_kill_before_every_call(
    made: tuple[list[bytes], list[Entry]], shm_path: Path, tally: Tally, there: bool,
    key: bytes | None,
) -> None:  # fmt: skip
    chain, wanted = made
    path = place(shm_path / "first", there)
    taken: list[Path] = []

    def copy(operation: Operation) -> None:
        if operation.kind in MUTATING:
            taken.append(shm_path / str(len(taken)))
            shutil.copytree(path.parent, taken[-1])

    with FaultDisk(remember=False).installed() as disk:
        disk.plan = copy
        restored(path, *chain, **options(key))
    found = [state(home / "db", wanted, key) for home in taken]
    first = found.index("whole")
    assert set(found[:first]) == {"empty" if there else "absent"}
    assert set(found[first:]) == {"whole"}
    assert len(found) > first > 20
    for home in taken[:first]:
        left = beside(home / "db")
        report = restored(home / "db", *chain, **options(key))
        assert [Path(name).name for name in report.leftovers] == left
        assert all(name.startswith(".db.restoring-") for name in left)
        assert state(home / "db", wanted, key) == "whole"
    for home in taken[first:]:
        assert beside(home / "db") == []
        with pytest.raises(meles.ConfigError, match="is not empty"):
            restored(home / "db", *chain)
    tally("kill in restoring", len(taken))


@CASES
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_power_cut_as_it_gets_its_name(
    made: tuple[list[bytes], list[Entry]], shm_path: Path, tally: Tally, keep: float, there: bool,
    key: bytes | None,
) -> None:  # fmt: skip
    """Everything in it is on the medium by then, and the name follows before it returns."""
    chain, wanted = made
    path, after = place(shm_path / "first", there), shm_path / "after"

    def cut(operation: Operation) -> None:
        if operation.kind == "put_dir":
            (building,) = path.parent.glob(".db.restoring-*")
            disk.power_loss(str(building), str(after), keep=keep)

    with FaultDisk().installed() as disk:
        disk.plan = cut
        restored(path, *chain, **options(key))
        disk.plan = None
    assert state(after, wanted, key) == "whole"
    last = [(operation.kind, operation.name) for operation in disk.log][-1]
    assert last == ("sync_dir", str(path.parent))
    tally("power cut in restoring", 1)


def failure(call: Callable[[], object], code: int) -> bool:
    """Whether a call fails, with this error if it does."""
    try:
        call()
    except OSError as error:
        if error.errno != code:
            raise
        return True
    return False


class Failing(io.BytesIO):
    """A sink whose n-th write fails, perhaps after a part of it."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.left = nth

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.left -= 1
        if not self.left:
            super().write(data[: len(data) // 3])
            raise OSError(errno.ENOSPC, "No space left on device (injected)")
        return super().write(data)


def test_a_sink_that_fails(shm_path: Path, tally: Tally) -> None:
    """What it was given is no backup, and the database goes on."""
    with meles.open(shm_path / "db", **CALM) as db:
        for number in range(100):
            db[b"k%03d" % number] = b"v" * 9000
        sink, nth = Failing(0), 0
        while True:
            nth += 1
            sink = Failing(nth)
            if not failure(lambda: db.backup(sink), errno.ENOSPC):  # noqa: B023 - called at once
                break
            with pytest.raises(meles.CorruptionError):
                restored(shm_path / "new", sink.getvalue())
            assert beside(shm_path / "new") == ["db"]
            assert db.stats().readers == 0
            db[b"k"] = b"v"
        assert nth > 5
        restored(shm_path / "new", sink.getvalue())
        assert content_of(shm_path / "new") == entries(db)
    tally("ENOSPC in a backup", nth - 1)


class Sources(io.BytesIO):
    """A source whose n-th read fails."""

    def __init__(self, data: bytes, nth: int) -> None:
        super().__init__(data)
        self.left = nth

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if not self.left:
            raise OSError(errno.EIO, "Input/output error (injected)")
        return super().read(size)


def test_a_source_that_fails(made: tuple[list[bytes], list[Entry]], shm_path: Path) -> None:
    chain, wanted = made
    path, nth = place(shm_path / "home", False), 0
    while True:
        nth += 1
        sources = [io.BytesIO(chain[0]), Sources(chain[1], nth)]
        if not failure(lambda: meles.restore(sources, path, **OPTIONS), errno.EIO):  # noqa: B023
            break
        assert state(path, wanted, None) == "absent"
        assert beside(path) == []
    assert nth > 6
    assert state(path, wanted, None) == "whole"

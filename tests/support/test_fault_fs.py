"""The fault layer itself: what it counts, fails, remembers and forgets."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections import Counter
from pathlib import Path

import pytest
from fault_fs import GROWING, MUTATING, READING, FailNth, FaultDisk, OnNth
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.errors import DiskFullError
from meles.engine.fs import files
from meles.engine.fs.files import Directory, open_directory

SECTOR = 512


@pytest.fixture
def disk() -> FaultDisk:
    return FaultDisk()


@pytest.fixture
def home(tmp_path: Path) -> str:
    (tmp_path / "db").mkdir()
    return str(tmp_path / "db")


def after_power_loss(
    disk: FaultDisk, home: str, *, keep: float = 0, seed: int = 0
) -> dict[str, bytes]:
    target = Path(home).parent / f"after-{len(list(Path(home).parent.iterdir()))}"
    disk.power_loss(home, str(target), keep=keep, seed=seed)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def put(directory: Directory, name: str, content: bytes, *, sync: bool = True) -> None:
    with directory.create(name) as file:
        file.pwrite(content, 0)
        if sync:
            file.sync()


def workload(directory: Directory) -> None:
    """Each mutating operation once."""
    with directory.create("a") as file:
        file.allocate(0, 4096)
        with file.map(4096, write=True) as mapping:
            mapping[:3] = b"abc"
        file.pwrite(b"def", 3)
        file.truncate(6)
        file.sync()
    directory.rename("a", "b")
    directory.sync()
    directory.unlink("b")
    directory.make_directory("d")
    directory.put_directory("d", "e")
    directory.remove_directory("e")


# -- counting and failing ------------------------------------------------------------------------


def test_counts_each_operation_that_changes_storage(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        workload(directory)
        assert disk.count == len(MUTATING)
        assert {operation.kind for operation in disk.log} == MUTATING
        assert [operation.number for operation in disk.log] == list(range(1, len(MUTATING) + 1))
        directory.create("c").close()
        directory.read("c")
        assert disk.count == len(MUTATING) + 1
        assert {"open", "read"} <= {operation.kind for operation in disk.log} & READING


def test_every_operation_can_be_failed_and_only_it_fails(disk: FaultDisk, home: str) -> None:
    failed = Counter[str]()
    with disk.open(home) as directory:
        for n in itertools.count(1):
            plan = disk.plan = FailNth(n)
            with contextlib.suppress(OSError):
                workload(directory)
            disk.plan = None
            if not plan.fired:
                break
            failed[disk.log[-1].kind] += 1
            assert plan.fired == 1
            for name in ("a", "b"):
                directory.unlink(name)
            for name in ("d", "e"):
                with contextlib.suppress(FileNotFoundError):
                    directory.remove_directory(name)
    assert failed == Counter(MUTATING)


def test_a_failed_operation_did_nothing(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory, directory.create("a") as file:
        for code, attempt in (
            (errno.EIO, lambda: file.pwrite(b"x", 0)),
            (errno.EIO, lambda: file.allocate(0, 10)),
            (errno.EACCES, lambda: directory.create("b")),
            (errno.EIO, lambda: directory.rename("a", "b")),
            (errno.EIO, lambda: directory.unlink("a")),
        ):
            disk.plan = FailNth(1, code)
            with pytest.raises(OSError, match="injected") as caught:
                attempt()
            assert caught.value.errno == code
        disk.plan = None
        assert directory.names() == ["a"]
        assert file.size() == 0


def test_a_sticky_plan_fails_from_then_on(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory, directory.create("a") as file:
        plan = disk.plan = FailNth(2, sticky=True)
        file.pwrite(b"x", 0)
        for _ in range(3):
            with pytest.raises(OSError, match="injected"):
                file.pwrite(b"x", 0)
        assert plan.fired == 3


def test_only_the_chosen_kinds_count(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory, directory.create("a") as file:
        disk.plan = FailNth(1, kinds=frozenset({"sync"}))
        file.pwrite(b"x", 0)
        with pytest.raises(OSError, match="injected"):
            file.sync()
        file.sync()


def test_reading_fails_when_asked_to(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "a", b"x")
        for attempt in (directory.open, directory.read, directory.map):
            disk.plan = FailNth(1, kinds=READING)
            with pytest.raises(OSError, match="injected"):
                attempt("a")


@pytest.mark.parametrize("kind", sorted(GROWING))
def test_no_space_is_a_full_disk(disk: FaultDisk, home: str, kind: str) -> None:
    with disk.open(home) as directory:
        disk.plan = FailNth(1, errno.ENOSPC, kinds=frozenset({kind}))
        with pytest.raises(DiskFullError) as caught:
            workload(directory)
        assert caught.value.errno == errno.ENOSPC


def test_a_torn_write_leaves_its_first_part(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory, directory.create("a") as file:
        disk.plan = FailNth(1, torn=0.5)
        with pytest.raises(OSError, match="injected"):
            file.pwrite(b"0123456789", 2)
        assert file.pread(100, 0) == b"\0\x0001234"


def test_a_disk_without_allocation_says_so(disk: FaultDisk, home: str) -> None:
    disk.can_allocate = False
    with disk.open(home) as directory, directory.create("a") as file:
        assert file.allocate(0, 4096) is False
        assert file.size() == 0


def test_a_look_at_the_nth_operation_comes_before_it(disk: FaultDisk, home: str) -> None:
    seen: list[list[str]] = []
    with disk.open(home) as directory:
        disk.plan = OnNth(2, lambda: seen.append(directory.names()))
        for name in "abc":
            directory.create(name).close()
    assert seen == [["a"]]


def test_installed_is_where_the_engine_opens_its_directories(disk: FaultDisk, home: str) -> None:
    with disk.installed():
        with open_directory(home) as directory:
            directory.create("a").close()
        assert disk.count == 1
    assert files.directory_class is Directory
    with open_directory(home) as directory:
        directory.create("b").close()
    assert disk.count == 1


# -- power loss ----------------------------------------------------------------------------------


def test_what_was_there_before_is_safe(disk: FaultDisk, home: str) -> None:
    Path(home, "old").write_bytes(b"kept")
    with disk.open(home):
        assert after_power_loss(disk, home) == {"old": b"kept"}


def test_data_needs_its_sync_and_the_name_its_own(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "synced", b"data")
        put(directory, "unsynced", b"data", sync=False)
        assert after_power_loss(disk, home) == {}
        directory.sync()
        assert after_power_loss(disk, home) == {"synced": b"data", "unsynced": b""}


def test_stores_through_a_mapping_need_a_sync_too(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory, directory.create("a") as file:
        file.allocate(0, 4096)
        directory.sync()
        file.sync()
        with file.map(4096, write=True) as mapping:
            mapping[:3] = b"abc"
            assert after_power_loss(disk, home) == {"a": bytes(4096)}
            file.sync()
            mapping[3:6] = b"def"
            assert after_power_loss(disk, home) == {"a": b"abc" + bytes(4093)}


def test_a_truncation_not_synced_is_undone(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "a", b"0123456789")
        directory.sync()
        with directory.open("a", write=True) as file:
            file.truncate(3)
            assert after_power_loss(disk, home) == {"a": b"0123456789"}
            file.sync()
            assert after_power_loss(disk, home) == {"a": b"012"}


def test_an_unlink_not_synced_brings_the_file_back(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "a", b"data")
        directory.sync()
        directory.unlink("a")
        directory.unlink("absent")
        assert after_power_loss(disk, home) == {"a": b"data"}
        directory.sync()
        assert after_power_loss(disk, home) == {}


def test_a_rename_not_synced_is_undone_whole(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "a", b"old")
        directory.sync()
        put(directory, "a.new", b"new")
        directory.rename("a.new", "a")
        assert after_power_loss(disk, home) == {"a": b"old"}
        directory.sync()
        assert after_power_loss(disk, home) == {"a": b"new"}


def test_a_failed_sync_loses_its_data_for_good(disk: FaultDisk, home: str) -> None:
    first, second = b"1" * SECTOR, b"2" * SECTOR
    with disk.open(home) as directory, directory.create("a") as file:
        directory.sync()
        file.pwrite(first, 0)
        disk.plan = FailNth(1, kinds=frozenset({"sync"}))
        with pytest.raises(OSError, match="injected"):
            file.sync()
        file.pwrite(second, SECTOR)
        assert file.pread(2 * SECTOR, 0) == first + second
        file.sync()
        assert after_power_loss(disk, home) == {"a": bytes(SECTOR) + second}
        file.pwrite(first, 0)
        file.sync()
        assert after_power_loss(disk, home, keep=1) == {"a": first + second}


def test_everything_kept_is_what_is_there(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "a", b"data", sync=False)
        directory.rename("a", "b")
        put(directory, "c", b"more", sync=False)
        directory.unlink("c")
        assert after_power_loss(disk, home, keep=1) == {"b": b"data"}


def test_a_reopened_directory_is_remembered(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        put(directory, "a", b"data")
    with disk.open(home) as directory:
        assert after_power_loss(disk, home) == {}
        directory.sync()
    assert after_power_loss(disk, home) == {"a": b"data"}


@given(seed=st.integers(0, 1 << 32))
def test_a_random_part_is_kept_sector_by_sector(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    home = tmp_path_factory.mktemp("disk") / "db"
    home.mkdir()
    disk = FaultDisk()
    old, new = (
        [bytes([i + 1]) * SECTOR for i in range(4)],
        [bytes([i + 65]) * SECTOR for i in range(8)],
    )
    with disk.open(str(home)) as directory:
        put(directory, "a", b"".join(old))
        directory.sync()
        with directory.open("a", write=True) as file:
            file.pwrite(b"".join(new), 0)
        first = after_power_loss(disk, str(home), keep=0.5, seed=seed)["a"]
        assert first == after_power_loss(disk, str(home), keep=0.5, seed=seed)["a"]
    assert len(first) in (4 * SECTOR, 8 * SECTOR)
    for at in range(len(first) // SECTOR):
        before = old[at] if at < len(old) else bytes(SECTOR)
        assert first[at * SECTOR : (at + 1) * SECTOR] in (before, new[at])


def test_chance_keeps_some_and_loses_some(disk: FaultDisk, home: str) -> None:
    with disk.open(home) as directory:
        for i in range(10):
            put(directory, f"{i}", b"data")
        found = [len(after_power_loss(disk, home, keep=0.5, seed=seed)) for seed in range(10)]
    assert 0 < sum(found) < 100
    assert len(set(found)) > 1

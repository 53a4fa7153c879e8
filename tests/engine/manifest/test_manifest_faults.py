"""The MANIFEST on a disk that fails or loses its power: what was acknowledged is there."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fault_fs import GROWING, FailNth, FaultDisk, OnNth
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.errors import DiskFullError
from meles.engine.fs.files import Directory
from meles.engine.manifest import manifest_file
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import ManifestFile
from meles.engine.manifest.version import Version

LEVELS = 3
EMPTY = Version.empty(LEVELS)


@contextlib.contextmanager
def created(directory: Directory) -> Iterator[ManifestFile]:
    manifest = ManifestFile.create(directory, EMPTY, 0)
    try:
        yield manifest
    finally:
        manifest.close()


def grow(manifest: ManifestFile, version: Version, steps: range) -> Version:
    """Append one edit a step; step n makes max_ts n."""
    for step in steps:
        edit = Edit(max_ts=step)
        after = edit.apply(version)
        manifest.append(edit, after)
        version = after
    return version


def found(directory: Directory) -> Version:
    return ManifestFile.read(directory, 0).version


def story(directory: Directory, reached: list[int]) -> None:
    """Create, append, reopen, append; `reached` gets each max_ts that was acknowledged."""
    with created(directory) as manifest:
        reached.append(0)
        for step in range(1, 4):
            grow(manifest, Version(EMPTY.levels, max_ts=step - 1), range(step, step + 1))
            reached.append(step)
    replayed = ManifestFile.read(directory, 0)
    manifest = ManifestFile.open(directory, replayed)
    try:
        grow(manifest, replayed.version, range(4, 6))
        reached.append(5)
    finally:
        manifest.close()


def failing(home: Path, **how: object) -> Iterator[tuple[list[int], Path]]:
    """The story with its 1st, 2nd, 3rd... operation failing, until none does."""
    for n in range(1, 1000):
        path = home / f"{n}"
        path.mkdir()
        disk = FaultDisk()
        reached: list[int] = []
        plan = disk.plan = FailNth(n, **how)  # type: ignore[arg-type]
        with disk.open(str(path)) as directory:
            with contextlib.suppress(OSError):
                story(directory, reached)
            disk.plan = None
            if not plan.fired:
                return
            yield reached, path
    raise AssertionError("it never ended")


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("torn", [None, 0.0, 0.5, 0.99])
def test_whatever_fails_what_was_acknowledged_is_there(
    tmp_path: Path, sticky: bool, torn: float | None
) -> None:
    runs = 0
    for reached, path in failing(tmp_path, sticky=sticky, torn=torn):
        runs += 1
        with Directory(str(path)) as directory:
            try:
                version = found(directory)
            except FileNotFoundError:
                assert not reached
                continue
            assert version.max_ts >= (reached[-1] if reached else 0)
    assert runs > 10


@pytest.mark.parametrize("torn", [None, 0.5])
def test_a_full_disk_heals(tmp_path: Path, torn: float | None) -> None:
    """An append that found no room left nothing behind: the next one takes its place."""
    disk = FaultDisk()
    with disk.open(str(tmp_path)) as directory, created(directory) as manifest:
        version = grow(manifest, EMPTY, range(1, 3))
        disk.plan = FailNth(1, errno.ENOSPC, kinds=GROWING, torn=torn)
        with pytest.raises(DiskFullError):
            grow(manifest, version, range(3, 4))
        assert found(directory) == version
        version = grow(manifest, version, range(4, 6))
        assert found(directory) == version


def test_a_rewrite_that_finds_no_room_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FaultDisk()
    with disk.open(str(tmp_path)) as directory, created(directory) as manifest:
        version = grow(manifest, EMPTY, range(1, 30))
        monkeypatch.setattr(manifest_file, "_REWRITE_AT", 0)
        monkeypatch.setattr(manifest_file, "_REWRITE_FACTOR", 0)
        for n in range(1, 4):  # create, write, rename
            disk.plan = FailNth(n, errno.ENOSPC, kinds=GROWING, torn=0.5)
            with pytest.raises(DiskFullError):
                grow(manifest, version, range(30, 31))
            assert directory.names() == ["MANIFEST"]
            assert found(directory) == version
        disk.plan = None
        version = grow(manifest, version, range(30, 32))
        assert found(directory) == version


def lose_power(
    disk: FaultDisk,
    path: Path,
    after: Path,
    reached: list[int],
    before: list[int],
    *,
    keep: float,
    seed: int,
) -> None:
    before.extend(reached)
    disk.power_loss(str(path), str(after), keep=keep, seed=seed)


@settings(max_examples=settings().max_examples // 5)
@given(seed=st.integers(0, 1 << 32), keep=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_after_a_power_loss_what_was_acknowledged_is_there(
    tmp_path_factory: pytest.TempPathFactory, seed: int, keep: float
) -> None:
    """Lose the power before every operation in turn."""
    home = tmp_path_factory.mktemp("story")
    for n in range(1, 100):
        path, after = home / f"db{n}", home / f"after{n}"
        path.mkdir()
        disk = FaultDisk()
        reached: list[int] = []
        before: list[int] = []
        lose = partial(lose_power, disk, path, after, reached, before, keep=keep, seed=seed)
        plan = disk.plan = OnNth(n, lose)
        with disk.open(str(path)) as directory:
            story(directory, reached)
        if plan.seen < n:
            assert n > 10
            return
        with Directory(str(after)) as directory:
            if "MANIFEST" not in directory.names():
                assert not before
                continue
            version = found(directory)
            acknowledged = before[-1] if before else 0
            assert acknowledged <= version.max_ts <= acknowledged + 2
            ManifestFile.open(directory, ManifestFile.read(directory, 0)).close()
    raise AssertionError("it never ended")


def test_no_descriptor_is_left_by_what_fails(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in failing(tmp_path):
        assert len(os.listdir("/proc/self/fd")) == before + 1  # the directory of this round
    assert len(os.listdir("/proc/self/fd")) == before

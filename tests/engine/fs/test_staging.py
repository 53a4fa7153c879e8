"""A directory made beside its place: one rename, or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from meles.engine.errors import ConfigError, DirectoryMissingError, LockedError
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock
from meles.engine.fs.files import Directory
from meles.engine.fs.staging import Staging


def fill(staging: Staging, name: str = "file") -> None:
    with staging.directory.create(name) as file:
        file.pwrite(b"data", 0)
        file.sync()
    staging.directory.sync()


@pytest.mark.parametrize("there", [False, True])
def test_it_is_put_in_place_whole(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "new").mkdir(mode=0o755)
    before = os.umask(0o077 if there else 0)
    try:
        with Staging(str(tmp_path / "new"), "making") as staging:
            fill(staging)
            (name,) = {path.name for path in tmp_path.iterdir()} - {"new"}
            assert name.startswith(".new.making-")
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
            assert (tmp_path / "new").exists() == there
            staging.put_in_place()
            assert os.listdir(tmp_path) == ["new"]
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == ["new"]
    assert (tmp_path / "new" / "file").read_bytes() == b"data"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_given_up_nothing_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    made = []

    def staged() -> None:
        with Staging(str(tmp_path / "new"), "making") as staging:
            made.append(staging.directory)
            fill(staging)
            raise error

    with pytest.raises(error):
        staged()
    assert os.listdir(tmp_path) == []
    assert made[0].fd < 0


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "deeper")
    for name, error in (
        ("full", ConfigError), ("file", ConfigError), ("missing/new", DirectoryMissingError),
        ("file/new", DirectoryMissingError), ("nowhere", DirectoryMissingError), ("/", ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            Staging(str(tmp_path / name), "making")
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "nowhere"]


def test_a_place_that_is_taken_meanwhile(tmp_path: Path) -> None:
    for make in (
        lambda: (tmp_path / "new" / "x").mkdir(parents=True),
        lambda: (tmp_path / "new").write_bytes(b"mine"),
    ):

        def staged(make=make) -> None:
            with Staging(str(tmp_path / "new"), "making") as staging:
                fill(staging)
                make()
                staging.put_in_place()

        with pytest.raises(ConfigError, match="is not empty"):
            staged()
        assert os.listdir(tmp_path) == ["new"]
        if (tmp_path / "new").is_dir():
            (tmp_path / "new" / "x").rmdir()
            (tmp_path / "new").rmdir()
    assert (tmp_path / "new").read_bytes() == b"mine"


def test_an_empty_directory_that_is_being_opened(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with open_to_lock(str(tmp_path / "new")) as directory:
        lock = DirectoryLock.acquire(directory, write_pid=False)
        with pytest.raises(LockedError):
            Staging(str(tmp_path / "new"), "making")
        lock.release()
    assert os.listdir(tmp_path) == ["new"]
    path = str(tmp_path / "new")
    with (
        Staging(path, "making"),
        open_to_lock(path) as directory,
        pytest.raises(LockedError),
    ):
        DirectoryLock.acquire(directory)


def test_links_lead_to_the_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/new")
    with Staging(str(tmp_path / "link"), "making") as staging:
        fill(staging)
        staging.put_in_place()
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["new"]
    assert (tmp_path / "link" / "file").exists()


def test_leftovers_are_those_nobody_works_on(tmp_path: Path) -> None:
    for name in (".new.making-11111111", ".new.making-22222222", ".other.making-33333333"):
        (tmp_path / name).mkdir()
    (tmp_path / ".new.making-link").symlink_to(".new.making-11111111")
    (tmp_path / ".new.making-file").write_bytes(b"")
    with Staging(str(tmp_path / "new"), "making") as one:
        assert [os.path.basename(path) for path in one.leftovers] == [
            ".new.making-11111111", ".new.making-22222222",
        ]  # fmt: skip
        with Staging(str(tmp_path / "new"), "making") as other:
            assert other.leftovers == one.leftovers
    assert len(os.listdir(tmp_path)) == 5


def test_names_of_any_length(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127, "\udcff" * 3):
        with Staging(str(tmp_path / name), "making") as staging:
            staging.put_in_place()
        assert (tmp_path / name).is_dir()


# -- what of it a directory does -----------------------------------------------------------------


def test_directories_in_a_directory(directory: Directory) -> None:
    before = os.umask(0o777)
    try:
        directory.make_directory("a")
    finally:
        os.umask(before)
    path = os.path.join(directory.path, "a")
    assert os.stat(path).st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        directory.make_directory("a")
    directory.make_directory("b")
    directory.put_directory("a", "b")
    assert directory.names() == ["b"]
    directory.make_directory("c")
    os.mkdir(os.path.join(directory.path, "c", "x"))
    with pytest.raises(OSError, match="not empty"):
        directory.put_directory("b", "c")
    with pytest.raises(OSError, match="not empty"):
        directory.remove_directory("c")
    directory.remove_directory("b")
    assert directory.names() == ["c"]

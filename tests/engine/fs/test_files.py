"""Files and directories: modes, links, descriptors, short writes, mappings."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from meles.engine.fs import files
from meles.engine.fs.files import Directory, File, make_directory, open_directory


@pytest.fixture
def home(directory: Directory) -> Path:
    return Path(directory.path)


@pytest.fixture(params=[0, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def run_in_child(script: str, *arguments: str, shell: str = 'exec "$@"') -> Any:
    """What a fresh interpreter, started by a shell, reports through a pipe of its own."""
    read, write = os.pipe()
    body = f"import json, os, sys\nreport = lambda x: os.write({write}, json.dumps(x).encode())\n"
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", body + script, *arguments]
    try:
        subprocess.run(command, check=True, pass_fds=(write,))
        os.close(write)
        write = -1
        return json.loads(os.read(read, 1 << 16))
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


# -- modes ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
def test_files_are_0600_whatever_the_umask(directory: Directory, home: Path) -> None:
    directory.create("a").close()
    assert mode(home / "a") == 0o600


@pytest.mark.usefixtures("umask")
def test_directories_and_their_parents_are_0700_whatever_the_umask(tmp_path: Path) -> None:
    assert make_directory(f"{tmp_path}/a/b//c/") is True
    for part in ("a", "a/b", "a/b/c"):
        assert mode(tmp_path / part) == 0o700


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o755)
    (tmp_path / "link").symlink_to("a")
    assert make_directory(str(tmp_path / "a")) is False
    assert make_directory(str(tmp_path / "link")) is False
    assert make_directory("/") is False
    assert mode(tmp_path / "a") == 0o755


def test_a_relative_directory_is_made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert make_directory("a") is True
    assert make_directory("b/c") is True
    assert mode(tmp_path / "a") == mode(tmp_path / "b" / "c") == 0o700


def test_a_directory_is_not_made_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert make_directory(str(tmp_path / "file")) is False
    with pytest.raises(NotADirectoryError):
        make_directory(str(tmp_path / "file" / "sub"))
    with pytest.raises(NotADirectoryError):
        open_directory(str(tmp_path / "file"))


def test_a_new_directory_is_synced_into_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    make_directory(str(tmp_path / "a" / "b"))
    assert synced == [tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino]


# -- creating and opening ------------------------------------------------------------------------


def test_creating_is_exclusive(directory: Directory) -> None:
    directory.create("a").close()
    with pytest.raises(FileExistsError):
        directory.create("a")


@pytest.mark.parametrize("target", ["victim", "absent", "folder", "."])
def test_nothing_follows_a_planted_link(directory: Directory, home: Path, target: str) -> None:
    (home / "victim").write_bytes(b"precious")
    (home / "folder").mkdir()
    (home / "000007.sst").symlink_to(target)
    with pytest.raises(FileExistsError):
        directory.create("000007.sst")
    for attempt in (
        directory.open,
        directory.map,
        directory.read,
        lambda n: directory.open(n, write=True),
    ):
        with pytest.raises(OSError, match=r"000007\.sst") as caught:
            attempt("000007.sst")
        assert caught.value.errno == errno.ELOOP
    assert directory.size_of("000007.sst") == len(target)
    directory.unlink("000007.sst")
    assert (home / "victim").read_bytes() == b"precious"
    assert not (home / "absent").exists()


def test_a_rename_replaces_a_link_and_not_what_it_names(directory: Directory, home: Path) -> None:
    (home / "victim").write_bytes(b"precious")
    (home / "MANIFEST").symlink_to("victim")
    with directory.create("MANIFEST.new") as file:
        file.pwrite(b"new", 0)
    directory.rename("MANIFEST.new", "MANIFEST")
    assert directory.read("MANIFEST") == b"new"
    assert (home / "victim").read_bytes() == b"precious"


def test_what_is_no_regular_file_is_refused_and_not_waited_on(
    directory: Directory, home: Path
) -> None:
    os.mkfifo(home / "fifo")
    (home / "folder").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for name in ("fifo", "folder"):
        with pytest.raises(OSError, match="not a regular file"):
            directory.open(name)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_expected_need_not_be_there(directory: Directory, home: Path) -> None:
    """Opening says what is wrong, so that asking ahead never does, and waits for nothing."""
    os.mkfifo(home / "fifo")
    (home / "folder").mkdir()
    (home / "link").symlink_to("fifo")
    directory.create("empty").close()
    before = len(os.listdir("/proc/self/fd"))
    for name in ("fifo", "folder", "link", "empty", "absent"):
        for size in (0, 100, 1 << 64):
            directory.expect_ends(name, size, 4096)
    assert len(os.listdir("/proc/self/fd")) == before


def test_names_are_those_of_the_open_directory_whatever_its_path(
    directory: Directory, home: Path
) -> None:
    moved = home.rename(home.parent / "moved")
    home.mkdir()
    directory.create("a").close()
    assert directory.names() == ["a"]
    assert [path.name for path in moved.iterdir()] == ["a"]
    assert list(home.iterdir()) == []


def test_read_write_and_read_only(directory: Directory) -> None:
    with directory.create("a") as file:
        file.pwrite(b"data", 0)
    with directory.open("a", write=True) as file:
        file.pwrite(b"DA", 0)
    with directory.open("a") as file:
        assert file.pread(100, 0) == b"DAta"
        assert file.pread(2, 3) == b"a"
        assert file.pread(2, 4) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            file.pwrite(b"x", 0)
    assert directory.read("a") == b"DAta"
    assert directory.size_of("a") == 4


def test_unlinking_what_is_absent_is_fine(directory: Directory) -> None:
    directory.create("b").close()
    directory.create("a").close()
    assert directory.names() == ["a", "b"]
    directory.unlink("a")
    directory.unlink("a")
    directory.sync()
    assert directory.names() == ["b"]


@pytest.mark.parametrize("attempt", ["open", "read", "map", "size_of"])
def test_an_absent_file_is_file_not_found(directory: Directory, attempt: str) -> None:
    with pytest.raises(FileNotFoundError):
        getattr(directory, attempt)("a")


def test_the_hook_decides_what_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(Directory):
        pass

    with open_directory(str(tmp_path)) as directory:
        assert type(directory) is Directory
    monkeypatch.setattr(files, "directory_class", Special)
    with open_directory(str(tmp_path)) as directory:
        assert type(directory) is Special


# -- descriptors ---------------------------------------------------------------------------------


def test_descriptors_are_closed_once_and_not_inherited(directory: Directory, home: Path) -> None:
    with directory.create("a") as file:
        assert not os.get_inheritable(file.fd)
        assert not os.get_inheritable(directory.fd)
        fd = file.fd
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with Directory(str(home)) as second:
        fd = second.fd
    second.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_inherited_directory_is_adopted_and_not_passed_on(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY)
    os.set_inheritable(fd, True)
    with Directory.from_fd(fd, "anything") as directory:
        assert directory.fd == fd
        assert not os.get_inheritable(fd)
        directory.create("a").close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Directory.from_fd(fd, "anything")


def test_no_storage_on_the_standard_descriptors_of_a_host_without_them(tmp_path: Path) -> None:
    script = """
from meles.engine.fs.files import make_directory, open_directory
make_directory(sys.argv[1])
directory = open_directory(sys.argv[1])
made = directory.create("made")
made.allocate(0, 4096)
writing = made.map(4096, write=True)
opened = directory.open("made")
reading = directory.map("made")
held = {}
for fd in range(3, 100):
    try:
        held[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
low = []
for fd in range(3):
    try:
        low.append(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        pass
report([low, [directory.fd, made.fd, opened.fd], sorted(held.values())])
"""
    low, ours, held = run_in_child(script, str(tmp_path / "db"), shell='exec "$@" <&- >&- 2>&-')
    assert low == []
    assert min(ours) >= 3
    assert held.count(str(tmp_path / "db" / "made")) >= 2


# -- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"01234567", bytearray(b"01234567"), memoryview(b"0123456789")[:8],
     memoryview(array.array("H", [0x3130, 0x3332, 0x3534, 0x3736]))],
    ids=["bytes", "bytearray", "view", "view of words"],
)  # fmt: skip
def test_writes_any_buffer_whole(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: real(fd, view[:3], offset))
    with directory.create("a") as file:
        file.pwrite(data, 5)
        file.pwrite(b"", 0)
        assert file.pread(100, 0) == bytes(5) + b"01234567"


def test_reads_on_after_a_short_read(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
    with directory.create("a") as file:
        file.pwrite(b"0123456789", 0)
        assert file.pread(8, 1) == b"12345678"
        assert file.pread(100, 1) == b"123456789"


def test_a_limit_of_the_file_size_cuts_a_write_short_and_fails_it(tmp_path: Path) -> None:
    script = """
import resource
from meles.engine.fs.files import Directory
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Directory(sys.argv[1]) as directory, directory.create("a") as file:
    file.pwrite(bytes(500), 0)
    try:
        file.pwrite(bytes(1000), 500)
    except OSError as error:
        report([type(error).__name__, error.errno, file.size()])
"""
    assert run_in_child(script, str(tmp_path)) == ["OSError", errno.EFBIG, 1000]


def test_allocates_for_real_and_truncates(directory: Directory, home: Path) -> None:
    with directory.create("a") as file:
        if not file.allocate(0, 1 << 16):
            pytest.skip("the file system cannot allocate")
        assert file.size() == 1 << 16
        assert (home / "a").stat().st_blocks * 512 >= 1 << 16
        file.truncate(10)
        assert file.size() == 10
        file.sync()


def test_a_file_system_that_cannot_allocate_says_no(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no such operation")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with directory.create("a") as file:
        assert file.allocate(0, 4096) is False


def test_other_errors_come_as_they_are(directory: Directory) -> None:
    file = directory.create("a")
    file.close()
    for attempt in (
        lambda: file.pwrite(b"x", 0),
        lambda: file.pread(1, 0),
        lambda: file.allocate(0, 1),
        lambda: file.truncate(0),
        file.sync,
        file.size,
    ):
        with pytest.raises(OSError, match=r"Bad file descriptor|a is closed") as caught:
            attempt()
        assert type(caught.value) is OSError
        assert caught.value.errno == errno.EBADF
    directory.close()
    for closed in (directory.sync, directory.names, lambda: directory.create("b")):
        with pytest.raises(OSError, match=r"Bad file descriptor|is closed"):
            closed()


# -- mapping -------------------------------------------------------------------------------------


def test_maps_what_exists_and_outlives_the_file(directory: Directory) -> None:
    with directory.create("a") as file:
        file.allocate(0, 8192)
        with file.map(8192, write=True) as mapping:
            mapping[:4] = b"data"
    with directory.map("a") as mapping:
        directory.unlink("a")
        assert len(mapping) == 8192
        assert mapping[:5] == b"data\0"
        with pytest.raises(TypeError):
            mapping[:4] = b"DATA"


@pytest.mark.parametrize("length", [5, 1 << 20, 0, -1])
def test_never_maps_what_does_not_exist(directory: Directory, length: int) -> None:
    with directory.create("a") as file:
        file.pwrite(b"data", 0)
        with pytest.raises(OSError, match=f"cannot map {length} of the 4 bytes of a") as caught:
            file.map(length)
        assert caught.value.errno == errno.EINVAL


def test_an_empty_file_cannot_be_mapped(directory: Directory) -> None:
    directory.create("a").close()
    with pytest.raises(OSError, match="cannot map 0 of the 0 bytes of a"):
        directory.map("a")


def test_failing_to_map_leaves_no_descriptor(directory: Directory, home: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with directory.create("a") as file:
        file.pwrite(b"data", 0)
    with (
        File(os.open(home / "a", os.O_WRONLY), "a") as file,
        pytest.raises(OSError, match="denied"),
    ):
        file.map(4)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_descriptors_left_there_is_a_plain_error_and_no_leak(directory: Directory) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[File] = []
    code = None
    with directory.create("a") as file:
        file.pwrite(b"data", 0)
        before = sorted(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, before)) + 5, hard))
        try:
            while code is None:
                try:
                    held.append(directory.open("a"))
                except OSError as error:
                    code = error.errno
            with contextlib.suppress(OSError):  # a mapping takes a descriptor before Python 3.13
                file.map(4).close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for opened in held:
                opened.close()
        assert code == errno.EMFILE
        assert sorted(os.listdir("/proc/self/fd")) == before


def fails(attempt: Callable[[], object]) -> OSError:
    with pytest.raises(OSError, match="injected") as caught:
        attempt()
    return caught.value


def test_a_file_whose_mode_cannot_be_set_is_not_left_behind(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, mode: int) -> None:
        raise OSError(errno.EPERM, "injected")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fchmod", refuse)
    assert fails(lambda: directory.create("a")).errno == errno.EPERM
    assert directory.names() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_knows_whether_its_path_leads_to_it(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    with Directory(str(home)) as directory:
        assert directory.is_at_its_path()
        home.rename(tmp_path / "away")
        assert not directory.is_at_its_path()
        home.mkdir()
        assert not directory.is_at_its_path()
        home.rmdir()
        home.touch()
        assert not directory.is_at_its_path()
        home.unlink()
        home.symlink_to(tmp_path / "away")
        assert directory.is_at_its_path()

        def refuse(_path):
            raise PermissionError(errno.EACCES, "no more")

        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", refuse)
            assert directory.is_at_its_path()

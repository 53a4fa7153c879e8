"""The lock of a directory: who has it, who is told so, and who cannot keep it alive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from meles.engine.errors import LockedError
from meles.engine.fs.dir_lock import DirectoryLock
from meles.engine.fs.files import Directory

HOLDER = """
import os, sys
from meles.engine.fs.dir_lock import DirectoryLock
from meles.engine.fs.files import Directory
lock = DirectoryLock.acquire(Directory(sys.argv[1]), shared="shared" in sys.argv)
print("locked", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def home(directory: Directory) -> Path:
    return Path(directory.path)


@pytest.fixture
def other(home: Path) -> Iterator[Directory]:
    with Directory(str(home)) as opened:
        yield opened


def hold(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Another process that holds the lock until its input ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_excludes_and_lets_go(directory: Directory, other: Directory) -> None:
    lock = DirectoryLock.acquire(directory)
    with pytest.raises(LockedError):
        DirectoryLock.acquire(other)
    lock.release()
    lock.release()
    DirectoryLock.acquire(other).release()


def test_shared_holders_exclude_an_owner_only(directory: Directory, other: Directory) -> None:
    shared = [DirectoryLock.acquire(d, shared=True) for d in (directory, other)]
    assert directory.names() == []
    with Directory(directory.path) as third:
        with pytest.raises(LockedError):
            DirectoryLock.acquire(third)
        for lock in shared:
            lock.release()
        owner = DirectoryLock.acquire(third)
        with pytest.raises(LockedError):
            DirectoryLock.acquire(directory, shared=True)
        owner.release()


def test_the_error_names_the_owner(directory: Directory, other: Directory) -> None:
    lock = DirectoryLock.acquire(directory)
    with pytest.raises(LockedError, match=f"in use by process {os.getpid()} ") as caught:
        DirectoryLock.acquire(other)
    lock.release()
    error = caught.value
    assert (error.path, error.pid) == (directory.path, os.getpid())
    assert error.command is not None
    assert "python" in error.command or "pytest" in error.command
    assert error.since is not None
    assert abs(error.since - Path("/proc/self/stat").stat().st_mtime) < 1e6


def test_the_kernel_is_believed_before_the_file(directory: Directory, home: Path) -> None:
    with hold(home) as holder:
        (home / "LOCK").write_text(json.dumps({"pid": 1234567, "command": "liar", "since": 1.0}))
        with pytest.raises(LockedError) as caught:
            DirectoryLock.acquire(directory)
        assert caught.value.pid == holder.pid
        assert caught.value.command is None
        holder.communicate("")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 4096, b"1" * 5000, b'{"pid": "x"}',
        b'{"pid": true, "command": 7, "since": "long"}', b'{"pid": -1, "since": NaN}',
        b'{"since": Infinity}', b'{"since": 1e300}', b'{"since": -1e300}', b'{"pid": 1e400}',
        b'{"pid": 99999999999999999999}', b'{"since": 99999999999999999999999}',
    ],
)  # fmt: skip
def test_whatever_lock_says_the_error_is_the_same(
    directory: Directory, other: Directory, home: Path, content: bytes
) -> None:
    lock = DirectoryLock.acquire(directory, write_pid=False)
    content = content.replace(b'{"since"', b'{"pid": %d, "since"' % os.getpid())
    (home / "LOCK").write_bytes(content)
    with pytest.raises(LockedError) as caught:
        DirectoryLock.acquire(other)
    assert caught.value.pid in (None, os.getpid())
    assert caught.value.since is None
    assert "in use by process" in str(caught.value)
    lock.release()
    assert (home / "LOCK").read_bytes() == content


@pytest.mark.parametrize("plant", ["fifo", "folder", "link", "dangling"])
def test_lock_planted_as_something_else(
    directory: Directory, other: Directory, home: Path, plant: str
) -> None:
    (home / "victim").write_text("precious")
    match plant:
        case "fifo":
            os.mkfifo(home / "LOCK")
        case "folder":
            (home / "LOCK").mkdir()
        case "link":
            (home / "LOCK").symlink_to("victim")
        case _:
            (home / "LOCK").symlink_to("nowhere")
    shared = DirectoryLock.acquire(other, shared=True)
    with pytest.raises(LockedError):
        DirectoryLock.acquire(directory)
    shared.release()
    DirectoryLock.acquire(directory).release()
    assert (home / "victim").read_text() == "precious"
    assert not (home / "nowhere").exists()


def test_lock_is_written_and_removed_by_the_owner(directory: Directory, home: Path) -> None:
    (home / "LOCK").write_text("left by a killed process")
    lock = DirectoryLock.acquire(directory)
    assert json.loads((home / "LOCK").read_text())["pid"] == os.getpid()
    assert (home / "LOCK").stat().st_mode & 0o777 == 0o600
    lock.release()
    assert directory.names() == []


def test_forging_or_removing_lock_changes_nothing(
    directory: Directory, other: Directory, home: Path
) -> None:
    lock = DirectoryLock.acquire(directory)
    (home / "LOCK").unlink()
    with pytest.raises(LockedError):
        DirectoryLock.acquire(other)
    lock.release()


def test_a_lock_file_that_cannot_be_written_is_done_without(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    lock = DirectoryLock.acquire(directory)
    with Directory(directory.path) as other, pytest.raises(LockedError):
        DirectoryLock.acquire(other)
    lock.release()
    assert directory.names() == []


def test_waits_for_the_holder(directory: Directory, home: Path) -> None:
    with hold(home) as holder:
        assert holder.stdin is not None
        threading.Timer(0.1, holder.stdin.close).start()
        DirectoryLock.acquire(directory, wait=60).release()
    assert holder.returncode == 0


def test_waits_no_longer_than_told(directory: Directory, other: Directory) -> None:
    lock = DirectoryLock.acquire(other)
    with pytest.raises(LockedError):
        DirectoryLock.acquire(directory, wait=0.05)
    lock.release()


def test_a_killed_holder_holds_nothing(directory: Directory, home: Path) -> None:
    with hold(home) as holder:
        holder.kill()
    DirectoryLock.acquire(directory).release()


FORKING = """
import os, sys
from meles.engine.errors import LockedError
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock
from meles.engine.fs.files import Directory

def locked():
    with Directory(sys.argv[1]) as other:
        try:
            DirectoryLock.acquire(other).release()
        except LockedError:
            return True
        return False

directory = open_to_lock(sys.argv[1])
lock = DirectoryLock.acquire(directory)
read, write = os.pipe()
told, tell = os.pipe()
child = os.fork()
if not child:
    lock.release()
    os.write(tell, b"forgotten")
    os.close(write)
    os.read(read, 1)
    os._exit(0)
os.read(told, 9)
print("held on:", locked(), directory.names())
directory.close()
print("kept alive:", locked())
os.close(write)
print("child:", os.waitpid(child, 0)[1])
"""


def test_a_forked_child_neither_releases_the_lock_nor_keeps_it_alive(home: Path) -> None:
    """In an interpreter of its own: a test process with threads had better not fork."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(home)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["held on: True ['LOCK']", "kept alive: False", "child: 0"]


FORKED_BETWEEN = """
import os, signal, sys, threading
from meles.engine.fs import files
from meles.engine.fs.dir_lock import DirectoryLock, open_to_lock

class Observed(files.Directory):
    '''When one is opened, another thread forks at once, or as soon as it may.'''
    def __init__(self, path):
        super().__init__(path)
        thread.start()
        thread.join(0.5)

children = []

def fork():
    children.append(os.fork())
    if not children[-1]:
        os.write(tell, b"here")
        signal.pause()

told, tell = os.pipe()
thread = threading.Thread(target=fork)
files.directory_class = Observed
directory = open_to_lock(sys.argv[1])
lock = DirectoryLock.acquire(directory)
thread.join()
os.read(told, 4)
directory.close()
try:
    DirectoryLock.acquire(files.Directory(sys.argv[1]), write_pid=False)
    print("free")
finally:
    os.kill(children[0], signal.SIGKILL)
    os.wait()
"""


def test_a_child_forked_between_opening_and_locking_does_not_keep_the_lock(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED_BETWEEN, str(home)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "free\n", done.stderr


def test_a_child_started_by_exec_does_not_keep_the_lock_alive(
    directory: Directory, other: Directory
) -> None:
    DirectoryLock.acquire(directory)
    with subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        directory.close()
        DirectoryLock.acquire(other).release()
        child.communicate(b"\n")

"""The lock of a directory: `flock` on the directory's own descriptor.

Runs in: supervisor.
Owns: one descriptor and the advisory file LOCK.
Invariants: (1) the lock is on the directory, so removing or forging LOCK changes nothing; LOCK only
tells a human (and `LockedError`) who holds it; (2) the descriptor is closed in forked children,
whenever they are forked, and never inherited over exec, so no child keeps the lock alive; (3) LOCK
is written through no link.
Fails with: `LockedError`, `OSError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Final

from meles.engine.errors import LockedError
from meles.engine.fs.files import Directory, open_directory
from meles.engine.fs.names import LOCK

_POLL_SECONDS: Final = 0.02
_COMMAND_CHARS: Final = 500
_LOCK_BYTES: Final = 4096  # as much of LOCK as is read
_PID_LIMIT: Final = 1 << 31
# A child of a killed owner holds the lock until it has let go or is another program; on a machine
# with more to do than it can, that takes a while.
_CHILD_SECONDS: Final = 5.0
_LAST_SECOND: Final = 1e11  # a few thousand years: `localtime` takes it


def _command_line() -> str:
    try:
        with open("/proc/self/cmdline", "rb") as file:
            raw = file.read(_COMMAND_CHARS * 4)
    except OSError:
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")[:_COMMAND_CHARS]


@dataclass(frozen=True, slots=True)
class _Owner:
    """What LOCK says; anybody may have written it, so each field is None unless it is plausible."""

    pid: int | None = None
    command: str | None = None
    since: float | None = None


def _read_owner(directory: Directory) -> _Owner:
    """The owner LOCK names."""
    try:
        with directory.open(LOCK) as file:
            said = json.loads(file.pread(_LOCK_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return _Owner()
    if not isinstance(said, dict):
        return _Owner()
    pid, command, since = said.get("pid"), said.get("command"), said.get("since")
    return _Owner(
        pid if isinstance(pid, int) and 1 < pid < _PID_LIMIT else None,
        command if isinstance(command, str) else None,
        float(since) if isinstance(since, int | float) and 0 < since < _LAST_SECOND else None,
    )


def _holder_pid(directory: Directory) -> int | None:
    """The pid the kernel names as holder of a flock on this directory, if it can be told."""
    stat = os.fstat(directory.fd)
    device = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            for line in file:
                fields = line.split()
                if "FLOCK" in fields and device in fields and "->" not in fields:
                    return int(fields[fields.index(device) - 1])
    except (OSError, ValueError):
        return None
    return None


def _owner_is_gone(directory: Directory) -> bool:
    """Whether LOCK names a process that is dead, reaped or not."""
    pid = _read_owner(directory).pid
    if pid is None:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read(4096).rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _locked_error(directory: Directory) -> LockedError:
    owner = _read_owner(directory)
    holder = _holder_pid(directory)
    if holder is not None and holder > 0 and holder != owner.pid:
        owner = _Owner(holder)
    text = f"{directory.path} is in use by process {owner.pid or 'unknown'}"
    if owner.command:
        text += f" ({owner.command})"
    if owner.since is not None:
        text += " since " + time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
    return LockedError(
        text, path=directory.path, pid=owner.pid, command=owner.command, since=owner.since
    )


_may_be_locked: weakref.WeakSet[Directory] = weakref.WeakSet()
# Held while a descriptor is open that is not in the set yet: no fork may come between.
_no_fork = threading.RLock()


def _forget_in_child() -> None:
    """After fork, in the child: close what it inherited. LOCK_UN would free the lock for all."""
    for directory in list(_may_be_locked):
        with contextlib.suppress(OSError):
            directory.close()
    _no_fork.release()


os.register_at_fork(
    before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_forget_in_child
)


def open_to_lock(path: str) -> Directory:
    """A directory to be locked, whose descriptor no forked child keeps."""
    with _no_fork:
        directory = open_directory(path)
        _may_be_locked.add(directory)
    return directory


class DirectoryLock:
    """A held lock. `release` is idempotent and the last thing a closing database does."""

    def __init__(self, directory: Directory, *, shared: bool, write_pid: bool) -> None:
        self._directory = directory
        self._shared = shared
        self._wrote = False
        if write_pid:
            self._write_owner()

    @staticmethod
    def acquire(
        directory: Directory, *, shared: bool = False, wait: float = 0.0, write_pid: bool = True
    ) -> DirectoryLock:
        """Take the lock within `wait` seconds or raise `LockedError` naming the holder.

        The directory comes from `open_to_lock`.
        """
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(directory.fd, mode)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                late = time.monotonic() - deadline
                if late >= _CHILD_SECONDS or (late >= 0 and not _owner_is_gone(directory)):
                    raise _locked_error(directory) from None
                time.sleep(_POLL_SECONDS)  # flock has no timed form
        try:
            return DirectoryLock(directory, shared=shared, write_pid=write_pid and not shared)
        except BaseException:
            fcntl.flock(directory.fd, fcntl.LOCK_UN)
            raise

    def _write_owner(self) -> None:
        owner = {"pid": os.getpid(), "command": _command_line(), "since": time.time()}
        with contextlib.suppress(OSError):  # the lock is held without it
            self._directory.unlink(LOCK)
            with self._directory.create(LOCK) as file:
                self._wrote = True
                file.pwrite(json.dumps(owner).encode(), 0)

    def release(self) -> None:
        """Remove LOCK, then let go."""
        if self._directory.fd < 0:
            return
        if self._wrote:
            self._wrote = False
            with contextlib.suppress(OSError):
                self._directory.unlink(LOCK)
        fcntl.flock(self._directory.fd, fcntl.LOCK_UN)

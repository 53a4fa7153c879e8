"""Every call of a process tree that changes files, one at a time, before the kernel does it.

Seccomp's user notification: the watched program installs a filter that its children inherit, and
hands its listener over; each call then waits until the watcher lets it pass, or kills. Needs no
tool and no special rights; `missing` says why where it does not work.

    watching side   start_watched(script, ...) -> its process, a Watcher of it
                    Watcher(descriptor, directory).calls() -> Call, ... ; call.allow()
    watched side    be_watched(the script's first argument)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_MACHINES: Final = {  # audit number, seccomp, and the calls by their numbers
    "x86_64": (0xC000003E, 317, {
        1: "write", 18: "pwrite64", 20: "writev", 74: "fsync", 75: "fdatasync", 77: "ftruncate",
        82: "rename", 87: "unlink", 257: "openat", 258: "mkdirat", 263: "unlinkat", 264: "renameat",
        285: "fallocate", 296: "pwritev", 316: "renameat2",
    }),
    "aarch64": (0xC00000B7, 277, {
        64: "write", 68: "pwrite64", 66: "writev", 82: "fsync", 83: "fdatasync", 46: "ftruncate",
        56: "openat", 34: "mkdirat", 35: "unlinkat", 38: "renameat", 47: "fallocate", 70: "pwritev",
        276: "renameat2",
    }),
}  # fmt: skip
_BY_NAME: Final = frozenset(
    {"openat", "mkdirat", "unlinkat", "renameat", "renameat2"}
)  # of a directory
_WHOLE_PATH: Final = frozenset({"rename", "unlink"})
_NO_NEW_PRIVS, _SET_FILTER, _NEW_LISTENER = 38, 1, 8
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTE: Final = struct.Struct("<QIIiIQ6Q")
_REPLY: Final = struct.Struct("<QqiI")


def _program(audit: int, calls: dict[int, str]) -> bytes:
    """The filter, in BPF: tell of these calls, of `openat` only where it creates."""
    op = struct.Struct("<HBBI")
    load, equal, test, ret = 0x20, 0x15, 0x45, 0x06
    openat = next(number for number, name in calls.items() if name == "openat")
    others = [number for number in calls if number != openat]
    lines = [op.pack(load, 0, 0, 4), op.pack(equal, 1, 0, audit), op.pack(ret, 0, 0, _ALLOW)]
    lines += [op.pack(load, 0, 0, 0), op.pack(equal, 0, 3, openat), op.pack(load, 0, 0, 32)]
    lines += [op.pack(test, len(others) + 2, 0, os.O_CREAT), op.pack(ret, 0, 0, _ALLOW)]
    lines += [op.pack(equal, len(others) - n, 0, number) for n, number in enumerate(others)]
    return b"".join([*lines, op.pack(ret, 0, 0, _ALLOW), op.pack(ret, 0, 0, _NOTIFY)])


def listen() -> int:
    """From now on this process and its children ask before each call. One thread only, so far."""
    audit, seccomp, calls = _MACHINES[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program(audit, calls)
    kept = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept))
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    fd = int(libc.syscall(seccomp, _SET_FILTER, _NEW_LISTENER, head))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp user notification")
    return fd


@cache
def missing() -> str:
    """Why there is no watching here; an empty text where there is."""
    if platform.machine() not in _MACHINES:
        return f"no table of system calls for {platform.machine()}"
    child = os.fork()
    if not child:
        try:
            listen()
        except OSError as error:
            os._exit(min(error.errno or 255, 255))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if code == 0 else f"no seccomp user notification: {os.strerror(abs(code))}"


@dataclass(frozen=True)
class Call:
    """A call that waits. `target` is what it is about: a path, or what is behind a descriptor."""

    listener: int
    id: int
    pid: int
    name: str
    args: tuple[int, ...]
    target: str

    def allow(self) -> None:
        with contextlib.suppress(OSError):  # whoever asked is gone
            fcntl.ioctl(self.listener, _SEND, _REPLY.pack(self.id, 0, 0, _CONTINUE))

    @property
    def writes(self) -> bool:
        return self.name in ("write", "pwrite64") and self.args[2] > 1

    def do_part(self, share: float) -> None:
        """Do so much of a write, as a kill in the middle of one leaves it; the call still waits."""
        size = int(self.args[2] * share)
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(self.args[1])
            data = memory.read(size)
        fd = os.open(f"/proc/{self.pid}/fd/{self.args[0]}", os.O_WRONLY)
        try:
            at = self.args[3] if self.name == "pwrite64" else os.fstat(fd).st_size
            os.pwrite(fd, data, at)
        finally:
            os.close(fd)


class Watcher:
    """Answers for a tree of processes; owns the listener."""

    def __init__(self, listener: int, directory: str) -> None:
        self._listener = listener
        self._directory = directory
        self._calls = _MACHINES[platform.machine()][2]

    def calls(self, seconds: float) -> Iterator[Call]:
        """Calls on files of the directory, until the last process of the tree is gone. All others
        pass. Each has to be allowed, or its process killed."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while True:
            ready = poll.poll(seconds * 1000)
            if not ready:
                raise AssertionError(f"no call and no end for {seconds} s")
            if not ready[0][1] & select.POLLIN:
                return
            call = self._next()
            if call is None:
                continue
            if call.target.startswith(self._directory):
                yield call
            else:
                call.allow()

    def _next(self) -> Call | None:
        note = bytearray(_NOTE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, note)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # it died meanwhile
                return None
            raise
        number, pid, _, call, _, _, *args = _NOTE.unpack(note)
        name = self._calls[call]
        return Call(self._listener, number, pid, name, tuple(args), _target(pid, name, args[0]))

    def close(self) -> None:
        os.close(self._listener)


def start_watched(
    script: str, *args: str, directory: str, session: bool = False
) -> tuple[subprocess.Popen[bytes], Watcher]:
    """A program of this folder, which is given the socket it sends its listener to, then `args`."""
    here = Path(__file__).parent
    ours, theirs = socket.socketpair()
    with ours, theirs:
        popen = subprocess.Popen(
            [sys.executable, "-W", "error", str(here / script), str(theirs.fileno()), *args],
            pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(here)}, start_new_session=session,
        )  # fmt: skip
        _, fds, _, _ = socket.recv_fds(ours, 16, 1)
    return popen, Watcher(fds[0], directory)


def be_watched(number: str) -> None:
    """From here on the calls of this process wait; the socket of that number says so and closes."""
    with socket.socket(fileno=int(number)) as to_watcher:
        listener = listen()
        socket.send_fds(to_watcher, [b"listener"], [listener])
        os.close(listener)


def _target(pid: int, name: str, first: int) -> str:
    if name in _WHOLE_PATH or (name in _BY_NAME and first & 0xFFFFFFFF == 0xFFFFFF9C):
        return ""  # by path: nothing of ours is
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{first & 0xFFFFFFFF}")
    return ""

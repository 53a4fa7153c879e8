"""Endless inputs: standard input, a FIFO, a file followed by name over its rotations.

Runs in: supervisor.
Owns: the descriptor of its input (standard input's belongs to the process).
Invariants: (1) `read` never blocks, except on a standard input that was not reported readable;
(2) bytes come in order and none is skipped: a rotated file is read to its end before the next one
begins; (3) a `FileMark` names a byte of a file so that a later run finds it again even under its
rotated name, and never mistakes another file for it.
Fails with: `OSError`.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

_HEAD_BYTES: Final = 1024  # enough to tell two log files apart
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class FileMark:
    """The byte at `offset` of the file that had this inode and began with these bytes."""

    inode: int
    offset: int
    head_bytes: int
    head_crc: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one read gave. `mark` is the place right after `data`, None for what is read only once.

    With `ends`, which comes without data, the input starts anew: a line without newline is whole.
    """

    data: bytes
    ends: bool
    mark: FileMark | None = None


class Follower(Protocol):
    """An input to be read for as long as it lives. `name` is what the user called it."""

    name: str
    finished: bool

    @property
    def fd(self) -> int | None:
        """What to wait on; None when there is nothing to wait on and only time will tell."""

    def read(self, limit: int) -> Piece | None:
        """The next bytes, or None when there are none now."""

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""


def follower(name: str, mark: FileMark | None) -> Follower:
    """The follower for `-`, a FIFO (or another device), or a path that is or will be a file."""
    if name == "-":
        return StdinFollower()
    with suppress(FileNotFoundError):
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{name} is a directory")
        if not stat.S_ISREG(mode):
            return FifoFollower(name)
    return FileFollower(name, mark)


class StdinFollower:
    """Standard input; finished at its end."""

    name = "stdin"

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self.finished = False

    @property
    def fd(self) -> int | None:
        return self._fd

    def read(self, limit: int) -> Piece | None:
        data = os.read(self._fd, limit)
        self.finished = not data
        return Piece(data, ends=not data)

    def close(self) -> None:
        """Standard input is the process's own."""


class FifoFollower:
    """A FIFO; when its last writer leaves it waits for the next one."""

    finished = False

    def __init__(self, path: str) -> None:
        self.name = path
        self._fd = os.open(path, _OPEN_FLAGS)

    @property
    def fd(self) -> int | None:
        return self._fd

    def read(self, limit: int) -> Piece | None:
        try:
            data = os.read(self._fd, limit)
        except BlockingIOError:
            return None
        if data:
            return Piece(data, ends=False)
        # Opened before the old one is closed: without a reader, a writer that arrives in between
        # would get SIGPIPE or lose what it wrote.
        fresh = os.open(self.name, _OPEN_FLAGS)
        os.close(self._fd)
        self._fd = fresh
        return Piece(b"", ends=True)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileFollower:
    """A file followed by name, as `tail -F`: rotation by renaming, and truncation in place.

    A rotated file is left for the next one only when that one has its first byte, so lines still
    written to the renamed file meanwhile are read. The next one is the oldest file changed since
    among those named like `app.log`, `app.log.1`, `app.log-20240131`, so several rotations at once
    are caught up with, unless they were compressed or removed. A file truncated and refilled beyond
    the place read is not noticed.
    """

    finished = False
    fd = None

    def __init__(self, path: str, mark: FileMark | None = None) -> None:
        self.name = path
        self._directory, self._base = os.path.split(path)
        self._rotated_name = re.compile(re.escape(self._base) + r"([.-]\d[\d.:_T-]*)?", re.ASCII)
        self._file = -1
        self._offset = 0
        self._head = b""
        self._seen: set[int] = set()  # tells files apart that were last written in one clock tick
        if mark is not None and mark.offset > 0:
            self._resume(mark)

    def read(self, limit: int) -> Piece | None:
        if self._file < 0 and not self._open(self.name):
            return None
        successor = self._successor()
        data = os.read(self._file, limit)
        if data:
            self._offset += len(data)
            if len(self._head) < _HEAD_BYTES:
                self._head += data[: _HEAD_BYTES - len(self._head)]
            return Piece(data, ends=False, mark=self._mark())
        if successor is not None:
            # The end was read after the successor had data: nothing more comes here.
            piece = Piece(b"", ends=True, mark=self._mark())
            self._open(successor)
            return piece
        if os.fstat(self._file).st_size < self._offset:
            os.lseek(self._file, 0, os.SEEK_SET)
            self._offset, self._head = 0, b""
            return Piece(b"", ends=True, mark=self._mark())
        return None

    def close(self) -> None:
        fd, self._file = self._file, -1
        if fd >= 0:
            os.close(fd)

    def _open(self, path: str) -> bool:
        try:
            fd = os.open(path, _OPEN_FLAGS)
        except FileNotFoundError:
            return False
        if self._file >= 0:
            self._seen.add(os.fstat(self._file).st_ino)
        self.close()
        self._file, self._offset, self._head = fd, 0, b""
        return True

    def _successor(self) -> str | None:
        """The file to read after this one, if this one was rotated and that one has data."""
        mine = os.fstat(self._file)
        with suppress(FileNotFoundError):
            if os.stat(self.name).st_ino == mine.st_ino:
                return None
        later = []
        for entry in self._family():
            with suppress(FileNotFoundError):
                info = entry.stat()
                if info.st_ino == mine.st_ino or info.st_size == 0:
                    continue
                if entry.name == self._base:
                    later.append((1, 0, entry.path))
                elif info.st_mtime_ns > mine.st_mtime_ns or (
                    info.st_mtime_ns == mine.st_mtime_ns and info.st_ino not in self._seen
                ):
                    later.append((0, info.st_mtime_ns, entry.path))
        return min(later)[2] if later else None

    def _family(self) -> list[os.DirEntry[str]]:
        """The regular files named like this one or its rotated predecessors."""
        with suppress(FileNotFoundError), os.scandir(self._directory or ".") as entries:
            return [e for e in entries if self._rotated_name.fullmatch(e.name) and e.is_file()]
        return []

    def _mark(self) -> FileMark:
        inode = os.fstat(self._file).st_ino
        return FileMark(inode, self._offset, len(self._head), zlib.crc32(self._head))

    def _resume(self, mark: FileMark) -> None:
        """Go to where an earlier run stopped, in the file of this name or a renamed one."""
        for entry in self._family():
            if entry.stat().st_ino == mark.inode and self._open(entry.path):
                # The head may reach beyond the offset: a line not yet ended was read too.
                head = os.pread(self._file, mark.head_bytes, 0)
                if (
                    os.fstat(self._file).st_size >= mark.offset
                    and zlib.crc32(head) == mark.head_crc
                ):
                    os.lseek(self._file, mark.offset, os.SEEK_SET)
                    self._offset, self._head = mark.offset, head[: mark.offset]
                    return
                self.close()

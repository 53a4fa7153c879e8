"""Files and directories: every system call on storage goes through here.

Runs in: supervisor and workers.
Owns: descriptors it opened; the caller closes them.
Invariants: (1) every open is relative to a directory descriptor with O_NOFOLLOW and O_CLOEXEC,
every create is exclusive with mode 0600 whatever the umask; (2) no descriptor below 3 is ever
handed out; (3) a mapping is made only over bytes that exist; (4) nothing here truncates a file that
may be mapped.
Fails with: `OSError` as it comes (the caller knows what it means), `DiskFullError` for no space
where nothing was promised yet. A failed sync is never one: what it lost does not come back with
more space.

`Directory` and `File` are the seam for fault injection: a test puts its subclass in
`directory_class`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
from typing import Any, Final, NoReturn, TypeAlias

from meles.engine.errors import DiskFullError
from meles.engine.giving_way import step_aside

# a planted FIFO is refused, not waited on
_NOTHING_ODD: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
_LOWEST_FD: Final = 3
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
AROUND_BYTES: Final = 2 << 20  # what a look at one page may map at most: a page of the cache's
NO_MAPPING: Final = mmap.mmap(-1, 1)  # in the place of one that was let go of: it is closed
NO_MAPPING.close()
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})

Buffer: TypeAlias = bytes | bytearray | memoryview


def is_shortage(error: BaseException) -> bool:
    """Whether a file could not be opened for want of descriptors: nothing was done, try later."""
    return isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR


def _refuse(error: OSError, what: str) -> NoReturn:
    """Raise `DiskFullError` when the device is full, else the error itself."""
    if error.errno in _NO_SPACE:
        full = DiskFullError(f"no space to {what}")
        full.errno = error.errno
        raise full from error
    raise error


def _high_fd(fd: int) -> int:
    """Move a descriptor out of 0-2: a host started with them closed prints on what is there."""
    if fd >= _LOWEST_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
    finally:
        os.close(fd)


def _open_fd(fd: int, name: str) -> int:
    """The descriptor, or `OSError`: -1 is a `ValueError` to `fsync`, to `listdir` where we are."""
    if fd < 0:
        raise OSError(errno.EBADF, f"{name} is closed")
    return fd


def _mapping(fd: int, length: int, access: int) -> mmap.mmap:
    """Map a file. Before 3.13 a mapping keeps a duplicate of the descriptor: not in 0-2 either."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, length, access=access, trackfd=False)
    plugs = [os.dup(fd)]
    try:
        while plugs[-1] < _LOWEST_FD:
            plugs.append(os.dup(fd))
        os.close(plugs.pop())
        return mmap.mmap(fd, length, access=access)
    finally:
        for plug in plugs:
            os.close(plug)


def private_memory(length: int) -> mmap.mmap:
    """Memory of this process alone, in no file and in no core dump."""
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_DONTDUMP)
    return memory


def expect_no_reading(mapping: mmap.mmap) -> None:
    """A mapping that is written from front to back: each first touch brings in one page.

    Else the kernel reads ahead, and a store waits until megabytes of empty pages were cleared.
    """
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_RANDOM)


def forget_pages(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Take the pages of a file's mapping with a byte in [start, stop) out of resident memory.

    They stay in the kernel's cache, and whoever looks there again finds the same bytes: threads may
    be reading them at this moment. What was mapped with them, up to AROUND_BYTES, may lie before
    `start`. No promise: pages that are locked stay.
    """
    start &= -mmap.PAGESIZE
    if start < stop:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed, so they are gone
            mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)


def resident_of_files() -> int | None:
    """Bytes of files that are resident in this process, libraries included; None: nobody says."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return None


class File:
    """One open file. Not thread-safe except `pread` and `sync`."""

    __slots__ = ("fd", "name")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`; a short write goes on where it stopped."""
        view = memoryview(data).cast("B")
        try:
            while view:
                done = os.pwrite(self.fd, view, offset)
                view = view[done:]
                offset += done
        except OSError as error:
            _refuse(error, f"write {self.name}")

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        data = os.pread(self.fd, length, offset)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def allocate(self, offset: int, length: int) -> bool:
        """Really allocate the range, growing the file. False where the file system cannot."""
        step_aside()
        try:
            os.posix_fallocate(self.fd, offset, length)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                return False
            _refuse(error, f"allocate {self.name}")
        return True

    def truncate(self, length: int) -> None:
        """Cut the file. Only for files that nothing maps beyond `length`."""
        os.ftruncate(self.fd, length)

    def sync(self) -> None:
        """Data and size on the medium. A failure is final: the kernel forgets what it lost."""
        step_aside()
        os.fdatasync(_open_fd(self.fd, self.name))

    def start_write_back(self, offset: int, length: int) -> None:
        """Have the device begin with what was just written there: a later `sync` waits less.

        No promise. The advice is that the pages are not needed; as none of them is clean, the
        kernel writes them and keeps them.
        """
        with contextlib.suppress(OSError):
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def map(self, length: int, *, write: bool = False) -> mmap.mmap:
        """Map the first `length` bytes, at least one, which must exist (SIGBUS otherwise)."""
        size = self.size()
        if not 0 < length <= size:
            raise OSError(errno.EINVAL, f"cannot map {length} of the {size} bytes of {self.name}")
        return _mapping(self.fd, length, mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)

    def close(self) -> None:
        """Close; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            step_aside()
            os.close(fd)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Directory:
    """An open directory: names are resolved against its descriptor, not its path."""

    file_class: type[File] = File
    keys: Any = None  # what files made here are sealed with, a `crypt.keys.KeyRing`; not known here

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = _high_fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    @classmethod
    def from_fd(cls, fd: int, path: str) -> Directory:
        """Adopt an inherited descriptor; `path` is for messages only. `OSError` if it is none."""
        os.set_inheritable(fd, False)
        directory = cls.__new__(cls)
        directory.path = path
        directory.fd = fd
        return directory

    def join(self, name: str) -> str:
        """The name as a path, for messages only."""
        return f"{self.path}/{name}"

    def is_at_its_path(self) -> bool:
        """Whether its path still leads to it. Where that cannot be told, nothing speaks against."""
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # no permission any more, say: no sign that it was moved
            return True
        return os.path.samestat(there, os.fstat(_open_fd(self.fd, self.path)))

    def create(self, name: str) -> File:
        """A new file, open for reading and writing. `FileExistsError` if the name is taken."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        step_aside()
        try:
            fd = _high_fd(os.open(name, flags, FILE_MODE, dir_fd=self.fd))
        except OSError as error:
            _refuse(error, f"create {name}")
        try:
            os.fchmod(fd, FILE_MODE)
        except BaseException:
            os.close(fd)
            self.unlink(name)
            raise
        return self.file_class(fd, name)

    def open(self, name: str, *, write: bool = False) -> File:
        """An existing regular file; `OSError` for a link or anything else of that name."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | _NOTHING_ODD
        fd = _high_fd(os.open(name, flags, dir_fd=self.fd))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, f"{name} is not a regular file")
        return self.file_class(fd, name)

    def map(self, name: str) -> mmap.mmap:
        """Map a whole non-empty file for reading. An empty one raises `OSError` (EINVAL)."""
        with self.open(name) as file:
            return file.map(file.size())

    def expect_ends(self, name: str, size: int, length: int) -> None:
        """Have the device begin to bring the first and last `length` bytes of a file of this size.

        No promise, and no error: whoever opens the file next says what is wrong with it.
        """
        with contextlib.suppress(OSError, OverflowError):
            fd = os.open(name, os.O_RDONLY | _NOTHING_ODD, dir_fd=self.fd)
            try:
                for start in (0, max(0, size - length)):
                    os.posix_fadvise(fd, start, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.pread(file.size(), 0)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what has it: all at once, durable after `sync`."""
        self._move(old, new)

    def replace(self, name: str, through: str, content: bytes) -> File:
        """A file in the place of the one called `name`, durable when this returns, and open.

        It is written under the name `through` first: a crash leaves the old one or the new one.
        """
        self.unlink(through)
        file = self.create(through)
        try:
            file.pwrite(content, 0)
            file.sync()
            self.rename(through, name)
            self.sync()
        except BaseException:
            file.close()
            self.unlink(through)
            raise
        return file

    def make_directory(self, name: str) -> None:
        """A new directory in this one, 0700 whatever the umask. `FileExistsError` if taken."""
        try:
            os.mkdir(name, DIRECTORY_MODE, dir_fd=self.fd)
        except OSError as error:
            _refuse(error, f"create {name}")
        try:
            os.chmod(name, DIRECTORY_MODE, dir_fd=self.fd)
        except BaseException:
            os.rmdir(name, dir_fd=self.fd)
            raise

    def put_directory(self, old: str, new: str) -> None:
        """Give a directory in this one another name, which nothing but an empty directory may have.

        All at once, durable after `sync`. `OSError` (ENOTEMPTY, EEXIST, ENOTDIR) if it is taken.
        """
        self._move(old, new)

    def _move(self, old: str, new: str) -> None:
        try:
            os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            _refuse(error, f"rename {old}")

    def remove_directory(self, name: str) -> None:
        """Remove an empty directory in this one."""
        os.rmdir(name, dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove the name; an absent one is no error."""
        step_aside()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def names(self) -> list[str]:
        return sorted(os.listdir(_open_fd(self.fd, self.path)))

    def size_of(self, name: str) -> int:
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_size

    def sync(self) -> None:
        """Make creations, renames and removals in this directory survive a power cut."""
        step_aside()
        os.fsync(_open_fd(self.fd, self.path))

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


directory_class: type[Directory] = Directory  # what `open_directory` makes


def open_directory(path: str) -> Directory:
    """Open a directory that exists. The one way the engine comes by one from a path."""
    return directory_class(path)


def make_directory(path: str) -> bool:
    """Create a directory and its parents, durable, 0700 whatever the umask. True if made here."""
    missing = []
    path = path.rstrip("/") or "/"
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    made = False
    for path in reversed(missing):
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            made = False
            continue
        os.chmod(path, DIRECTORY_MODE)
        _sync_path(os.path.dirname(path) or ".")
        made = True
    return made


def _sync_path(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # a parent one may write to but not read
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""A file system that fails on purpose and forgets what was not synced.

`FaultDisk` counts the operations that change storage and asks its `plan` before each one; a plan
may raise (`FailNth`) or look (`OnNth`). It also remembers what every file held at its last sync and
which names every directory had at its own, so `power_loss` can write the directory that a machine
would find after its power failed: only what was synced, or that and a random part of the rest.

Rules of the model, none kinder than a real disk:
(1) file data is sure after `File.sync`, a name after `Directory.sync`, neither after the other;
(2) data not synced survives sector by sector, each for itself, and the file's size for itself;
(3) a change of names not synced survives operation by operation, each for itself, a rename whole;
(4) after a failed sync the data it was about stays lost, though it can still be read and the next
sync succeeds;
(5) stores through a mapping are data like any other: they are seen when the file is synced or the
power fails.
What was in a directory when it was first opened through the disk counts as synced.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from meles.engine.errors import DiskFullError
from meles.engine.fs import files
from meles.engine.fs.files import Buffer, Directory, File

SECTOR: Final = 512
MUTATING: Final = frozenset(
    {"create", "write", "allocate", "truncate", "sync", "map", "rename", "unlink", "sync_dir",
     "make_dir", "put_dir", "remove_dir"}
)  # fmt: skip
READING: Final = frozenset({"open", "read", "map_read"})
GROWING: Final = frozenset(  # what a full disk refuses
    {"create", "write", "allocate", "rename", "make_dir", "put_dir"}
)


class Operation(NamedTuple):
    """The `number`-th operation of its disk, counted from 1."""

    number: int
    kind: str
    name: str


Plan = Callable[[Operation], None]


class Torn(Exception):
    """Raised by a plan for a write: do `part` of its bytes, then fail with `error`."""

    def __init__(self, error: OSError, part: float) -> None:
        super().__init__()
        self.error = error
        self.part = part


def injected(code: int, what: str) -> OSError:
    """The error the real layer would raise for this errno."""
    if code in (errno.ENOSPC, errno.EDQUOT) and not what.startswith("sync"):
        full = DiskFullError(f"no space to {what} (injected)")
        full.errno = code
        return full
    return OSError(code, f"{os.strerror(code)} (injected: {what})")


@dataclass(slots=True)
class FailNth:
    """Fail the n-th operation of the chosen kinds, counted from when the plan was made.

    `sticky`: and all later ones. `torn`: a write that fails has written this part of its bytes.
    `fired` counts failures, `seen` the operations of those kinds.
    """

    n: int
    code: int = errno.EIO
    sticky: bool = False
    kinds: frozenset[str] = MUTATING
    torn: float | None = None
    seen: int = 0
    fired: int = 0

    def __call__(self, operation: Operation) -> None:
        if operation.kind not in self.kinds:
            return
        self.seen += 1
        if self.seen != self.n and not (self.sticky and self.seen > self.n):
            return
        self.fired += 1
        error = injected(self.code, f"{operation.kind} {operation.name}")
        if operation.kind == "write" and self.torn is not None:
            raise Torn(error, self.torn)
        raise error


@dataclass(slots=True)
class OnNth:
    """Call `action` before the n-th operation that changes storage."""

    n: int
    action: Callable[[], None]
    seen: int = 0

    def __call__(self, operation: Operation) -> None:
        if operation.kind in MUTATING:
            self.seen += 1
            if self.seen == self.n:
                self.action()


@dataclass(slots=True, eq=False)
class _Inode:
    """A file, whatever its name. `last` is its content once its name is gone; `lost` what a failed
    sync threw away."""

    durable: bytes = b""
    last: bytes | None = None
    lost: bytes | None = None

    def synced(self, content: bytes) -> None:
        self.durable, self.lost = self.writable(content), None

    def writable(self, content: bytes) -> bytes:
        """What of `content` can still reach the disk: not the sectors a failed sync was about."""
        if self.lost is None:
            return content
        out = bytearray(content)
        for at, piece in _sectors(content):
            if piece == self.lost[at : at + len(piece)]:
                out[at : at + len(piece)] = self.durable[at : at + len(piece)].ljust(
                    len(piece), b"\0"
                )
        return bytes(out)


@dataclass(slots=True)
class _Names:
    """The names of a directory: now, at its last sync, and the changes since."""

    now: dict[str, _Inode] = field(default_factory=dict)
    durable: dict[str, _Inode] = field(default_factory=dict)
    changes: list[tuple[str | None, str | None, _Inode]] = field(default_factory=list)

    def change(self, old: str | None, new: str | None, inode: _Inode) -> None:
        """A file loses the name `old` and gets the name `new`."""
        self.changes.append((old, new, inode))
        _rename(self.now, old, new, inode)


def _rename(names: dict[str, _Inode], old: str | None, new: str | None, inode: _Inode) -> None:
    if old is not None:
        if names.get(old) is not inode:
            return
        del names[old]
    if new is not None:
        names[new] = inode


def _sectors(content: bytes) -> Iterator[tuple[int, bytes]]:
    return ((at, content[at : at + SECTOR]) for at in range(0, len(content), SECTOR))


def _surviving(durable: bytes, current: bytes, keep: Callable[[], bool]) -> bytes:
    """What a power loss leaves of a file."""
    if durable == current:
        return durable
    size = len(current) if len(current) == len(durable) or keep() else len(durable)
    found = bytearray(durable[:size].ljust(size, b"\0"))
    for at, piece in _sectors(current[:size]):
        if piece != found[at : at + len(piece)] and keep():
            found[at : at + len(piece)] = piece
    return bytes(found)


class FaultDisk:
    """What the directories opened through it share. Thread-safe; `plan` may be set at any time."""

    def __init__(self, *, remember: bool = True) -> None:
        """`remember=False` saves the copies that `power_loss` needs."""
        self.plan: Plan | None = None
        # called before an operation, without the disk's lock: may wait, others go on meanwhile
        self.before: Callable[[str, str], None] | None = None
        self.can_allocate = True  # False: a file system without `fallocate`
        self.log: list[Operation] = []
        self._remember = remember
        self._lock = threading.RLock()
        self._directories: dict[str, _Names] = {}

    @property
    def count(self) -> int:
        """Operations that changed storage so far, or tried to."""
        with self._lock:
            return sum(operation.kind in MUTATING for operation in self.log)

    def directory_class(self) -> type[FaultDirectory]:
        """`FaultDirectory` bound to this disk: what `files.directory_class` takes."""
        disk = self

        class OnThisDisk(FaultDirectory):
            pass

        OnThisDisk.disk = disk
        return OnThisDisk

    def open(self, path: str) -> FaultDirectory:
        return self.directory_class()(path)

    @contextmanager
    def installed(self) -> Iterator[FaultDisk]:
        """Every directory the engine opens in this process meanwhile is on this disk."""
        before, files.directory_class = files.directory_class, self.directory_class()
        try:
            yield self
        finally:
            files.directory_class = before

    # -- power loss --------------------------------------------------------------------------------

    def power_loss(self, path: str, target: str, *, keep: float = 0.0, seed: int = 0) -> None:
        """Write into the new directory `target` what would be found of `path` after a power loss.

        Of what was not synced each part survives with probability `keep`. The directory itself and
        whoever has it open go on undisturbed.
        """
        chance = random.Random(seed)

        def kept() -> bool:
            return keep > 0 and chance.random() < keep

        with self._lock:
            names = self._directories[os.path.realpath(path)]
            survivors = dict(names.durable)
            for old, new, inode in names.changes:
                if kept():
                    _rename(survivors, old, new, inode)
            where = {id(inode): name for name, inode in names.now.items()}
            os.mkdir(target, 0o700)
            for name, inode in survivors.items():
                current = inode.writable(self._content(path, where, inode))
                content = _surviving(inode.durable, current, kept)
                fd = os.open(
                    os.path.join(target, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600
                )
                with os.fdopen(fd, "wb") as file:
                    file.write(content)

    @staticmethod
    def _content(path: str, where: dict[int, str], inode: _Inode) -> bytes:
        if inode.last is not None:
            return inode.last
        with open(os.path.join(path, where[id(inode)]), "rb") as file:
            return file.read()

    # -- what directories and files report ---------------------------------------------------------

    @contextmanager
    def step(self, kind: str, name: str) -> Iterator[None]:
        """Count an operation and let the plan stop it; nothing comes between it and its record."""
        if self.before is not None:
            self.before(kind, name)
        with self._lock:
            operation = Operation(len(self.log) + 1, kind, name)
            self.log.append(operation)
            if self.plan is not None:
                self.plan(operation)
            yield

    def names_of(self, path: str, fd: int) -> _Names:
        """The record of a directory; begun, with all that is there, when it is first opened."""
        with self._lock:
            names = self._directories.get(path)
            if names is None:
                names = self._directories[path] = _Names()
                with os.scandir(fd) as entries:
                    found = [e.name for e in entries if e.is_file(follow_symlinks=False)]
                names.now = {name: _Inode(self.content(fd, name)) for name in found}
                names.durable = dict(names.now)
            return names

    def content(self, directory_fd: int, name: str) -> bytes:
        if not self._remember:
            return b""
        with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory_fd), "rb") as file:
            return file.read()

    def content_of(self, file: File) -> bytes:
        return os.pread(file.fd, file.size(), 0) if self._remember else b""


class FaultFile(File):
    """A file on a `FaultDisk`; `FaultDirectory` sets both fields at once."""

    disk: FaultDisk
    inode: _Inode

    def pwrite(self, data: Buffer, offset: int) -> None:
        try:
            with self.disk.step("write", self.name):
                super().pwrite(data, offset)
        except Torn as torn:
            view = memoryview(data).cast("B")
            super().pwrite(view[: int(len(view) * torn.part)], offset)
            raise torn.error from None

    def allocate(self, offset: int, length: int) -> bool:
        with self.disk.step("allocate", self.name):
            return self.disk.can_allocate and super().allocate(offset, length)

    def truncate(self, length: int) -> None:
        with self.disk.step("truncate", self.name):
            super().truncate(length)

    def sync(self) -> None:
        try:
            with self.disk.step("sync", self.name):
                content = self.disk.content_of(self)  # what is stored meanwhile may miss the sync
                super().sync()
                self.inode.synced(content)
        except OSError:
            self.inode.lost = self.disk.content_of(self)
            raise

    def map(self, length: int, *, write: bool = False) -> mmap.mmap:
        with self.disk.step("map" if write else "map_read", self.name):
            return super().map(length, write=write)

    def pread(self, length: int, offset: int) -> bytes:
        with self.disk.step("read", self.name):
            return super().pread(length, offset)


class FaultDirectory(Directory):
    """A directory on a `FaultDisk`."""

    file_class = FaultFile
    disk: FaultDisk

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._names = self.disk.names_of(os.path.realpath(path), self.fd)

    def _on_disk(self, file: File, inode: _Inode) -> FaultFile:
        assert isinstance(file, FaultFile)
        file.disk, file.inode = self.disk, inode
        return file

    def create(self, name: str) -> File:
        with self.disk.step("create", name):
            file = self._on_disk(super().create(name), _Inode())
            self._names.change(None, name, file.inode)
            return file

    def open(self, name: str, *, write: bool = False) -> File:
        with self.disk.step("open", name):
            file = super().open(name, write=write)
            return self._on_disk(file, self._names.now.setdefault(name, _Inode()))

    def rename(self, old: str, new: str) -> None:
        with self.disk.step("rename", f"{old} {new}"), self._replacing(new):
            super().rename(old, new)
            self._names.change(old, new, self._names.now.setdefault(old, _Inode()))

    def unlink(self, name: str) -> None:
        with self.disk.step("unlink", name), self._replacing(name):
            super().unlink(name)
            if (inode := self._names.now.get(name)) is not None:
                self._names.change(name, None, inode)

    # Directories in directories are not part of what `power_loss` remembers.

    def make_directory(self, name: str) -> None:
        with self.disk.step("make_dir", name):
            super().make_directory(name)

    def put_directory(self, old: str, new: str) -> None:
        with self.disk.step("put_dir", f"{old} {new}"):
            super().put_directory(old, new)

    def remove_directory(self, name: str) -> None:
        with self.disk.step("remove_dir", name):
            super().remove_directory(name)

    def sync(self) -> None:
        with self.disk.step("sync_dir", self.path):
            super().sync()
            self._names.durable = dict(self._names.now)
            self._names.changes.clear()

    @contextmanager
    def _replacing(self, name: str) -> Iterator[None]:
        """A name goes; should the power fail, its file may be there again with what it held."""
        inode = self._names.now.get(name)
        last = None if inode is None else self.disk.content(self.fd, name)
        yield
        if inode is not None:
            inode.last = last

"""Append values to the one active value-log file.

Runs in: supervisor.
Owns: the active file's descriptor and its append end.
Invariants: (1) callers hold the store's write lock, so one thread appends; `fetch` and `read` are
safe beside it; (2) `end` moves only after the bytes are in the kernel, so no address is handed out
for bytes that are not there; (3) what a failed append left behind lies at or beyond `end` and is
overwritten or cut; (4) a sealed file is never appended to.
Fails with: `DiskFullError`, `OSError` as it comes; `InvariantError` when the file should have been
rotated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.entry import POINTER_BYTES, ValuePointer
from meles.engine.codec.header import HEADER_BYTES, MAGIC_VLOG, FileHeader
from meles.engine.errors import ClosedError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.fs.pages import Pages
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.kernel import NATIVE
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.layout import (
    ENTRY,
    ENTRY_BYTES,
    MAX_LOGICAL_ID,
    POINTER,
    SEEDED,
    TRAILER_BYTES,
    Trailer,
    damaged_value,
    described,
    entry_error,
    value_of,
)

_CAPACITY: Final = MAX_FILE_BYTES - TRAILER_BYTES
_JOIN_BYTES: Final = 1 << 20  # larger writes go out piece by piece instead of through one copy
_LEAST_MAPPED: Final = 1 << 20
_UNMAPPED_SHARE: Final = 8  # of what is mapped, as a divisor: so much may lie behind it


def encode_entry(file_id: int, offset: int, value: bytes, version: int) -> tuple[bytes, bytes]:
    """Header and value of an entry, as they are written one after the other."""
    seeded = SEEDED.pack(file_id, offset, len(value), version)
    return ENTRY.pack(crc32c(value, crc32c(seeded)), len(value), version), value


class ValueAppenderPy:
    """The append end of the active file; the compiled twin is engine/kernel/values.pxi.

    `end_limit`, `capacity` and `entry_limit` are for the compiled commit, which asks before it
    appends.
    """

    def __init__(self, file_id: int, end: int, pwrite: Callable[[bytes, int], None]) -> None:
        self.file_id = file_id
        self.end = end
        self.entries = 0
        self.end_limit = self.capacity = self.entry_limit = 0
        self._pwrite = pwrite

    def append(self, value: bytes, version: int) -> bytes:
        """Write one entry; its encoded address. On an error `end` has not moved."""
        pointer = ValuePointer(self.file_id, self.end, len(value)).encode()
        self._pwrite(b"".join(encode_entry(self.file_id, self.end, value, version)), self.end)
        self.end += ENTRY_BYTES + len(value)
        self.entries += 1
        return pointer


if TYPE_CHECKING or NATIVE is None:
    ValueAppender = ValueAppenderPy
else:
    ValueAppender = NATIVE.ValueAppender


class ValueLogWriter:
    """One active file, created here.

    The caller syncs the directory before the MANIFEST names the file; whether the header is synced
    by then does not matter, recovery rewrites one that was never written.
    """

    __slots__ = (
        "__weakref__",
        "_compiled",
        "_file",
        "_mapped",
        "_pages",
        "_sealed",
        "appender",
        "file_id",
        "header",
        "logical",
        "path",
    )

    more = 0  # bytes an entry takes beside its header and value

    def __init__(self, directory: Directory, file_id: int, *, pages: Pages | None = None) -> None:
        """`FileExistsError` if the name is taken. `pages` bounds what of it is resident."""
        if not 0 < file_id <= MAX_LOGICAL_ID:
            raise InvariantError(f"value-log file id {file_id} does not fit a pointer")
        name = file_name(Kind.VLOG, file_id)
        self.file_id = file_id
        self.logical = (file_id,)
        self.path = directory.join(name)
        self._sealed = False
        self._pages = pages
        self._compiled: Any = None
        self._mapped = 0  # bytes that `_compiled` reads in place
        self.header = self._made_header(directory)
        self._file = directory.create(name)
        self.appender = ValueAppender(file_id, HEADER_BYTES, self._file.pwrite)
        self.appender.capacity = _CAPACITY
        try:
            self._file.pwrite(self.header.encode(), 0)
        except BaseException:
            self._file.close()
            directory.unlink(name)
            raise

    def _made_header(self, directory: Directory) -> FileHeader:  # noqa: ARG002 - see sealed.py
        return FileHeader(MAGIC_VLOG, self.file_id)

    def described(self) -> VlogMeta:
        """What the MANIFEST is told of the file before anything points into it."""
        return described(self.header, self.logical)

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.appender.end

    @property
    def entries(self) -> int:
        return self.appender.entries

    @property
    def room(self) -> int:
        """Bytes, entry headers included, that can still be appended before offsets run out."""
        return _CAPACITY - self.end

    def append(self, value: bytes, version: int) -> ValuePointer:
        """Append one value; its address is readable at once."""
        offset, length = self.end, len(value)
        after = offset + ENTRY_BYTES + length
        if after > _CAPACITY or self._sealed:
            raise self._refusal(after)
        if length < _JOIN_BYTES:
            try:
                self.appender.append(value, version)
            except BaseException:
                self.cut()
                raise
        else:
            self._write_pieces(list(encode_entry(self.file_id, offset, value, version)))
            self._moved_to(after, 1)
        return ValuePointer(self.file_id, offset, length)

    def _moved_to(self, end: int, entries: int) -> None:
        self.appender.end = end
        self.appender.entries += entries

    def append_many(self, values: Sequence[bytes], version: int) -> list[bytes]:
        """Append all values in one write; their encoded addresses in the same order."""
        if not values:
            return []
        lengths = list(map(len, values))
        offsets = list(accumulate((ENTRY_BYTES + n for n in lengths), initial=self.end))
        after = offsets.pop()
        if after > _CAPACITY or self._sealed:
            raise self._refusal(after)
        seeded = list(map(SEEDED.pack, repeat(self.file_id), offsets, lengths, repeat(version)))
        crcs = map(crc32c, values, map(crc32c, seeded))
        pieces: list[bytes] = [b""] * (2 * len(values))
        pieces[::2] = map(ENTRY.pack, crcs, lengths, repeat(version))
        pieces[1::2] = values
        if after - self.end < _JOIN_BYTES:
            pieces = [b"".join(pieces)]
        self._write_pieces(pieces)
        self._moved_to(after, len(values))
        return [head[:POINTER_BYTES] for head in seeded]

    def fetch(self, pointer: bytes, version: int | None = None) -> bytes:
        """The value at an encoded address. `CorruptionError` if none that checks out is there."""
        file_id, offset, length = POINTER.unpack(pointer)
        size = ENTRY_BYTES + self.more + length
        if file_id != self.file_id or offset < HEADER_BYTES or offset + size > self.end:
            raise entry_error(self.path, offset, "address lies outside the file")
        if self._file.fd < 0:
            raise ClosedError(f"{self.path} is closed")
        try:
            entry = self._file.pread(size, offset)
        except OSError as error:
            raise entry_error(self.path, offset, f"value cannot be read: {error}") from error
        if len(entry) != size:
            raise entry_error(self.path, offset, "file is shorter than what was written")
        return self._value_in(entry, pointer, version, offset)

    def _value_in(self, entry: bytes, pointer: bytes, version: int | None, offset: int) -> bytes:
        return value_of(entry, pointer, version, offset, self.path)

    def compiled(self) -> Sequence[Any]:
        """A compiled reader (`NATIVE.ValueFile`) of what is mapped; the rest is for `fetch`."""
        if self._compiled is None:
            self._compiled = NATIVE.ValueFile(
                None, 0, self.file_id, None, None, partial(damaged_value, self.path),
                partial(ClosedError, f"{self.path} is closed"),
                beyond=partial(_fetch_and_map, ref(self)),
            )  # fmt: skip
        return (self._compiled,)

    def map_more(self) -> None:
        """Have what was written since read in place, if it is enough to be worth a mapping.

        What is mapped is never cut: it ends where an append has ended.
        """
        end = self.end
        if end - self._mapped < max(_LEAST_MAPPED, self._mapped // _UNMAPPED_SHARE):
            return
        with contextlib.suppress(OSError):  # no descriptor, or closed: `fetch` goes on or says so
            mapping = self._file.map(end)
            marks = None if self._pages is None else self._pages.watch(mapping)
            self._compiled.reach(mapping, end, marks)
            self._mapped = max(end, self._mapped)  # another thread may have been here

    def read(self, pointer: ValuePointer) -> bytes:
        """As `fetch`."""
        return self.fetch(pointer.encode())

    def sync(self) -> None:
        """Everything appended survives a power cut. A failure is final (see `StoreFailedError`)."""
        self._file.sync()

    def seal(self) -> VlogMeta:
        """Write the trailer and sync. The file stays readable here until it is closed.

        After `DiskFullError` it is not sealed and can be later.
        """
        if self._sealed:
            raise InvariantError(f"{self.path} is sealed already")
        trailer = Trailer(self.end, self.entries, self.end)
        self._file.pwrite(trailer.encode(self.header.seed), self.end)
        self._sealed = True
        self._file.sync()
        return described(self.header, self.logical, trailer)

    def close(self) -> None:
        """Close; a second call does nothing. A file that readers may still hold is let go instead:
        the last reference closes it."""
        if self._compiled is not None:
            self._compiled.close()
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _write_pieces(self, pieces: list[bytes]) -> None:
        at = self.end
        try:
            for piece in pieces:
                self._file.pwrite(piece, at)
                at += len(piece)
        except BaseException:
            self.cut()
            raise

    def cut(self) -> None:
        """Give back what a failed append took, if the file system lets us: nothing relies on it."""
        with contextlib.suppress(OSError):
            self._file.truncate(self.end)

    def _refusal(self, after: int) -> InvariantError:
        if self._sealed:
            return InvariantError(f"{self.path} is sealed, nothing may be appended")
        return InvariantError(f"{self.path} would grow to {after:,} bytes, rotate before that")


def _fetch_and_map(found: ref[ValueLogWriter], pointer: bytes, version: int) -> bytes:
    """For the compiled reader. It must not keep the file, which has it: that would be a cycle."""
    writer = found()
    if writer is None:
        raise ClosedError("the value-log file is closed")
    writer.map_more()
    return writer.fetch(pointer, version)

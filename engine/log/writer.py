"""Appending to a write-ahead log through a mapping of space that is really allocated.

Runs in: supervisor.
Owns: the file, its descriptor and the mapping.
Invariants: (1) every byte of the mapping is backed by allocated space, so a store never meets a
full disk; (2) `end` is a frame boundary and everything before it is whole; (3) readers hold on to
the mapping they took, growing makes a new one and leaves the old valid.
Fails with: `DiskFullError`/`OSError` from growing; nothing was written then.

Stores into a mapping cost 0.13 us, a pwrite 1.1 us; that is why the one exception to "write by
system call" is here.
"""

from __future__ import annotations

import mmap
from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, FileHeader
from meles.engine.fs.files import Directory, File, expect_no_reading
from meles.engine.fs.names import Kind, file_name
from meles.engine.log.frame import BODY, KIND_END, PREFIX, PREFIX_BYTES, aligned

_LEAST_STEP: Final = 64 * 1024
_LARGEST_FIRST_STEP: Final = 4 * 1024 * 1024 + _LEAST_STEP
_LARGEST_STEP: Final = 16 * 1024 * 1024  # a committing thread waits for each: 0.3 ms
_ZEROS: Final = bytes(64 * 1024)


class LogWriter:
    """The active write-ahead log. One thread at a time appends; the memtable does it in place.

    `map` and `seed` are public to the memtable, whose index stores frames itself and knows their
    end meanwhile: a method call per commit would cost as much as the store.
    """

    __slots__ = ("directory", "end", "expected", "file", "id", "map", "records", "room", "seed")

    gap = 0  # bytes kept free behind every frame

    def __init__(self, directory: Directory, mem_id: int, expected: int = 0) -> None:
        """`expected` bytes are what a full one has: steps are made to end there."""
        self.directory = directory
        self.id = mem_id
        self.expected = expected + _LEAST_STEP if expected else 0  # the last frame goes beyond
        name = file_name(Kind.WAL, mem_id)
        header = self._header(directory, mem_id)
        self.file: File = directory.create(name)
        try:
            self.seed = header.seed
            self.end = HEADER_BYTES
            self.records = 0
            self.room = 0  # bytes allocated and mapped
            self.map: mmap.mmap = self._extended(min(self.expected, _LARGEST_FIRST_STEP))
            self._begin(header)
        except BaseException:
            self.file.close()
            directory.unlink(name)
            raise

    def _header(self, directory: Directory, mem_id: int) -> FileHeader:  # noqa: ARG002 - see sealed.py
        return FileHeader(MAGIC_WAL, mem_id)

    def _begin(self, header: FileHeader) -> None:
        self.map[:HEADER_BYTES] = header.encode()

    def _extended(self, wanted: int) -> mmap.mmap:
        """Allocate up to at least `wanted` bytes and map them all."""
        room = self.room + min(_LARGEST_STEP, max(_LEAST_STEP, self.room))
        if self.room < self.expected < room:
            room = self.expected
        room = max(wanted, room)
        room = (room + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
        if not self.file.allocate(self.room, room - self.room):
            for offset in range(self.room, room, len(_ZEROS)):
                self.file.pwrite(_ZEROS[: room - offset], offset)
        mapping = self._mapped(room)
        self.room = room
        return mapping

    def _mapped(self, room: int) -> mmap.mmap:
        mapping = self.file.map(room, write=True)
        expect_no_reading(mapping)
        return mapping

    def reserve(self, length: int) -> None:
        """Make room for a frame whose body has `length` bytes."""
        wanted = self.end + PREFIX_BYTES + length + self.gap
        if wanted > self.room:
            self.map = self._extended(wanted)

    def append_body(self, body: bytes) -> int:
        """Store a frame; returns the offset of its body."""
        self.reserve(len(body))
        start = self.end + PREFIX_BYTES
        self.map[start : start + len(body)] = body
        self.map[self.end : start] = PREFIX.pack(len(body), crc32c(body, self.seed ^ len(body)))
        self.end = aligned(start + len(body) + self.gap)
        return start

    def seal(self, last_ts: int) -> None:
        """Write the end record and give back what was allocated ahead, unless the log is full: it
        is gone once it is flushed, and a committing thread waits for this.

        Only this process maps an unsealed log, and nobody looks behind `end`: cutting is safe.
        """
        self.append_body(BODY.pack(last_ts, self.records, KIND_END, 0))
        if not self.expected or self.room - self.end > _LEAST_STEP:
            self.file.truncate(self.end)
            self.room = self.end

    def sync(self) -> None:
        """Everything appended is on the medium when this returns."""
        self.file.sync()

    def close(self) -> None:
        """Close the descriptor; the mapping lives as long as readers hold it."""
        self.file.close()

    def discard(self) -> None:
        """Close, unmap and remove: for a log that never held a frame, so nobody reads it."""
        self.file.close()
        self.map.close()
        self.directory.unlink(file_name(Kind.WAL, self.id))

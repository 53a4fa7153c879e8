"""Appending to the value log of an encrypted directory.

Runs in: supervisor.
Owns: as the writer.
Invariants: (1) the serial number of an append is used up also if it fails: writing to the same
place again uses another nonce; (2) only the writer that made a file seals values into it.
Fails with: as the writer; `CorruptionError` for a broken seal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from meles.engine.codec.entry import ValuePointer
from meles.engine.codec.header import MAGIC_VLOG, FileHeader
from meles.engine.crypt.keys import new_header, seals
from meles.engine.fs.files import Directory
from meles.engine.fs.pages import Pages
from meles.engine.vlog.layout import ENTRY_BYTES, POINTER, SEAL_BYTES
from meles.engine.vlog.sealed_entry import opened_entry, seal_entry
from meles.engine.vlog.writer import ValueLogWriter


def new_value_log(
    directory: Directory, file_id: int, *, pages: Pages | None = None
) -> ValueLogWriter:
    """A file as the directory's keys want it."""
    kind = SealedValueLogWriter if seals(directory.keys) else ValueLogWriter
    return kind(directory, file_id, pages=pages)


class SealedValueLogWriter(ValueLogWriter):
    """The active file. It writes whole entries itself: the appender only keeps the end."""

    __slots__ = ("_cipher", "_serial")

    more = SEAL_BYTES

    def _made_header(self, directory: Directory) -> FileHeader:
        header, cipher = new_header(directory.keys, MAGIC_VLOG, self.file_id)
        assert cipher is not None, "asked for by `new_value_log`"  # noqa: S101
        self._cipher = cipher
        self._serial = 0
        return header

    def compiled(self) -> Sequence[Any]:
        """Values are opened by `fetch`."""
        return ()

    def append(self, value: bytes, version: int) -> ValuePointer:
        return ValuePointer.decode(self.append_many([value], version)[0])

    def append_many(self, values: Sequence[bytes], version: int) -> list[bytes]:
        if not values:
            return []
        sizes = (ENTRY_BYTES + SEAL_BYTES + len(value) for value in values)
        offsets = list(accumulate(sizes, initial=self.end))
        after = offsets.pop()
        if after - self.end > self.room or self._sealed:
            raise self._refusal(after)
        self._serial += 1
        entries = [
            seal_entry(self._cipher, (self.file_id, at), value, version, at, self._serial)
            for at, value in zip(offsets, values, strict=True)
        ]
        self._write_pieces([b"".join(entries)])
        self._moved_to(after, len(values))
        return [
            POINTER.pack(self.file_id, at, len(value))
            for at, value in zip(offsets, values, strict=True)
        ]

    def _value_in(self, entry: bytes, pointer: bytes, version: int | None, offset: int) -> bytes:
        return opened_entry(self._cipher, entry, pointer, version, offset, self.path)

"""Reading a backup stream: frame by frame, each checked before anything is made of it.

Runs in: supervisor, on the caller's thread.
Owns: nothing: whoever opened the file closes it.
Invariants: (1) no more is held than one frame, and of a value that comes in parts those that have
come; (2) entries ascend over the whole stream; (3) `batches` ends only behind a last frame that
counts what came, with nothing after it: a stream that was cut is an error.
Fails with: `CorruptionError`, `FormatVersionError`, `ConfigError` (no file of bytes, a value that
is too large for the options), whatever the file raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from meles.engine.backup.format import (
    ENTRIES,
    HEAD,
    LARGE,
    End,
    Place,
    Start,
    check_payload,
    damage,
    decode_end,
    decode_entries,
    decode_large,
    decode_part,
    decode_start,
    in_order,
    payload_bytes,
    read_header,
)
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import ConfigError


class Readable(Protocol):
    """A file of bytes to read from; what it really gives is checked."""

    def read(self, size: int, /) -> object: ...


class StreamReader:
    """One stream, read once from front to back; `start` is there at once, `end` at the end."""

    def __init__(self, file: Readable, path: str, *, largest: int) -> None:
        """`path` is for messages, `largest` the bytes of a value that may come."""
        self._file = file
        self.path = path
        self._largest = largest
        self._offset = 0
        self._number = 0
        self._last = (b"", 0)
        self._entries = 0
        self._size = 0
        self.end: End | None = None
        header = self._read(HEADER_BYTES, short=True)
        self._seed = read_header(header, path).seed
        _, payload, place = self._frame()
        self.start: Start = decode_start(payload, place)

    @property
    def read_bytes(self) -> int:
        """Bytes of the stream so far."""
        return self._offset

    def batches(self) -> Iterator[Columns]:
        """All entries, in order. An entry marked `KEPT` is a reference to an earlier stream."""
        while self.end is None:
            kind, payload, place = self._frame()
            if kind == ENTRIES:
                columns = decode_entries(payload, self.start, place)
            elif kind == LARGE:
                columns, size = decode_large(payload, self.start, place)
                columns.values = [self._value(size, place)]
            else:
                self._finish(decode_end(payload, place), place)
                return
            if not in_order(columns, self._last):
                raise place.damage("entries are out of order")
            self._last = columns.keys[-1], -columns.versions[-1]
            self._entries += len(columns)
            self._size += sum(map(len, columns.keys)) + sum(map(len, columns.values))
            yield columns

    def _value(self, size: int, place: Place) -> bytes:
        if size > self._largest:
            raise ConfigError(
                f"{place.path}: a value of {size:,} bytes; value_log_file_size allows "
                f"{self._largest:,}",
                hint="restore with a larger value_log_file_size",
            )
        parts, left = [], size
        while left:
            _, payload, place = self._frame()
            parts.append(decode_part(payload, left, place))
            left -= len(parts[-1])
        return b"".join(parts)

    def _finish(self, end: End, place: Place) -> None:
        found = End(self._entries, self._size, self.start.token)
        if end != found:
            raise place.damage(f"the stream held {found}, and says it held {end}")
        if self._read(1, short=True):
            raise damage("there is something behind the end", self.path, self._offset - 1)
        self.end = end

    def _frame(self) -> tuple[int, bytes, Place]:
        place = Place(self.path, self._offset)
        self._number += 1
        head = self._read(HEAD.size)
        payload = self._read(payload_bytes(head, self._number, place))
        return check_payload(head, payload, self._seed, place), payload, place

    def _read(self, size: int, *, short: bool = False) -> bytes:
        """So many bytes; fewer only at the end of the file, and if `short` allows that."""
        parts: list[bytes] = []
        left = size
        while left:
            data = self._file.read(left)
            if not isinstance(data, bytes):
                what = "it has nothing yet" if data is None else f"it gives {type(data).__name__}"
                raise ConfigError(
                    f"{self.path} cannot be read as a backup: {what}",
                    hint="open the file in binary mode, blocking",
                )
            if not data:
                break
            parts.append(data)
            left -= len(data)
            self._offset += len(data)
        if left and not short:
            raise damage("the stream ends before its end", self.path, self._offset)
        return parts[0] if len(parts) == 1 else b"".join(parts)

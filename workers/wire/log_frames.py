"""Log records in a pipe that also carries whatever a worker prints. See PROTOCOL.md.

Runs in: supervisor and workers. Touches no descriptor.
Invariants: (1) a frame has at most PIPE_BUF bytes, so one write puts it into the pipe whole or not
at all, even when the writer is killed: it needs no lock; (2) a record too long is cut and says so;
(3) bytes that are no frame come out as lines of text: nothing in the pipe can break the reader.
"""

from __future__ import annotations

import select
import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from meles.engine.codec.checksum import crc32c

MAX_FRAME: Final = select.PIPE_BUF
MAX_LINE: Final = 4096  # bytes of printed text held while waiting for its end
MARK: Final = 0xC1  # neither msgpack nor UTF-8 ever uses this byte
HEADER: Final = struct.Struct("<BHI")  # mark, bytes of payload, CRC-32C of the payload
HEADER_BYTES: Final = 7
assert HEADER.size == HEADER_BYTES  # noqa: S101 - ties the code to PROTOCOL.md

_CUT: Final = " ... [cut]"
_NAME_BYTES: Final = 200


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record. `created` is unix seconds; `trace` the formatted exception, if any."""

    level: int
    logger: str
    message: str
    trace: str = ""
    created: float = 0.0
    path: str = ""
    line: int = 0
    thread: str = ""


def _pack(record: LogLine) -> bytes:
    fields = [record.level, record.logger, record.message, record.trace, record.created,
              record.path, record.line, record.thread]  # fmt: skip
    packed: bytes = msgpack.packb(fields, use_bin_type=True, unicode_errors="surrogateescape")
    return packed


def _cut_to(text: str, size: int) -> str:
    """The text, or its beginning and a mark, in at most `size` bytes of UTF-8."""
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) <= size:
        return text
    return raw[: max(0, size - len(_CUT))].decode("utf-8", "ignore") + _CUT


def encode_line(record: LogLine) -> bytes:
    """One frame of at most `MAX_FRAME` bytes."""
    payload = _pack(record)
    if HEADER_BYTES + len(payload) > MAX_FRAME:
        # Half for the message, half for the trace; 64 bytes cover numbers and length prefixes.
        room = MAX_FRAME - HEADER_BYTES - 64 - 3 * _NAME_BYTES
        message = _cut_to(record.message, room // 2)
        payload = _pack(
            LogLine(
                level=record.level,
                logger=_cut_to(record.logger, _NAME_BYTES),
                message=message,
                trace=_cut_to(record.trace, room // 2),
                created=record.created,
                path=_cut_to(record.path, _NAME_BYTES),
                line=record.line,
                thread=_cut_to(record.thread, _NAME_BYTES),
            )
        )
    return HEADER.pack(MARK, len(payload), crc32c(payload)) + payload


def _unpack(payload: bytes) -> LogLine | None:
    try:
        fields: Any = msgpack.unpackb(
            payload, raw=False, unicode_errors="surrogateescape", max_ext_len=0
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return None
    kinds = (int, str, str, str, float, str, int, str)
    if not isinstance(fields, list) or len(fields) != len(kinds):
        return None
    if not all(isinstance(value, kind) for value, kind in zip(fields, kinds, strict=True)):
        return None
    return LogLine(*fields)


class LogDecoder:
    """Splits what comes out of a log pipe into records and printed lines."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[LogLine | str]:
        """Take bytes; returns what they complete, in order. Printed lines are `str`."""
        self._buffer += data
        return self._split(at_end=False)

    def finish(self) -> list[LogLine | str]:
        """What is left when the pipe has ended."""
        return self._split(at_end=True)

    def _split(self, *, at_end: bool) -> list[LogLine | str]:
        out: list[LogLine | str] = []
        buffer, at = self._buffer, 0
        while at < len(buffer):
            if buffer[at] == MARK:
                stop, record, whole = _frame_at(buffer, at)
                if not whole and not at_end:
                    break
                if record is not None:
                    out.append(record)
                    at = stop
                    continue
            stop = _line_end(buffer, at, at_end=at_end)
            if stop < 0:
                break
            text = buffer[at:stop].decode("utf-8", "backslashreplace").rstrip("\r\n")
            if text:
                out.append(text)
            at = stop
        self._buffer = buffer[at:]
        return out


def _frame_at(buffer: bytes, at: int) -> tuple[int, LogLine | None, bool]:
    """End and record of the frame at `at`, and whether the buffer holds enough to tell."""
    if len(buffer) - at < HEADER_BYTES:
        return at, None, False
    _, length, crc = HEADER.unpack_from(buffer, at)
    stop = at + HEADER_BYTES + length
    if length > MAX_FRAME - HEADER_BYTES:
        return at, None, True
    if stop > len(buffer):
        return at, None, False
    payload = buffer[at + HEADER_BYTES : stop]
    return stop, (_unpack(payload) if crc32c(payload) == crc else None), True


def _line_end(buffer: bytes, at: int, *, at_end: bool) -> int:
    """Where printed text ends: after a newline, before a frame, at its bound; -1: not here."""
    newline = buffer.find(b"\n", at)
    mark = buffer.find(MARK.to_bytes(1, "little"), at + 1)
    ends = [newline + 1] if newline >= 0 else []
    if mark >= 0:
        ends.append(mark)
    if len(buffer) - at >= MAX_LINE:
        ends.append(at + MAX_LINE)
    if not ends:
        return len(buffer) if at_end else -1
    return min(ends)

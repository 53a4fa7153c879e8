"""Reading a write-ahead log: frames up to the first that does not check out.

Runs in: supervisor (replay) and flusher.
Invariants: (1) nothing is trusted before its checksum; (2) lengths and counts are bounded by the
file before use; (3) reading never writes: what to do about a tail is the caller's decision.
Fails with: `CorruptionError` for the header and for a frame whose inside contradicts its checksum.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, decode_header
from meles.engine.crypt.file_cipher import TAG_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.log.frame import (
    ALIGN,
    BODY,
    BODY_BYTES,
    KIND_END,
    KIND_TXN,
    PREFIX,
    PREFIX_BYTES,
    RECORD,
    RECORD_BYTES,
    aligned,
)

WalBuffer = mmap.mmap | bytes

_PROBE_LIMIT: Final = 1 << 20  # how far behind a bad frame a later whole one is looked for


class Frame(NamedTuple):
    """A whole frame. `start` is the offset of its first record, `stop` the end of its body."""

    offset: int
    ts: int
    records: int
    kind: int
    start: int
    stop: int


class Record(NamedTuple):
    """A record's place and fields; `offset` is where it begins, the value ends at `stop`."""

    offset: int
    version: int
    expiry: int
    previous: int
    meta: int
    user: int
    key: bytes
    value_at: int
    stop: int


@dataclass(frozen=True, slots=True)
class Tail:
    """How reading a log ended.

    `end`: first byte after the last whole frame. `sealed`: an end record was found there.
    `cut`: bytes behind `end` up to the last that is not zero: something was written and lost.
    """

    end: int
    sealed: bool
    cut: int
    last_ts: int
    frames: int


def places_behind(data: WalBuffer, bad: int, written: int, gap: int) -> Iterator[int]:
    """Where a whole frame may begin behind the bad one at `bad`, in a log written up to `written`:
    where the bad frame's own length leads, then every boundary within a limit.
    """
    last = written - 1
    offsets: Iterable[int] = range(aligned(bad + 1), min(last, bad + _PROBE_LIMIT) + 1, ALIGN)
    if bad + PREFIX_BYTES <= len(data):
        length = PREFIX.unpack_from(data, bad)[0]
        offsets = chain((aligned(bad + PREFIX_BYTES + length + gap),), offsets)
    return (offset for offset in offsets if offset + PREFIX_BYTES <= last)


class LogReader:
    """Frames of one log. After `frames()` is exhausted, `tail` says how it ended."""

    def __init__(self, data: WalBuffer, path: str, *, end: int | None = None) -> None:
        """`end` bounds reading to a prefix known to be whole (a flush job)."""
        self.data = data
        self.path = path
        self.header = decode_header(bytes(data[:HEADER_BYTES]), MAGIC_WAL, path)
        self.seed = self.header.seed
        self.gap = TAG_BYTES if self.header.key_id else 0  # kept free behind a frame, see sealed.py
        self.size = len(data) if end is None else min(end, len(data))
        self.tail: Tail | None = None

    def _frame_at(self, offset: int) -> Frame | None:
        """The whole frame that begins here, or None."""
        data = self.data
        start = offset + PREFIX_BYTES
        if start + BODY_BYTES > self.size:
            return None
        length, crc = PREFIX.unpack_from(data, offset)
        if length < BODY_BYTES or start + length > self.size:
            return None
        if crc32c(data[start : start + length], self.seed ^ length) != crc:
            return None
        ts, count, kind, zero = BODY.unpack_from(data, start)
        if kind not in (KIND_TXN, KIND_END) or zero:
            raise self._damage(offset, f"frame of unknown kind {kind}")
        return Frame(offset, ts, count, kind, start + BODY_BYTES, start + length)

    def frames(self) -> Iterator[Frame]:
        """Transaction frames in order, up to the end record or the first bytes that are none."""
        offset, last_ts, count, records, sealed = HEADER_BYTES, 0, 0, 0, False
        while (frame := self._frame_at(offset)) is not None:
            if frame.kind == KIND_END:
                if frame.records != records:
                    what = f"end record counts {frame.records} records, {records} are there"
                    raise self._damage(offset, what)
                sealed, offset = True, self.after(frame)
                break
            last_ts, count, records = frame.ts, count + 1, records + frame.records
            offset = self.after(frame)
            yield frame
        end = min(offset, self.size)
        self.tail = Tail(end, sealed, self.written_after(end), last_ts, count)

    def after(self, frame: Frame) -> int:
        """Where the next frame begins."""
        return aligned(frame.stop + self.gap)

    def written_after(self, end: int) -> int:
        """Bytes from `end` to the last one that is not zero."""
        return len(self.data[end : self.size].rstrip(b"\0"))

    def whole_frame_after(self, end: int) -> int | None:
        """Offset of a whole frame behind bad bytes: then this is damage inside, not a torn tail."""
        written = end + self.written_after(end)
        places = places_behind(self.data, end, written, self.gap)
        return next(filter(self._is_frame, places), None)

    def _is_frame(self, offset: int) -> bool:
        try:
            return self._frame_at(offset) is not None
        except CorruptionError:
            return False

    def records(self, frame: Frame) -> Iterator[Record]:
        """The records of a frame, in the order they were written."""
        data, offset = self.data, frame.start
        for _ in range(frame.records):
            if offset + RECORD_BYTES > frame.stop:
                raise self._damage(offset, "record runs out of its frame")
            version, expiry, value_len, previous, key_len, meta, user = RECORD.unpack_from(
                data, offset
            )
            key_at = offset + RECORD_BYTES
            value_at = key_at + key_len
            stop = value_at + value_len
            if stop > frame.stop or not 0 < key_len <= MAX_KEY_BYTES or previous >= offset:
                raise self._damage(offset, "record does not fit its frame")
            key = bytes(data[key_at:value_at])
            yield Record(offset, version, expiry, previous, meta, user, key, value_at, stop)
            offset = stop
        if offset != frame.stop:
            raise self._damage(offset, "bytes left over in a frame")

    def _damage(self, offset: int, what: str) -> CorruptionError:
        return CorruptionError(what, path=self.path, offset=offset, kind="wal frame")

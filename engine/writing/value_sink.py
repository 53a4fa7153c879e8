"""The value-log end of the write path: which values leave the log, and which file takes them.

Runs in: supervisor. Every method is called under the write lock.
Owns: the value-log file appended to, and full ones until the scheduler seals them.
Invariants: (1) a value is in the kernel before the log points to it; (2) one append fits one file,
whatever a transaction holds; (3) a file that is full, or given up, is never appended to again.
Fails with: `DiskFullError`, `OSError`; nothing points to what was written then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from meles.engine.codec.entry import META_DELETE, META_POINTER
from meles.engine.memtable.memtable import Memtable
from meles.engine.options import Options
from meles.engine.store import Store
from meles.engine.vlog.layout import ENTRY_BYTES
from meles.engine.vlog.threshold import DynamicThreshold
from meles.engine.vlog.writer import ValueLogWriter
from meles.engine.writing.plain_writer import PlainWriter

_LARGEST_APPEND: Final = 1 << 30  # bytes of one append


class ValueSink:
    """Takes values at or over `threshold` bytes. `current` is the file appended to, if any; `full`
    are those to be sealed, oldest first.

    `flushed_end` is where that file ended when the active memtable began: what lies before it, no
    memtable but sealed ones points to.
    """

    def __init__(self, store: Store, options: Options) -> None:
        self._store = store
        self._file_size = options.value_log_file_size
        self._file_entries = options.value_log_max_entries
        self._sizes: DynamicThreshold | None = None
        if options.vlog_percentile:
            self._sizes = DynamicThreshold(options.value_threshold, options.vlog_percentile)
        self.threshold = options.value_threshold
        self._current: ValueLogWriter | None = None
        self.plain: PlainWriter | None = None  # appends here too, once it is there
        self.flushed_end = 0
        self.full: list[ValueLogWriter] = []
        self.full_bytes = 0  # written to files that are no longer current
        self.rotated = False  # a file became full: somebody should seal it

    def observe(self, sizes: Sequence[int]) -> None:
        """Let these value sizes move the threshold, if it is a percentile."""
        if self._sizes is not None:
            self._sizes.observe_many(sizes)
            self.threshold = self._sizes.threshold

    @property
    def current(self) -> ValueLogWriter | None:
        """The file appended to."""
        return self._current

    @current.setter
    def current(self, writer: ValueLogWriter | None) -> None:
        self._current = writer
        if writer is not None:
            writer.appender.end_limit = self._file_size
            writer.appender.entry_limit = self._file_entries
        if self.plain is not None:
            self.plain.values = None if writer is None else writer.appender

    @property
    def observes(self) -> bool:
        return self._sizes is not None

    def put(self, value: bytes, ts: int, active: Memtable) -> bytes:
        """Append one value; its encoded address, for a record of `active`."""
        writer = self._writer_for(1, len(value) + ENTRY_BYTES)
        pointer = writer.append(value, ts).encode()
        active.vlog_ids.add(writer.file_id)
        return pointer

    def put_large(
        self, values: Sequence[bytes], metas: Sequence[int], ts: int, active: Memtable
    ) -> tuple[Sequence[bytes], Sequence[int]]:
        """Values and metas with the large values replaced by their addresses."""
        if self._sizes is not None:
            self.observe(list(map(len, values)))
        threshold = self.threshold
        if max(map(len, values)) < threshold:
            return values, metas
        large = [
            at
            for at, value in enumerate(values)
            if len(value) >= threshold and not metas[at] & META_DELETE
        ]
        stored, marked = list(values), list(metas)
        for chunk in _chunks(large, values):
            size = sum(len(values[at]) + ENTRY_BYTES for at in chunk)
            writer = self._writer_for(len(chunk), size)
            pointers = writer.append_many([values[at] for at in chunk], ts)
            for at, pointer in zip(chunk, pointers, strict=True):
                stored[at] = pointer
                marked[at] |= META_POINTER
            active.vlog_ids.add(writer.file_id)
        return stored, marked

    def _writer_for(self, count: int, size: int) -> ValueLogWriter:
        """The file to append to: the next one when the last is full."""
        writer = self.current
        if (
            writer is None
            or writer.end >= self._file_size
            or size + count * writer.more > writer.room
            or (writer.entries and writer.entries + count > self._file_entries)
        ):
            fresh = self._store.new_values()
            self.rotated = self.retire()
            self.current = writer = fresh
        return writer

    def retire(self) -> bool:
        """Append no more to the current file; it is to be sealed. False when there is none."""
        writer, self.current = self.current, None
        self.flushed_end = 0
        if writer is None:
            return False
        self.full_bytes += writer.end
        self.full.append(writer)
        return True

    def open_files(self) -> list[ValueLogWriter]:
        """Every file with bytes that may not be durable."""
        return [*self.full, *(() if self.current is None else (self.current,))]

    def note_rotation(self) -> None:
        """The active memtable was sealed."""
        self.flushed_end = 0 if self.current is None else self.current.end

    def written(self) -> int:
        """Bytes appended since open."""
        return self.full_bytes + (0 if self.current is None else self.current.end)


def _chunks(large: Sequence[int], values: Sequence[bytes]) -> Iterator[Sequence[int]]:
    """Positions in runs that each fit one append."""
    first = size = 0
    for count, at in enumerate(large):
        size += len(values[at]) + ENTRY_BYTES
        if size > _LARGEST_APPEND and count > first:
            yield large[first:count]
            first, size = count, len(values[at]) + ENTRY_BYTES
    if large:
        yield large[first:]

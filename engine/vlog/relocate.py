"""Value-log GC: copy the live entries of some files into one new file with offset maps, verbatim or
sealed anew.

Runs in: value-log GC workers.
Owns: the output file until it answers.
Invariants: (1) what lives is what the job's tables refer to, nothing else; (2) every entry is
checked under its address before it is copied: one damaged live value fails the job and changes
nothing; (3) the output is on the medium, name included, when this returns, and gone when it raises;
(4) sources are only read.
Fails with: `CorruptionError`, `JobCancelledError`, `DiskFullError`, `OSError`.
"""

from __future__ import annotations

import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import accumulate
from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.entry import POINTER_BYTES
from meles.engine.codec.header import HEADER_BYTES, MAGIC_VLOG
from meles.engine.crypt.keys import new_header, seals
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.files import Buffer, Directory, File
from meles.engine.fs.names import Kind, file_name
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.jobs import JobContext, JobResult, NewFile, RelocateJob
from meles.engine.table.reader import Table
from meles.engine.vlog.layout import (
    ENTRY_BYTES,
    KIND_FILE,
    POINTER,
    SEAL_BYTES,
    TRAILER_BYTES,
    Trailer,
    encode_maps,
    maps_bytes,
    more_of,
)
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.sealed_entry import seal_entry
from meles.engine.vlog.writer import encode_entry

# One write; progress is reported after each. The cache keeps in one page what came in one write,
# and who then reads a value there has all of that page mapped: so it is not more.
_WRITE_BYTES: Final = 256 << 10
_SYNC_BYTES: Final = 64 << 20  # so that no sync takes long enough to look like a hang
_BATCH: Final = 8192  # entries copied at a time, however small
_PAUSE: Final = 0.05  # seconds between reports while waiting for the rate
_LENGTH_BITS: Final = 32  # a live entry is held as `offset << 32 | length`
_LENGTH_MASK: Final = (1 << _LENGTH_BITS) - 1

Live = dict[int, "array[int]"]  # logical file id to its live entries, ascending


def run_relocation(
    job: RelocateJob, tables: Directory, values: Directory, context: JobContext
) -> JobResult:
    """Do the job. No file is made, and none answered, when nothing in the sources lives.

    Counters: `live_entries`, `live_bytes` (with entry headers), `read_bytes`, `written_bytes`.
    """
    logical = [file_id for _, ids in job.sources for file_id in ids]
    live = live_entries(logical, _pointers(tables, job.tables, context))
    return relocate(job, live, values, context)


def _pointers(tables: Directory, table_ids: Iterable[int], context: JobContext) -> Iterator[bytes]:
    for table_id in table_ids:
        with closing(Table(tables, table_id, once=True)) as table:
            for pointers in table.pointers():
                context.progress(0)
                yield pointers


def live_entries(logical: Iterable[int], pointers: Iterable[bytes]) -> Live:
    """The addresses among `pointers` (12 bytes each, concatenated) that lie in these files."""
    found: Live = {file_id: array("Q") for file_id in logical}
    for block in pointers:
        if len(block) % POINTER_BYTES:
            raise InvariantError(f"{len(block)} bytes are not whole pointers")
        for file_id, offset, length in POINTER.iter_unpack(block):
            if file_id in found:
                found[file_id].append(offset << _LENGTH_BITS | length)
    return {file_id: array("Q", sorted(set(keys))) for file_id, keys in found.items() if keys}


def relocate(job: RelocateJob, live: Live, values: Directory, context: JobContext) -> JobResult:
    """Copy the live entries into the job's output file; see `run_relocation`."""
    counts = sum(map(len, live.values()))
    size = sum(sum(key & _LENGTH_MASK for key in keys) for keys in live.values())
    size += counts * (ENTRY_BYTES + (SEAL_BYTES if seals(values.keys) else 0))
    counters = {"live_entries": counts, "live_bytes": size, "read_bytes": size, "written_bytes": 0}
    if not counts:
        return JobResult((), counters)
    total = HEADER_BYTES + size + maps_bytes(len(live), counts) + TRAILER_BYTES
    if total > MAX_FILE_BYTES:
        raise InvariantError(f"an output of {total:,} bytes is beyond what offsets can say")
    with ExitStack() as stack:
        sources = _open_sources(job, live, values, stack)
        output = _Output(values, job.output, _Pace(job.rate, context))
        try:
            maps = [
                (file_id, *output.copy(sources[file_id], file_id, live[file_id]))
                for file_id in sorted(live)
            ]
            made = output.finish(counts, maps)
            values.sync()
        except BaseException:
            output.discard(values)
            raise
        output.file.close()
    counters["written_bytes"] = made.size
    return JobResult((made,), counters)


def _open_sources(
    job: RelocateJob, live: Live, values: Directory, stack: ExitStack
) -> dict[int, ValueLogFile]:
    """Logical id to its file, for the files that hold anything live."""
    sources: dict[int, ValueLogFile] = {}
    for physical, logical in job.sources:
        if live.keys().isdisjoint(logical):
            continue
        meta = load_meta(values, physical)
        if sorted(meta.logical) != sorted(logical):
            raise CorruptionError(
                f"holds logical files {list(meta.logical)}, expected {sorted(logical)}",
                path=values.join(file_name(Kind.VLOG, physical)), offset=0, kind=KIND_FILE,
            )  # fmt: skip
        source = stack.enter_context(closing(ValueLogFile(values, meta)))
        sources.update(dict.fromkeys(logical, source))
    return sources


class _Pace:
    """Reports progress, hears a cancel, and holds the copy to its rate (bytes a second)."""

    def __init__(self, rate: int, context: JobContext) -> None:
        self._rate = rate
        self._context = context
        self._done = 0
        self._begun = 0.0
        self._never = threading.Event()

    def alive(self) -> None:
        self._context.progress(self._done)

    def wrote(self, count: int) -> None:
        """Account for `count` bytes; returns when the rate allows more."""
        self._begun = self._begun or time.monotonic()
        self._done += count
        self.alive()
        while self._rate:
            due = self._begun + self._done / self._rate - time.monotonic()
            if due <= 0:
                return
            self._never.wait(min(due, _PAUSE))
            self.alive()


class _Output:
    """The file being made: append, running checksum, sync in steps."""

    def __init__(self, directory: Directory, file_id: int, pace: _Pace) -> None:
        self.file_id = file_id
        self._header, self._cipher = new_header(directory.keys, MAGIC_VLOG, file_id)
        self._head = ENTRY_BYTES + more_of(self._header.key_id)
        self.file: File = directory.create(file_name(Kind.VLOG, file_id))
        self._pace = pace
        self._end = 0
        self._synced = 0
        self._crc = 0

    def copy(
        self, source: ValueLogFile, logical: int, keys: array[int]
    ) -> tuple[array[int], array[int]]:
        """Append these entries; their old and new offsets."""
        if not self._end:
            self._append(self._header.encode())
        offsets = array("I", [key >> _LENGTH_BITS for key in keys])
        lengths = array("I", [key & _LENGTH_MASK for key in keys])
        places = array("Q", accumulate((n + self._head for n in lengths), initial=self._end))
        first = 0
        while first < len(keys):
            full = bisect_right(places, places[first] + _WRITE_BYTES) - 1
            stop = min(max(full, first + 1), first + _BATCH, len(keys))
            part = (logical, offsets[first:stop], lengths[first:stop])
            if self._cipher is None and not source.meta.key_id:
                parts: Sequence[Buffer] = source.entries(*part)
            else:
                parts = self._anew(source, *part)
            self._append(parts[0] if len(parts) == 1 else b"".join(parts))
            source.forget_between(logical, offsets[first], offsets[stop - 1])
            first = stop
        return offsets, array("I", places[:-1])

    def _anew(
        self, source: ValueLogFile, logical: int, offsets: array[int], lengths: array[int]
    ) -> list[bytes]:
        """The entries as this file has them: sealed under its own key, or no longer."""
        found, place = [], self._end
        for offset, (version, value) in zip(
            offsets, source.contents(logical, offsets, lengths), strict=True
        ):
            if self._cipher is None:
                entry = b"".join(encode_entry(logical, offset, value, version))
            else:
                entry = seal_entry(self._cipher, (logical, offset), value, version, place, 0)
            found.append(entry)
            place += len(entry)
        return found

    def finish(self, entries: int, maps: list[tuple[int, array[int], array[int]]]) -> NewFile:
        """Append maps and trailer, sync."""
        seed = self._header.seed
        section = encode_maps(maps)
        trailer = Trailer(
            self._end, entries, self._end, len(section), len(maps), crc32c(section, seed)
        )
        self._append(section)
        self._append(trailer.encode(seed))
        self.file.sync()
        return NewFile(self.file_id, self._end, self._crc)

    def discard(self, directory: Directory) -> None:
        self.file.close()
        directory.unlink(file_name(Kind.VLOG, self.file_id))

    def _append(self, data: Buffer) -> None:
        view = memoryview(data)
        for at in range(0, len(view), _WRITE_BYTES):
            piece = view[at : at + _WRITE_BYTES]
            self.file.pwrite(piece, self._end)
            self._crc = crc32c(piece, self._crc)
            self._end += len(piece)
            if self._end - self._synced >= _SYNC_BYTES:
                self.file.sync()
                self._synced = self._end
            self._pace.wrote(len(piece))

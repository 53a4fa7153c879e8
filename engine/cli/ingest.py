"""The ingest run: every record of the sources through write batches into an open database.

Runs in: supervisor.
Owns: the write batch.
Invariants: (1) records are written in the order of their sources; (2) `committed` counts only
records whose batch was flushed; (3) a run that stops at a record has everything before it
committed, one that ends by an error of the database says how much of it is.
Fails with: the errors of the database and `OSError` of a source; `IngestReport` is kept up to date
all the while, so the caller can tell what was committed.
"""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, Protocol

import meles
from meles.engine.cli.progress import Progress, Tally
from meles.engine.cli.records import BadRecord, Chunk

FLUSH_BYTES: Final = 4 << 20
FLUSH_RECORDS: Final = 50_000
REFUSALS: Final = (
    meles.InvalidKeyError,
    meles.BannedKeyError,
    meles.TransactionTooBigError,
)  # what the database says of one record, not of its own state


class RecordSource(Protocol):
    """What a run reads; see `sources.Source`. `size` in bytes, None when it is not known."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int | None: ...

    def chunks(self) -> Generator[Chunk, None, None]:
        """The records in order."""


@dataclass(slots=True)
class IngestReport:
    """What a run did. `stopped_at` is the record that ended it, with `on_error="stop"`.

    `last` names the source and line of the last committed record.
    """

    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    stopped_at: BadRecord | None = None
    last: tuple[str, int] | None = None

    @property
    def complete(self) -> bool:
        """Every record of every source is in."""
        return self.tally.bad == 0 and self.tally.committed == self.tally.records


class Ingest:
    """One run. `skip` goes on after a bad record, otherwise the run stops in front of it."""

    def __init__(self, db: meles.DB, progress: Progress, *, skip: bool) -> None:
        self.report = IngestReport()
        self._db = db
        self._progress = progress
        self._skip = skip
        self._loose_bytes = 0
        self._loose_last: tuple[str, int] | None = None

    def run(self, sources: Sequence[RecordSource]) -> IngestReport:
        """Ingest the sources in order; returns the report, which is also `self.report`."""
        started = time.monotonic()
        tally = self.report.tally
        sizes = [source.size for source in sources]
        tally.total = None if None in sizes else sum(size or 0 for size in sizes)
        batch = self._db.write_batch()
        try:
            with batch:
                for source in sources:
                    self._take_source(batch, source)
                    if self.report.stopped_at is not None:
                        break
                self._flush(batch)
        except meles.Error:
            tally.committed = max(tally.committed, batch.committed)
            raise
        finally:
            self.report.seconds = time.monotonic() - started
            self._progress.update(tally, final=True)
        return self.report

    def _take_source(self, batch: meles.WriteBatch, source: RecordSource) -> None:
        with closing(source.chunks()) as chunks:
            while True:
                try:
                    chunk = next(chunks, None)
                except OSError as error:
                    reason = f"cannot be read: {error.strerror}"
                    self.report.stopped_at = BadRecord(source.name, 0, reason)
                    return
                if chunk is None:
                    return
                self._put(batch, source, chunk)
                if self.report.stopped_at is not None:
                    return
                tally = self.report.tally
                loose = tally.records - tally.committed
                if self._loose_bytes >= FLUSH_BYTES or loose >= FLUSH_RECORDS:
                    self._flush(batch)
                self._progress.update(tally)

    def _put(self, batch: meles.WriteBatch, source: RecordSource, chunk: Chunk) -> None:
        """Add a chunk's entries; what the database refuses of them is a bad record too."""
        start, count = 0, len(chunk.keys)
        while start < count:
            keys = iter(chunk.keys[start:] if start else chunk.keys)
            values = chunk.values[start:] if start else chunk.values
            refused: BadRecord | None = None
            try:
                deque(map(batch.set, keys, values), maxlen=0)
                stop = count
            except REFUSALS as error:
                stop = count - operator.length_hint(keys) - 1
                refused = BadRecord(source.name, chunk.lines[stop], str(error))
            self.report.tally.records += stop - start
            if stop > start:
                self._loose_last = (source.name, chunk.lines[stop - 1])
            start = stop + 1
            if refused is not None and not self._refuse(refused):
                return
        self.report.tally.size += chunk.size
        self._loose_bytes += chunk.size
        if chunk.bad is not None:
            self._refuse(chunk.bad)

    def _refuse(self, bad: BadRecord) -> bool:
        """Report a bad record; whether the run goes on."""
        self.report.tally.bad += 1
        self._progress.note(f"bad record: {bad}")
        if not self._skip:
            self.report.stopped_at = bad
        return self._skip

    def _flush(self, batch: meles.WriteBatch) -> None:
        batch.flush()
        self.report.tally.committed = self.report.tally.records
        self.report.last = self._loose_last or self.report.last
        self._loose_bytes, self._loose_last = 0, None

"""Writing a backup: one snapshot of a database as a stream, while others go on writing to it.

Runs in: supervisor, on the caller's thread.
Owns: one read mark, until it ends.
Invariants: (1) what goes into the stream is what a reader could find at one timestamp, every
version there is with tombstones and what has expired; (2) an increment says of each older version
that is still there that it is: a tombstone may be compacted away, so what is missing is what tells
that a key is gone; (3) everything up to the token is on the medium before the stream ends: a power
cut cannot have it given to other commits.
Fails with: `ConfigError`, `ClosedError`, `CorruptionError`, `StoreFailedError`, whatever the sink
raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from meles.engine.arguments import whole
from meles.engine.backup.format import (
    FRAME_TARGET,
    KEPT,
    PART_BYTES,
    ROW_BYTES,
    End,
    Start,
    encode_end,
    encode_entries,
    encode_frame,
    encode_large,
    encode_part,
    encode_start,
    make_header,
    reference,
)
from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_POINTER, ValuePointer
from meles.engine.crypt.keys import seals
from meles.engine.engine import Engine
from meles.engine.errors import ConfigError
from meles.engine.ids import MAX_VERSION
from meles.engine.iterators.range_scan import KeyRange, scan
from meles.engine.iterators.visible import Visibility
from meles.engine.read_view import ReadView
from meles.engine.reports import BackupReport
from meles.engine.writing.writer import Writer


class Writable(Protocol):
    """A file of bytes to write to."""

    def write(self, data: bytes, /) -> object: ...


def write_backup(engine: Engine, sink: Writable, since: int, *, plain: bool) -> BackupReport:
    """See `DB.backup`."""
    engine.check_open()
    since = whole(since, "since", 0, MAX_VERSION)
    if not plain and _is_encrypted(engine):
        raise ConfigError(
            "this database is encrypted, and a backup of it would not be",
            hint="pass plain=True (--plain) and encrypt the stream yourself, or copy the directory",
        )
    mark = engine.oracle.begin()
    token = mark.ts
    try:
        if since > token:
            raise ConfigError(
                f"backup since={since:,}: the newest commit of this database is {token:,}",
                hint="pass the `version` of an earlier backup of it, or 0 for a full backup",
            )
        view = engine.store.view
        if engine.writer is not None:
            _sync(engine.writer)
        stream = _Stream(sink, Start(since, token, view.version.banned))
        try:
            for batch in _entries(view, token):
                engine.check_open()
                for values in _with_values(view, batch, since):
                    stream.add(values)
        except Exception as error:
            if engine.refusal is not None:  # what it reads was taken away from under it
                raise engine.refusal() from error
            raise
        return stream.finish()
    finally:
        mark.end()


def _sync(writer: Writer) -> None:
    """Everything that can be read by now is on the medium.

    A commit is published before it is counted for a sync, both under the lock.
    """
    with writer.lock:
        count = writer.plain.entries
    writer.sync(count)


def _is_encrypted(engine: Engine) -> bool:
    dirs = engine.store.dirs
    return engine.options.encryption_key is not None or seals(dirs.tables.keys)


def _entries(view: ReadView, ts: int) -> Iterator[Columns]:
    """Every version a reader at `ts` or before could find. What is banned stays banned: it goes
    into the stream, whatever this handle knows of namespaces, and so does the ban.
    """
    hidden = None
    if view.version.drops:
        hidden = view.hiding(ts, -1)
    return scan(view, KeyRange(), Visibility(ts, now_ms(), True, 0, hidden))


def _with_values(view: ReadView, batch: Columns, since: int) -> Iterator[Columns]:
    """The entries as a stream has them, in portions that one value at most makes large."""
    out, size = Columns(), 0
    for key, version, meta, expiry, value in zip(
        batch.keys, batch.versions, batch.metas, batch.expiries, batch.values, strict=True
    ):
        if version <= since and not meta & META_DELETE:
            length = ValuePointer.decode(value).length if meta & META_POINTER else len(value)
            out.append(key, version, meta | KEPT, expiry, reference(length))
            continue
        if meta & META_POINTER:
            value = view.values.read(value, version)
            meta &= ~META_POINTER
        out.append(key, version, meta, expiry, value)
        size += len(value)
        if size >= FRAME_TARGET:
            yield out
            out, size = Columns(), 0
    if len(out):
        yield out


class _Stream:
    """Frames as they are written; entries wait until there are enough of them."""

    def __init__(self, sink: Writable, start: Start) -> None:
        self._sink = sink
        self._start = start
        self._number = 0
        self._written = 0
        self._entries = 0
        self._size = 0
        self._waiting = Columns()
        self._waiting_bytes = 0
        header = make_header(os.urandom(16))
        self._seed = header.seed
        self._write(header.encode())
        self._frame(encode_start(start))

    def add(self, columns: Columns) -> None:
        for key, version, meta, expiry, value in zip(
            columns.keys, columns.versions, columns.metas, columns.expiries, columns.values,
            strict=True,
        ):  # fmt: skip
            self._entries += 1
            self._size += len(key) + len(value)
            if len(value) >= PART_BYTES:
                self._flush()
                self._frame(encode_large(key, version, meta, expiry, len(value)))
                whole_value = memoryview(value)
                for at in range(0, len(value), PART_BYTES):
                    self._frame(encode_part(whole_value[at : at + PART_BYTES]))
                continue
            more = ROW_BYTES + len(key) + len(value)
            if self._waiting_bytes + more > FRAME_TARGET:
                self._flush()
            self._waiting.append(key, version, meta, expiry, value)
            self._waiting_bytes += more

    def finish(self) -> BackupReport:
        self._flush()
        token = self._start.token
        self._frame(encode_end(End(self._entries, self._size, token)))
        flush = getattr(self._sink, "flush", None)
        if flush is not None:
            flush()
        return BackupReport(self._start.since, token, self._entries, self._written)

    def _flush(self) -> None:
        if len(self._waiting):
            waiting, self._waiting, self._waiting_bytes = self._waiting, Columns(), 0
            self._frame(encode_entries(waiting))

    def _frame(self, payload: bytes) -> None:
        self._number += 1
        self._write(encode_frame(payload, self._number, self._seed))

    def _write(self, data: bytes) -> None:
        """All of it: a file without a buffer may take less at a time."""
        left = memoryview(data)
        while left:
            done = self._sink.write(bytes(left) if len(left) < len(data) else data)
            if done is None:
                raise BlockingIOError("the sink of a backup takes nothing: it must be blocking")
            if not isinstance(done, int) or not 0 < done <= len(left):
                raise TypeError(f"write() of the sink returned {done!r}, not how much it took")
            left = left[done:]
        self._written += len(data)

"""What holds each byte: live data, or what is waiting to go and why.

Runs in: supervisor, on the caller's thread. Reads every table once; writes nothing.
Invariants: (1) the kinds add up to what the files take; (2) what a compaction would keep of a key
whatever the readers is live: so many versions, merge operands, nothing behind a discard bit.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import (
    META_DELETE,
    META_DISCARD_EARLIER,
    META_MERGE,
    META_POINTER,
    ValuePointer,
)
from meles.engine.ids import MAX_VERSION
from meles.engine.inspection import size_on_disk
from meles.engine.iterators.merge import merge
from meles.engine.memtable.memtable import Memtable
from meles.engine.read_view import ReadView
from meles.engine.reports import SpacePin, SpaceReport
from meles.engine.store import Store
from meles.engine.table.reader import Table
from meles.engine.txn.oracle import Oracle, ReadMark
from meles.engine.vlog.layout import ENTRY_BYTES, more_of

_COLUMN_BYTES: Final = 16  # a block's words for an entry, beside key and value
_IN_MEMORY: Final = 1 << 40  # a mark beside an entry's meta: it lies in a log


@dataclass(slots=True)
class _Tally:
    tables: Counter[str]
    values: Counter[str]
    pinned: Counter[int]  # read timestamp to bytes


def space_report(store: Store, oracle: Oracle, versions_to_keep: int) -> SpaceReport:
    """Every byte on disk by what it holds."""
    view, readers = store.view, oracle.readers()
    tally = _classify(view, sorted({mark.ts for mark in readers}), versions_to_keep)
    size = size_on_disk(store)
    tables = sum(meta.size for _, meta in view.version.walk())
    logs = size.lsm_bytes - tables
    tally.tables["overhead"] = max(0, tables - sum(tally.tables.values()))
    tally.values["dead"] = max(0, size.value_log_bytes - sum(tally.values.values()))
    return SpaceReport(
        total_bytes=size.lsm_bytes + size.value_log_bytes,
        log_bytes=logs,
        table_bytes={kind: size for kind, size in tally.tables.items() if size},
        value_log_bytes={kind: size for kind, size in tally.values.items() if size},
        pins=[_pin(mark, tally.pinned[mark.ts]) for mark in readers],
    )


def _pin(mark: ReadMark, held: int) -> SpacePin:
    return SpacePin(mark.owner, mark.ts, time.monotonic() - mark.since, held, os.getpid())


def _classify(view: ReadView, snapshots: list[int], to_keep: int) -> _Tally:
    memtables = (view.active, *view.sealed)
    sources = [_marked(memtable) for memtable in memtables if len(memtable.index)]
    sources += [table.scan() for table in view.level_zero]
    sources += [_chain(tables) for _, tables in view.levels]
    tally = _Tally(Counter(), Counter(), Counter())
    now = now_ms()
    last: bytes | None = None
    newer = kept = 0
    ended = False
    ordered = view.ordered and all(memtable.ordered for memtable in memtables)
    for batch in merge(sources, ordered=ordered):
        entries = zip(
            batch.keys, batch.versions, batch.metas, batch.expiries, batch.values, strict=True
        )
        for key, version, meta, expiry, value in entries:
            if key != last:
                kept, ended = 0, False
            at = bisect_left(snapshots, version)  # the oldest snapshot that sees this version
            if view.hidden(key, version, MAX_VERSION):
                kind = "dropped"
            elif not ended:
                kind = _kind_of_kept(meta, expiry, now)
                if not meta & META_MERGE:
                    kept += 1
                    ended = kept == to_keep or kind != "live" or bool(meta & META_DISCARD_EARLIER)
            elif at < len(snapshots) and snapshots[at] < newer:
                kind = "pinned"
            else:
                kind = "superseded"
            last, newer = key, version
            size = 0 if meta & _IN_MEMORY else len(key) + len(value) + _COLUMN_BYTES
            length = _stored_bytes(view, value) if meta & META_POINTER else 0
            tally.tables[kind] += size
            tally.values[kind] += length
            if kind == "pinned":
                tally.pinned[snapshots[at]] += size + length
    return tally


def _stored_bytes(view: ReadView, pointer: bytes) -> int:
    """What a value takes in the value log."""
    address = ValuePointer.decode(pointer)
    file = view.version.physical.get(address.file_id)
    more = 0 if file is None else more_of(file.key_id)
    return address.length + ENTRY_BYTES + more


def _kind_of_kept(meta: int, expiry: int, now: int) -> str:
    if meta & META_DELETE:
        return "tombstone"
    return "expired" if 0 < expiry <= now else "live"


def _marked(memtable: Memtable) -> Iterator[Columns]:
    """A memtable's entries: the log holds them, no table does."""
    for columns in memtable.scan(None, None, MAX_VERSION, all_versions=True):
        columns.metas = [meta | _IN_MEMORY for meta in columns.metas]
        yield columns


def _chain(tables: list[Table]) -> Iterator[Columns]:
    for table in tables:
        yield from table.scan()

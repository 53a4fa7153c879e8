"""What holds each byte: live data, or what is waiting to go and why.

Runs in: supervisor, on the caller's thread. Reads every table once; writes nothing.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_POINTER, ValuePointer
from meles.engine.inspection import size_on_disk
from meles.engine.iterators.merge import merge
from meles.engine.read_view import ReadView
from meles.engine.reports import SpacePin, SpaceReport
from meles.engine.store import Store
from meles.engine.table.reader import Table
from meles.engine.txn.oracle import Oracle, ReadMark
from meles.engine.vlog.layout import ENTRY_BYTES

_COLUMN_BYTES = 16  # a block's words for an entry, beside key and value


@dataclass(slots=True)
class _Tally:
    tables: Counter[str]
    values: Counter[str]
    pinned: Counter[int]  # read timestamp to bytes


def space_report(store: Store, oracle: Oracle) -> SpaceReport:
    """Every byte on disk by what it holds."""
    view, readers = store.view, oracle.readers()
    tally = _classify(view, sorted({mark.ts for mark in readers}))
    size = size_on_disk(store)
    tables = sum(meta.size for _, meta in view.version.walk())
    logs = size.lsm_bytes - tables
    tally.tables["overhead"] = max(0, tables - sum(tally.tables.values()))
    tally.values["dead"] = max(0, size.value_log_bytes - sum(tally.values.values()))
    return SpaceReport(
        total_bytes=size.lsm_bytes + size.value_log_bytes,
        log_bytes=logs,
        table_bytes=dict(tally.tables),
        value_log_bytes=dict(tally.values),
        pins=[_pin(mark, tally.pinned[mark.ts]) for mark in readers],
    )


def _pin(mark: ReadMark, held: int) -> SpacePin:
    return SpacePin(mark.owner, mark.ts, time.monotonic() - mark.since, held)


def _classify(view: ReadView, snapshots: list[int]) -> _Tally:
    sources = [table.scan() for table in view.level_zero]
    sources += [_chain(tables) for _, tables in view.levels]
    tally = _Tally(Counter(), Counter(), Counter())
    now = now_ms()
    last: bytes | None = None
    newer = 0
    for batch in merge(sources, ordered=view.ordered):
        entries = zip(
            batch.keys, batch.versions, batch.metas, batch.expiries, batch.values, strict=True
        )
        for key, version, meta, expiry, value in entries:
            if view.hidden(key, version, 1 << 62):
                kind = "dropped"
            elif key != last:
                kind = "tombstone" if meta & META_DELETE else "live"
                kind = "expired" if 0 < expiry <= now else kind
            else:
                # the oldest snapshot that still sees this version, if there is one
                at = bisect_left(snapshots, version)
                held = at < len(snapshots) and snapshots[at] < newer
                kind = "pinned" if held else "superseded"
                if held:
                    tally.pinned[snapshots[at]] += len(key) + len(value)
            last, newer = key, version
            tally.tables[kind] += len(key) + len(value) + _COLUMN_BYTES
            if meta & META_POINTER:
                length = ValuePointer.decode(value).length + ENTRY_BYTES
                tally.values[kind] += length
                if kind == "pinned":
                    tally.pinned[snapshots[bisect_left(snapshots, version)]] += length
    return tally


def _chain(tables: list[Table]) -> Iterator[Columns]:
    for table in tables:
        yield from table.scan()

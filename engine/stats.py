"""Putting `db.stats()` together from the counters of each part.

Runs in: supervisor, on the caller's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from meles.engine import inspection
from meles.engine.background.collecting import GCCounters
from meles.engine.background.compacting import CompactionCounters
from meles.engine.background.flushing import FlushCounters
from meles.engine.engine import Engine
from meles.engine.reports import Recovery, StallInfo, Stats
from meles.engine.worker_info import WorkerInfo
from meles.engine.writing.brake import Brake
from meles.engine.writing.counters import WriteCounters


@dataclass(frozen=True, slots=True)
class Sums:
    """Counters since open; `logged_bytes` went to logs and value log."""

    wrote: WriteCounters
    logged_bytes: int
    flush: FlushCounters
    compact: CompactionCounters
    gc: GCCounters
    brake: Brake


NO_SUMS = Sums(WriteCounters(), 0, FlushCounters(), CompactionCounters(), GCCounters(), Brake())


def make_stats(engine: Engine, recovery: Recovery, workers: list[WorkerInfo], sums: Sums) -> Stats:
    """The database at this moment."""
    store, oracle = engine.store, engine.oracle
    wrote, flush, compact, gc = sums.wrote, sums.flush, sums.compact, sums.gc
    written = sums.logged_bytes + flush.written_bytes + compact.written_bytes + gc.written_bytes
    cache, indexes = store.cache_picture()
    return Stats(
        levels=inspection.level_infos(store.version, engine.options),
        memtables=inspection.memtable_infos(store.view),
        value_log=inspection.value_log_info(
            store, gc.freed_bytes, gc.dropped_files, gc.relocated_files
        ),
        workers=workers,
        recovery=recovery,
        flushes=flush.flushes,
        compactions=compact.compactions,
        gc_runs=gc.runs,
        stalls=StallInfo(
            wrote.stalls,
            wrote.stall_seconds,
            wrote.longest_stall,
            sums.brake.sleeps,
            sums.brake.seconds,
        ),
        bytes_written=wrote.bytes,
        write_amplification=written / wrote.bytes if wrote.bytes else 0.0,
        space_amplification=inspection.space_amplification(store),
        entries_written=wrote.entries,
        syncs=wrote.syncs,
        moves=compact.moves,
        compaction_read_bytes=compact.read_bytes,
        compaction_written_bytes=compact.written_bytes,
        flush_written_bytes=flush.written_bytes,
        gc_written_bytes=gc.written_bytes,
        dropped_entries=compact.dropped_entries,
        cache_hits=cache.hits,
        cache_misses=cache.misses,
        cache_hit_ratio=cache.hit_ratio,
        cache_bytes=cache.size,
        cache_evictions=cache.evictions,
        index_cache_bytes=indexes.size,
        index_cache_loads=indexes.loads,
        index_cache_evictions=indexes.evictions,
        published_ts=oracle.published,
        discard_ts=oracle.discard_ts(),
        readers=len(oracle.readers()),
    )

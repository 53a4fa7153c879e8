"""Flushing: sealed memtables become L0 tables, oldest first, one at a time.

Runs in: supervisor, on the control thread.
Invariants: (1) flushes enter the MANIFEST in memtable order; (2) value-log bytes a table points to
are durable before the MANIFEST names it, and the log goes only after that; (3) while L0 is full and
compactors exist, flushing waits: that is what makes writers stall instead of L0 growing.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import partial

from meles.engine.background.retry import Retry
from meles.engine.background.scheduler import Scheduler
from meles.engine.clock import now_ms
from meles.engine.errors import DiskFullError, InvariantError
from meles.engine.fs.names import Kind
from meles.engine.giving_way import give_way, step_aside
from meles.engine.jobs import BuildOptions, FlushJob, Job, JobResult
from meles.engine.memtable.memtable import Memtable
from meles.engine.options import Options
from meles.engine.outputs import open_flushed
from meles.engine.store import Store
from meles.engine.txn.oracle import Oracle
from meles.engine.writing.brake import room_used
from meles.engine.writing.writer import Writer

log = logging.getLogger("meles.flush")


def build_options(options: Options) -> BuildOptions:
    """What a job needs to build tables."""
    return BuildOptions(
        options.block_size, options.compression, options.zstd_level, options.bloom_false_positive
    )


@dataclass(slots=True)
class FlushCounters:
    """Sums since open."""

    flushes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0


class Flushing:
    """Decides, submits and installs flushes; also prepares spare files and seals full value
    logs.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        oracle: Oracle,
        options: Options,
        scheduler: Scheduler,
    ) -> None:
        self._store = store
        self._writer = writer
        self._oracle = oracle
        self._options = options
        self._scheduler = scheduler
        self._current: Memtable | None = None
        self._retry = Retry()
        self.counters = FlushCounters()
        self.closing = False  # while closing L0 may grow past the stall: the data must get out
        self.spares = options.workers != "inline"

    def start_due(self) -> None:
        self._set_brake()
        self._writer.seal_full_values(self._store.install_sealed_values)
        if self.spares and self._writer.refusal is None:
            self._store.prepare_spares(values=self._writer.sink.current is not None)
            give_way()
        if self._current is not None or self._held() or self._writer.failure is not None:
            return
        sealed = self._store.view.sealed
        if not sealed or self._scheduler.pool.free("flusher") <= 0:
            return
        now = time.monotonic()
        if not self._retry.may_run(now):
            return
        self._flush(sealed[-1])

    def _set_brake(self) -> None:
        options = self._options
        self._writer.slow_down(
            room_used(
                sealed=len(self._store.view.sealed),
                max_sealed=options.num_memtables,
                level_zero=len(self._store.version.levels[0]),
                due=options.num_level_zero_tables,
                stall=options.num_level_zero_tables_stall,
                compacting=options.num_compactors > 0 and options.workers != "inline",
            )
        )

    def _held(self) -> bool:
        """Whether L0 is so full that flushing must wait for compaction."""
        options = self._options
        full = len(self._store.version.levels[0]) >= options.num_level_zero_tables_stall
        return full and options.num_compactors > 0 and not self.closing

    def _flush(self, memtable: Memtable) -> None:
        if memtable.records == 0:
            self._store.install_flush(memtable, [], [])
            self._writer.room_made()
            self._scheduler.poke()
            return
        options = self._options
        job = FlushJob(
            memtable.id,
            memtable.end,
            self._store.reserve_tables(1),
            build_options(options),
            now_ms(),
            0 if options.managed else self._oracle.discard_ts(),
            options.num_versions_to_keep,
            memtable.ordered,
        )
        self._current = memtable
        self._scheduler.submit(self, job, self._scheduler.new_job_id())

    def done(self, job_id: int, job: Job, result: JobResult) -> None:
        memtable = self._memtable_of(job)
        assert isinstance(job, FlushJob)  # noqa: S101 - narrowed by _memtable_of
        tables = open_flushed(self._store, job, result, memtable)
        durable = self._writer.sync_values()
        give_way()
        synced = [] if durable is None else [self._store.synced_values(*durable)]
        self._store.install_flush(memtable, tables, synced)
        give_way()
        self._writer.release_log(memtable.id)
        self.counters.flushes += 1
        self.counters.written_bytes += sum(table.meta.size for table in tables)
        self.counters.read_bytes += job.end
        self._current = None
        self._retry.succeeded()
        self._writer.room.disk_full = None
        self._writer.room_made()
        step_aside()  # the memtable goes with this frame
        del job_id

    def _memtable_of(self, job: Job) -> Memtable:
        if not isinstance(job, FlushJob) or self._current is None:
            raise InvariantError("an answer to no flush")
        memtable = self._current
        if memtable.id != job.mem_id:
            raise InvariantError(f"flush of memtable {job.mem_id} while {memtable.id} is due")
        return memtable

    def failed(self, job_id: int, job: Job, error: Exception, *, poisoned: bool) -> None:
        del job_id
        assert isinstance(job, FlushJob)  # noqa: S101
        self._store.remove_outputs(Kind.TABLE, [job.table_id])
        self._current = None
        now = time.monotonic()
        self._retry.failed(error, now, poisoned=poisoned)
        if isinstance(error, DiskFullError):
            self._writer.room.disk_full = partial(DiskFullError, f"flushing waits: {error.message}")
            self._writer.room_made()  # there is none: whoever waits for it hears why
        if not self._retry.parked:
            self._scheduler.later(self._retry.delay(now))

    def rerun(self, job_id: int, job: Job) -> Job:
        del job_id
        assert isinstance(job, FlushJob)  # noqa: S101
        self._store.remove_outputs(Kind.TABLE, [job.table_id])
        return dataclasses.replace(job, table_id=self._store.reserve_tables(1))

    def is_idle(self) -> bool:
        return self._current is None and (
            not self._store.view.sealed or bool(self._retry.parked) or self._held()
        )

    def stuck(self) -> str:
        """Why flushing cannot go on, or an empty text."""
        return self._retry.parked

    def problems(self) -> list[str]:
        found = []
        if self._retry.failures:
            found.append(f"flushing fails: {self._retry.last}")
        if self._held() and self._store.view.sealed:
            found.append("flushing waits for compaction: L0 is full")
        return found

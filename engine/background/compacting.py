"""Compacting: plans from the pure picker, run as sub-jobs, installed whole.

Runs in: supervisor, on the control thread.
Invariants: (1) a plan's tables and ranges are claimed from the decision to the install; (2) a plan
is installed as one edit when all its sub-jobs succeeded, or not at all; (3) a failed plan keeps
its claim while it waits, so that it is neither picked again at once nor overtaken.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass, field
from typing import Final

from meles.engine.background.flushing import build_options
from meles.engine.background.retry import Retry
from meles.engine.background.scheduler import Scheduler
from meles.engine.background.stillness import Stillness
from meles.engine.clock import now_ms
from meles.engine.compaction.drops import spent_drops
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.picker import (
    keeps_for_level_zero,
    most_jobs,
    pick,
    pick_again_at,
    pick_flatten,
    pick_level_zero,
    pick_settling,
)
from meles.engine.compaction.plan import Plan, jobs_for
from meles.engine.errors import DiskFullError, InvariantError
from meles.engine.fs.names import Kind
from meles.engine.giving_way import give_way
from meles.engine.jobs import CompactJob, Job, JobResult
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.version import TableMeta
from meles.engine.options import Options
from meles.engine.outputs import check_counts, open_compacted
from meles.engine.store import Store
from meles.engine.table.reader import Table
from meles.engine.txn.oracle import Oracle

log = logging.getLogger("meles.compaction")
_READER_NAP: Final = 5.0  # seconds between two looks whether a reader that holds garbage is gone
_LONGEST_NAP: Final = 600.0  # the wall clock may be set meanwhile
_AFTER_EXPIRY: Final = 0.05


@dataclass(slots=True)
class CompactionCounters:
    """Sums since open."""

    compactions: int = 0
    moves: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    dropped_entries: int = 0


@dataclass(slots=True)
class _Running:
    plan: Plan
    waiting: int  # sub-jobs without an answer
    job_ids: frozenset[int]
    results: dict[int, tuple[CompactJob, JobResult]] = field(default_factory=dict)
    error: Exception | None = None
    poisoned: bool = False


class Compacting:
    """Decides, submits and installs compactions."""

    def __init__(
        self,
        store: Store,
        oracle: Oracle,
        options: Options,
        scheduler: Scheduler,
        stillness: Stillness,
    ) -> None:
        self._store = store
        self._stillness = stillness
        self._oracle = oracle
        self._options = options
        self._scheduler = scheduler
        self._in_flight = InFlight()
        self._runs: list[_Running] = []
        self._retries: dict[frozenset[int], Retry] = {}
        self._waiting: list[Plan] = []  # failed plans that keep their claim for a while
        self._found_none = False
        self._woken_at = math.inf  # monotonic
        self.flatten = False
        self.level_zero = False  # compact L0 whatever its score (compact_l0_on_close)
        self.stopped = False
        self.counters = CompactionCounters()

    def start_due(self) -> None:
        self._found_none = True
        if self.stopped or self._scheduler.stopped():
            return
        self._forget_spent_drops()
        if not (self._options.num_compactors or self.flatten or self.level_zero):
            return
        pool = self._scheduler.pool
        while (free := pool.free("compactor")) > 0:
            give_way()
            plan = self._pick(free)
            self._found_none = plan is None
            give_way()
            if plan is None:
                self._forget_what_is_not_due()
                self._look_again()
                return
            self._in_flight.claim(plan)
            if plan.kind == "move":
                self._install_move(plan)
            else:
                self._submit(plan, free)

    def _forget_spent_drops(self) -> None:
        """A drop goes when no file can still hold a version it hides."""
        version = self._store.version
        if version.drops:
            view = self._store.view
            oldest = min(memtable.first_ts for memtable in (view.active, *view.sealed))
            spent = spent_drops(version, oldest)
            if spent:
                self._store.commit_edit(Edit(remove_drops=spent))

    def _pick(self, free: int) -> Plan | None:
        version = self._store.version
        options = self._options
        l0_only = keeps_for_level_zero(free, options, self._in_flight)
        discard_ts = self._discard_ts()
        now = now_ms() / 1000
        plan = None
        give_way()
        if self.level_zero:
            plan = pick_level_zero(version, options, self._in_flight)
        if plan is None:
            plan = pick(
                version, options, self._in_flight, l0_only=l0_only, now=now, discard_ts=discard_ts
            )
        if plan is None and self._stillness.quiet and not self._store.view.sealed:
            plan = pick_settling(version, options, self._in_flight)
        if plan is None and self.flatten:
            plan = pick_flatten(version, options, self._in_flight)
        return plan

    def _look_again(self) -> None:
        """Be woken when something will be due without anybody doing anything.

        That is when enough has expired, and when a reader may be gone: readers end without a word.
        """
        now = now_ms() / 1000
        version = self._store.version
        at = pick_again_at(
            version, self._options, self._in_flight, now=now, discard_ts=self._discard_ts()
        )
        seconds = _LONGEST_NAP if at is None else min(_LONGEST_NAP, at - now + _AFTER_EXPIRY)
        if self._oracle.readers() and any(level.with_garbage for level in version.levels):
            seconds = min(seconds, _READER_NAP)
        elif at is None:
            return
        due = time.monotonic() + seconds
        if due < self._woken_at:
            self._woken_at = due
            self._scheduler.pool.call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._woken_at = math.inf
        self._scheduler.poke()

    def _discard_ts(self) -> int:
        """Up to where superseded versions may go; in managed mode below what memtables hold."""
        ts = self._oracle.discard_ts()
        if self._options.managed:
            view = self._store.view
            oldest = min(memtable.first_ts for memtable in (view.active, *view.sealed))
            ts = min(ts, oldest - 1)
        return ts

    def _submit(self, plan: Plan, free: int) -> None:
        version = self._store.version
        drops = tuple((prefix, drop.ts) for drop in version.drops for prefix in drop.prefixes)
        jobs = jobs_for(
            plan,
            version,
            self._options,
            reserve=self._store.reserve_tables,
            discard_ts=self._discard_ts(),
            now_ms=now_ms(),
            drops=drops,
            parallel=most_jobs(plan, free, self._options, self._in_flight),
            build=build_options(self._options),
        )
        ids = [self._scheduler.new_job_id() for _ in jobs]
        run = _Running(plan, len(jobs), job_ids=frozenset(ids))
        self._runs.append(run)
        give_way()
        for job_id, job in zip(ids, jobs, strict=True):
            self._scheduler.submit(self, job, job_id)

    def _run_of(self, job_id: int) -> _Running:
        for run in self._runs:
            if job_id in run.job_ids:
                return run
        raise InvariantError(f"no compaction has job {job_id}")

    def done(self, job_id: int, job: Job, result: JobResult) -> None:
        assert isinstance(job, CompactJob)  # noqa: S101 - only compactions are submitted here
        run = self._run_of(job_id)
        run.waiting -= 1
        run.results[job_id] = (job, result)
        if run.waiting == 0:
            self._finish(run)

    def failed(self, job_id: int, job: Job, error: Exception, *, poisoned: bool) -> None:
        assert isinstance(job, CompactJob)  # noqa: S101
        run = self._run_of(job_id)
        run.waiting -= 1
        self._remove(job)
        run.error, run.poisoned = run.error or error, run.poisoned or poisoned
        for other in run.job_ids - {job_id} - set(run.results):
            self._scheduler.cancel(other)
        if run.waiting == 0:
            self._finish(run)

    def _remove(self, job: CompactJob) -> None:
        ids = range(job.first_table_id, job.first_table_id + job.max_tables)
        self._store.remove_outputs(Kind.TABLE, ids)

    def rerun(self, job_id: int, job: Job) -> Job:
        del job_id
        assert isinstance(job, CompactJob)  # noqa: S101
        self._remove(job)
        return dataclasses.replace(job, first_table_id=self._store.reserve_tables(job.max_tables))

    # -- installing ------------------------------------------------------------------------------

    def _finish(self, run: _Running) -> None:
        """Every sub-job has answered."""
        opened: list[Table] = []
        try:
            if run.error is not None:
                raise run.error
            for job, result in run.results.values():
                opened += open_compacted(self._store, job, result)
            give_way()
            check_counts(self._store, run.results.values(), opened)
        except Exception as error:  # noqa: BLE001 - whatever it was, the plan as a whole failed
            for table in opened:
                table.close()
            run.error = error
            self._give_up(run)
            return
        try:
            self._install(run, opened)  # any other error leaves the MANIFEST unknown: outputs stay
        except DiskFullError as error:
            for table in opened:
                table.close()
            run.error = error
            self._give_up(run)

    def _install(self, run: _Running, opened: list[Table]) -> None:
        plan = run.plan
        remove = [(plan.from_level, table.id) for table in plan.top]
        remove += [(plan.to_level, table.id) for table in plan.bottom]
        add: list[tuple[int, TableMeta]] = [(plan.to_level, table.meta) for table in opened]
        self._store.install_tables(add, remove, opened, max_ts=self._oracle.published)
        give_way()
        self._runs.remove(run)
        self._in_flight.release(plan)
        self._forget_failures_of(plan)
        counters = self.counters
        counters.compactions += 1
        for _, result in run.results.values():
            counters.read_bytes += result.counters.get("read_bytes", 0)
            counters.written_bytes += result.counters.get("written_bytes", 0)
            counters.dropped_entries += result.counters.get("dropped_entries", 0)

    def _install_move(self, plan: Plan) -> None:
        """A plan that changes only the MANIFEST."""
        remove = [(plan.from_level, table.id) for table in plan.top]
        add = [(plan.to_level, table) for table in plan.top]
        try:
            self._store.install_tables(add, remove, [], max_ts=self._oracle.published)
        finally:
            self._in_flight.release(plan)
        self._forget_failures_of(plan)
        self.counters.moves += 1

    def _forget_failures_of(self, plan: Plan) -> None:
        """The plan succeeded; and plans of tables that are gone fail no more."""
        self._retries.pop(_signature(plan), None)
        there = set(self._store.version.tables)
        self._retries = {of: retry for of, retry in self._retries.items() if of <= there}

    def _forget_what_is_not_due(self) -> None:
        """What failed and nobody asks for any more is no problem any more."""
        if self._retries and not self._runs and not self._waiting:
            self._retries = {of: retry for of, retry in self._retries.items() if retry.parked}

    def _give_up(self, run: _Running) -> None:
        """Inputs stay, outputs vanish; the plan waits with its claim, or for good when parked."""
        self._runs.remove(run)
        for job, _ in run.results.values():
            self._remove(job)
        retry = self._retries.setdefault(_signature(run.plan), Retry())
        now = time.monotonic()
        if self.stopped:
            self._in_flight.release(run.plan)
            return
        retry.failed(run.error or InvariantError("no answer"), now, poisoned=run.poisoned)
        if retry.parked:
            return
        self._waiting.append(run.plan)
        self._scheduler.pool.call_later(retry.delay(now), lambda: self._resume(run.plan))

    def _resume(self, plan: Plan) -> None:
        if plan in self._waiting:
            self._waiting.remove(plan)
            self._in_flight.release(plan)
            self._scheduler.poke()

    def cancel_all(self) -> None:
        """Start nothing more and ask what runs to stop (closing)."""
        self.stopped = True
        for run in self._runs:
            for job_id in run.job_ids - set(run.results):
                self._scheduler.cancel(job_id)

    def is_idle(self) -> bool:
        return not self._runs and not self._waiting and self._found_none

    def problems(self) -> list[str]:
        return [
            f"a compaction is parked: {retry.parked}" if retry.parked
            else f"a compaction fails: {retry.last}"
            for retry in self._retries.values()
        ]  # fmt: skip


def _signature(plan: Plan) -> frozenset[int]:
    return frozenset(table.id for table in (*plan.top, *plan.bottom))

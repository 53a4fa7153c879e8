"""Collecting: giving value-log space back.

Runs in: supervisor, on the control thread.
Invariants: (1) files wholly dead are dropped unread, others relocated by the GC worker; (2) tables
and files a relocation reads stay linked until it ends; (3) only sealed files no memtable may point
into are touched, so no address is lost; (4) while somebody writes, a file is taken only at
`gc_discard_ratio` and copied at a bounded rate; while nobody does, at half of it and unbounded.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from meles.engine.background.retry import WORKER_OUTPUT, Retry
from meles.engine.background.scheduler import Scheduler
from meles.engine.background.stillness import Stillness
from meles.engine.clock import now_ms
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.names import Kind, file_name
from meles.engine.jobs import Job, JobResult, RelocateJob
from meles.engine.manifest.version import Version, VlogMeta
from meles.engine.options import Options
from meles.engine.outputs import blamed_on_worker
from meles.engine.reports import GCReport
from meles.engine.store import Store
from meles.engine.vlog.gc_pick import GCPlan, pick_gc, relocation
from meles.engine.vlog.liveness import live_bytes
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.writing.writer import Writer

log = logging.getLogger("meles.gc")
_BUSY_RATE: Final = 64 << 20  # bytes a second of a relocation while commits go on
_QUIET_RATIO: Final = 0.5  # of gc_discard_ratio, while none do


@dataclass(slots=True)
class GCCounters:
    """Sums since open."""

    runs: int = 0
    dropped_files: int = 0
    relocated_files: int = 0
    freed_bytes: int = 0
    written_bytes: int = 0


@dataclass(slots=True)
class _Request:
    """A `db.gc()` call: collect at this ratio until nothing qualifies."""

    ratio: float
    examined: set[int] = field(default_factory=set)
    rewritten: int = 0
    freed: int = 0
    files: dict[int, tuple[str, str]] = field(default_factory=dict)
    done: bool = False


class Collecting:
    """Decides, submits and installs value-log collection."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        options: Options,
        scheduler: Scheduler,
        stillness: Stillness,
    ) -> None:
        self._store = store
        self._writer = writer
        self._stillness = stillness
        self._options = options
        self._scheduler = scheduler
        self._running: tuple[RelocateJob, GCPlan] | None = None
        self._request: _Request | None = None
        self._expected_entries = 0  # of the running relocation
        self._retry = Retry()
        self._judged: tuple[Version, int, frozenset[int], float] | None = None
        self.stopped = False
        self.counters = GCCounters()

    # -- deciding --------------------------------------------------------------------------------

    def _unflushed(self) -> frozenset[int]:
        view = self._store.view
        return frozenset().union(*(set(m.vlog_ids) for m in (view.active, *view.sealed)))

    def start_due(self) -> None:
        if self.stopped or self._running is not None or self._writer.failure is not None:
            self._finish_request_if_stopped()
            return
        request = self._request
        if request is None and not self._options.gc:
            return
        if not self._retry.may_run(time.monotonic()):
            self._finish_request(None)
            return
        values = self._writer.sink.current
        active = 0 if values is None else values.file_id
        unflushed = self._unflushed()
        ratio = self._ratio()
        state = (self._store.version, active, unflushed, ratio)
        if request is None and self._judged is not None and self._judged == state:
            return
        plan = pick_gc(
            self._store.version, ratio=ratio, active=active, unflushed=unflushed,
            busy=frozenset(), max_output_bytes=self._options.value_log_file_size,
        )  # fmt: skip
        self._drop(plan)
        if plan.relocate and self._scheduler.pool.free("value_gc") > 0:
            self._relocate(plan)
        elif not plan.relocate:
            self._retry.succeeded()  # what failed is gone
            self._judged = (self._store.version, active, unflushed, ratio)
            self._finish_request(plan)

    def _ratio(self) -> float:
        """The share of garbage from which on a file is rewritten."""
        if self._request is not None:
            return self._request.ratio
        ratio = self._options.gc_discard_ratio
        return ratio * _QUIET_RATIO if self._stillness.quiet else ratio

    def _drop(self, plan: GCPlan) -> None:
        if not plan.drop:
            return
        sizes = {vlog.id: vlog.size for vlog in self._store.version.vlogs}
        self._store.drop_values(plan.drop)
        freed = sum(sizes[file_id] for file_id in plan.drop)
        self.counters.runs += 1
        self.counters.dropped_files += len(plan.drop)
        self.counters.freed_bytes += freed
        if self._request is not None:
            self._request.freed += freed
            for file_id in plan.drop:
                self._request.files[file_id] = ("dropped", "nothing in it was alive")

    def _relocate(self, plan: GCPlan) -> None:
        rate = 0 if self._stillness.quiet else _BUSY_RATE
        job = relocation(
            self._store.version, plan.relocate, output=self._store.reserve_vlog(), rate=rate,
            created_ms=now_ms(),
        )  # fmt: skip
        self._store.pin(_files(job))
        live = live_bytes(self._store.version)
        self._expected_entries = sum(live[source][1] for source, _ in job.sources)
        self._running = (job, plan)
        self._scheduler.submit(self, job, self._scheduler.new_job_id())

    # -- answers ---------------------------------------------------------------------------------

    def done(self, job_id: int, job: Job, result: JobResult) -> None:
        del job_id
        assert isinstance(job, RelocateJob)  # noqa: S101 - only relocations are submitted here
        made = self._verified(job, result)
        sources = tuple(source for source, _ in job.sources)
        before = sum(v.size for v in self._store.version.vlogs if v.id in sources)
        self._store.install_relocation(sources, made)
        self._end(job)
        written = 0 if made is None else made.size
        freed = before - written
        self.counters.runs += 1
        self.counters.relocated_files += len(sources)
        self.counters.freed_bytes += freed
        self.counters.written_bytes += written
        self._retry.succeeded()
        if self._request is not None:
            self._request.rewritten += len(sources)
            self._request.freed += freed
            for source in sources:
                self._request.files[source] = ("rewritten", f"into value-log file {job.output}")

    def _verified(self, job: RelocateJob, result: JobResult) -> VlogMeta | None:
        """The relocated file, every live entry in it; None when nothing lived after all."""
        directory = self._store.dirs.values
        path = directory.join(file_name(Kind.VLOG, job.output))
        entries = 0
        made = None
        if result.files:
            if [file.id for file in result.files] != [job.output]:
                raise _refused(path, "the worker reported files that were not reserved for it")
            with blamed_on_worker(path):
                made = self._checked(job, result)
            allowed = {file_id for _, ids in job.sources for file_id in ids}
            if not set(made.logical) <= allowed:
                raise _refused(path, "the file holds values that were not asked for")
            entries = made.entries
        if entries != self._expected_entries:
            raise _refused(path, f"{entries} values came out, {self._expected_entries} were alive")
        return made

    def _checked(self, job: RelocateJob, result: JobResult) -> VlogMeta:
        """What the file says of itself, if it is the one the worker reported."""
        directory = self._store.dirs.values
        made = load_meta(directory, job.output)
        file = ValueLogFile(directory, made)
        try:
            if (made.size, file.file_crc()) != (result.files[0].size, result.files[0].crc):
                raise _refused(file.path, "the file is not what the worker reported")
        finally:
            file.close()
        return made

    def failed(self, job_id: int, job: Job, error: Exception, *, poisoned: bool) -> None:
        del job_id
        assert isinstance(job, RelocateJob)  # noqa: S101
        self._store.remove_outputs(Kind.VLOG, [job.output])
        self._end(job)
        now = time.monotonic()
        self._retry.failed(error, now, poisoned=poisoned)
        if not self._retry.parked and not self.stopped:
            self._scheduler.later(self._retry.delay(now))

    def rerun(self, job_id: int, job: Job) -> Job:
        del job_id
        assert isinstance(job, RelocateJob)  # noqa: S101
        self._store.remove_outputs(Kind.VLOG, [job.output])
        fresh = dataclasses.replace(job, output=self._store.reserve_vlog())
        if self._running is not None:
            self._running = (fresh, self._running[1])
        return fresh

    def _end(self, job: RelocateJob) -> None:
        if self._running is None:
            raise InvariantError("an answer to no relocation")
        self._store.unpin(_files(job))
        self._running = None

    # -- db.gc() ---------------------------------------------------------------------------------

    def request(self, ratio: float, timeout: Callable[[], float]) -> GCReport:
        """Collect at `ratio` until no file qualifies, from any thread; the report says per file."""
        request = _Request(ratio)

        def begin() -> None:
            self._request = request
            self._scheduler.run()

        self._scheduler.pool.call_soon(begin)
        self._scheduler.wait_for(lambda: request.done or self.stopped, timeout)
        files = sorted((i, outcome, reason) for i, (outcome, reason) in request.files.items())
        return GCReport(len(files), request.rewritten, request.freed, files)

    def _finish_request(self, plan: GCPlan | None) -> None:
        request, self._request = self._request, None
        if request is None:
            return
        if plan is not None:
            for file_id, reason in plan.kept:
                request.files[file_id] = ("kept", reason)
        elif self._retry.last:
            for vlog in self._store.version.vlogs:
                request.files.setdefault(vlog.id, ("kept", f"GC failed: {self._retry.last}"))
        request.done = True

    def _finish_request_if_stopped(self) -> None:
        if self.stopped or self._writer.failure is not None:
            self._finish_request(None)

    def is_idle(self) -> bool:
        return self._running is None and self._request is None

    def problems(self) -> list[str]:
        return [f"value-log GC fails: {self._retry.last}"] if self._retry.failures else []


def _refused(path: str, what: str) -> CorruptionError:
    return CorruptionError(
        what, path=path, offset=0, kind=WORKER_OUTPUT, hint="the job is run again on its inputs"
    )


def _files(job: RelocateJob) -> list[tuple[Kind, int]]:
    """Every file the job may open."""
    tables = [(Kind.TABLE, table_id) for table_id in job.tables]
    return [*tables, *((Kind.VLOG, source) for source, _ in job.sources)]

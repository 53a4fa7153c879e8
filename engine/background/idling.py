"""When nobody writes: get what memory and the open value-log file hold to where space comes back.

Runs in: supervisor, on the control thread.
Invariants: (1) an idle database holds little in logs: after `QUIET_SECONDS` without a commit a
memtable worth a table is flushed; (2) a value-log file still appended to is sealed when enough of
its flushed part is garbage, so that GC can take it without waiting until it is full; (3) the other
kinds of work are asked again once nobody writes: some of theirs waits for that; (4) the
caches and the places of the directories are watched on the same occasions; writes are held while
one is not in its place.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from meles.engine.background.scheduler import Scheduler
from meles.engine.background.stillness import QUIET_SECONDS, Stillness
from meles.engine.background.whereabouts import Whereabouts, moved
from meles.engine.errors import InvariantError
from meles.engine.jobs import Job, JobResult
from meles.engine.store import Store
from meles.engine.table.cache_health import CacheHealth
from meles.engine.vlog.liveness import live_bytes
from meles.engine.writing.failure import Hold
from meles.engine.writing.writer import Writer

# Between two looks while nobody writes: neither beginning to nor moving the directory is announced.
DOZE_SECONDS: Final = 30.0
WORTH_FLUSHING: Final = 1 << 20  # bytes of log, or of values only the memtable refers to
WORTH_SEALING: Final = 4 << 20  # bytes of garbage in the open value-log file
_GARBAGE_SHARE: Final = 0.5
_QUIET_GARBAGE_SHARE: Final = 0.25


class Idling:
    """Watches for quiet and for garbage in the open value-log file. Submits no job of its own."""

    def __init__(
        self, store: Store, writer: Writer, scheduler: Scheduler, stillness: Stillness
    ) -> None:
        self._store = store
        self._writer = writer
        self._scheduler = scheduler
        self._stillness = stillness
        self._caches = CacheHealth(store.cache_picture, time.monotonic())
        self._whereabouts = Whereabouts([store.dirs.tables, store.dirs.values])
        self._timer_set = False
        self._judged = (-1, False)

    def start_due(self) -> None:
        quiet = self._stillness.quiet
        if self._writer.refusal is None:
            self._bring_to_light(quiet=quiet)
        if not self._timer_set and not self._writer.ended:
            self._timer_set = True
            self._scheduler.pool.call_later(DOZE_SECONDS if quiet else QUIET_SECONDS, self._tick)

    def _bring_to_light(self, *, quiet: bool) -> None:
        self._seal_garbage(quiet=quiet)
        full = self._held(self._writer.active.size) >= WORTH_FLUSHING
        if quiet and full and not self._store.view.sealed:
            self._writer.rotate_now()

    def _tick(self) -> None:
        self._timer_set = False
        self._caches.look(time.monotonic())
        problems = self._whereabouts.look()
        if problems:
            self._writer.hold(Hold(partial(moved, problems), self._whereabouts.look))
        else:
            self._writer.look_again()
        self._scheduler.poke()

    def _held(self, log_bytes: int) -> int:
        """Bytes of log and values that only the active memtable refers to."""
        values = self._writer.sink.current
        unflushed = 0 if values is None else values.end - self._writer.sink.flushed_end
        return max(log_bytes, unflushed)

    def _seal_garbage(self, *, quiet: bool) -> None:
        values = self._writer.sink.current
        version = self._store.version
        if values is None or (id(version), quiet) == self._judged:
            return
        self._judged = (id(version), quiet)
        live = live_bytes(version).get(values.file_id, (0, 0))[0]
        flushed = self._writer.sink.flushed_end
        if self._store.view.sealed or flushed <= 0:
            return
        garbage = flushed - live
        share = _QUIET_GARBAGE_SHARE if quiet else _GARBAGE_SHARE
        if garbage >= WORTH_SEALING and garbage >= share * values.end:
            self._writer.retire_values(values.file_id)

    def is_idle(self) -> bool:
        return True  # what a quiet while would bring is not due yet

    def done(self, job_id: int, job: Job, result: JobResult) -> None:
        raise self._no_job(job_id, job, result)

    def failed(self, job_id: int, job: Job, error: Exception, *, poisoned: bool) -> None:
        raise self._no_job(job_id, job, error, poisoned)

    def rerun(self, job_id: int, job: Job) -> Job:
        raise self._no_job(job_id, job)

    def problems(self) -> list[str]:
        return self._whereabouts.problems

    def _no_job(self, job_id: int, *_: object) -> InvariantError:
        return InvariantError(f"job {job_id} was not submitted here")

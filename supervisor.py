"""The supervisor: the process that opens a directory puts everything together here.

Runs in: the opening process; also `python supervisor.py serve DIR`.
Owns: the locks, the MANIFEST, every unlink, the workers and their lives.
Invariants: (1) opening follows `OPEN_STEPS` in order and a failure in any step undoes all before
it; (2) closing follows `Supervisor._stages()`, each stage bounded, the locks go last; (3) a forked
child can neither use, unlock nor close what its parent opened.

    host threads ── DB ──> Writer ──> log + memtable, value log
                     │        └ poke ─> Scheduler (control thread) ──> pool ──> worker processes
                     └──> ReadView <── Store <── MANIFEST <── verified results ──┘

This is the only place that knows both the engine and the workers.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

if (
    __name__ == "__main__"
):  # a plain checkout, whatever its folder is called, is the package `meles`
    import importlib.util

    if importlib.util.find_spec("meles") is None:
        _root = os.path.dirname(os.path.abspath(__file__))
        _spec = importlib.util.spec_from_file_location(
            "meles", os.path.join(_root, "__init__.py"), submodule_search_locations=[_root]
        )
        assert _spec is not None and _spec.loader is not None  # noqa: S101, PT018
        _module = importlib.util.module_from_spec(_spec)
        sys.modules["meles"] = _module
        _spec.loader.exec_module(_module)

from meles.engine.arguments import Patience, Seconds, directory_path, seconds
from meles.engine.background.collecting import Collecting
from meles.engine.background.compacting import Compacting
from meles.engine.background.flushing import Flushing
from meles.engine.background.idling import Idling
from meles.engine.background.scheduler import Scheduler, Work
from meles.engine.background.stillness import Stillness
from meles.engine.background.syncing import IntervalSync
from meles.engine.db import DB
from meles.engine.errors import (
    ClosedError,
    ConfigError,
    ForkedHandleError,
    InvariantError,
    WorkerFailedError,
    WriteStallError,
)
from meles.engine.open_handles import let_go, look_after
from meles.engine.opening import FILE_STEPS, MODES, Opening, Step
from meles.engine.options import load_options
from meles.engine.reports import CloseReport, GCReport, Health, Recovery, Stats
from meles.engine.stats import NO_SUMS, Sums, make_stats
from meles.engine.subscribe import Subscription
from meles.engine.txn.batch import WriteBatch
from meles.engine.txn.cursor import Cursor
from meles.engine.worker_info import WorkerInfo
from meles.engine.writing.writer import Writer
from meles.workers.parent.signals import stop_signals
from meles.workers.parent.stages import Deadline, StageRow, run_stages

__all__ = ["OPEN_STEPS", "Supervisor", "main", "open_db", "stop_signals"]

if TYPE_CHECKING:
    from meles.workers.parent.protocol import Pool


def _start_workers(opening: Opening) -> None:
    supervisor = Supervisor(opening)
    opening.control = supervisor
    opening.unwind.callback(supervisor.abandon)
    look_after(supervisor)
    if not opening.read_only:
        supervisor.start()


OPEN_STEPS: list[Step] = [*FILE_STEPS, ("start workers", _start_workers)]


def open_db(
    path: str | os.PathLike[str] | None,
    *,
    mode: str = "own",
    config: str | os.PathLike[str] | None = None,
    wait: Seconds = 0.0,
    options: Mapping[str, object] | None = None,
) -> DB:
    """Open a directory; see `meles.open`. On any failure nothing is left behind."""
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: one of {', '.join(map(repr, MODES))}")
    if (path is None) != (mode == "memory"):
        raise ConfigError(
            f"mode={mode!r} with path={path!r}: memory mode takes None, others a path"
        )
    where = directory_path(path, "path", make=mode == "own")
    patience = seconds(wait, "wait")
    loaded = load_options(options or {}, config=config)
    if mode == "memory" and loaded.value_dir is not None:
        raise ConfigError("value_dir with mode='memory': all of it is in a directory of its own")
    directory_path(loaded.value_dir, "value_dir", make=mode == "own")
    began = time.monotonic()
    with ExitStack() as unwind:
        opening = Opening(where, mode, loaded, patience, unwind)
        for _, step in OPEN_STEPS:
            step(opening)
        unwind.pop_all()
    supervisor = opening.control
    if not isinstance(supervisor, Supervisor):
        raise InvariantError("opening ended without a supervisor")
    supervisor.recovery.seconds = time.monotonic() - began
    return DB(opening.path, supervisor.engine, supervisor)


class Supervisor:
    """One open directory: its background work, and how it closes. Implements
    `engine.db.Control`.
    """

    def __init__(self, opening: Opening) -> None:
        engine = opening.made_engine
        # fixed after construction
        self.engine = engine
        self._store = engine.store
        self._options = opening.options
        self._read_only = opening.read_only
        self._directories = opening.directories
        self._locks = opening.locks
        self._private = opening.path if opening.private else None
        self._path = opening.path
        self.recovery: Recovery = opening.files.report
        self._scheduler = Scheduler(
            self._on_fatal, inline=opening.options.workers == "inline", stopped=self._has_failed
        )
        self._pool: Pool | None = None
        self._sync: IntervalSync | None = None
        # under _close_lock
        self._close_lock = threading.Lock()
        self._report: CloseReport | None = None
        self._closing = Deadline(math.inf)  # drawn closer by every call of close
        self._forked = False
        if not self._read_only:
            writer = Writer(engine.store, engine.oracle, opening.options, self._scheduler.poke)
            engine.writer = writer
            engine.publisher.on_change = self._subscriptions_changed
            self._writer = writer
            args = (opening.options, self._scheduler)
            self._stillness = still = Stillness(lambda: writer.counters.entries)
            self._flushing = Flushing(engine.store, writer, engine.oracle, *args)
            self._compacting = Compacting(engine.store, engine.oracle, *args, still)
            self._collecting = Collecting(engine.store, writer, *args, still)

    def _subscriptions_changed(self, any_left: bool) -> None:
        """Hook the publisher in only while somebody listens: hooks cost every commit."""
        publisher = self.engine.publisher
        self._writer.set_hooks(
            [publisher.hold_back] if any_left else [], [publisher.publish] if any_left else []
        )

    def _on_fatal(self, error: Exception) -> None:
        self._writer.fail(error)

    def _has_failed(self) -> bool:
        return self._writer.failure is not None

    def start(self) -> None:
        """Start the workers; they boot in the background."""
        from meles.workers.parent.make_pool import make_pool

        options = self._options
        counts = {"flusher": 1, "compactor": max(1, options.num_compactors), "value_gc": 1}
        self._pool = make_pool(
            options.workers,
            counts,
            self._store.dirs,
            heartbeat=options.worker_heartbeat,
            hang_timeout=options.worker_hang_timeout,
            memory_limit=options.worker_memory_limit,
            on_result=self._scheduler.on_result,
            on_failure=self._scheduler.on_failure,
            on_rerun=self._scheduler.on_rerun,
            on_ready=lambda _kind: self._scheduler.poke(),
        )
        idling = Idling(self._store, self._writer, self._scheduler, self._stillness)
        works: list[Work] = [idling, self._flushing, self._compacting, self._collecting]
        self._scheduler.attach(self._pool, works)
        self._pool.start()
        if options.sync == "interval":
            self._sync = IntervalSync(self._writer, options.sync_interval)
            self._sync.start()
        self._scheduler.poke()

    def abandon(self) -> None:
        """Opening failed after all: stop what was started, leave every file as it is."""
        let_go(self)
        if self._sync is not None:
            self._sync.stop()
        if self._pool is not None:
            self._pool.close(self._options.close_timeout)
        if not self._read_only:
            self._store.discard_spares()
        self._store.close_files()

    # -- what DB asks for ------------------------------------------------------------------------

    def flush(self, timeout: Patience) -> None:
        self._writer.rotate_now(timeout)
        newest = max((memtable.id for memtable in self._store.view.sealed), default=0)

        def flushed() -> bool:
            left = self._store.view.sealed
            return not left or left[-1].id > newest or bool(self._stuck())

        if not self._scheduler.wait_for(flushed, timeout):
            raise WriteStallError(f"flush did not end within {timeout} s")
        self._writer.check()
        if self._stuck() and any(m.id <= newest for m in self._store.view.sealed):
            raise WorkerFailedError(f"flush cannot go on: {self._stuck()}", kind="flusher")

    def _stuck(self) -> str:
        failure = self._writer.failure
        return str(failure) if failure is not None else self._flushing.stuck()

    def wait_idle(self, timeout: Patience) -> bool:
        return True if self._read_only else self._scheduler.wait_idle(timeout)

    def flatten(self, workers: int, timeout: Patience) -> None:
        del workers  # as many as there are compactors
        self._writer.check()
        self._compacting.flatten = True
        try:
            if not self._scheduler.wait_idle(timeout):
                raise WriteStallError(f"flatten did not end within {timeout} s")
            self._writer.check()
        finally:
            self._compacting.flatten = False

    def gc(self, discard_ratio: float, timeout: Patience) -> GCReport:
        self._writer.check()
        return self._collecting.request(discard_ratio, timeout)

    def purge(self) -> None:
        """After a drop: get what is in memory onto tables, where compaction purges it."""
        self._writer.rotate_now()
        self._scheduler.poke()

    def workers(self) -> list[WorkerInfo]:
        return self._pool.infos() if self._pool is not None else []

    def health(self) -> Health:
        if self.engine.refusal is not None:
            return Health("closed", ["the handle is closed"])
        if self._read_only:
            return Health("read_only", ["opened with mode='read_only'"])
        failure = self._writer.failure
        if failure is not None:
            return Health("read_only", [f"writing stopped: {failure}"])
        problems = self._scheduler.problems()
        return Health("degraded" if problems else "ok", problems)

    def stats(self) -> Stats:
        sums = NO_SUMS
        if not self._read_only:
            sums = Sums(
                self._writer.counters,
                self._writer.logged_bytes(),
                self._flushing.counters,
                self._compacting.counters,
                self._collecting.counters,
                self._writer.brake,
            )
        return make_stats(self.engine, self.recovery, self.workers(), sums)

    # -- closing ---------------------------------------------------------------------------------

    def close(self, timeout: float | None) -> CloseReport:
        """Run the stage table once; everybody gets the one report.

        A call while another one closes draws its deadline closer.
        """
        if self._forked:
            return CloseReport([], clean=False)  # the parent closes it
        self._closing.shorten(self._options.close_timeout if timeout is None else timeout)
        if self._pool is not None:
            self._pool.hurry(self._closing.left())
        with self._close_lock:
            if self._report is None:
                stages = run_stages(self._stages(), self._closing)
                clean = all(stage.outcome in ("done", "skipped") for stage in stages)
                self._report = CloseReport(stages, clean)
                let_go(self)
            return self._report

    def _stages(self) -> list[StageRow]:
        """Closing, top to bottom. Badger's order, except that the locks go last."""
        if self._read_only:
            return [
                StageRow("refuse_calls", self._refuse_calls),
                StageRow("close_tables", self._close_tables),
                StageRow("release_locks", self._release_locks),
            ]
        return [
            StageRow("refuse_writes", self._refuse_calls),
            StageRow("stop_value_gc", self._stop_gc),
            StageRow("drain_writer", self._drain_writer),
            StageRow("flush_memtables", self._flush_memtables, share=0.6),
            StageRow("stop_flusher", self._stop_flusher),
            StageRow("compact_level_zero", self._compact_level_zero, share=0.5),
            StageRow("stop_compactors", self._stop_compactors),
            StageRow("seal_value_log", self._seal_value_log),
            StageRow("close_logs", self._close_logs),
            StageRow("stop_pool", self._stop_pool),
            StageRow("close_tables", self._close_tables),
            StageRow("stop_oracle", self._stop_oracle),
            StageRow("close_manifest", self._close_manifest),
            StageRow("sync_directories", self._sync_directories),
            StageRow("release_locks", self._release_locks),
        ]

    def _refuse_calls(self, deadline: Deadline) -> str:
        del deadline
        path = self._path

        def refusal() -> ClosedError:
            return ClosedError(f"{path} is closed")

        self.engine.refuse(refusal)
        if not self._read_only:
            self._writer.refuse(refusal)
        ended = 0
        for item in self.engine.watched():
            item.end(refusal)
            ended += 1
        return f"{ended} open objects ended" if ended else ""

    def _stop_gc(self, deadline: Deadline) -> str:
        self._collecting.stopped = True
        self._scheduler.poke()
        return self._stop_kind("value_gc", deadline)

    def _stop_kind(self, kind: str, deadline: Deadline) -> str:
        if self._pool is None:
            return ""
        polite = self._pool.stop_kind(kind, deadline.left())
        return "" if polite else "killed"

    def _drain_writer(self, deadline: Deadline) -> str:
        del deadline
        if self._sync is not None:
            self._sync.stop()
        if self._writer.failure is not None:
            return "writing had failed, the logs stay"
        if self._options.sync != "none":
            self._writer.sync()
        return ""

    def _flush_memtables(self, deadline: Deadline) -> str:
        self._writer.check()
        self._flushing.closing = True
        self._writer.rotate_now()
        done = self._scheduler.wait_for(
            lambda: not self._store.view.sealed or bool(self._stuck()), deadline.left
        )
        left = len(self._store.view.sealed)
        if self._stuck():
            raise WorkerFailedError(f"{left} logs stay: {self._stuck()}", kind="flusher")
        if not done:
            raise TimeoutError(f"{left} logs stay for the next open")
        return ""

    def _stop_flusher(self, deadline: Deadline) -> str:
        return self._stop_kind("flusher", deadline)

    def _compact_level_zero(self, deadline: Deadline) -> str | None:
        if not self._options.compact_l0_on_close:
            return None
        self._compacting.level_zero = True
        if not self._scheduler.wait_for(
            lambda: not self._store.version.levels[0] or self._compacting.is_idle(), deadline.left
        ):
            raise TimeoutError("L0 is left to the next open")
        return ""

    def _stop_compactors(self, deadline: Deadline) -> str:
        if self._pool is not None:
            self._pool.call_soon(self._compacting.cancel_all)
        return self._stop_kind("compactor", deadline)

    def _seal_value_log(self, deadline: Deadline) -> str:
        del deadline
        writer, store = self._writer, self._store
        if writer.failure is not None:
            return "writing had failed, nothing is sealed"
        writer.seal_full_values(store.install_sealed_values)
        values = writer.rotate_values()
        if values is not None and values.entries:
            store.install_sealed_values(values.seal())
            values.close()
        elif values is not None:
            store.drop_values([values.file_id])
        return ""

    def _close_logs(self, deadline: Deadline) -> str:
        """An empty log goes, and timestamps go on from here; one with data stays for replay."""
        del deadline
        self._writer.close_logs()
        active = self._writer.active
        try:
            if self._writer.failure is not None:
                self._store.close_spares()
                return "writing had failed, the logs stay"
            self._store.discard_spares()
            if active.log is not None and active.records == 0:
                if not self._store.view.sealed:
                    self._store.note_end(self.engine.oracle.published)
                active.discard()
            return ""
        finally:
            if active.log is not None:
                active.log.close()

    def _stop_pool(self, deadline: Deadline) -> str:
        if self._pool is not None:
            self._pool.close(deadline.left())
        return ""

    def _close_tables(self, deadline: Deadline) -> str:
        del deadline
        self._store.close_files()
        if not self._read_only:
            self._writer.active = self._store.view.active
            if self._writer.failure is not None:
                self._writer.failure.__traceback__ = None  # its frames hold what was mapped
        return ""

    def _stop_oracle(self, deadline: Deadline) -> str:
        del deadline
        return ""

    def _close_manifest(self, deadline: Deadline) -> str:
        del deadline
        self._store.close_manifest()
        return ""

    def _sync_directories(self, deadline: Deadline) -> str:
        del deadline
        for directory in self._directories:
            directory.sync()
        return ""

    def _release_locks(self, deadline: Deadline) -> str:
        del deadline
        for lock in reversed(self._locks):
            lock.release()
        for directory in self._directories:
            directory.close()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)
        return ""

    def forget_in_child(self) -> None:
        """After fork: this copy is dead, the lock let go of. Close pipes, touch nothing else."""
        self._forked = True
        path = self._path
        refusal = partial(ForkedHandleError, f"{path} was opened before fork")
        self.engine.refuse(refusal)
        self.engine.oracle.forget_in_child()
        if self.engine.writer is not None:
            self.engine.writer.plain.open = False
        for item in self.engine.watched():
            if isinstance(item, Cursor | WriteBatch):
                item.end(refusal)
            elif isinstance(item, Subscription):
                item.forget_in_child(refusal)
        if self._pool is not None:
            self._pool.forget()


def main(argv: list[str] | None = None) -> int:
    """`python supervisor.py serve DIR ...`: the command line, with signals wired to a staged
    stop.
    """
    from meles.engine.cli.main import main as command_line

    return command_line(argv)


if __name__ == "__main__":
    sys.exit(main())

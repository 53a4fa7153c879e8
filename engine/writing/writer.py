"""The write path: conflict check, value log, write-ahead log, memtable, publish; rotation and
stalls.

Runs in: supervisor, on whichever thread of the host commits.
Owns: the write lock, the active memtable, the append end of the value log.
Invariants: (1) commits happen one at a time and are published in timestamp order; (2) a failed
commit leaves nothing visible and its timestamp is used by the next; (3) after a failed write or
fsync (`StoreFailedError`) nothing is written again; a full disk and a lack of descriptors are the
exceptions, they heal; (4) under sync="commit" an acknowledged commit is on the medium, one fsync
serving all who wait.
Fails with: `WriteStallError`, `DiskFullError`, `StoreFailedError`, what `check` raises.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from meles.engine.codec.entry import META_DELETE, META_POINTER
from meles.engine.errors import DiskFullError, Error
from meles.engine.fs.files import is_shortage
from meles.engine.log.frame import RECORD_BYTES
from meles.engine.log.writer import LogWriter
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.version import Drop, VlogMeta
from meles.engine.memtable.memtable import Memtable
from meles.engine.options import Options
from meles.engine.store import Store
from meles.engine.txn.oracle import Oracle
from meles.engine.vlog.writer import ValueLogWriter
from meles.engine.writing.brake import Brake
from meles.engine.writing.counters import WriteCounters
from meles.engine.writing.failure import Hold, WriteFailure, descriptor_shortage
from meles.engine.writing.plain_writer import Lock, PlainWriter
from meles.engine.writing.room import Room
from meles.engine.writing.value_sink import ValueSink

log = logging.getLogger("meles.writer")

# timestamp, keys, values as the user gave them, metas as in Columns, expiries
CommitHook: TypeAlias = Callable[
    [int, Sequence[bytes], Sequence[bytes], Sequence[int], Sequence[int]], None
]


class Writer:
    """The single writer. `lock` is the write lock; `after_commit` hooks run under it, in order."""

    def __init__(
        self, store: Store, oracle: Oracle, options: Options, poke: Callable[[], None]
    ) -> None:
        # fixed after construction
        self._store = store
        self._oracle = oracle
        self._limit = options.memtable_size
        self._managed = options.managed
        self._sync_on_commit = options.sync == "commit"
        self._sync_by_time = options.sync == "interval"
        self._poke = poke
        self.brake = Brake()
        # under lock
        self.lock = Lock()
        self.active: Memtable = store.view.active
        self.active.first_ts = oracle.published + 1
        self.sink = ValueSink(store, options)
        self.refusal: Callable[[], Error] | None = None
        self._counters = WriteCounters()
        self.room = Room(self.lock, store, options, self._counters, poke)
        self.after_commit: list[CommitHook] = []  # under the lock, in commit order
        self.before_commit: list[Callable[[], None]] = []  # without the lock; may wait
        self._rotated = False
        self.plain = PlainWriter(self.lock, oracle.clock, self.active.index)
        self.plain.rotate_at = self._limit
        self.plain.value_limit = options.value_threshold
        self.plain.entry_limit = options.txn_limit - RECORD_BYTES
        self.plain.dirty = not self._sync_by_time
        self.plain.vlog_ids = self.active.vlog_ids
        self.plain.on_error = self._append_failed_locked
        self.sink.plain = self.plain
        self._arming = threading.RLock()  # the innermost; a finaliser may come with it held
        self.arm()
        self._unsynced_logs: list[LogWriter] = []
        # under _sync_lock
        self._sync_lock = threading.Lock()
        self._synced = 0  # entries since open that are on the medium
        self._logs_closed = False
        self._sealed_values: VlogMeta | None = None  # sealed, not yet installed
        self.dirty_event = threading.Event()  # interval syncing: there is something to sync

    def arm(self) -> None:
        """Let plain commits pass, or not: whenever something changed that they depend on."""
        with self._arming:  # or an answer would be put in place of a newer one
            self.plain.open = not (
                self.refusal is not None
                or self.before_commit
                or self.after_commit
                or self.brake.seconds_per_byte
                or self._sync_on_commit
                or self._managed
                or self.sink.observes
                or self._store.version.banned
                or self._store.seals  # the memtable seals frames, not the compiled commit
            )

    def set_hooks(self, before: list[Callable[[], None]], after: list[CommitHook]) -> None:
        """What is called around commits. Not under `lock`: a finaliser may come with it held."""
        self.before_commit, self.after_commit = before, after
        self.arm()

    def slow_down(self, used: float) -> None:
        """Brake according to the room used, see `Brake.set`."""
        self.brake.set(used)
        self.arm()

    @property
    def counters(self) -> WriteCounters:
        """Sums since open."""
        self._counters.entries, self._counters.bytes = self.plain.entries, self.plain.size
        return self._counters

    # -- committing ------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, meta: int, user: int, expiry: int) -> int:
        """Commit one entry; returns its timestamp."""
        oracle = self._oracle
        if self.before_commit:
            self._hold_back()
        with self.lock:
            if self.refusal is not None:
                self._refuse_locked()
            active = self.active
            if active.end >= self._limit:
                active = self._rotate_locked()
            ts = oracle.published + 1
            stored = value
            sink = self.sink
            if sink.observes:
                sink.observe((len(value),))
            try:
                if len(value) >= sink.threshold and not meta & META_DELETE:
                    stored = sink.put(value, ts, active)
                    meta |= META_POINTER
                active.put(key, stored, meta, user, expiry, ts)
            except OSError as error:
                raise self._failed_locked(error) from error
            active.last_ts = ts
            oracle.published = ts
            plain = self.plain
            plain.entries = count = plain.entries + 1
            plain.size += len(key) + len(value)
            if self.after_commit:
                self._tell_locked(ts, (key,), (value,), (user << 8 | meta,), (expiry,))
        self._acknowledge(count, len(value))
        return ts

    def commit(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        metas: Sequence[int],
        expiries: Sequence[int],
        *,
        check: Callable[[], None] | None = None,
        ts: int | None = None,
        versions: Sequence[int] | None = None,
        quiet: bool = False,
    ) -> int:
        """Commit entries as one transaction; returns its timestamp.

        `check` runs under the write lock before anything is written and may raise. `ts` and
        `versions` are for managed mode; without them every key occurs once.
        """
        oracle = self._oracle
        if self.before_commit and not quiet:
            self._hold_back()
        with self.lock:
            if self.refusal is not None:
                self._refuse_locked()
            active = self.active
            if active.end >= self._limit:
                active = self._rotate_locked()
            if check is not None:
                check()
            if ts is None:
                ts = oracle.published + 1
            elif ts <= oracle.published:  # older than something, here or further down
                active.ordered = False
                active.first_ts = min(active.first_ts, ts)
            try:
                stored, marked = self.sink.put_large(values, metas, ts, active)
                active.put_many(keys, stored, marked, expiries, ts, versions)
            except OSError as error:
                raise self._failed_locked(error) from error
            active.last_ts = max(active.last_ts, ts)
            oracle.published = max(oracle.published, ts)
            plain = self.plain
            plain.entries = count = plain.entries + len(keys)
            size = sum(map(len, keys)) + sum(map(len, values))
            plain.size += size
            if self.after_commit and not quiet:
                self._tell_locked(ts, keys, values, metas, expiries)
        self._acknowledge(count, size)
        return ts

    def _hold_back(self) -> None:
        for gate in self.before_commit:
            gate()

    def _tell_locked(
        self, ts: int, keys: Sequence[bytes], values: Sequence[bytes], metas: Sequence[int],
        expiries: Sequence[int],
    ) -> None:  # fmt: skip
        for hook in self.after_commit:
            hook(ts, keys, values, metas, expiries)

    def _acknowledge(self, count: int, size: int) -> None:
        """What must happen between releasing the lock and returning to the caller.

        `count` are the entries written since open with this commit, `size` the bytes of its own.
        """
        if self.brake.seconds_per_byte:
            self.brake.pay(size)
        if self._rotated or self.sink.rotated:
            self._rotated = self.sink.rotated = False
            self._poke()
        if self._sync_on_commit:
            self.sync(count)
        elif not self.plain.dirty:
            self.plain.dirty = True
            self.dirty_event.set()

    # -- rotation and stalls ---------------------------------------------------------------------

    def _rotate_locked(self) -> Memtable:
        """Seal the active memtable and begin the next; waits while too many are unflushed."""
        self.room.wait_locked(self._is_refused)
        if self.refusal is not None:
            self._refuse_locked()
        active = self.active
        if active.log is None or active.end < self._limit:
            return active  # somebody else rotated while this thread waited
        return self._swap_active_locked()

    def _swap_active_locked(self) -> Memtable:
        try:
            return self._begin_log_locked()
        except OSError as error:
            raise self._failed_locked(error) from error
        except BaseException:  # a signal handler raised, KeyboardInterrupt for one: what was done?
            self._failed_locked(InterruptedError("interrupted between two logs"))
            raise

    def _begin_log_locked(self) -> Memtable:
        old = self.active
        writer = old.log
        spare = self._store.new_log()
        try:
            old.seal()
        except OSError:
            self._store.return_log(spare)
            raise
        fresh = Memtable.create(spare, self._limit)
        fresh.first_ts = self._oracle.published + 1
        self._counters.log_bytes += old.end
        if writer is not None:
            self._unsynced_logs.append(writer)
        self.active = fresh
        self.plain.index = fresh.index
        self.plain.vlog_ids = fresh.vlog_ids
        self.sink.note_rotation()
        self._store.rotate(fresh)
        self._rotated = True
        return fresh

    def _is_refused(self) -> bool:
        return self.refusal is not None

    def room_made(self) -> None:
        """Called when a memtable was flushed, or could not be."""
        with self.lock:
            self.room.notify_locked()

    def commit_drop(self, prefixes: tuple[bytes, ...]) -> int:
        """Hide every version there is now of keys with a prefix; returns the drop's timestamp.

        The drop has a timestamp of its own, so a reader that began before it still sees the data.
        Writers wait while it is made durable, readers do not.
        """
        with self.lock:
            if self.refusal is not None:
                self._refuse_locked()
            ts = self._oracle.published + 1
            self._commit_edit_locked(Edit(add_drops=(Drop(prefixes, ts),), max_ts=ts))
            self._oracle.published = ts
            return ts

    def commit_ban(self, namespace: int) -> None:
        """Ban a namespace: whatever is written later is checked against it."""
        with self.lock:
            if self.refusal is not None:
                self._refuse_locked()
            self._commit_edit_locked(Edit(ban=(namespace,)))
            self.arm()

    def _commit_edit_locked(self, edit: Edit) -> None:
        try:
            self._store.commit_edit(edit)
        except OSError as error:
            raise self._failed_locked(error) from error

    def rotate_now(self, patience: Callable[[], float] | None = None) -> Memtable | None:
        """Seal the active memtable if it holds anything; returns the one just sealed."""
        with self.lock:
            self.check()
            if self.active.log is None or self.active.records == 0:
                return None
            self.room.wait_locked(lambda: self.ended, patience)
            sealed = self.active
            if sealed.log is None or sealed.records == 0:
                return None
            self._swap_active_locked()
            self._rotated = False
        return sealed

    def seal_full_values(self, install: Callable[[VlogMeta], None]) -> None:
        """Seal the value-log files that are full and have each installed, one after the other.

        A full disk leaves what is left for the next call.
        """
        with self._sync_lock:  # a sync must not meet a file half sealed
            while self.sink.full and self.failure is None:
                writer = self.sink.full[0]
                try:
                    self._sealed_values = self._sealed_values or writer.seal()
                except OSError as error:
                    with self.lock:
                        raise self._failed_locked(error) from error
                install(self._sealed_values)
                self._sealed_values = None
                with self.lock:
                    self.sink.full.remove(writer)

    def sync_values(self) -> tuple[ValueLogWriter, int, int] | None:
        """Make value-log bytes durable before a log that points to them goes.

        Returns the open file with the bytes and entries that are durable, if there is one.
        """
        with self._sync_lock:
            with self.lock:
                writer = self.sink.current
                mark = None if writer is None else (writer, writer.end, writer.entries)
                open_files = self.sink.open_files()
            try:
                for file in open_files:
                    file.sync()
            except OSError as error:
                with self.lock:
                    raise self._failed_locked(error, final=True) from error
        return mark

    def release_log(self, mem_id: int) -> None:
        """A memtable was flushed: its log needs no more syncing."""
        with self._sync_lock, self.lock:  # a sync may be at work on it
            done = [sealed for sealed in self._unsynced_logs if sealed.id == mem_id]
            self._unsynced_logs = [s for s in self._unsynced_logs if s.id != mem_id]
        for sealed in done:
            sealed.close()

    def retire_values(self, file_id: int) -> None:
        """Have the value-log file sealed if it is still the one appended to."""
        with self.lock:
            current = self.sink.current
            if current is not None and current.file_id == file_id and self.refusal is None:
                self.sink.retire()

    def rotate_values(self) -> ValueLogWriter | None:
        """Stop appending to the current value-log file and hand it over for sealing."""
        with self.lock:
            writer, self.sink.current = self.sink.current, None
            return writer

    # -- durability ------------------------------------------------------------------------------

    def sync(self, count: int | None = None) -> None:
        """Return when the first `count` entries since open (default: all) are on the medium."""
        wanted = self.plain.entries if count is None else count
        if self._synced >= wanted:
            return
        with self._sync_lock:
            if self._synced >= wanted:
                return  # the fsync of another thread covered this one
            with self.lock:
                self.check()
                if self._logs_closed and self.refusal is not None:
                    raise self.refusal()
                target = self.plain.entries
                sealed = list(self._unsynced_logs)
                files: list[ValueLogWriter | LogWriter] = [*self.sink.open_files(), *sealed]
                if self.active.log is not None:
                    files.append(self.active.log)
            try:
                for file in files:
                    file.sync()
            except OSError as error:
                with self.lock:
                    raise self._failed_locked(error, final=True) from error
            self._counters.syncs += 1
            self._synced = target
            with self.lock:
                self._unsynced_logs = [s for s in self._unsynced_logs if s not in sealed]
            for done in sealed:
                done.close()

    def close_logs(self) -> None:
        """Close descriptors of sealed logs (closing; their data is flushed or stays in the log)."""
        with self._sync_lock, self.lock:
            self._logs_closed = True
            logs, self._unsynced_logs = self._unsynced_logs, []
        for sealed in logs:
            sealed.close()

    def logged_bytes(self) -> int:
        """Bytes written to logs and value log since open."""
        return self._counters.log_bytes + self.active.size + self.sink.written()

    # -- failing ---------------------------------------------------------------------------------

    def _failed_locked(self, error: Exception, *, final: bool = False) -> Error:
        """What to raise for a failed write; only a full disk or a lack of descriptors heals."""
        if isinstance(error, DiskFullError) and not final:
            return error
        if is_shortage(error):
            return descriptor_shortage(error)
        if self.refusal is None or not isinstance(self.refusal, WriteFailure):
            log.error("writing stopped: %s", error)
            self.refusal = WriteFailure(error)
            self.arm()
            self.room.notify_locked()
        return self.refusal()

    def _append_failed_locked(self, error: OSError) -> Error:
        if self.sink.current is not None:
            self.sink.current.cut()
        return self._failed_locked(error)

    def check(self) -> None:
        """Raise `StoreFailedError` if an earlier failure ended writing."""
        if isinstance(self.refusal, WriteFailure):
            raise self.refusal()

    def fail(self, error: Exception) -> None:
        """Refuse writes from now on because durable state could not be written."""
        with self.lock:
            self._failed_locked(error, final=True)

    def refuse(self, why: Callable[[], Error]) -> None:
        """Refuse writes from now on (closing); a failure stays the stronger reason."""
        with self.lock:
            if not isinstance(self.refusal, WriteFailure):
                self.refusal = why
                self.arm()
            self.room.notify_locked()

    def hold(self, why: Hold) -> None:
        """Refuse writes as long as it lasts; a final reason is stronger."""
        with self.lock:
            if self.refusal is None:
                self.refusal = why
                self.arm()
                self.room.notify_locked()

    def look_again(self) -> None:
        """Take writes again if what held them is over."""
        with self.lock:
            self._still_refused_locked()

    def _still_refused_locked(self) -> Callable[[], Error] | None:
        if isinstance(self.refusal, Hold) and not self.refusal.lasts():
            self.refusal = None
            self.arm()
        return self.refusal

    def _refuse_locked(self) -> None:
        if (why := self._still_refused_locked()) is not None:
            raise why()

    @property
    def ended(self) -> bool:
        """Whether writes are refused for good."""
        return self.refusal is not None and not isinstance(self.refusal, Hold)

    @property
    def failure(self) -> Exception | None:
        """The error that ended writing, if one did."""
        return self.refusal.cause if isinstance(self.refusal, WriteFailure) else None

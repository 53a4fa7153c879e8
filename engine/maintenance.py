"""What the public handle offers for the database as a whole: care, figures, dropping, banning.

Runs in: supervisor, any number of threads of the host.
Invariants: (1) a call that waits ends with `ClosedError` when the database closes meanwhile; (2) a
second `gc` or `flatten` waits for the first, within its own `timeout`; (3) whatever waits takes its
`timeout` in seconds or as a `timedelta`, None for as long as it takes.
Fails with: `WriteStallError` when a `timeout` ran out, `ReadOnlyError`, `ClosedError`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from meles.engine import inspection
from meles.engine.arguments import Patience, Seconds, whole
from meles.engine.engine import Engine
from meles.engine.errors import ConfigError, Error, WriteStallError
from meles.engine.ids import MAX_KEY_BYTES
from meles.engine.option_checks import shown
from meles.engine.reports import (
    BackupReport,
    CloseReport,
    GCReport,
    Health,
    LevelInfo,
    Size,
    SpaceReport,
    Stats,
    TableInfo,
    VerifyReport,
)
from meles.engine.space import space_report
from meles.engine.txn.entries import BytesLike, as_bytes
from meles.engine.verify import verify
from meles.engine.worker_info import WorkerInfo

if TYPE_CHECKING:
    from meles.engine.backup.writing import Writable

_LARGEST_NAMESPACE: Final = (1 << 64) - 1
_LOOK_SECONDS: Final = 0.1  # the control thread says what is due: it takes a moment to be asked
_TURN_SECONDS: Final = 0.2  # how often who waits for another call looks whether all is over


class Control(Protocol):
    """What the composition root gives the handle: everything that is not data."""

    def flush(self, timeout: Patience) -> None: ...
    def wait_idle(self, timeout: Patience) -> bool: ...
    def flatten(self, workers: int, timeout: Patience) -> None: ...
    def gc(self, discard_ratio: float, timeout: Patience) -> GCReport: ...
    def stats(self) -> Stats: ...
    def workers(self) -> list[WorkerInfo]: ...
    def health(self) -> Health: ...
    def purge(self) -> None: ...
    def close(self, timeout: float | None) -> CloseReport: ...


class Maintenance:
    """The part of `DB` that is about the whole of it."""

    def __init__(self, engine: Engine, control: Control) -> None:
        self._engine = engine
        self._control = control
        self._one_at_a_time = threading.Lock()  # of gc and flatten

    # -- dropping and banning --------------------------------------------------------------------

    def drop_prefix(self, *prefixes: BytesLike) -> None:
        """Remove every key with one of the prefixes, at once; space follows in the background.

        Readers are never blocked, and those that began before still see the data; transactions
        that read any of it and write conflict. Killed half way, it is either done or not. An empty
        prefix is all keys. `ValueError` without any prefix.
        """
        writer = self._engine.check_writable()
        if not prefixes:
            raise ValueError("drop_prefix() takes at least one prefix; drop_all() takes none")
        wanted = {as_bytes(prefix, "prefix") for prefix in prefixes}
        possible = sorted(prefix for prefix in wanted if len(prefix) <= MAX_KEY_BYTES)
        if possible:
            writer.commit_drop(tuple(possible))
            self._control.purge()

    def drop_all(self) -> None:
        """Remove every key. As `drop_prefix`; timestamps and bans stay, also after reopening."""
        self._engine.check_writable().commit_drop((b"",))
        self._control.purge()

    def ban_namespace(self, n: int) -> None:
        """Make every key of a namespace unreadable and unwritable, for good.

        A key's namespace are the 8 bytes, big-endian, at `namespace_offset`; a key that ends with
        them or before has none. Reading or writing such a key raises `BannedKeyError`, iterators
        leave it out. `ValueError` unless `n` has 64 bits, `meles.Error` without `namespace_offset`.
        """
        writer = self._engine.check_writable()
        if self._engine.options.namespace_offset < 0:
            raise Error("there are no namespaces", hint="open with namespace_offset=0 or more")
        writer.commit_ban(whole(n, "namespace", 0, _LARGEST_NAMESPACE))

    def banned_namespaces(self) -> list[int]:
        """The namespaces banned so far, ascending."""
        self._engine.check_open()
        return list(self._engine.store.version.banned)

    # -- care ------------------------------------------------------------------------------------

    def _patience(self, timeout: Seconds | None, *, least: float = 0.0) -> Patience:
        engine = self._engine
        return Patience(timeout, lambda: engine.refusal is not None, least=least)

    @contextmanager
    def _alone(self, what: str, patience: Patience) -> Iterator[None]:
        """Wait for another call of this kind; afterwards the database must still be open."""
        while not self._one_at_a_time.acquire(timeout=min(max(patience(), 0.0), _TURN_SECONDS)):
            self._engine.check_open()
            if patience() <= 0:
                raise WriteStallError(f"{what}: another one did not end within {patience} s")
        try:
            self._engine.check_open()
            yield
        except Error:
            self._engine.check_open()  # `ClosedError` wins
            raise
        finally:
            self._one_at_a_time.release()
        self._engine.check_open()

    def flush(self, timeout: Seconds | None = None) -> None:
        """What was written before this call is in tables when it returns.

        `WriteStallError` when it is not after `timeout` seconds (None: as long as it takes);
        flushing goes on then.
        """
        self._engine.check_writable()
        try:
            self._control.flush(self._patience(timeout))
        except Error:
            self._engine.check_open()
            raise

    def sync(self) -> None:
        """Everything acknowledged before this call survives a power cut, values included.

        `StoreFailedError` when the medium refused: the handle then takes no more writes.
        """
        self._engine.check_writable().sync()

    def wait_idle(self, timeout: Seconds | None = None) -> bool:
        """Wait until no flush, compaction or GC runs or is due: True.

        False when that is not so after `timeout` seconds (None: as long as it takes).
        """
        self._engine.check_open()
        idle = self._control.wait_idle(self._patience(timeout, least=_LOOK_SECONDS))
        self._engine.check_open()
        return idle

    def flatten(self, workers: int = 2, timeout: Seconds | None = None) -> None:
        """Compact until at most one level holds data.

        What is still in memory is not flushed first. As many jobs run at a time as there are
        compactors; `workers`, at least 1, is there for Badger's sake. `WriteStallError` when it is
        not done after `timeout` seconds (None: as long as it takes).
        """
        self._engine.check_writable()
        whole(workers, "workers", 1)
        patience = self._patience(timeout)
        with self._alone("flatten", patience):
            self._control.flatten(workers, patience)

    def gc(self, discard_ratio: float = 0.5, *, timeout: Seconds | None = None) -> GCReport:
        """Collect value-log files with at least this share of garbage until none qualifies.

        The report says of each file what was done or why it was kept; nothing to do is a report
        too. When `timeout` seconds run out first, it tells what was done until then. `ConfigError`
        unless the ratio lies between 0 and 1.
        """
        self._engine.check_open()
        ratio: object = discard_ratio
        if not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise ConfigError(f"discard_ratio={shown(ratio)}: a number between 0 and 1")
        self._engine.check_writable()
        patience = self._patience(timeout)
        with self._alone("gc", patience):
            return self._control.gc(discard_ratio, patience)

    def verify(self, *, values: bool = False) -> VerifyReport:
        """Read every table and check its checksums, its order and that of the levels; with
        `values` also every value. Damage is reported in `problems`, not raised.
        """
        self._engine.check_open()
        return verify(self._engine.store, values=values)

    def backup(self, sink: Writable, *, since: int = 0, plain: bool = False) -> BackupReport:
        """Write a backup to a file of bytes, of one snapshot: writers go on meanwhile.

        It holds every version there is, with tombstones and times of expiry. With `since`, the
        `version` an earlier backup of this database reported, it is an increment: what is newer,
        and which older entries are still there. `meles.restore` takes a full backup with the
        increments that follow it. In managed mode commit nothing at or below such a version; after
        `meles.doctor` lost commits, begin with a full one.

        `sink` needs `write(bytes)`, which returns how much it took; it is flushed, if it can be,
        and neither synced nor closed. What was written when an error comes is no backup. Everything
        it holds is on the medium when this returns, as after `sync`, and as that it may raise
        `StoreFailedError`.

        The stream is not encrypted: `ConfigError` for a database with an encryption key unless
        `plain` says that this is meant, and for a `since` that no backup of it can have reported.
        """
        from meles.engine.backup.writing import write_backup

        return write_backup(self._engine, sink, since, plain=plain)

    # -- figures ---------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Counters since opening and the shape at this moment. Sizes in bytes, times in seconds."""
        self._engine.check_open()
        return self._control.stats()

    def levels(self) -> list[LevelInfo]:
        """One entry per level, L0 first."""
        self._engine.check_open()
        return inspection.level_infos(self._engine.store.version, self._engine.options)

    def tables(self) -> list[TableInfo]:
        """One entry per table, level by level."""
        self._engine.check_open()
        return inspection.table_infos(self._engine.store.version)

    def size(self) -> Size:
        """Bytes on disk now, active files included."""
        self._engine.check_open()
        return inspection.size_on_disk(self._engine.store)

    def space(self) -> SpaceReport:
        """What holds each byte on disk; reads every table once."""
        self._engine.check_open()
        engine = self._engine
        return space_report(engine.store, engine.oracle, engine.options.num_versions_to_keep)

    def estimate_size(self, prefix: BytesLike) -> int:
        """About how many bytes of tables, logs and values belong to keys with a prefix.

        By the tables' blocks: exact to a block at either end. Values only a log points to are not
        counted.
        """
        self._engine.check_open()
        return inspection.estimate_size(self._engine.store.view, as_bytes(prefix, "prefix"))

    def max_version(self) -> int:
        """The newest commit's timestamp; 0 before the first."""
        self._engine.check_open()
        return self._engine.oracle.published

    def workers(self) -> list[WorkerInfo]:
        """One entry per background worker: what it is, what it does, what it takes."""
        self._engine.check_open()
        return self._control.workers()

    def health(self) -> Health:
        """Whether all is well, and why not. Works on a closed handle too and never raises."""
        return self._control.health()

    def set_discard_ts(self, ts: int) -> None:
        """Managed mode: versions that are superseded by one at or below `ts` may go.

        Only grows. `ValueError` for what is no timestamp, `meles.Error` outside managed mode.
        """
        self._engine.check_writable()
        if not self._engine.options.managed:
            raise Error("set_discard_ts() outside managed mode", hint="open with managed=True")
        self._engine.oracle.set_discard_ts(whole(ts, "ts", 0))

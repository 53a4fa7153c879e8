"""The public handle of an open database. Delegates; knows no format and no process.

Runs in: supervisor, any number of threads of the host.
Owns: nothing but the right to close what `supervisor.open_db` put together.
Invariants: (1) after `close`, or in a forked child, every call raises `ClosedError` or
`ForkedHandleError`; (2) a read takes the view first and the timestamp after it, so the view holds
everything the timestamp promises; (3) no error but `meles.Error` and the argument errors of Python
come out.
"""

from __future__ import annotations

import functools
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from meles.engine import inspection
from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER
from meles.engine.engine import Engine
from meles.engine.errors import (
    ConfigError,
    ConflictError,
    Error,
    KeyNotFoundError,
    TransactionTooBigError,
)
from meles.engine.manifest.edit import Edit
from meles.engine.options import Options
from meles.engine.reports import (
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
from meles.engine.subscribe import Subscription, make_matcher, parse_ignore
from meles.engine.txn.batch import WriteBatch
from meles.engine.txn.cursor import SHAPE_ITEM, SHAPE_KEY, SHAPE_PAIR, SHAPE_VALUE, Cursor, Item
from meles.engine.txn.entries import (
    BytesLike,
    TimeToLive,
    as_bytes,
    expiry_ms,
    readable_key,
    user_meta,
    writable_key,
)
from meles.engine.txn.merge import Fold, MergeOperator
from meles.engine.txn.sequence import Sequence
from meles.engine.txn.txn import ENTRY_OVERHEAD, Txn, entry_size, make_scan
from meles.engine.worker_info import WorkerInfo

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType

T = TypeVar("T")
P = ParamSpec("P")
Made = TypeVar("Made")
_BACKOFF_SECONDS = 0.001
_LONGEST_BACKOFF = 0.1


class Control(Protocol):
    """What the composition root gives the handle: everything that is not data."""

    def flush(self, timeout: float | None) -> None: ...
    def wait_idle(self, timeout: float | None) -> bool: ...
    def flatten(self, workers: int, timeout: float | None) -> None: ...
    def gc(self, discard_ratio: float, timeout: float | None) -> GCReport: ...
    def stats(self) -> Stats: ...
    def workers(self) -> list[WorkerInfo]: ...
    def health(self) -> Health: ...
    def purge(self) -> None: ...
    def close(self, timeout: float | None) -> CloseReport: ...


class DB:
    """An open database; made by `meles.open()`. Safe to use from several threads at once.

    A context manager: leaving `with` closes it. Usable as a mapping of bytes to bytes for single
    keys (`db[key]`, `key in db`, `del db[key]`).
    """

    def __init__(self, path: str, engine: Engine, control: Control) -> None:
        self._path = path
        self._engine = engine
        self._control = control
        self._store = engine.store
        self._oracle = engine.oracle
        self._threshold = engine.options.value_threshold
        self._limit = engine.options.txn_limit

    # -- single keys -----------------------------------------------------------------------------

    def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        """The newest committed value, or `default`."""
        engine = self._engine
        if engine.refusal is not None:
            raise engine.refusal()
        if type(key) is not bytes or not key:
            key = readable_key(key)
        view = self._store.view
        if view.version.banned:
            engine.check_namespace(key)
        value = view.value_of(key, self._oracle.published)
        return default if value is None else value

    def __getitem__(self, key: BytesLike) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyNotFoundError("no such key")
        return value

    def __contains__(self, key: BytesLike) -> bool:
        engine = self._engine
        engine.check_open()
        key = readable_key(key)
        engine.check_namespace(key)
        view = self._store.view
        return view.has_value(key, self._oracle.published)

    def get_many(self, keys: Iterable[BytesLike]) -> list[bytes | None]:
        """The values of several keys in one snapshot, None where there is none."""
        engine = self._engine
        engine.check_open()
        wanted = [readable_key(key) for key in keys]
        if engine.has_bans:
            for key in wanted:
                engine.check_namespace(key)
        view = self._store.view
        ts = self._oracle.published
        return [view.value_of(key, ts) for key in wanted]

    def set(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: TimeToLive = None,
        meta: int = 0,
        discard_earlier: bool = False,
    ) -> None:
        """Commit one entry. `ttl` in seconds from now, `meta` a byte of yours.

        Durable as `sync` says when this returns. `WriteStallError` when flushing cannot keep up.
        """
        engine = self._engine
        writer = engine.writer
        if engine.refusal is not None or writer is None:
            writer = engine.check_writable()
        key = writable_key(key)
        if type(value) is not bytes:
            value = as_bytes(value, "value")
        if len(value) >= self._threshold or len(key) + len(value) + ENTRY_OVERHEAD > self._limit:
            self._check_size(key, value)
        if self._store.version.banned:
            engine.check_namespace(key)
        if engine.options.managed:
            raise Error(
                "managed mode: a write needs a timestamp", hint="use db.update() and commit_at"
            )
        bits = META_DISCARD_EARLIER if discard_earlier else 0
        user = user_meta(meta) if meta else 0
        writer.put(key, value, bits, user, 0 if ttl is None else expiry_ms(ttl))

    def _check_size(self, key: bytes, value: bytes) -> None:
        size = entry_size(self._engine, key, value)
        if size > self._limit:
            raise TransactionTooBigError(
                f"one entry of {size:,} bytes; a transaction holds {self._limit:,}",
                limit=self._limit, size=size,
            )  # fmt: skip

    def delete(self, key: BytesLike) -> None:
        """Commit a tombstone; deleting an absent key is fine."""
        engine = self._engine
        writer = engine.check_writable()
        key = writable_key(key)
        engine.check_namespace(key)
        if engine.options.managed:
            raise Error(
                "managed mode: a write needs a timestamp", hint="use db.update() and commit_at"
            )
        writer.put(key, b"", META_DELETE, 0, 0)

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.set(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        self.delete(key)

    # -- transactions and batches ----------------------------------------------------------------

    def view(self, *, at: int | None = None) -> Txn:
        """A read-only transaction; `at` is a timestamp to read at, up to `max_version()`."""
        self._engine.check_open()
        if at is not None:
            limit = self.max_version()
            if type(at) is not int or not 0 <= at <= limit:
                raise ValueError(f"at={at!r}: a timestamp from 0 to max_version(), now {limit}")
        return self._track(Txn(self._engine, update=False, at=at))

    def update(self, *, at: int | None = None) -> Txn:
        """A read-write transaction; commits on a clean exit of `with`, else discards."""
        self._engine.check_writable()
        if at is not None and not self._engine.options.managed:
            raise Error("update(at=) outside managed mode", hint="open with managed=True")
        return self._track(Txn(self._engine, update=True, at=at))

    def _track(self, made: Made) -> Made:
        self._engine.open_objects.add(made)
        return made

    def transact(self, fn: Callable[[Txn], T], retries: int = 8) -> T:
        """Run `fn(txn)` and commit; on `ConflictError` try again up to `retries` times."""
        attempt = 0
        while True:
            try:
                with self.update() as txn:
                    return fn(txn)
            except ConflictError:
                attempt += 1
                if attempt > retries:
                    raise
                longest = min(_BACKOFF_SECONDS * 2**attempt, _LONGEST_BACKOFF)
                time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret

    def transactional(
        self, retries: int = 8
    ) -> Callable[[Callable[Concatenate[Txn, P], T]], Callable[P, T]]:
        """Decorator: `fn(txn, *args)` becomes `fn(*args)`, run by `transact`."""

        def decorate(fn: Callable[Concatenate[Txn, P], T]) -> Callable[P, T]:
            @functools.wraps(fn)
            def call(*args: P.args, **kwargs: P.kwargs) -> T:
                return self.transact(lambda txn: fn(txn, *args, **kwargs), retries)

            return call

        return decorate

    def write_batch(self, *, at: int | None = None) -> WriteBatch:
        """Many blind writes; splits itself, each split atomic. `at`: timestamp in managed mode."""
        self._engine.check_writable()
        managed = self._engine.options.managed
        if managed != (at is not None):
            raise Error(
                "a batch takes at= exactly in managed mode",
                hint="pass at=, or open without managed",
            )
        return self._track(WriteBatch(self._engine, at=at))

    def sequence(self, key: BytesLike, bandwidth: int = 100) -> Sequence:
        """Numbers that never repeat, `bandwidth` leased at a time under `key`."""
        self._check_unmanaged()
        return Sequence(self._engine, self.transact, key, bandwidth)

    def merge_operator(
        self, key: BytesLike, fn: Fold, *, every: float | timedelta = 1.0
    ) -> MergeOperator:
        """Operands under `key`, folded by `fn(existing, new)` every so many seconds."""
        self._check_unmanaged()
        return self._track(MergeOperator(self._engine, self.update, key, fn, every=every))

    def _check_unmanaged(self) -> None:
        self._engine.check_writable()
        if self._engine.options.managed:
            raise Error("not in managed mode", hint="open without managed=True")

    def subscribe(
        self,
        *prefixes: BytesLike,
        ignore: str = "",
        queue: int = 1000,
        on_overflow: str = "block",
    ) -> Subscription:
        """Changes under any of the prefixes (none: all) in commit order, from now on.

        `ignore` names positions of the prefixes that match any byte, such as "0-3,7". When more
        than
        `queue` changes wait, writers wait too ("block"), changes are left out ("drop"), or this
        subscriber gets `WriteStallError` ("raise").
        """
        self._engine.check_open()
        wanted = [as_bytes(prefix, "prefix") for prefix in prefixes]
        subscription = Subscription(
            make_matcher(wanted, parse_ignore(ignore)),
            queue=queue,
            on_overflow=on_overflow,
            on_close=self._engine.publisher.remove,
        )
        self._engine.publisher.add(subscription)
        return self._track(subscription)

    # -- dropping and banning --------------------------------------------------------------------

    def drop_prefix(self, *prefixes: BytesLike) -> None:
        """Remove every key with one of the prefixes, at once; space follows in the background.

        Readers are never blocked, and those that began before still see the data. Killed half way,
        it is either done or not.
        """
        if not prefixes:
            raise ValueError("drop_prefix() takes at least one prefix; drop_all() takes none")
        wanted = tuple(as_bytes(prefix, "prefix") for prefix in prefixes)
        self._engine.check_writable().commit_drop(wanted)
        self._control.purge()

    def drop_all(self) -> None:
        """Remove everything. As `drop_prefix`; timestamps and options stay."""
        self._engine.check_writable().commit_drop((b"",))
        self._control.purge()

    def ban_namespace(self, n: int) -> None:
        """Make every key of a namespace unreadable and unwritable, for good."""
        self._engine.check_writable()
        if self._engine.options.namespace_offset < 0:
            raise Error("there are no namespaces", hint="open with namespace_offset=0 or more")
        if type(n) is not int or not 0 <= n < 1 << 64:
            raise ValueError(f"namespace {n!r}: a whole number below 2**64")
        self._store.commit_edit(Edit(ban=(n,)))

    def banned_namespaces(self) -> list[int]:
        """The namespaces banned so far, ascending."""
        self._engine.check_open()
        return list(self._store.version.banned)

    # -- iterating -------------------------------------------------------------------------------

    def _cursor(self, shape: str, prefix: BytesLike, wanted: dict[str, Any]) -> Cursor[Any]:
        engine = self._engine
        engine.check_open()
        view = self._store.view
        offset = engine.options.namespace_offset
        plan = make_scan(view, self._oracle.published, shape, offset, prefix=prefix, **wanted)
        cursor: Cursor[Any] = Cursor(view, plan)
        engine.open_objects.add(cursor)
        return cursor

    def iterate(self, prefix: BytesLike = b"", **wanted: Any) -> Cursor[Item]:
        """Items in key order over a snapshot of their own.

        Parameters: `prefix`, `start` (inclusive), `stop` (exclusive), `reverse`, `keys_only`,
        `all_versions`, `since` (exclusive), `limit`.
        """
        return self._cursor(SHAPE_ITEM, prefix, wanted)

    def items(self, prefix: BytesLike = b"", **wanted: Any) -> Cursor[tuple[bytes, bytes]]:
        """(key, value) pairs in key order; the fast path for scans."""
        return self._cursor(SHAPE_PAIR, prefix, wanted)

    def keys(self, prefix: BytesLike = b"", **wanted: Any) -> Cursor[bytes]:
        """Keys in order; touches no value log."""
        return self._cursor(SHAPE_KEY, prefix, wanted)

    def values(self, prefix: BytesLike = b"", **wanted: Any) -> Cursor[bytes]:
        """Values in key order."""
        return self._cursor(SHAPE_VALUE, prefix, wanted)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    # -- the database as a whole -----------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """The active memtable is on L0 when this returns."""
        self._engine.check_writable()
        self._control.flush(timeout)

    def sync(self) -> None:
        """Everything acknowledged before this call survives a power cut."""
        self._engine.check_writable().sync()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """True when no flush, compaction or GC runs or is due; False when `timeout` ran out."""
        self._engine.check_open()
        return self._control.wait_idle(timeout)

    def flatten(self, workers: int = 2, timeout: float | None = None) -> None:
        """Compact until at most one level holds data."""
        self._engine.check_writable()
        self._control.flatten(workers, timeout)

    def gc(self, discard_ratio: float = 0.5, *, timeout: float | None = None) -> GCReport:
        """Collect value-log files with at least this share of garbage until none qualifies."""
        self._engine.check_open()
        if not 0 < discard_ratio < 1:
            raise ConfigError(f"discard_ratio={discard_ratio!r}: between 0 and 1")
        self._engine.check_writable()
        return self._control.gc(discard_ratio, timeout)

    def verify(self, *, values: bool = False) -> VerifyReport:
        """Check every checksum and invariant; with `values` every pointer too."""
        self._engine.check_open()
        return inspection.verify(self._store, values=values)

    def stats(self) -> Stats:
        """Counters and shape at this moment."""
        self._engine.check_open()
        return self._control.stats()

    def levels(self) -> list[LevelInfo]:
        """One entry per level, L0 first."""
        self._engine.check_open()
        return inspection.level_infos(self._store.version, self.options)

    def tables(self) -> list[TableInfo]:
        """One entry per table, level by level."""
        self._engine.check_open()
        return inspection.table_infos(self._store.version)

    def size(self) -> Size:
        """Bytes on disk."""
        self._engine.check_open()
        return inspection.size_on_disk(self._store)

    def space(self) -> SpaceReport:
        """What holds each byte on disk; reads every table once."""
        self._engine.check_open()
        return space_report(self._store, self._oracle)

    def estimate_size(self, prefix: BytesLike) -> int:
        """Bytes of tables and values under a prefix, about."""
        self._engine.check_open()
        return inspection.estimate_size(self._store.view, as_bytes(prefix, "prefix"))

    def max_version(self) -> int:
        """The newest commit's timestamp."""
        self._engine.check_open()
        return self._oracle.published

    def workers(self) -> list[WorkerInfo]:
        """One entry per background worker."""
        self._engine.check_open()
        return self._control.workers()

    def health(self) -> Health:
        """Whether all is well, and why not."""
        return self._control.health()

    def set_discard_ts(self, ts: int) -> None:
        """Managed mode: versions that newer ones <= `ts` supersede may go."""
        self._engine.check_writable()
        if not self._engine.options.managed:
            raise Error("set_discard_ts() outside managed mode", hint="open with managed=True")
        self._oracle.set_discard_ts(ts)

    @property
    def path(self) -> str:
        return self._path

    @property
    def closed(self) -> bool:
        return self._engine.refusal is not None

    @property
    def options(self) -> Options:
        return self._engine.options

    # -- the end ---------------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> CloseReport:
        """Staged shutdown within `timeout` (default: option `close_timeout`).

        What does not get done in time is left to the next open; a second call returns the same
        report.
        """
        return self._control.close(timeout)

    def __enter__(self) -> DB:
        self._engine.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and engine.refusal is None:
            warnings.warn(f"database {self._path} was not closed", ResourceWarning, stacklevel=2)
            self._control.close(None)

    def __repr__(self) -> str:
        return f"<meles.DB {self._path!r}{' closed' if self.closed else ''}>"

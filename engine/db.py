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
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from meles.engine.arguments import Seconds, seconds, timestamp, whole
from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER
from meles.engine.engine import Engine
from meles.engine.errors import ConflictError, Error, KeyNotFoundError, TransactionTooBigError
from meles.engine.maintenance import Control, Maintenance
from meles.engine.options import Options
from meles.engine.reports import CloseReport
from meles.engine.subscribe import Subscription, make_matcher, parse_ignore
from meles.engine.txn.batch import WriteBatch
from meles.engine.txn.cursor import Cursor
from meles.engine.txn.entries import (
    NO_META,
    BytesLike,
    TimeToLive,
    as_bytes,
    expiry_ms,
    readable_key,
    user_meta,
    writable_key,
)
from meles.engine.txn.entry_buffer import ENTRY_OVERHEAD
from meles.engine.txn.merge import Fold, MergeOperator
from meles.engine.txn.scan import ScanArguments, Scanning, make_scan
from meles.engine.txn.sequence import Sequence
from meles.engine.txn.txn import Txn, entry_size

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
P = ParamSpec("P")
Made = TypeVar("Made")
_BACKOFF_SECONDS: Final = 0.001
_LAST_DOUBLING: Final = 7  # some 0.1 s: longer than a commit takes


class DB(Maintenance, Scanning):
    """An open database; made by `meles.open()`. Safe to use from several threads at once.

    A context manager: leaving `with` closes it. Usable as a mapping of bytes to bytes for single
    keys (`db[key]`, `key in db`, `del db[key]`); iterating over it gives its keys.

    Keys are 1 to 65,000 bytes and never begin with `!meles!`. Keys and values go in as any
    bytes-like object and come out as `bytes`; a `str` raises `TypeError`.

    Every call may raise `ClosedError` (wins over other errors), `ForkedHandleError` in a forked
    child, and `CorruptionError` where data is damaged: what is damaged is never taken for absent.
    Calls that take a key raise `InvalidKeyError`, and `BannedKeyError` in a banned namespace.
    Calls that write raise `ReadOnlyError` on a handle that only reads, `WriteStallError` when
    flushing cannot keep up, `DiskFullError` (heals) and `StoreFailedError` (does not).
    """

    def __init__(self, path: str, engine: Engine, control: Control) -> None:
        super().__init__(engine, control)
        self._path = path
        self._store = engine.store
        self._oracle = engine.oracle
        self._threshold = engine.options.value_threshold
        self._limit = engine.options.txn_limit
        self._published = engine.oracle.clock
        writer = engine.writer
        self._put_plain = _declines if writer is None else writer.plain.put

    # -- single keys -----------------------------------------------------------------------------

    def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        """The newest committed value, or `default` when there is none, or it was deleted or has
        expired. `InvalidKeyError` for an empty key; one that no write could create is absent.
        """
        engine = self._engine
        if engine.refusal is not None:
            raise engine.refusal()
        if type(key) is not bytes or not key:
            key = readable_key(key)
        view = self._store.view
        if view.version.banned:
            engine.check_namespace(key)
        value = view.value_of(key, self._published.ts)
        if value is None:
            if engine.refusal is not None:  # closing takes things away from under a reader
                raise engine.refusal()
            return default
        return value

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
        found = view.has_value(key, self._oracle.published)
        engine.check_open()
        return found

    def get_many(self, keys: Iterable[BytesLike]) -> list[bytes | None]:
        """The values of several keys in one snapshot, in the order of the keys; None where there
        is none. Errors as `get`.
        """
        engine = self._engine
        engine.check_open()
        wanted = [readable_key(key) for key in keys]
        if engine.has_bans:
            for key in wanted:
                engine.check_namespace(key)
        view = self._store.view
        ts = self._oracle.published
        values = [view.value_of(key, ts) for key in wanted]
        engine.check_open()
        return values

    def set(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: TimeToLive = None,
        meta: int = 0,
        discard_earlier: bool = False,
    ) -> None:
        """Commit one entry.

        `ttl`: seconds (or a `timedelta`) until it expires, from now, to the millisecond; None is
        never. `meta`: a number from 0 to 255 of yours that goes with it. `discard_earlier`: older
        versions need not be kept, whatever `num_versions_to_keep` says. Readable at once and
        durable as `sync` says when this returns.

        `TransactionTooBigError` for what no transaction could hold, `ValueError` for a `ttl` that
        is not above 0 or another `meta`, `meles.Error` in managed mode.
        """
        if ttl is None and meta is NO_META and not discard_earlier and self._put_plain(key, value):
            return
        engine = self._engine
        writer = engine.check_writable()
        key = writable_key(key)
        if type(value) is not bytes:
            value = as_bytes(value, "value")
        if len(value) >= self._threshold or len(key) + len(value) + ENTRY_OVERHEAD > self._limit:
            self._check_size(key, value)
        if self._store.version.banned:
            engine.check_namespace(key)
        if engine.options.managed:
            raise _no_timestamp()
        bits = META_DISCARD_EARLIER if discard_earlier else 0
        user = 0 if meta is NO_META else user_meta(meta)
        writer.put(key, value, bits, user, 0 if ttl is None else expiry_ms(ttl))

    def _check_size(self, key: bytes, value: bytes) -> None:
        size = entry_size(self._engine, key, value)
        if size > self._limit:
            raise TransactionTooBigError(
                f"one entry of {size:,} bytes; a transaction holds {self._limit:,}",
                limit=self._limit, size=size,
            )  # fmt: skip

    def delete(self, key: BytesLike) -> None:
        """Commit a tombstone; deleting an absent key is fine. Errors as `set`."""
        engine = self._engine
        writer = engine.check_writable()
        key = writable_key(key)
        engine.check_namespace(key)
        if engine.options.managed:
            raise _no_timestamp()
        writer.put(key, b"", META_DELETE, 0, 0)

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.set(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        self.delete(key)

    # -- transactions and batches ----------------------------------------------------------------

    def view(self, *, at: int | None = None) -> Txn:
        """A read-only transaction on a snapshot. It blocks nobody and never conflicts.

        `at`: the timestamp to read at (default: everything committed), from 0 to `max_version()`,
        else `ValueError`. Versions that were superseded before the transaction began may be gone.
        """
        engine = self._engine
        if engine.refusal is not None:  # as check_open, without its frame
            raise engine.refusal()
        if at is not None:
            at = whole(at, "at", 0, self.max_version())
        return Txn(engine, update=False, at=at)

    def update(self, *, at: int | None = None) -> Txn:
        """A read-write transaction; commits on a clean exit of `with`, else discards.

        `at`: the timestamp to read at, in managed mode only (default: the newest); elsewhere
        `meles.Error`. See `Txn` for what committing raises.
        """
        engine = self._engine
        if engine.refusal is not None or engine.writer is None:  # again without the frame
            engine.check_writable()
        if at is not None:
            if not engine.options.managed:
                raise Error("update(at=) outside managed mode", hint="open with managed=True")
            at = whole(at, "at", 0)
        return Txn(engine, update=True, at=at)

    def _track(self, made: Made) -> Made:
        self._engine.watch(made)
        return made

    def transact(self, fn: Callable[[Txn], T], retries: int = 8) -> T:
        """Run `fn(txn)` in a read-write transaction, commit, and return what `fn` returned.

        On `ConflictError` all of it is done again, at most `retries` times after the first, each
        after a random pause of up to 2 ms at first and 0.13 s later; then the error is raised. Any
        other exception discards the transaction and passes.
        """
        return self._transact(self.update, fn, retries)

    def _update_checked(self) -> Txn:
        """For sequences and merge operators: `detect_conflicts=False` is not about them."""
        self._engine.check_writable()
        return Txn(self._engine, update=True, checked=True)

    def _transact_checked(self, fn: Callable[[Txn], T]) -> T:
        return self._transact(self._update_checked, fn, 8)

    def _transact(self, begin: Callable[[], Txn], fn: Callable[[Txn], T], retries: int) -> T:
        self._engine.check_writable()
        whole(retries, "retries", 0)
        attempt = 0
        while True:
            try:
                with begin() as txn:
                    return fn(txn)
            except ConflictError:
                attempt += 1
                if attempt > retries:
                    raise
                longest = _BACKOFF_SECONDS * 2 ** min(attempt, _LAST_DOUBLING)
                time.sleep(random.uniform(0, longest))  # noqa: S311 - jitter, not a secret

    def transactional(
        self, retries: int = 8
    ) -> Callable[[Callable[Concatenate[Txn, P], T]], Callable[P, T]]:
        """Decorator: a function written as `f(txn, *args, **kw)` is called as `f(*args, **kw)`
        and run by `transact` with these `retries`.
        """
        if callable(retries):
            raise TypeError("transactional is called: @db.transactional()")
        whole(retries, "retries", 0)

        def decorate(fn: Callable[Concatenate[Txn, P], T]) -> Callable[P, T]:
            @functools.wraps(fn)
            def call(*args: P.args, **kwargs: P.kwargs) -> T:
                return self.transact(lambda txn: fn(txn, *args, **kwargs), retries)

            return call

        return decorate

    def write_batch(self, *, at: int | None = None) -> WriteBatch:
        """A `WriteBatch` for many blind writes: each part it commits is atomic, the batch is not.

        `at`: the timestamp of its entries, needed in managed mode and refused (`meles.Error`)
        elsewhere; `ValueError` unless at least 1.
        """
        self._engine.check_writable()
        managed = self._engine.options.managed
        if managed != (at is not None):
            raise Error(
                "a batch takes at= exactly in managed mode",
                hint="pass at=, or open without managed",
            )
        if at is not None:
            at = timestamp(at, "at")
        return self._track(WriteBatch(self._engine, at=at))

    def sequence(self, key: BytesLike, bandwidth: int = 100) -> Sequence:
        """A `Sequence`: numbers from 0 that never repeat, also after a crash.

        `bandwidth` of them are leased with one durable commit under `key`. `ConfigError` unless it
        is at least 1, `CorruptionError` when the key holds something else, `meles.Error` in
        managed mode.
        """
        self._check_unmanaged()
        return Sequence(self._engine, self._transact_checked, key, bandwidth)

    def merge_operator(self, key: BytesLike, fn: Fold, *, every: Seconds = 1.0) -> MergeOperator:
        """A `MergeOperator`: operands added under `key` without reading it.

        `fn(existing, new) -> bytes` joins two of them, older first, and must be associative. They
        are folded into one every `every` seconds (or `timedelta`; more than 0, else `ValueError`).
        `meles.Error` in managed mode.
        """
        self._check_unmanaged()
        return self._track(MergeOperator(self._engine, self._update_checked, key, fn, every=every))

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
        """A `Subscription` to changes under any of the prefixes (none: all), in commit order.

        It is live when this returns, and a change can be read when it arrives. `ignore` names
        positions of the prefixes, counted from 0, that match any byte: "0-3,7". When `queue`
        changes wait unread, `on_overflow` decides: "block" has writers wait for this subscriber,
        "drop" leaves changes out and tells how many in `Change.missed`, "raise" ends it with
        `WriteStallError`. `ConfigError` for other arguments.
        """
        self._engine.check_open()
        wanted = [as_bytes(prefix, "prefix") for prefix in prefixes]
        matches = make_matcher(wanted, parse_ignore(ignore))
        publisher = self._engine.publisher
        return self._track(publisher.subscribe(matches, queue=queue, on_overflow=on_overflow))

    # -- iterating -------------------------------------------------------------------------------

    def _cursor(self, shape: str, prefix: BytesLike, wanted: ScanArguments) -> Cursor[Any]:
        engine = self._engine
        engine.check_open()
        view = self._store.view
        offset = engine.options.namespace_offset
        plan = make_scan(view, self._oracle.published, shape, offset, prefix, **wanted)
        cursor: Cursor[Any] = Cursor(view, plan)
        engine.watch(cursor)
        return cursor

    @property
    def path(self) -> str:
        """The directory, as it was given; of `mode="memory"` the private one."""
        return self._path

    @property
    def closed(self) -> bool:
        """Whether closing has begun, or this is a forked child."""
        return self._engine.refusal is not None

    @property
    def options(self) -> Options:
        """The options in effect, defaults included."""
        return self._engine.options

    # -- the end ---------------------------------------------------------------------------------

    def close(self, timeout: Seconds | None = None) -> CloseReport:
        """Shut down in stages within `timeout` seconds (default: option `close_timeout`).

        Everything open ends with it: transactions, iterators, batches, subscriptions, and calls
        that wait, with `ClosedError`. The report lists each stage with its seconds and outcome.
        What fails or does not get done in time is left to the next open and costs nothing that was
        acknowledged; it is reported and never raised. A second call returns the same report.
        """
        return self._control.close(None if timeout is None else seconds(timeout, "timeout"))

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
            self._control.close(None)  # first: where warnings are errors, the next line raises
            warnings.warn(f"database {self._path} was not closed", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"<meles.DB {self._path!r}{' closed' if self.closed else ''}>"


def _declines(_key: object, _value: object) -> bool:
    """In place of a writer's plain commits where there is no writer."""
    return False


def _no_timestamp() -> Error:
    return Error("managed mode: a write needs a timestamp", hint="use db.update() and commit_at")

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
from meles.engine.txn.merge import Fold, MergeOperator
from meles.engine.txn.scan import ScanArguments, Scanning, make_scan
from meles.engine.txn.sequence import Sequence
from meles.engine.txn.txn import ENTRY_OVERHEAD, Txn, entry_size

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
    keys (`db[key]`, `key in db`, `del db[key]`).
    """

    def __init__(self, path: str, engine: Engine, control: Control) -> None:
        super().__init__(engine, control)
        self._path = path
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
        """Commit a tombstone; deleting an absent key is fine."""
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
        """A read-only transaction; `at` is a timestamp to read at, up to `max_version()`."""
        self._engine.check_open()
        if at is not None:
            at = whole(at, "at", 0, self.max_version())
        return self._track(Txn(self._engine, update=False, at=at))

    def update(self, *, at: int | None = None) -> Txn:
        """A read-write transaction; commits on a clean exit of `with`, else discards.

        `at`: the timestamp to read at, in managed mode (default: the newest).
        """
        self._engine.check_writable()
        if at is not None:
            if not self._engine.options.managed:
                raise Error("update(at=) outside managed mode", hint="open with managed=True")
            at = whole(at, "at", 0)
        return self._track(Txn(self._engine, update=True, at=at))

    def _track(self, made: Made) -> Made:
        self._engine.watch(made)
        return made

    def transact(self, fn: Callable[[Txn], T], retries: int = 8) -> T:
        """Run `fn(txn)` and commit; on `ConflictError` try again up to `retries` times.

        Returns what `fn` does.
        """
        return self._transact(self.update, fn, retries)

    def _update_checked(self) -> Txn:
        """For sequences and merge operators: `detect_conflicts=False` is not about them."""
        self._engine.check_writable()
        return self._track(Txn(self._engine, update=True, checked=True))

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
        """Decorator: `fn(txn, *args)` becomes `fn(*args)`, run by `transact`."""
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
        """Many blind writes; splits itself, each split atomic. `at`: timestamp in managed mode."""
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
        """Numbers that never repeat, `bandwidth` leased at a time under `key`."""
        self._check_unmanaged()
        return Sequence(self._engine, self._transact_checked, key, bandwidth)

    def merge_operator(self, key: BytesLike, fn: Fold, *, every: Seconds = 1.0) -> MergeOperator:
        """Operands under `key`, folded by `fn(existing, new)` every so many seconds."""
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
        """Changes under any of the prefixes (none: all) in commit order, from now on.

        `ignore` names positions of the prefixes that match any byte, such as "0-3,7". When
        `queue` changes wait, writers wait too ("block"), changes are left out ("drop"), or this
        subscriber gets `WriteStallError` ("raise").
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
        return self._path

    @property
    def closed(self) -> bool:
        return self._engine.refusal is not None

    @property
    def options(self) -> Options:
        return self._engine.options

    # -- the end ---------------------------------------------------------------------------------

    def close(self, timeout: Seconds | None = None) -> CloseReport:
        """Staged shutdown within `timeout` (default: option `close_timeout`).

        What does not get done in time is left to the next open; a second call returns the same
        report.
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


def _no_timestamp() -> Error:
    return Error("managed mode: a write needs a timestamp", hint="use db.update() and commit_at")

"""Transactions: a snapshot, own writes on top, and a conflict check at commit.

Runs in: supervisor, on the thread that uses the transaction.
Invariants: (1) reads see the snapshot plus own writes; (2) a commit succeeds only if nothing the
transaction read, single keys and covered ranges alike, was committed to since its snapshot.
Fails with: `TransactionFinishedError`, `TransactionTooBigError`, `ConflictError`, `ReadOnlyError`.

Isolation is serializable snapshot isolation, with ranges. The conflict check needs no table of
recent commits: versions newer than any reader's snapshot are never dropped, so the newest version
of what was read is looked up in the view itself, however long the transaction was open.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left, insort
from typing import Any, Final, NoReturn, TypeVar

from meles.engine.arguments import timestamp
from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import (
    META_DELETE,
    META_DISCARD_EARLIER,
    META_POINTER,
    POINTER_BYTES,
)
from meles.engine.engine import Engine, listed
from meles.engine.errors import (
    ConflictError,
    Error,
    KeyNotFoundError,
    ReadOnlyError,
    TransactionFinishedError,
    TransactionTooBigError,
)
from meles.engine.iterators.range_scan import KeyRange, prefix_range
from meles.engine.iterators.visible import OWN_VERSION
from meles.engine.read_view import ReadView
from meles.engine.txn.coverage import Covered
from meles.engine.txn.cursor import Cursor, Item
from meles.engine.txn.entries import (
    BytesLike,
    TimeToLive,
    as_bytes,
    expiry_ms,
    readable_key,
    user_meta,
    writable_key,
)
from meles.engine.txn.entry_buffer import ENTRY_OVERHEAD
from meles.engine.txn.lifetime import Lifetime
from meles.engine.txn.scan import ScanArguments, Scanning, make_scan

T = TypeVar("T")
_NOT_SPECIAL: Final = (0, 0)
_FEW: Final = 64  # new keys that are put in order one by one


class Txn(Lifetime, Scanning):
    """A transaction, made by `db.view()` or `db.update()`. One thread at a time may use it.

    It reads one snapshot, with its own writes on top, whatever others commit meanwhile. Committing
    raises `ConflictError` when anything it read, keys that were absent and the parts of ranges that
    its iterators covered alike, was committed to since: what did commit is as if the transactions
    had run one after the other. Those that write nothing or read nothing never conflict.

    `set` takes what `DB.set` takes; the write is seen by this transaction at once, by others after
    the commit, and a `ttl` begins at once. `TransactionTooBigError` when keys and values would
    exceed 15 % of `memtable_size`, values of the value log counting as pointers: the transaction
    stays as it was.

    A context manager: a clean end of `with` commits one of `update()`, an exception discards it. A
    transaction pins old versions, so end each: one that is only forgotten lets go with a
    `ResourceWarning`. Once it has ended, every call raises `TransactionFinishedError`, or
    `ClosedError` when the database is closed. Keys, values and errors are as for `DB`.
    """

    _cursors: weakref.WeakSet[Cursor[Any]] | None
    _covered: Covered | None

    @property
    def read_ts(self) -> int:
        """The snapshot: every commit up to this timestamp is seen, none after it."""
        return self._read_ts

    @property
    def commit_ts(self) -> int:
        """The commit's timestamp, 0 before it."""
        return self._commit_ts

    # -- reading ---------------------------------------------------------------------------------

    def _check(self) -> None:
        refusal = self._engine.refusal
        if refusal is not None:
            raise refusal()
        if self._finished:
            raise TransactionFinishedError("this transaction has ended")

    def _find(self, key: bytes) -> tuple[ReadView, tuple[int, int, int, bytes]] | None:
        """View and entry as this transaction sees it, tombstones and expired ones left out."""
        engine = self._engine
        view = engine.store.view
        if view.version.banned:
            engine.check_namespace(key)
        value = self._writes.get(key)
        if value is not None:
            found = (self._read_ts, *self._special.get(key, _NOT_SPECIAL), value)
        else:
            if self._track:
                self._note_read(key)
            looked_up = view.find(key, self._read_ts)
            if looked_up is None:
                engine.check_open()  # closing takes things away from under a reader
                return None
            found = looked_up
            if view.version.drops and view.hidden(key, found[0], self._read_ts):
                return None
        if found[1] & META_DELETE or 0 < found[2] <= now_ms():
            return None
        return view, found

    def _note_read(self, key: bytes) -> None:
        reads = self._reads
        if reads is None:  # local: another thread may end it meanwhile
            reads = self._reads = set()
        reads.add(key)

    def item(self, key: BytesLike) -> Item | None:
        """The key's entry with version, meta and expiry; None when it is absent, deleted or
        expired. Does not read the value. The version of an own write is `read_ts`.
        """
        self._check()
        key = readable_key(key)
        found = self._find(key)
        return None if found is None else Item(found[0], key, *found[1])

    def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        """The value at the snapshot, own writes included, or `default` when there is none.

        Expiry is by the clock now, not by that of the snapshot.
        """
        if self._finished or self._engine.refusal is not None:
            self._check()
        if type(key) is not bytes or not key:
            key = readable_key(key)
        found = self._find(key)
        if found is None:
            return default
        view, (version, meta, _, stored) = found
        return view.values.read(stored, version) if meta & META_POINTER else stored

    def __getitem__(self, key: BytesLike) -> bytes:
        item = self.item(key)
        if item is None:
            raise KeyNotFoundError("no such key")
        return item.value

    def __contains__(self, key: BytesLike) -> bool:
        return self.item(key) is not None

    def _cursor(self, shape: str, prefix: BytesLike, wanted: ScanArguments) -> Cursor[Any]:
        self._check()
        view = self._engine.store.view
        offset = self._engine.options.namespace_offset
        plan = make_scan(view, self._read_ts, shape, offset, prefix, **wanted)
        pending = None
        if self._writes and (plan.look.since < self._read_ts or not plan.look.since):
            pending = self._own_writes(plan.keys)
        coverage = None
        if self._track:
            covered = self._covered
            if covered is None:  # local: another thread may end it meanwhile
                covered = self._covered = Covered()
            coverage = covered.new(plan.keys)
        cursor: Cursor[Any] = Cursor(view, plan, pending=pending, coverage=coverage)
        cursors = self._cursors
        if cursors is None:
            cursors = self._cursors = weakref.WeakSet()
        cursors.add(cursor)
        self._engine.watch(cursor)
        if self._finished:  # on another thread, meanwhile
            cursor.end(_ended)
        return cursor

    def _own_writes(self, keys: KeyRange) -> Columns:
        """Pending writes in the range, as the newest source of a scan."""
        own, special, order = self._writes, self._special, self._in_order()
        first = 0 if keys.low is None else bisect_left(order, keys.low)
        stop = len(order) if keys.high is None else bisect_left(order, keys.high)
        names = order[first:stop]
        values, metas, expiries = [], [], []
        for name in names:
            meta, expiry = special.get(name, _NOT_SPECIAL)
            values.append(own[name])
            metas.append(meta)
            expiries.append(expiry)
        return Columns(names, [OWN_VERSION] * len(names), metas, expiries, values)

    def _in_order(self) -> list[bytes]:
        """The keys of pending writes; put in order as far as they are new since the last time."""
        own, order = self._writes, self._order or []
        fresh = len(own) - len(order)
        if 0 < fresh <= _FEW:
            for key in list(own)[-fresh:]:  # no key ever leaves; copied in one step
                insort(order, key)
        if len(order) != len(own):
            self._order = order = sorted(own)
        return order

    # -- writing ---------------------------------------------------------------------------------

    def _set(
        self, key: object, value: object, ttl: TimeToLive, meta: int, discard_earlier: bool
    ) -> None:
        self._check_writable()
        bits = META_DISCARD_EARLIER if discard_earlier else 0
        data = value if type(value) is bytes else as_bytes(value, "value")
        self._put(key, data, user_meta(meta) << 8 | bits, expiry_ms(ttl))

    def put_entry(self, key: BytesLike, value: bytes, meta: int) -> None:
        """A write with meta bits of the engine's own, for merge operators."""
        self._check_writable()
        self._put(key, value, meta, 0)

    def hide_from_subscribers(self) -> None:
        """This transaction rewrites what is there already: no change to tell anybody about."""
        self._quiet = True

    def delete(self, key: BytesLike) -> None:
        """Delete a key; an absent one is fine. Errors as `set`."""
        self._check_writable()
        self._put(key, b"", META_DELETE, 0)

    def __delitem__(self, key: BytesLike) -> None:
        self.delete(key)

    def _check_writable(self) -> None:
        self._check()
        if not self._update:
            raise ReadOnlyError("this transaction was made by view()")

    def _put(self, key: object, value: bytes, meta: int, expiry: int) -> None:
        engine = self._engine
        key = writable_key(key)
        if engine.has_bans:
            engine.check_namespace(key)
        size = entry_size(engine, key, value)
        total = self._size + size
        limit = engine.options.txn_limit
        if total > limit:  # count again: what was replaced since is not written
            others = (item for item in list(self._writes.items()) if item[0] != key)
            total = size + sum(entry_size(engine, *item) for item in others)
        if total > limit:
            raise TransactionTooBigError(
                f"the transaction would hold {total:,} of at most {limit:,} bytes",
                limit=limit, size=total,
            )  # fmt: skip
        if meta or expiry:
            self._special[key] = (meta, expiry)
        else:
            self._special.pop(key, None)
        self._writes[key] = value
        self._size = total
        if self._finished:
            raise TransactionFinishedError("another thread ended this transaction meanwhile")

    # -- ending ----------------------------------------------------------------------------------

    def commit_at(self, ts: int) -> int:
        """Managed mode: commit at a timestamp of the caller's choice, at least 1, also one below
        the newest; returns it. As `commit` otherwise; outside managed mode `meles.Error`.
        """
        self._check()
        if not self._engine.options.managed:
            raise Error(
                "commit_at() outside managed mode", hint="open with managed=True, or commit()"
            )
        return self._commit(timestamp(ts, "ts"))

    def _needs_ts(self) -> NoReturn:
        raise Error("managed mode: use commit_at(ts)", hint="call txn.commit_at(ts)")

    def _ends_elsewhere(self) -> NoReturn:
        raise TransactionFinishedError("another thread ends this transaction")

    def _before_commit(self) -> None:
        engine = self._engine
        engine.check_writable()
        if engine.has_bans:  # perhaps since they were written
            for key in list(self._writes):
                engine.check_namespace(key)
        self._end_cursors()

    def _commit_at_length(self, ts: int | None, has_read: bool) -> int:
        writer = self._engine.check_writable()
        pending = list(self._writes.items())  # what another thread adds now is not in it
        keys, values = zip(*pending, strict=True)
        metas, expiries = zip(*(self._special.get(k, _NOT_SPECIAL) for k in keys), strict=True)
        check = self._check_conflicts if has_read else None
        return writer.commit(keys, values, metas, expiries, check=check, ts=ts, quiet=self._quiet)

    def _check_conflicts(self) -> None:
        """Under the write lock: has anything that was read been committed to since?"""
        engine, read_ts = self._engine, self._read_ts
        if engine.oracle.published == read_ts:
            return
        view = engine.store.view
        dropped = view.dropped_since(read_ts)
        for key in list(self._reads or ()):
            if view.newest_version(key, read_ts) or key.startswith(dropped):
                raise ConflictError("a key this transaction read was changed")
        for keys in self._covered.ranges() if self._covered is not None else ():
            if view.range_changed(keys.low, keys.high, read_ts) or any(
                not prefix_range(prefix, keys.low, keys.high).is_empty() for prefix in dropped
            ):
                raise ConflictError("a range this transaction read was changed")

    def _end_cursors(self) -> None:
        cursors, self._cursors = self._cursors, None
        for cursor in listed(cursors) if cursors is not None else ():
            cursor.end(self._engine.refusal or _ended)


def _ended() -> TransactionFinishedError:
    return TransactionFinishedError("the iterator's transaction has ended")


def entry_size(engine: Engine, key: bytes, value: bytes) -> int:
    """What an entry counts towards the transaction limit; refuses a value nothing could hold."""
    size = len(value)
    options = engine.options
    if size > options.value_log_file_size:
        raise TransactionTooBigError(
            f"a value of {size:,} bytes; at most {options.value_log_file_size:,} fit",
            limit=options.value_log_file_size, size=size, hint="raise value_log_file_size",
        )  # fmt: skip
    stored = POINTER_BYTES if size >= options.value_threshold else size
    return len(key) + stored + ENTRY_OVERHEAD

"""Iterators handed to users: items, pairs, keys or values, with seek, rewind and close.

Runs in: supervisor.
Invariants: (1) an iterator keeps the view and timestamp it was made with; (2) `limit` counts anew
after `seek` and `rewind`; (3) a seek outside the range clamps to it; (4) what was read is noted in
the transaction's `Coverage` as it is given, not as it is fetched ahead; (5) an iterator that failed
fails again when asked again: it never goes on behind what it could not read.
Fails with: what `end` was given (finished transaction, closed database), `ClosedError` for moving
a closed iterator, `CorruptionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import (
    META_DELETE,
    META_DISCARD_EARLIER,
    META_MERGE,
    META_POINTER,
    POINTER_BYTES,
    ValuePointer,
)
from meles.engine.errors import ClosedError, Error
from meles.engine.iterators.range_scan import KeyRange, scan
from meles.engine.read_view import ReadView
from meles.engine.txn.coverage import Coverage
from meles.engine.txn.entries import BytesLike, as_bytes
from meles.engine.txn.scan import SHAPE_ITEM, SHAPE_KEY, SHAPE_VALUE, Scan

T = TypeVar("T")


class Item:
    """One entry as an iterator or `Txn.item` gives it: `key`, `version` (the timestamp of its
    commit, of an own write `read_ts`) and what follows. Good until its database is closed.
    """

    __slots__ = ("_expiry", "_meta", "_stored", "_view", "key", "version")

    def __init__(
        self, view: ReadView, key: bytes, version: int, meta: int, expiry: int, stored: bytes
    ) -> None:
        self.key = key
        self.version = version
        self._view = view
        self._meta = meta
        self._expiry = expiry
        self._stored = stored

    @property
    def value(self) -> bytes:
        """The value, read when it is asked for; `b""` for a tombstone. `CorruptionError` when the
        value log does not hold it undamaged.
        """
        if self._meta & META_POINTER:
            return self._view.values.read(self._stored, self.version)
        return self._stored

    @property
    def value_size(self) -> int:
        """Bytes of the value; reads no value log."""
        if self._meta & META_POINTER and len(self._stored) == POINTER_BYTES:
            return ValuePointer.decode(self._stored).length
        return len(self._stored)

    @property
    def meta(self) -> int:
        """The user's byte, 0 to 255."""
        return self._meta >> 8

    @property
    def is_merge(self) -> bool:
        """Whether this is an operand of a merge operator."""
        return bool(self._meta & META_MERGE)

    @property
    def discards_earlier(self) -> bool:
        """Whether older versions no longer count."""
        return bool(self._meta & META_DISCARD_EARLIER)

    @property
    def expires_at(self) -> float:
        """When it expires, in unix seconds to the millisecond; 0 is never."""
        return self._expiry / 1000 if self._expiry else 0

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone, or has expired by the clock now."""
        return bool(self._meta & META_DELETE) or 0 < self._expiry <= now_ms()

    def __repr__(self) -> str:
        return f"<Item version={self.version} value_size={self.value_size} deleted={self.deleted}>"


class Cursor(Generic[T]):
    """An iterator over a range, made by `iterate`, `items`, `keys` or `values`.

    What it gives is fixed when it is made: its snapshot, its transaction's writes until then, and
    what has expired by then. It may outlive flushes, compactions and collected files. A context
    manager; it needs no closing. One thread at a time: two at once get a `meles.Error`. It raises
    `TransactionFinishedError` once its transaction and `ClosedError` once its database has ended,
    and `CorruptionError` at damage, where it stays.
    """

    def __init__(
        self,
        view: ReadView,
        wanted: Scan,
        *,
        pending: Columns | None = None,
        coverage: Coverage | None = None,
    ) -> None:
        """`coverage` is the record of what is read, for a transaction that checks conflicts."""
        self._view: ReadView | None = view
        self._scan = wanted
        self._pending = pending
        self._refusal: Callable[[], Exception] | None = None
        self._coverage = coverage
        self._given = 0
        self._entries: Iterator[Any]
        # What `_entries` is made of. `chain` and `islice` let go of it at the first error, also one
        # that another thread got for asking at the same time: the interpreter would crash.
        self._parts: tuple[Iterator[Any], ...]
        self._begin(wanted.keys)

    # -- iterating -------------------------------------------------------------------------------

    def __iter__(self) -> Cursor[T]:
        return self

    def __next__(self) -> T:
        coverage = self._coverage
        if coverage is not None:
            return self._next_tracked(coverage)
        try:
            entry: T = next(self._entries)
        except StopIteration:
            raise
        except Exception as error:
            self._stay_failed(error)
            raise
        return entry

    def _stay_failed(self, error: Exception) -> None:
        """Whoever goes on after an error must not take what comes for all there is."""
        shared = isinstance(error, ValueError) and "already executing" in str(error)
        if self._view is not None:
            self._entries = _Refusing(_shared if shared else lambda: error)
        if shared:
            raise _shared() from error

    def _next_tracked(self, coverage: Coverage) -> T:
        try:
            key, shaped = next(self._entries)
        except StopIteration:
            # a limit proves nothing about the rest
            coverage.exhausted = self._given != self._scan.limit
            raise
        except Exception as error:
            self._stay_failed(error)
            raise
        self._given += 1
        coverage.last = key
        result: T = shaped
        return result

    def _begin(self, keys: KeyRange) -> None:
        view = self._open_view()
        coverage, self._given = self._coverage, 0
        if coverage is not None:
            coverage.begin(keys)
        batches = scan(
            view, keys, self._scan.look, reverse=self._scan.reverse, pending=self._pending
        )
        # Whether keys go along is settled here: another thread may end the iterator meanwhile.
        source = map(partial(self._shape, view, coverage is not None), batches)
        shaped = chain.from_iterable(source)
        self._entries = shaped if self._scan.limit is None else islice(shaped, self._scan.limit)
        self._parts = (source, shaped)

    def _shape(self, view: ReadView, with_keys: bool, batch: Columns) -> Iterator[Any]:
        """The batch's entries in the shape asked for, in the iterator's direction."""
        wanted = self._scan
        if wanted.reverse:
            batch = _reversed(batch, by_key=wanted.look.all_versions)
        if wanted.shape == SHAPE_KEY or wanted.keys_only:
            shaped: Iterator[Any] = iter(batch.keys)
            if wanted.shape == SHAPE_ITEM:
                shaped = self._items(view, batch)
        elif wanted.shape == SHAPE_ITEM:
            shaped = self._items(view, batch)
        else:
            values = _values(view, batch)
            shaped = values if wanted.shape == SHAPE_VALUE else zip(batch.keys, values, strict=True)
        return zip(batch.keys, shaped, strict=True) if with_keys else shaped

    def _items(self, view: ReadView, batch: Columns) -> Iterator[Item]:
        versions = batch.versions
        if self._pending is not None:  # own writes are merged as newer than anything
            versions = [min(version, self._scan.look.ts) for version in versions]
        return (
            Item(view, *entry)
            for entry in zip(
                batch.keys, versions, batch.metas, batch.expiries, batch.values, strict=True
            )
        )

    # -- moving ----------------------------------------------------------------------------------

    def seek(self, key: BytesLike) -> None:
        """Go to the first key >= `key`, or in reverse to the last key <= `key`, within the range
        asked for; an empty key is the beginning in either direction. `ClosedError` after `close`.
        """
        self._open_view()
        key = as_bytes(key, "key")
        whole = self._scan.keys
        if not self._scan.reverse:
            low = max(whole.low or b"", key)
            self._begin(replace(whole, low=low or None))
        elif not key:
            self._begin(whole)
        else:
            high = key + b"\0"
            self._begin(replace(whole, high=high if whole.high is None else min(whole.high, high)))

    def rewind(self) -> None:
        """Begin again, at the first item given. `ClosedError` after `close`."""
        self._open_view()
        self._begin(self._scan.keys)

    def close(self) -> None:
        """End the iterator and let go of the files it holds. A second call does nothing; `next`
        finds nothing more.
        """
        self.end(None)

    def end(self, refusal: Callable[[], Exception] | None) -> None:
        """Close; later use raises the last `refusal()` given. Without one there is just nothing
        more, and moving raises `ClosedError`.
        """
        self._view = self._pending = None
        self._refusal = refusal or self._refusal
        self._entries = iter(()) if refusal is None else _Refusing(refusal)
        self._parts = ()
        self._coverage_ends()

    def _coverage_ends(self) -> None:
        coverage, self._coverage = self._coverage, None
        if coverage is not None:
            coverage.ended = True

    def __del__(self) -> None:
        self._coverage_ends()

    def _open_view(self) -> ReadView:
        if self._refusal is not None:
            raise self._refusal()
        if self._view is None:
            raise ClosedError("this iterator is closed", hint="make a new iterator")
        return self._view

    def __enter__(self) -> Cursor[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shared() -> Error:
    return Error("two threads use one iterator at once", hint="make an iterator for each thread")


class _Refusing:
    """An iterator that raises at every step."""

    def __init__(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal

    def __iter__(self) -> _Refusing:
        return self

    def __next__(self) -> Any:
        raise self._refusal()


def _values(view: ReadView, batch: Columns) -> Iterator[bytes]:
    """The batch's values, those of the value log read when their turn comes."""
    if not any(meta & META_POINTER for meta in set(batch.metas)):
        return iter(batch.values)
    read = view.values.read
    return (
        read(value, version) if meta & META_POINTER else value
        for value, version, meta in zip(batch.values, batch.versions, batch.metas, strict=True)
    )


def _reversed(batch: Columns, *, by_key: bool) -> Columns:
    """Keys from the last to the first; the versions of one key stay newest first."""
    count = len(batch)
    if not by_key:
        return batch.take(list(range(count - 1, -1, -1)))
    order = sorted(range(count), key=batch.keys.__getitem__, reverse=True)  # stable
    return batch.take(order)

"""Iterators handed to users: items, pairs, keys or values, with seek, rewind and close.

Runs in: supervisor.
Invariants: (1) an iterator keeps the view and timestamp it was made with; (2) `limit` counts anew
after `seek` and `rewind`; (3) a seek outside the range clamps to it; (4) its `Coverage` is told
what a transaction has really read, up to the last item given and not what was fetched ahead, at the
latest when the iterator ends or is forgotten; (5) an iterator that failed fails again when asked
again: it never goes on behind what it could not read; (6) one thread at a time fetches.
Fails with: what `end` was given (finished transaction, closed database), `ClosedError` for moving
a closed iterator, `CorruptionError`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from meles.engine.codec.columns import Columns
from meles.engine.errors import ClosedError, Error
from meles.engine.iterators.range_scan import KeyRange
from meles.engine.read_view import ReadView
from meles.engine.txn.batches import KEYS, PAIRS, VALUES, BatchIterator, step_directly
from meles.engine.txn.coverage import Coverage
from meles.engine.txn.entries import BytesLike, as_bytes
from meles.engine.txn.item import Item
from meles.engine.txn.scan import SHAPE_ITEM, SHAPE_KEY, SHAPE_PAIR, SHAPE_VALUE, Scan
from meles.engine.txn.shaping import Batch, shaped_batches

__all__ = ["Cursor", "Item"]

T = TypeVar("T")
_SHAPES = {SHAPE_ITEM: VALUES, SHAPE_PAIR: PAIRS, SHAPE_KEY: KEYS, SHAPE_VALUE: VALUES}


@step_directly
class Cursor(BatchIterator, Generic[T]):
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
        self._turn = threading.Lock()  # of the thread that fetches
        self._from: KeyRange = wanted.keys
        self._last: bytes | None = None
        self._done = False
        self._left = 0
        self._batches: Iterator[Batch]
        self._shape = _SHAPES[wanted.shape]
        if wanted.keys_only and wanted.shape != SHAPE_ITEM:
            self._shape = KEYS
        self._begin(wanted.keys)

    # -- iterating -------------------------------------------------------------------------------

    def __iter__(self) -> Cursor[T]:
        return self

    if TYPE_CHECKING:

        def __next__(self) -> T: ...

    def _refill(self) -> bool:
        if not self._turn.acquire(blocking=False):
            raise self._in_use()
        try:
            return self._fetch()
        finally:
            self._turn.release()

    def _fetch(self) -> bool:
        """Put the next lists in place. An error is met again by whoever goes on after it."""
        self._leave_batch()
        if not self._left:
            return False  # a limit proves nothing about the rest
        batches = None
        while batches is not self._batches:  # or they end while one is fetched
            batches = self._batches
            try:
                batch = next(batches, None)
            except Exception as error:
                self._met(error)
                raise
        if batch is None:
            self._done = True
            return False
        keys, values = self._keys, self._values = batch
        count = min(len(keys or values or ()), self._left)
        self._left -= count
        self._count = count
        return True

    def _in_use(self) -> Exception:
        return Error(
            "two threads use one iterator at once", hint="make an iterator for each thread"
        )

    def _met(self, error: Exception) -> None:
        """From now on whoever goes on meets it again. Raises the refusal, if there is one."""
        if self._refusal is not None:  # what it reads was taken away from under it
            raise self._refusal() from error
        if self._view is not None:
            self._leave_batch()
            self._left = max(self._left, 1)  # it was not at its limit
            self._batches = _Refusing(partial(_again, error))

    def _leave_batch(self) -> None:
        self._last = self._last_given()
        self._keys = self._values = None
        self._at = self._count = 0

    def _begin(self, keys: KeyRange) -> None:
        view = self._open_view()
        self._from, self._last, self._done = keys, None, False
        self._at = self._count = 0
        self._left = sys.maxsize if self._scan.limit is None else self._scan.limit
        keys_wanted = self._coverage is not None or self._shape != VALUES
        self._batches = shaped_batches(view, self._scan, keys, self._pending, keys_wanted)

    # -- moving ----------------------------------------------------------------------------------

    def seek(self, key: BytesLike) -> None:
        """Go to the first key >= `key`, or in reverse to the last key <= `key`, within the range
        asked for; an empty key is the beginning in either direction. `ClosedError` after `close`.
        """
        self._open_view()
        key = as_bytes(key, "key")
        self._note_covered()
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
        self._note_covered()
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
        self._coverage_ends()
        self._view = self._pending = None
        self._refusal = refusal or self._refusal
        self._batches = iter(()) if refusal is None else _Refusing(refusal)
        self._keys = self._values = None
        self._at = self._count = 0
        self._left = sys.maxsize
        self._done = False
        self._last = None
        self._from = KeyRange(b"", b"")

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

    # -- what was read ---------------------------------------------------------------------------

    def _note_covered(self) -> None:
        coverage = self._coverage
        if coverage is not None:
            covered = self._current_cover()
            if covered is not None:
                coverage.add(covered)

    def _coverage_ends(self) -> None:
        self._note_covered()
        coverage, self._coverage = self._coverage, None
        if coverage is not None:
            coverage.ended = True

    def __del__(self) -> None:
        self._coverage_ends()

    def _current_cover(self) -> KeyRange | None:
        """The part of the range that the items given so far prove something about."""
        if self._done:
            return self._from
        last = self._last_given()
        if last is None:
            return None
        if self._scan.reverse:
            return replace(self._from, low=last)
        return replace(self._from, high=last + b"\0")

    def _last_given(self) -> bytes | None:
        at, keys = self._at, self._keys  # another thread may end it meanwhile
        return keys[at - 1] if at and keys else self._last


def _again(error: Exception) -> Exception:
    return error.with_traceback(None)  # which would grow each time


class _Refusing:
    """An iterator that raises at every step."""

    def __init__(self, refusal: Callable[[], Exception]) -> None:
        self._refusal = refusal

    def __iter__(self) -> _Refusing:
        return self

    def __next__(self) -> Any:
        raise self._refusal()

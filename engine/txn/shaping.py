"""From a read view to what an iterator hands out, in lists of keys and values.

Runs in: supervisor.
Invariants: (1) where the compiled kernel has a scan for the question it is taken, else the columns
are merged, judged and cut here, to the same result; (2) a value that cannot be read is met in its
turn: everything before it is given first.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_POINTER
from meles.engine.iterators.range_scan import KeyRange, scan, sources
from meles.engine.kernel import NATIVE
from meles.engine.read_view import ReadView
from meles.engine.txn.batches import LazyValuesPy, Values
from meles.engine.txn.item import Item
from meles.engine.txn.scan import SHAPE_ITEM, SHAPE_KEY, Scan

Batch: TypeAlias = tuple[list[bytes] | None, Values | None]  # keys, values: what is wanted


def shaped_batches(
    view: ReadView, wanted: Scan, keys: KeyRange, pending: Columns | None, keys_wanted: bool
) -> Iterator[Batch]:
    """What `wanted` asks for of `keys`, in the iterator's direction.

    `pending` are a transaction's own writes; values of items are `Item`s.
    """
    look = wanted.look
    plain = not (wanted.reverse or look.all_versions or look.hidden or keys.is_empty())
    if NATIVE is not None and plain and view.ordered and view.active.ordered:
        return _compiled(view, wanted, keys, pending, keys_wanted)
    found = scan(view, keys, look, reverse=wanted.reverse, pending=pending)
    if wanted.reverse:
        found = (_reversed(batch, by_key=look.all_versions) for batch in found)
    return _from_columns(view, wanted, found, pending is not None)


def _compiled(
    view: ReadView, wanted: Scan, keys: KeyRange, pending: Columns | None, keys_wanted: bool
) -> Iterator[Batch]:
    look = wanted.look
    details = wanted.shape == SHAPE_ITEM
    found = NATIVE.Scan(
        sources(view, keys, look, reverse=False, pending=pending), keys.low, keys.high,
        look.ts, look.since, look.now_ms, view.values.compiled, keys=keys_wanted or details,
        values=details or not (wanted.shape == SHAPE_KEY or wanted.keys_only), details=details,
    )  # fmt: skip
    if not details:
        return iter(found.next_batch, None)
    batches = (Columns(*columns) for columns in iter(found.next_batch, None))
    return _from_columns(view, wanted, batches, pending is not None)


def _from_columns(
    view: ReadView, wanted: Scan, batches: Iterable[Columns], has_pending: bool
) -> Iterator[Batch]:
    for batch in batches:
        if wanted.shape == SHAPE_ITEM:
            yield batch.keys, _items(view, batch, wanted.look.ts if has_pending else None)
        elif wanted.shape == SHAPE_KEY or wanted.keys_only:
            yield batch.keys, None
        elif not any(meta & META_POINTER for meta in set(batch.metas)):
            yield batch.keys, batch.values
        else:
            yield batch.keys, LazyValuesPy(batch, view.values.read)


def _items(view: ReadView, batch: Columns, newest: int | None) -> list[Item]:
    """`newest` bounds the versions where own writes are among them: they are merged as newer than
    anything.
    """
    versions = batch.versions
    if newest is not None:
        versions = [min(version, newest) for version in versions]
    rows = zip(batch.keys, versions, batch.metas, batch.expiries, batch.values, strict=True)
    return [Item(view, *row) for row in rows]


def _reversed(batch: Columns, *, by_key: bool) -> Columns:
    """Keys from the last to the first; the versions of one key stay newest first."""
    count = len(batch)
    if not by_key:
        return batch.take(list(range(count - 1, -1, -1)))
    order = sorted(range(count), key=batch.keys.__getitem__, reverse=True)  # stable
    return batch.take(order)

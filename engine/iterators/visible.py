"""What a reader may see of merged entries: one version per key, no tombstones, nothing expired.

Runs in: supervisor.
Invariants: (1) input batches never split the versions of a key; (2) output keeps the order; (3) a
batch in which every entry is plainly visible passes through without a Python statement per entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import eq
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE
from meles.engine.ids import MAX_VERSION

OWN_VERSION: Final = MAX_VERSION  # a transaction's own write: newer than anything, seen at any ts


@dataclass(frozen=True, slots=True)
class Visibility:
    """How a reader looks: its timestamp, its clock, and what it asked for.

    `hidden(key, version)` is given when drops may hide entries.
    """

    ts: int
    now_ms: int
    all_versions: bool = False
    since: int = 0
    hidden: Callable[[bytes, int], bool] | None = None


def visible(batches: Iterable[Columns], look: Visibility) -> Iterator[Columns]:
    """The batches reduced to what the reader sees; batches that come out empty are left out."""
    for batch in batches:
        if _plain(batch, look):
            yield batch
            continue
        seen = _all_versions(batch, look) if look.all_versions else _newest(batch, look)
        if seen.keys:
            yield seen


def _plain(batch: Columns, look: Visibility) -> bool:
    """Whether every entry is visible as it stands."""
    keys = batch.keys
    return (
        look.hidden is None
        and look.since == 0
        and max(batch.versions) <= look.ts
        and not any(meta & META_DELETE for meta in set(batch.metas))
        and not any(batch.expiries)
        and not any(map(eq, keys, keys[1:]))
    )


def _newest(batch: Columns, look: Visibility) -> Columns:
    """The newest version <= ts of each key, unless it is deleted, expired, dropped or too old."""
    order: list[int] = []
    ts, now, since, hidden = look.ts, look.now_ms, look.since, look.hidden
    last: bytes | None = None
    entries = zip(batch.keys, batch.versions, batch.metas, batch.expiries, strict=True)
    for at, (key, version, meta, expiry) in enumerate(entries):
        if key == last or ts < version != OWN_VERSION:
            continue
        last = key
        if (
            meta & META_DELETE
            or 0 < expiry <= now
            or version <= since
            or (hidden is not None and hidden(key, version))
        ):
            continue
        order.append(at)
    return batch.take(order)


def _all_versions(batch: Columns, look: Visibility) -> Columns:
    """Every version in (since, ts], tombstones and expired ones included, dropped ones not."""
    ts, since, hidden = look.ts, look.since, look.hidden
    order = [
        at
        for at, (key, version) in enumerate(zip(batch.keys, batch.versions, strict=True))
        if (since < version <= ts or version == OWN_VERSION)
        and (hidden is None or not hidden(key, version))
    ]
    return batch if len(order) == len(batch) else batch.take(order)


def check_batches(batches: Iterable[Columns]) -> None:
    """Raise `AssertionError` unless the batches ascend and no key is split. For tests."""
    previous: Columns | None = None
    for batch in batches:
        batch.check()
        if previous is not None and previous.keys[-1] >= batch.keys[0]:
            raise AssertionError("a key is split over two batches, or batches are out of order")
        if any(a > b for a, b in pairwise(batch.keys)):
            raise AssertionError("keys descend")
        previous = batch

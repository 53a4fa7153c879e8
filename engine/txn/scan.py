"""What an iterator is asked for: its arguments, checked, and the four calls that take them.

Runs in: supervisor.
Fails with: `TypeError` for an unknown argument or a bound that is no bytes, `ValueError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from meles.engine.arguments import whole
from meles.engine.clock import now_ms
from meles.engine.ids import MAX_VERSION
from meles.engine.iterators.range_scan import KeyRange, prefix_range
from meles.engine.iterators.visible import Visibility
from meles.engine.read_view import ReadView
from meles.engine.txn.entries import BytesLike, range_bound

if TYPE_CHECKING:
    from meles.engine.txn.cursor import Cursor, Item

SHAPE_ITEM: Final = "item"
SHAPE_PAIR: Final = "pair"
SHAPE_KEY: Final = "key"
SHAPE_VALUE: Final = "value"


class ScanArguments(TypedDict, total=False):
    """What `iterate`, `items`, `keys` and `values` take by keyword."""

    start: BytesLike | None
    stop: BytesLike | None
    reverse: bool
    keys_only: bool
    all_versions: bool
    since: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class Scan:
    """What an iterator was asked for."""

    keys: KeyRange
    look: Visibility
    reverse: bool = False
    keys_only: bool = False
    limit: int | None = None
    shape: str = SHAPE_ITEM


def make_scan(
    view: ReadView,
    ts: int,
    shape: str,
    namespace_offset: int,
    prefix: BytesLike,
    /,
    *,
    start: BytesLike | None = None,
    stop: BytesLike | None = None,
    reverse: bool = False,
    keys_only: bool = False,
    all_versions: bool = False,
    since: int = 0,
    limit: int | None = None,
    **unknown: object,
) -> Scan:
    """The arguments of an iterator, checked."""
    if unknown:
        known = ", ".join(("prefix", *ScanArguments.__annotations__))
        raise TypeError(f"an iterator takes no {next(iter(unknown))!r}; it takes {known}")
    if since != 0:
        since = min(whole(since, "since", 0, None), MAX_VERSION)
    if limit is not None:
        limit = min(whole(limit, "limit", 0, None), sys.maxsize)
    keys = prefix_range(
        range_bound(prefix, "prefix") or b"", range_bound(start, "start"), range_bound(stop, "stop")
    )
    hidden = None
    if view.version.drops or view.version.banned:
        hidden = view.hiding(ts, namespace_offset)
    look = Visibility(ts, now_ms(), bool(all_versions), since, hidden)
    return Scan(keys, look, bool(reverse), bool(keys_only), limit, shape)


class Scanning:
    """The calls that make iterators, the same on a database and a transaction.

    All take, by keyword but for `prefix`:

    - `prefix`, `start` (inclusive) and `stop` (exclusive): which keys, whatever the direction;
    - `reverse`: from the last key to the first;
    - `keys_only`: read no values. Items still read theirs when asked; `items` and `values` then
      give keys;
    - `all_versions`: of each key every version there is, newest first in both directions, also
      tombstones and what has expired; else the newest one, if it is alive when the iterator is
      made;
    - `since`: only versions above this timestamp;
    - `limit`: how many to give, counted anew after `seek` and `rewind`.

    `TypeError` for a bound that is not bytes-like or an argument there is not, `ValueError` for a
    number below 0. What they return is an iterator with `seek`, `rewind` and `close`, for one
    thread at a time; on a transaction it ends with it.
    """

    def _cursor(self, shape: str, prefix: BytesLike, wanted: ScanArguments) -> Cursor[Any]:
        raise NotImplementedError

    def iterate(self, prefix: BytesLike = b"", **wanted: Unpack[ScanArguments]) -> Cursor[Item]:
        """Items in key order, from one snapshot."""
        return self._cursor(SHAPE_ITEM, prefix, wanted)

    def items(
        self, prefix: BytesLike = b"", **wanted: Unpack[ScanArguments]
    ) -> Cursor[tuple[bytes, bytes]]:
        """(key, value) pairs in key order; the fast path for scans. Arguments as `iterate`."""
        return self._cursor(SHAPE_PAIR, prefix, wanted)

    def keys(self, prefix: BytesLike = b"", **wanted: Unpack[ScanArguments]) -> Cursor[bytes]:
        """Keys in order; touches no value log. Arguments as `iterate`."""
        return self._cursor(SHAPE_KEY, prefix, wanted)

    def values(self, prefix: BytesLike = b"", **wanted: Unpack[ScanArguments]) -> Cursor[bytes]:
        """Values in key order. Arguments as `iterate`."""
        return self._cursor(SHAPE_VALUE, prefix, wanted)

    def __iter__(self) -> Iterator[bytes]:
        """Its keys, in order."""
        return self.keys()

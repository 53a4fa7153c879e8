"""Merges sorted sources in bulk: batches are cut, concatenated and sorted, never single entries.

Runs in: supervisor (readers) and workers (flush, compaction).
Invariants: (1) output order is key ascending, version descending; (2) all versions of a key are in
one batch; (3) of equal (key, version) the copy of the newest source stays; (4) a source is read
ahead by a bounded number of batches.

The smallest key at which some source's batch ends is the border of a round: before it, no source
can bring anything new. Each source gives its entries before the border, then those whose batch ends
there get their next one, so every round makes progress. Python's sort finds the runs and merges
them in C.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from operator import and_, eq, le, neg
from typing import Final

from meles.engine.codec.columns import Columns
from meles.engine.kernel import key_order

# What is taken of a source at once, by the first bound to be reached; the first rounds take 1, 2, 4
# ... batches, so that a reader who wants little waits for little. Much more than 16 blocks of 4 KiB
# from each source fall out of the processor's cache (64 blocks: a compaction runs 10 % slower).
_MAX_AHEAD_ENTRIES: Final = 512
_MAX_AHEAD_BYTES: Final = 256 << 10
_MAX_AHEAD_BATCHES: Final = 16


class _Source:
    """A source and the entries of it in hand, [start, stop) of `columns`."""

    __slots__ = ("ahead", "batches", "columns", "done", "start", "stop")

    def __init__(self, batches: Iterator[Columns]) -> None:
        self.batches = batches
        self.columns = Columns()
        self.start = 0
        self.stop = 0
        self.ahead = 1
        self.done = False

    def _next(self, held: int) -> list[Columns]:
        """The next few batches, more at a time the longer the merge runs.

        At least as many entries as the `held` ones that wait for them, which are versions of one
        key: copying those again and again then costs no more than reading them.
        """
        taken: list[Columns] = []
        entries = size = 0
        while entries < held or (
            len(taken) < self.ahead and entries < _MAX_AHEAD_ENTRIES and size < _MAX_AHEAD_BYTES
        ):
            batch = next(self.batches, None)
            if batch is None:
                self.done = True
                break
            if batch.keys:
                taken.append(batch)
                entries += len(batch.keys)
                size += len(batch.keys) * len(batch.values[-1])  # roughly
        self.ahead = min(2 * self.ahead, _MAX_AHEAD_BATCHES)
        return taken

    def refill(self) -> None:
        """Append what comes next to what is in hand."""
        rest = self.columns.slice(self.start, self.stop)
        self._hold([rest, *self._next(len(rest.keys))])

    def refill_before(self) -> None:
        """Put what comes next, which has smaller keys, in front of what is in hand."""
        rest = self.columns.slice(self.start, self.stop)
        self._hold([*reversed(self._next(len(rest.keys))), rest])

    def take_until(self, cut: int) -> Columns:
        """Hand out [start, cut)."""
        part = self.columns.slice(self.start, cut)
        self.start = cut
        return part

    def take_from(self, cut: int) -> Columns:
        """Hand out [cut, stop)."""
        part = self.columns.slice(cut, self.stop)
        self.stop = cut
        return part

    def rest(self) -> Iterator[Columns]:
        """All that is left, batch by batch."""
        yield self.columns.slice(self.start, self.stop)
        yield from self.batches

    def _hold(self, parts: list[Columns]) -> None:
        self.columns = _concatenated(parts)
        self.start = 0
        self.stop = len(self.columns.keys)


def merge(sources: Sequence[Iterator[Columns]], *, ordered: bool = True) -> Iterator[Columns]:
    """One ascending stream of all entries of `sources`, given newest first.

    `ordered` promises that newer sources hold newer versions of a key, so versions need no sort.
    """
    if len(sources) == 1:
        yield from _whole_keys(sources[0])
        return
    active = [_Source(source) for source in sources]
    for source in active:
        source.refill()
    while True:
        active = [source for source in active if source.start < source.stop]
        if len(active) == 1:
            yield from _whole_keys(active[0].rest())
            return
        open_keys = [s.columns.keys[s.stop - 1] for s in active if not s.done]
        if not open_keys:
            yield from _joined([s.take_until(s.stop) for s in active], ordered)
            return
        border = min(open_keys)
        parts = []
        for source in active:
            keys = source.columns.keys
            cut = bisect_left(keys, border, source.start, source.stop)
            parts.append(source.take_until(cut))
            if not source.done and keys[source.stop - 1] == border:
                source.refill()
        yield from _joined(parts, ordered)


def merge_reverse(
    sources: Sequence[Iterator[Columns]], *, ordered: bool = True
) -> Iterator[Columns]:
    """As `merge`, from the largest keys to the smallest.

    The sources' batches and the batches that come out descend by key range; within each, entries
    ascend as everywhere. `sources` are given newest first.
    """
    if len(sources) == 1:
        yield from _whole_keys_reverse(sources[0])
        return
    active = [_Source(source) for source in sources]
    for source in active:
        source.refill_before()
    while True:
        active = [source for source in active if source.start < source.stop]
        if len(active) == 1:
            yield from _whole_keys_reverse(active[0].rest())
            return
        open_keys = [s.columns.keys[s.start] for s in active if not s.done]
        if not open_keys:
            yield from _joined([s.take_from(s.start) for s in active], ordered)
            return
        border = max(open_keys)
        parts = []
        for source in active:
            keys = source.columns.keys
            cut = bisect_right(keys, border, source.start, source.stop)
            parts.append(source.take_from(cut))
            if not source.done and keys[source.start] == border:
                source.refill_before()
        yield from _joined(parts, ordered)


def _joined(parts: list[Columns], ordered: bool) -> Iterator[Columns]:
    """The entries of the parts, given newest first, as one batch in order."""
    parts = [part for part in parts if part.keys]
    if len(parts) < 2:
        yield from parts
        return
    joined = _concatenated(parts)
    batch = joined.take(key_order(joined.keys))
    same_key = list(map(eq, batch.keys, islice(batch.keys, 1, None)))
    if True in same_key:
        not_older = map(le, batch.versions, islice(batch.versions, 1, None))
        if not ordered or any(map(and_, same_key, not_older)):
            batch = _versions_in_order(batch)
    yield batch


def _versions_in_order(batch: Columns) -> Columns:
    """Sort versions and drop copies. Equal keys come in with the newest source's first."""
    keys, versions = batch.keys, batch.versions
    rank = list(zip(keys, map(neg, versions), strict=True))
    order = sorted(range(len(keys)), key=rank.__getitem__)
    kept = [order[0]]
    kept += [nth for before, nth in pairwise(order) if rank[nth] != rank[before]]
    return batch.take(kept)


def _concatenated(parts: list[Columns]) -> Columns:
    """The entries of all parts, in new lists."""
    joined = Columns()
    for part in parts:
        joined.extend(part)
    return joined


def _whole_keys(batches: Iterator[Columns]) -> Iterator[Columns]:
    """The batches as they come, except that a key's versions never fall into two."""
    held: list[Columns] = []  # several only while all their entries have one key
    for batch in batches:
        if not batch.keys:
            continue
        key = batch.keys[0]
        if not held or held[-1].keys[-1] != key:
            if held:
                yield _one(held)
            held = [batch]
            continue
        first = held[0]
        cut = bisect_left(first.keys, key)
        if cut:
            yield first.slice(0, cut)
            held[0] = first.slice(cut, len(first.keys))
        cut = bisect_right(batch.keys, key)
        if cut == len(batch.keys):
            held.append(batch)
        else:
            yield _one([*held, batch.slice(0, cut)])
            held = [batch.slice(cut, len(batch.keys))]
    if held:
        yield _one(held)


def _whole_keys_reverse(batches: Iterator[Columns]) -> Iterator[Columns]:
    """As `_whole_keys` for batches that descend by key range."""
    held: list[Columns] = []  # latest come, so smallest, first
    for batch in batches:
        if not batch.keys:
            continue
        key = batch.keys[-1]
        if not held or held[0].keys[0] != key:
            if held:
                yield _one(held)
            held = [batch]
            continue
        last = held[-1]
        cut = bisect_right(last.keys, key)
        if cut < len(last.keys):
            yield last.slice(cut, len(last.keys))
            held[-1] = last.slice(0, cut)
        cut = bisect_left(batch.keys, key)
        if not cut:
            held.insert(0, batch)
        else:
            yield _one([batch.slice(cut, len(batch.keys)), *held])
            held = [batch.slice(0, cut)]
    if held:
        yield _one(held)


def _one(parts: list[Columns]) -> Columns:
    return parts[0] if len(parts) == 1 else _concatenated(parts)

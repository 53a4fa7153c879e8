"""Which versions stay: against a plain statement of the rules, and what a batch costs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER, META_MERGE, META_POINTER
from meles.engine.compaction.retention import Dropped, Policy, retain

NOW = 1000
Row = tuple[bytes, int, int, int, bytes]

KINDS = st.sampled_from(
    [0, 0, 0, META_POINTER, META_DELETE, META_DELETE, META_DISCARD_EARLIER, META_MERGE, 7 << 8]
)
ENTRIES = st.dictionaries(
    st.tuples(st.sampled_from([b"a", b"ab", b"b", b"ba", b"c"]), st.integers(1, 12)),
    st.tuples(KINDS, st.sampled_from([0, 0, 0, NOW - 1, NOW, NOW + 1])),
    min_size=1,
    max_size=14,
)
BELOW = st.sampled_from([(), ((b"a", b"a"),), ((b"aa", b"b"),), ((b"a", b"a"), (b"ba", b"c"))])
DROPS = st.sampled_from([(), ((b"a", 5),), ((b"", 3),), ((b"b", 7), (b"a", 11))])


def columns_of(entries: dict[tuple[bytes, int], tuple[int, int]]) -> Columns:
    columns = Columns()
    for key, version in sorted(entries, key=lambda pair: (pair[0], -pair[1])):
        meta, expiry = entries[key, version]
        if meta & META_DELETE:
            expiry = 0
        columns.append(key, version, meta, expiry, b"" if meta & META_DELETE else b"v%d" % version)
    return columns


def rows(columns: Columns) -> list[Row]:
    return list(
        zip(
            columns.keys, columns.versions, columns.metas, columns.expiries, columns.values,
            strict=True,
        )
    )  # fmt: skip


def by_the_rules(columns: Columns, policy: Policy) -> list[Row]:
    """Badger's merge rules, one entry after the other, with the per-key question."""
    kept: list[Row] = []
    counted: dict[bytes, int] = {}
    ended: set[bytes] = set()
    for key, version, meta, expiry, value in rows(columns):
        if any(
            key.startswith(prefix) and version <= ts <= policy.discard_ts
            for prefix, ts in policy.drops
        ):
            continue
        if key in ended:
            continue
        if version > policy.discard_ts or meta & META_MERGE:
            kept.append((key, version, meta, expiry, value))
            continue
        counted[key] = counted.get(key, 0) + 1
        gone = bool(meta & META_DELETE) or 0 < expiry <= policy.now_ms
        last = bool(meta & META_DISCARD_EARLIER) or counted[key] == policy.versions_to_keep
        if gone or last:
            ended.add(key)
        if not gone:
            kept.append((key, version, meta, expiry, value))
        elif any(low <= key <= high for low, high in policy.below):
            if meta & META_DELETE:
                kept.append((key, version, meta, expiry, value))
            else:
                kept.append((key, version, META_DELETE, 0, b""))
    return kept


@given(
    entries=ENTRIES,
    discard=st.integers(0, 13),
    keep=st.sampled_from([1, 1, 2, 3, 100]),
    below=BELOW,
    drops=DROPS,
)
def test_the_rules(
    entries: dict[Any, Any], discard: int, keep: int, below: Any, drops: Any
) -> None:
    columns = columns_of(entries)
    before = rows(columns)
    policy = Policy(discard, keep, NOW, below, drops)
    kept, dropped = retain(columns, policy)
    assert rows(kept) == by_the_rules(columns, policy)
    assert dropped.entries == len(before) - len(kept)
    assert 0 <= dropped.tombstones <= dropped.entries
    assert rows(columns) == before, "the input was changed"


@pytest.mark.parametrize(
    "policy",
    [
        Policy(100, 1, NOW),
        Policy(0, 1, NOW),
        Policy(100, 1, NOW, below=((b"a", b"z"),)),
        Policy(100, 1, NOW, drops=((b"x", 50),)),
        Policy(100, 1, NOW, drops=((b"k", 3),)),
    ],
)
def test_a_plain_batch_passes_as_it_is(policy: Policy) -> None:
    columns = columns_of({(b"k%d" % n, 5): (n % 2 * META_POINTER, 0) for n in range(9)})
    kept, dropped = retain(columns, policy)
    assert kept is columns
    assert dropped == Dropped()


def test_what_expires_later_passes_as_it_is() -> None:
    columns = columns_of({(b"k%d" % n, 5): (0, NOW + 1) for n in range(9)})
    assert retain(columns, Policy(100, 1, NOW))[0] is columns


def test_drops_are_counted() -> None:
    columns = columns_of({(b"a", 1): (0, 0), (b"b1", 2): (0, 0), (b"b2", 9): (0, 0)})
    kept, dropped = retain(columns, Policy(100, 1, NOW, drops=((b"b", 5),)))
    assert kept.keys == [b"a", b"b2"]
    assert dropped == Dropped(1, 0)


def test_everything_dropped_leaves_an_empty_batch() -> None:
    columns = columns_of({(b"a", 1): (0, 0), (b"b1", 2): (META_DELETE, 0)})
    kept, dropped = retain(columns, Policy(100, 1, NOW, drops=((b"", 5),)))
    assert kept.keys == []
    assert dropped.entries == 2

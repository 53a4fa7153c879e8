"""What a reader sees of merged entries, against the rules written down plainly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE
from meles.engine.iterators.visible import OWN_VERSION, Visibility, check_batches, visible

Entry = tuple[bytes, int, int, int, bytes]  # key, version, meta, expiry, value
NOW = 1000


def batches_of(entries: list[Entry], cuts: set[bytes]) -> list[Columns]:
    """In order, a new batch before each key of `cuts`."""
    batches = [Columns()]
    for entry in sorted(entries, key=lambda e: (e[0], -e[1])):
        if entry[0] in cuts and batches[-1].keys and batches[-1].keys[-1] != entry[0]:
            batches.append(Columns())
        batches[-1].append(*entry)
    return [batch for batch in batches if batch.keys]


def seen(batches: list[Columns], look: Visibility) -> list[Entry]:
    out = list(visible(batches, look))
    check_batches(out)
    assert all(batch.keys for batch in out)
    return [
        entry
        for b in out
        for entry in zip(b.keys, b.versions, b.metas, b.expiries, b.values, strict=True)
    ]


def expected(entries: list[Entry], look: Visibility) -> list[Entry]:
    rows = sorted(entries, key=lambda e: (e[0], -e[1]))
    rows = [row for row in rows if row[1] <= look.ts or row[1] == OWN_VERSION]
    if not look.all_versions:
        rows = [row for n, row in enumerate(rows) if n == 0 or rows[n - 1][0] != row[0]]
        rows = [row for row in rows if not row[2] & META_DELETE and not 0 < row[3] <= NOW]
    rows = [row for row in rows if row[1] > look.since]
    return [row for row in rows if look.hidden is None or not look.hidden(row[0], row[1])]


keys = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
entry = st.tuples(
    keys,
    st.sampled_from([1, 2, 3, 5, 8, OWN_VERSION]),
    st.sampled_from([0, 0, 0, META_DELETE, 5 << 8]),
    st.sampled_from([0, 0, NOW - 1, NOW, NOW + 1]),
    st.binary(max_size=3),
)
entries = st.lists(entry, max_size=25, unique_by=lambda e: e[:2])


@given(
    entries=entries,
    cuts=st.sets(keys),
    ts=st.integers(0, 9),
    since=st.sampled_from([0, 0, 2, 5]),
    all_versions=st.booleans(),
    dropped=st.none() | st.tuples(keys, st.integers(0, 9)),
)
def test_equals_the_rules(
    entries: list[Entry],
    cuts: set[bytes],
    ts: int,
    since: int,
    all_versions: bool,
    dropped: tuple[bytes, int] | None,
) -> None:
    hidden = None
    if dropped is not None:
        prefix, upto = dropped

        def hidden(key: bytes, version: int) -> bool:
            return key.startswith(prefix) and version <= upto

    look = Visibility(ts, NOW, all_versions, since, hidden)
    assert seen(batches_of(entries, cuts), look) == expected(entries, look)


def test_a_plain_batch_passes_through_untouched() -> None:
    batch = Columns([b"a", b"b"], [1, 2], [5 << 8, 0], [0, 0], [b"", b"x"])
    for look in (Visibility(2, NOW), Visibility(2, NOW, all_versions=True)):
        (found,) = visible([batch], look)
        assert found is batch


def test_nothing_is_left_of_a_batch_without_anything_visible() -> None:
    gone = Columns([b"a", b"b"], [1, 9], [META_DELETE, 0], [0, 0], [b"", b"x"])
    left = Columns([b"c"], [1], [0], [0], [b"x"])
    assert list(visible([gone, left], Visibility(2, NOW))) == [left]


def test_check_batches_refuses_a_key_in_two_batches() -> None:
    first, second = Columns([b"a"], [2], [0], [0], [b""]), Columns([b"a"], [1], [0], [0], [b""])
    for bad in ([first, second], [Columns([b"b"], [1], [0], [0], [b""]), first]):
        try:
            check_batches(bad)
        except AssertionError:
            continue
        raise AssertionError("accepted")

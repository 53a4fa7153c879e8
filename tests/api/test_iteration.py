"""Iterating: ranges, direction, versions, limits, and which writes an iterator sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import meles
import pytest

OpenDB = Callable[..., meles.DB]
KEYS = [
    b"a",
    b"a\x00",
    b"a1",
    b"a2",
    b"a\xff",
    b"a\xff\xff",
    b"b",
    b"b1",
    b"c",
    b"\xff",
    b"\xff\xff",
]


@pytest.fixture(params=["memory", "tables", "both"])
def filled(request: pytest.FixtureRequest, open_db: OpenDB) -> meles.DB:
    """`KEYS`, their values spelling them out; each second one on tables, or all, or none."""
    db = open_db()
    where = request.param
    for key in KEYS[:: 1 if where == "tables" else 2]:
        db[key] = b"=" + key
    if where != "memory":
        db.flush()
    for key in KEYS:
        db[key] = b"=" + key
    if where == "tables":
        db.flush()
    return db


def both_ways(db: meles.DB, expected: list[bytes], **arguments: Any) -> None:
    """In a database and a transaction, every shape, forward and mirrored."""
    pairs = [(key, b"=" + key) for key in expected]
    with db.update() as txn:
        for target in (db, txn):
            assert list(target.keys(**arguments)) == expected
            assert list(target.items(**arguments)) == pairs
            assert list(target.values(**arguments)) == [value for _, value in pairs]
            assert [(i.key, i.value) for i in target.iterate(**arguments)] == pairs
            assert list(target.keys(reverse=True, **arguments)) == expected[::-1]
            assert list(target.items(reverse=True, **arguments)) == pairs[::-1]
            assert list(target.values(reverse=True, **arguments)) == [
                b"=" + k for k in expected[::-1]
            ]
            assert [i.key for i in target.iterate(reverse=True, **arguments)] == expected[::-1]


def test_everything_in_key_order_and_its_mirror(filled: meles.DB) -> None:
    both_ways(filled, KEYS)
    assert list(filled) == KEYS


@pytest.mark.parametrize(
    "prefix", [b"", b"a", b"a\xff", b"\xff", b"\xff\xff", b"b1", b"zz", b"a" * 70_000]
)
def test_prefix_in_both_directions(filled: meles.DB, prefix: bytes) -> None:
    """Badger's reverse with a prefix finds nothing unless the caller adds 0xFF."""
    both_ways(filled, [key for key in KEYS if key.startswith(prefix)], prefix=prefix)


@pytest.mark.parametrize("start", [None, b"", b"a", b"a\x00", b"a0", b"c", b"\xff\xff\xff"])
@pytest.mark.parametrize("stop", [None, b"", b"a", b"a2", b"b", b"\xff"])
def test_start_is_inclusive_and_stop_exclusive_whatever_the_direction(
    filled: meles.DB, start: bytes | None, stop: bytes | None
) -> None:
    inside = [k for k in KEYS if (start is None or k >= start) and (stop is None or k < stop)]
    both_ways(filled, inside, start=start, stop=stop)


def test_prefix_start_and_stop_together(filled: meles.DB) -> None:
    both_ways(filled, [b"a1", b"a2"], prefix=b"a", start=b"a1", stop=b"a3")
    both_ways(filled, [b"a", b"a\x00"], prefix=b"a", stop=b"a1")
    both_ways(filled, [], prefix=b"a", start=b"b")
    both_ways(filled, [], start=b"b", stop=b"a")


@pytest.mark.parametrize("limit", [0, 1, 5, 11, 100, 2**63, 10**400, None])
def test_limit(filled: meles.DB, limit: int | None) -> None:
    wanted = KEYS[:limit] if limit is None or limit < 100 else KEYS
    with filled.update() as txn:
        for target in (filled, txn):
            assert list(target.keys(limit=limit)) == wanted
            last = KEYS[::-1][: len(wanted)]
            assert list(target.keys(limit=limit, reverse=True)) == last


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": -1}, {"limit": 1.0}, {"limit": "1"}, {"limit": True}, {"since": -1},
        {"since": 1.5}, {"since": "1"}, {"since": None}, {"since": float("nan")},
    ],
)  # fmt: skip
def test_bad_numbers_are_refused_at_once(db: meles.DB, arguments: dict[str, Any]) -> None:
    with db.view() as txn:
        for target in (db, txn):
            for call in (target.iterate, target.items, target.keys, target.values):
                with pytest.raises(ValueError, match=next(iter(arguments))):
                    call(**arguments)  # type: ignore[operator]


@pytest.mark.parametrize("arguments", [{"backwards": True}, {"view": 1}, {"ts": 1}, {"self": 1}])
def test_unknown_arguments_are_type_errors(db: meles.DB, arguments: dict[str, Any]) -> None:
    with db.view() as txn:
        for target in (db, txn):
            with pytest.raises(TypeError):
                target.keys(**arguments)
            with pytest.raises(TypeError):
                target.keys(b"a", b"b")  # type: ignore[call-arg]


# -- versions ------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True])
def versions(request: pytest.FixtureRequest, open_db: OpenDB) -> meles.DB:
    """a: 1, 4 (deleted); b: 2, 5; c: 3 (expires), 6."""
    db = open_db(num_versions_to_keep=10)
    db[b"a"], db[b"b"] = b"a1", b"b2"
    db.set(b"c", b"c3", ttl=1000)
    if request.param:
        db.flush()
    db.delete(b"a")
    db[b"b"], db[b"c"] = b"b5", b"c6"
    return db


def seen(target: meles.DB | meles.Txn, **arguments: Any) -> list[tuple[bytes, int, bool]]:
    return [(item.key, item.version, item.deleted) for item in target.iterate(**arguments)]


ALL = [
    (b"a", 4, True), (b"a", 1, False), (b"b", 5, False), (b"b", 2, False), (b"c", 6, False),
    (b"c", 3, False),
]  # fmt: skip


def test_newest_only_by_default_in_both_directions(versions: meles.DB) -> None:
    assert seen(versions) == [(b"b", 5, False), (b"c", 6, False)]
    assert seen(versions, reverse=True) == [(b"c", 6, False), (b"b", 5, False)]


def test_all_versions_newest_first_tombstones_included(versions: meles.DB) -> None:
    assert seen(versions, all_versions=True) == ALL
    assert list(versions.values(all_versions=True)) == [b"", b"a1", b"b5", b"b2", b"c6", b"c3"]
    assert list(versions.keys(all_versions=True)) == [b"a", b"a", b"b", b"b", b"c", b"c"]


def test_in_reverse_keys_run_backwards_and_versions_stay_newest_first(versions: meles.DB) -> None:
    """Badger turns the versions round too, tombstone last."""
    expected = ALL[4:] + ALL[2:4] + ALL[:2]
    assert seen(versions, all_versions=True, reverse=True) == expected
    assert seen(versions, all_versions=True, reverse=True, limit=3) == expected[:3]


@pytest.mark.parametrize("since", [0, 1, 3, 5, 6, 7, 2**63, 2**80, 10**400])
@pytest.mark.parametrize("reverse", [False, True])
def test_since_is_exclusive(versions: meles.DB, since: int, reverse: bool) -> None:
    found = seen(versions, all_versions=True, since=since, reverse=reverse)
    assert sorted(found) == sorted(entry for entry in ALL if entry[1] > since)
    newest = [(b"b", 5, False), (b"c", 6, False)]
    found = seen(versions, since=since, reverse=reverse)
    assert sorted(found) == [entry for entry in newest if entry[1] > since]


def test_a_snapshot_has_the_versions_of_its_time(versions: meles.DB) -> None:
    with versions.view(at=3) as txn:
        assert seen(txn) == [(b"a", 1, False), (b"b", 2, False), (b"c", 3, False)]
        assert seen(txn, all_versions=True) == seen(txn)
        assert seen(txn, all_versions=True, since=2) == [(b"c", 3, False)]


def test_own_writes_are_the_newest_versions(versions: meles.DB) -> None:
    with versions.update() as txn:
        txn[b"a"] = b"own"
        txn.delete(b"b")
        assert seen(txn) == [(b"a", 6, False), (b"c", 6, False)]
        found = seen(txn, all_versions=True)
        assert found == [(b"a", 6, False), *ALL[:2], (b"b", 6, True), *ALL[2:]]
        assert seen(txn, since=6) == []
        txn.discard()


def test_keys_only_items_still_have_their_values(filled: meles.DB) -> None:
    items = list(filled.iterate(keys_only=True))
    assert [item.key for item in items] == KEYS
    assert items[3].value == b"=a2"


# -- which writes are seen -----------------------------------------------------------------------


def test_an_iterator_does_not_see_what_its_transaction_writes_later(db: meles.DB) -> None:
    db[b"b"], db[b"d"] = b"1", b"1"
    with db.update() as txn:
        txn[b"a"] = b"own"
        early = txn.items()
        txn[b"c"] = b"own"
        txn[b"d"] = b"own"
        del txn[b"a"]
        assert list(early) == [(b"a", b"own"), (b"b", b"1"), (b"d", b"1")]
        early.rewind()
        assert next(early) == (b"a", b"own")
        assert list(txn.items()) == [(b"b", b"1"), (b"c", b"own"), (b"d", b"own")]


def test_an_iterator_of_the_database_keeps_its_own_snapshot(open_db: OpenDB) -> None:
    db = open_db(memtable_size="64KiB")
    for n in range(2000):
        db[b"%04d" % n] = b"old"
    cursor = db.items()
    first = [next(cursor) for _ in range(10)]
    for n in range(2000):
        db[b"%04d" % n] = b"new" * 10
    db.drop_prefix(b"1")
    db.flush()
    db.flatten()
    assert first + list(cursor) == [(b"%04d" % n, b"old") for n in range(2000)]


def test_several_iterators_of_one_transaction_are_independent(db: meles.DB) -> None:
    for n in range(10):
        db[b"%d" % n] = b"v"
    with db.update() as txn:
        forward, backward = txn.keys(), txn.keys(reverse=True)
        pairs = list(zip(forward, backward, strict=True))
        assert pairs == [(b"%d" % n, b"%d" % (9 - n)) for n in range(10)]


def test_keys_only_items_and_values_are_keys(filled: meles.DB) -> None:
    expected = list(filled.keys())
    assert list(filled.items(keys_only=True)) == list(filled.values(keys_only=True)) == expected

"""`db.subscribe`: committed changes in commit order, and what becomes of slow subscribers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import meles
import pytest
from waiting import wait_until

OpenDB = Callable[..., meles.DB]


def take(changes: meles.Subscription, count: int) -> list[meles.Change]:
    return [next(changes) for _ in range(count)]


def test_it_is_live_when_it_returns(db: meles.DB) -> None:
    db[b"before"] = b"v"
    with db.subscribe() as changes:
        db[b"k"] = b"v"
        assert next(changes).key == b"k"
        assert changes.next_change(timeout=0) is None


def test_a_change_tells_everything(db: meles.DB, clock: Any) -> None:
    with db.subscribe() as changes:
        before = clock.now
        db.set(b"k", b"v" * 5000, ttl=100, meta=7)
        db.delete(b"k")
        db.set(b"e", b"")
        first, second, third = take(changes, 3)
    assert before + 100 <= first.expires_at <= clock.now + 100.001
    assert (first.key, first.value, first.deleted, first.meta, first.version) == (
        b"k", b"v" * 5000, False, 7, 1,
    )  # fmt: skip
    assert second == meles.Change(b"k", None, True, 0, 0, 2)
    assert third == meles.Change(b"e", b"", False, 0, 0, 3)
    assert (first.missed, second.missed) == (0, 0)
    names = ("key", "value", "deleted", "meta", "expires_at", "version")
    assert meles.Change(**{name: getattr(first, name) for name in names}) == first


def test_changes_come_in_commit_order_and_within_one_in_the_order_of_writing(
    db: meles.DB,
) -> None:
    with db.subscribe() as changes:
        with db.update() as txn:
            txn[b"z"] = b"1"
            txn[b"a"] = b"2"
            txn.delete(b"m")
        with db.write_batch() as batch:
            batch[b"y"] = b"3"
            batch[b"b"] = b"4"
        db[b"c"] = b"5"
        found = [(change.key, change.version) for change in take(changes, 6)]
    assert found == [(b"z", 1), (b"a", 1), (b"m", 1), (b"y", 2), (b"b", 2), (b"c", 3)]


def test_a_change_can_be_read_when_it_arrives(db: meles.DB) -> None:
    """Badger publishes before the write is visible."""
    done = threading.Event()
    wrong: list[meles.Change] = []

    def read(changes: meles.Subscription) -> None:
        for change in changes:
            with db.view() as txn:
                if txn.read_ts < change.version or txn[change.key] < (change.value or b""):
                    wrong.append(change)
            if change.key == b"end":
                break
        done.set()

    changes = db.subscribe()
    reader = threading.Thread(target=read, args=(changes,))
    reader.start()
    for n in range(500):
        db[b"%d" % (n % 7)] = b"%05d" % n
    db[b"end"] = b"v"
    assert done.wait(60)
    reader.join()
    changes.close()
    assert wrong == []


@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [((), b"abcd"), ((b"a",), b"a"), ((b"a", b"c"), b"ac"), ((b"",), b"abcd"), ((b"x",), b"")],
)
def test_prefixes(db: meles.DB, prefixes: tuple[bytes, ...], expected: bytes) -> None:
    with db.subscribe(*prefixes) as changes:
        for key in (b"a", b"b", b"c", b"d"):
            db[key] = key
        found = b""
        while (change := changes.next_change(timeout=0)) is not None:
            found += change.key
    assert found == expected


@pytest.mark.parametrize(
    ("prefix", "ignore", "matching", "other"),
    [
        (b"user/0000/name", "5-8", b"user/1234/name/x", b"user/1234/mail"),
        (b"a?c", "1", b"abc", b"abd"),
        (b"???d", "0-1, 2", b"xyzd", b"xyze"),
        (b"a.c", "", b"a.cx", b"abc"),
        (b"a\nc", "1", b"a\nc", b"b\nc"),
        (b"abc", "5,7-9", b"abcd", b"abd"),
    ],
)
def test_ignored_positions_match_any_byte(
    db: meles.DB, prefix: bytes, ignore: str, matching: bytes, other: bytes
) -> None:
    with db.subscribe(prefix, ignore=ignore) as changes:
        db[other] = b"v"
        db[matching] = b"v"
        assert next(changes).key == matching


@pytest.mark.parametrize(
    "arguments",
    [
        {"ignore": "x"}, {"ignore": "1-"}, {"ignore": "3-1"}, {"ignore": "-1"}, {"ignore": 5},
        {"ignore": None}, {"ignore": b"1"}, {"ignore": "9" * 5000}, {"ignore": "1,,2"},
        {"ignore": "70000"}, {"queue": 0}, {"queue": -1}, {"queue": 1.5}, {"queue": "5"},
        {"queue": None}, {"queue": True}, {"on_overflow": "wait"}, {"on_overflow": None},
        {"on_overflow": ["block"]}, {"on_overflow": 5},
    ],
)  # fmt: skip
def test_bad_arguments_are_config_errors(db: meles.DB, arguments: dict[str, Any]) -> None:
    with pytest.raises(meles.ConfigError, match=next(iter(arguments))):
        db.subscribe(b"a", **arguments)
    db[b"k"] = b"v"


# -- ending --------------------------------------------------------------------------------------


def test_closing_it_ends_the_iterator(db: meles.DB) -> None:
    changes = db.subscribe()
    db[b"k"] = b"v"
    changes.close()
    changes.close()
    assert list(changes) == []
    with changes:
        pass


def test_closing_it_from_another_thread_wakes_the_reader(db: meles.DB) -> None:
    changes = db.subscribe()
    found: list[list[meles.Change]] = []
    reader = threading.Thread(target=lambda: found.append(list(changes)))
    reader.start()
    db[b"k"] = b"v"
    wait_until(lambda: not changes._feed._queue)
    changes.close()
    reader.join(30)
    assert [change.key for change in found[0]] == [b"k"]


def test_closing_the_database_ends_the_iterator_after_what_was_queued(db: meles.DB) -> None:
    changes = db.subscribe()
    found: list[list[meles.Change]] = []
    reader = threading.Thread(target=lambda: found.append(list(changes)))
    reader.start()
    for n in range(10):
        db[b"%d" % n] = b"v"
    db.close()
    reader.join(30)
    assert [change.key for change in found[0]] == [b"%d" % n for n in range(10)]
    assert list(changes) == []
    with pytest.raises(meles.ClosedError):
        db.subscribe()


def test_waiting_for_a_change_takes_a_timeout(db: meles.DB) -> None:
    with db.subscribe() as changes:
        assert changes.next_change(timeout=0) is None
        assert changes.next_change(timeout=timedelta(milliseconds=1)) is None
        with pytest.raises(TypeError, match="timeout"):
            changes.next_change(timeout="1")  # type: ignore[arg-type]


# -- slow subscribers ----------------------------------------------------------------------------


def test_block_holds_the_writer_until_there_is_room(db: meles.DB) -> None:
    changes = db.subscribe(queue=3)
    written: list[int] = []

    def write() -> None:
        for n in range(20):
            db[b"%02d" % n] = b"v"
            written.append(n)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: len(written) == 3)
    assert [change.key for change in take(changes, 20)] == [b"%02d" % n for n in range(20)]
    writer.join(30)
    assert written == list(range(20))
    changes.close()


def test_closing_the_subscription_or_the_database_lets_the_writer_go(open_db: OpenDB) -> None:
    for what in ("subscription", "database"):
        db = open_db()
        changes = db.subscribe(queue=1)
        outcome: list[object] = []

        def write(db: meles.DB = db, outcome: list[object] = outcome) -> None:
            try:
                for n in range(5):
                    db[b"%d" % n] = b"v"
                outcome.append("written")
            except meles.Error as error:
                outcome.append(type(error))

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: len(changes._feed._queue) == 1)  # noqa: B023
        if what == "subscription":
            changes.close()
        else:
            db.close()
        writer.join(30)
        assert outcome == ["written" if what == "subscription" else meles.ClosedError]
        db.close()


def test_a_forgotten_subscription_holds_nobody_back(db: meles.DB) -> None:
    for _ in range(2):
        threading.Timer(0.01, lambda: db.set(b"first", b"v")).start()
        for change in db.subscribe(queue=1):
            assert change.key == b"first"
            break
        gc.collect()
    writer = threading.Thread(target=lambda: [db.set(b"%d" % n, b"v") for n in range(50)])
    writer.start()
    writer.join(30)
    assert not writer.is_alive()


def test_a_thread_that_subscribes_and_writes_does_not_wait_for_itself(db: meles.DB) -> None:
    with db.subscribe(queue=2) as changes:
        for n in range(50):
            db[b"%02d" % n] = b"v"
        assert len(take(changes, 50)) == 50


def test_drop_leaves_changes_out_and_says_how_many(db: meles.DB) -> None:
    with db.subscribe(queue=3, on_overflow="drop") as changes:
        for n in range(10):
            db[b"%d" % n] = b"v"
        assert [(c.key, c.missed) for c in take(changes, 3)] == [(b"0", 0), (b"1", 0), (b"2", 0)]
        db[b"next"] = b"v"
        change = next(changes)
        assert (change.key, change.missed) == (b"next", 7)
        db[b"after"] = b"v"
        assert next(changes).missed == 0


def test_raise_hits_the_subscriber_never_the_writer(db: meles.DB) -> None:
    changes = db.subscribe(queue=3, on_overflow="raise")
    for n in range(10):
        db[b"%d" % n] = b"v"
    assert [change.key for change in take(changes, 3)] == [b"0", b"1", b"2"]
    for _ in range(2):
        with pytest.raises(meles.WriteStallError) as caught:
            next(changes)
        assert isinstance(caught.value, TimeoutError)
    db[b"still"] = b"works"
    changes.close()
    assert list(changes) == []


def test_several_subscribers_are_independent(db: meles.DB) -> None:
    with db.subscribe() as every, db.subscribe(b"a", queue=1, on_overflow="drop") as some:
        for key in (b"a1", b"b1", b"a2"):
            db[key] = b"v"
        assert [change.key for change in take(every, 3)] == [b"a1", b"b1", b"a2"]
        assert next(some).key == b"a1"
        assert some.next_change(timeout=0) is None


def test_what_the_engine_does_by_itself_is_no_change(open_db: OpenDB) -> None:
    """Badger publishes collected values, folds and its own markers again."""
    db = open_db(value_log_file_size="1MiB")
    with db.subscribe(queue=100_000) as changes:
        for n in range(60):
            db[b"%02d" % (n % 20)] = bytes(60_000)
        with db.update() as txn:
            txn[b"end"] = b"v"
        db.flush()
        db.flatten()
        db.gc(0.1)
        db.drop_prefix(b"0")
        assert len(take(changes, 61)) == 61
        assert changes.next_change(timeout=0) is None

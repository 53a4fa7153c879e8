"""`db.close`: by stages, once, idempotent, and what every call says afterwards."""

from __future__ import annotations

import gc
import io
import threading
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import meles
import pytest

pytestmark = pytest.mark.leak_guard
OpenDB = Callable[..., meles.DB]


@pytest.mark.parametrize("workers", ["inline", "thread", "process"])
def test_the_report_lists_each_stage(open_db: OpenDB, workers: str) -> None:
    db = open_db(workers=workers)
    db[b"k"] = b"v" * 5000
    report = db.close()
    assert isinstance(report, meles.CloseReport)
    assert report.clean is True
    assert len(report.stages) > 5
    for stage in report.stages:
        assert isinstance(stage, meles.Stage)
        assert stage.name
        assert stage.seconds >= 0
        assert stage.outcome in ("done", "timeout", "failed", "skipped")
        assert isinstance(stage.detail, str)
    assert "lock" in report.stages[-1].name  # the locks go last


def test_a_second_call_returns_the_same_report(db: meles.DB) -> None:
    report = db.close(timeout=timedelta(seconds=5))
    assert db.close() is report
    assert db.close(timeout=0) is report
    with pytest.raises(meles.ClosedError), db:
        pass
    assert db.close() is report


def test_leaving_the_block_closes(open_db: OpenDB) -> None:
    with open_db() as db:
        assert not db.closed
    assert db.closed

    def fail() -> None:
        with open_db() as db:
            db[b"k"] = b"v"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert open_db()[b"k"] == b"v"  # so it was closed, and kept


def test_no_time_at_all_loses_nothing(open_db: OpenDB) -> None:
    for workers in ("thread", "inline"):
        db = open_db(workers=workers)
        for n in range(1000):
            db[b"%s%03d" % (workers.encode(), n)] = b"v" * 2000
        db.close(timeout=0)
        with open_db() as db:
            assert len(list(db.items(workers.encode()))) == 1000
            assert db.verify(values=True).ok


USES: dict[str, Callable[[meles.DB], Any]] = {
    "get": lambda db: db.get(b"k"),
    "subscript": lambda db: db[b"k"],
    "in": lambda db: b"k" in db,
    "get_many": lambda db: db.get_many([b"k"]),
    "get_many of nothing": lambda db: db.get_many([]),
    "set": lambda db: db.set(b"k", b"v"),
    "setitem": lambda db: db.__setitem__(b"k", b"v"),
    "delete": lambda db: db.delete(b"k"),
    "delitem": lambda db: db.__delitem__(b"k"),
    "view": lambda db: db.view(),
    "view at": lambda db: db.view(at=0),
    "update": lambda db: db.update(),
    "transact": lambda db: db.transact(lambda txn: None),
    "transactional": lambda db: db.transactional()(lambda txn: None)(),
    "items": lambda db: db.items(),
    "keys": lambda db: db.keys(),
    "values": lambda db: db.values(),
    "iterate": lambda db: db.iterate(),
    "iter": iter,
    "write_batch": lambda db: db.write_batch(),
    "sequence": lambda db: db.sequence(b"s"),
    "merge_operator": lambda db: db.merge_operator(b"m", lambda a, b: a),
    "subscribe": lambda db: db.subscribe(),
    "flush": lambda db: db.flush(),
    "sync": lambda db: db.sync(),
    "wait_idle": lambda db: db.wait_idle(),
    "flatten": lambda db: db.flatten(),
    "gc": lambda db: db.gc(),
    "gc with a bad ratio": lambda db: db.gc(5),
    "get a str": lambda db: db.get("k"),
    "set a str": lambda db: db.set(b"k", "v", ttl=-1),
    "transact never": lambda db: db.transact(lambda txn: None, -1),
    "drop_prefix of nothing": lambda db: db.drop_prefix(),
    "drop_prefix of a str": lambda db: db.drop_prefix("k"),
    "view at a bad time": lambda db: db.view(at=-1),
    "a batch at a bad time": lambda db: db.write_batch(at=-1),
    "a sequence of a bad width": lambda db: db.sequence(b"s", 0),
    "subscribe to a str": lambda db: db.subscribe("k", on_overflow="?"),
    "flush in bad time": lambda db: db.flush("soon"),
    "iterate over a str": lambda db: db.iterate("k", limit=-1),
    "backup": lambda db: db.backup(io.BytesIO()),
    "verify": lambda db: db.verify(),
    "drop_all": lambda db: db.drop_all(),
    "drop_prefix": lambda db: db.drop_prefix(b"k"),
    "ban_namespace": lambda db: db.ban_namespace(1),
    "banned_namespaces": lambda db: db.banned_namespaces(),
    "stats": lambda db: db.stats(),
    "levels": lambda db: db.levels(),
    "tables": lambda db: db.tables(),
    "size": lambda db: db.size(),
    "space": lambda db: db.space(),
    "estimate_size": lambda db: db.estimate_size(b"k"),
    "max_version": lambda db: db.max_version(),
    "workers": lambda db: db.workers(),
    "set_discard_ts": lambda db: db.set_discard_ts(1),
    "enter": lambda db: db.__enter__(),
}


def test_every_public_call_is_in_the_list_below() -> None:
    public = {name for name in dir(meles.DB) if not name.startswith("_")}
    assert public - set(USES) == {"close", "closed", "health", "options", "path"}


@pytest.mark.parametrize("mode", ["own", "read_only"])
def test_every_call_on_a_closed_handle_raises_closed_error(open_db: OpenDB, mode: str) -> None:
    open_db().close()
    db = open_db(mode=mode)
    db.close()
    for name, use in USES.items():
        with pytest.raises(meles.ClosedError) as caught:
            use(db)
        assert isinstance(caught.value, ValueError), name
        assert db.path in str(caught.value), name
    assert db.health().status == "closed"
    assert db.options.workers == "inline"


def test_a_database_that_is_forgotten_is_closed_with_a_warning(open_db: OpenDB) -> None:
    db = meles.open(open_db(None, mode="memory").path + "-forgotten", workers="inline")
    path = db.path
    db[b"k"] = b"v"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del db
        gc.collect()
    assert any("not closed" in str(warning.message) for warning in caught)
    with open_db(path) as db:
        assert db[b"k"] == b"v"
        db.drop_all()


# -- closing while others work -------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["inline", "thread"])
def test_closing_under_load_gives_the_others_closed_error_and_nothing_else(
    open_db: OpenDB, workers: str
) -> None:
    """Badger panics: reads dereference nil, commits send on a closed channel."""
    for _ in range(3):
        db = open_db(
            workers=workers, memtable_size="64KiB", value_log_file_size="1MiB", value_threshold=100
        )
        load = Load(db)
        assert load.wrong == []
        assert load.stuck == []
        assert load.report.clean
        with open_db() as db:
            assert db.verify(values=True).ok


class Load:
    """Threads that read, write, iterate and care until the database closes under them."""

    def __init__(self, db: meles.DB) -> None:
        self.db = db
        self.wrong: list[str] = []
        self._started = threading.Semaphore(0)
        work = (
            self._set, self._batch, self._transact, self._get, self._scan, self._look, self._care,
            self._listen,
        )  # fmt: skip
        threads = [
            threading.Thread(target=self._run, args=(one,), name=one.__name__) for one in work
        ]
        for thread in threads:
            thread.start()
        for _ in range(3 * len(threads)):
            self._started.acquire()
        self.report = db.close(timeout=30)
        for thread in threads:
            thread.join(30)
        self.stuck = [thread.name for thread in threads if thread.is_alive()]

    def _run(self, work: Callable[[int], object]) -> None:
        n = 0
        try:
            while True:
                n += 1
                work(n)
                self._started.release()
        except meles.ClosedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells
            self.wrong.append(f"{work.__name__}: {error!r}")
        for _ in range(3):
            self._started.release()

    def _set(self, n: int) -> None:
        self.db.set(b"%04d" % (n % 500), b"v" * (n % 7 * 100), ttl=100 if n % 3 else None)

    def _batch(self, n: int) -> None:
        with self.db.write_batch() as batch:
            for m in range(100):
                batch[b"%04d" % ((n + m) % 500)] = b"v" * (m % 2 * 200)

    def _transact(self, n: int) -> None:
        @self.db.transactional(retries=1000)
        def move(txn: meles.Txn) -> None:
            txn[b"%04d" % (n % 500)] = txn.get(b"0001") or b""

        move()

    def _get(self, n: int) -> None:
        self.db.get(b"%04d" % (n % 500))
        self.db.get_many([b"%04d" % m for m in range(50)])

    def _scan(self, n: int) -> None:
        with self.db.view() as txn:
            for item in txn.iterate(reverse=bool(n % 2), all_versions=bool(n % 3)):
                item.value  # noqa: B018 - reading it is the point
        list(self.db.items(b"00"))

    def _look(self, n: int) -> None:
        self.db.stats()
        self.db.verify(values=n % 5 == 0)
        self.db.estimate_size(b"00")
        self.db.space()

    def _care(self, n: int) -> None:
        self.db.flush()
        self.db.wait_idle(timeout=0.01)
        self.db.gc(0.1, timeout=1)
        self.db.sync()
        self.db.drop_prefix(b"%03d" % (n % 50))

    def _listen(self, _n: int) -> None:
        with self.db.subscribe(queue=5) as changes:
            for _ in range(20):
                if changes.next_change() is None:
                    self.db.max_version()

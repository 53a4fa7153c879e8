"""Tables and databases closed under the eyes of their readers: an answer or `ClosedError`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine.codec.columns import Columns
from meles.engine.errors import ClosedError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from twins import NATIVE, needs_native_run

PATIENCE = 30.0
KEYS = [b"user%05d" % n for n in range(600)]


@pytest.fixture(autouse=True)
def _impatient() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def beside(asks: list[Callable[[], Any]], close: Callable[[], Any]) -> None:
    """Repeat the questions on threads of their own until each was refused; close meanwhile."""
    wrong: list[BaseException] = []
    started = [threading.Event() for _ in asks]

    def repeat(ask: Callable[[], Any], begun: threading.Event) -> None:
        try:
            while True:
                ask()
                begun.set()
        except ClosedError:
            begun.set()
        except BaseException as error:  # noqa: BLE001 - told to the test
            wrong.append(error)
            begun.set()

    threads = [
        threading.Thread(target=repeat, args=pair, daemon=True)
        for pair in zip(asks, started, strict=True)
    ]
    for thread in threads:
        thread.start()
    for begun in started:
        assert begun.wait(PATIENCE)
    close()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@needs_native_run
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("unchecked", [True, False], ids=["checking", "checked"])
def test_a_table(directory: Directory, compression: str, unchecked: bool) -> None:
    columns = Columns(KEYS, [1] * 600, [0] * 600, [0] * 600, [key * 3 for key in KEYS])
    options = BuildOptions(block_size=512, compression=compression)
    builder = TableBuilder(directory, 1, options, created_ms=1)
    builder.add(columns)
    builder.finish()
    for _ in range(10):
        table = Table(directory, 1)
        points = NATIVE.Points([], (), [[table]], None, None)

        def lookups(table: Table = table) -> None:
            blocks = table.blocks()
            for key in KEYS[::37]:
                assert blocks.get(key, 5) == (1, 0, 0, key * 3)

        def view_lookups(points: Any = points) -> None:
            for key in KEYS[::41]:
                assert points.value_of(key, 5) == key * 3

        def scans(table: Table = table) -> None:
            scan = NATIVE.Scan([[table]], None, None, 5, 0, 0, None)
            found = [key for keys, _ in iter(scan.next_batch, None) for key in keys]
            assert found == KEYS

        if not unchecked:
            scans()
        beside([lookups, view_lookups, scans, scans], table.close)


@pytest.mark.parametrize("memory", [False, True])
def test_a_database(tmp_path: Path, memory: bool) -> None:
    for round_ in range(3):
        if memory:
            db = meles.open(None, mode="memory")
        else:
            db = meles.open(str(tmp_path / str(round_)), workers="inline", memtable_size=1 << 16)
        for key in KEYS:
            db.set(key, key * 3)

        def gets(db: Any = db) -> None:
            for key in KEYS[::37]:
                assert db.get(key) == key * 3

        def sets(db: Any = db) -> None:
            db.set(b"zzz", b"value")

        def scans(db: Any = db) -> None:
            found = list(db.keys(stop=b"v"))
            if found != KEYS:
                db.get(b"a")  # closed under way: this raises
                raise AssertionError(f"{len(found)} keys")

        def one_transaction(db: Any = db) -> None:
            with db.view() as txn:
                assert txn.get(KEYS[7]) == KEYS[7] * 3

        beside([gets, gets, sets, scans, one_transaction], db.close)


def test_a_value_reader_that_closes_the_database(tmp_path: Path) -> None:
    """What was read before is given, and then nothing but the refusal."""
    db = meles.open(str(tmp_path / "db"), value_threshold=1 << 10, workers="inline")
    for key in KEYS[:50]:
        db.set(key, key * 300)
    items = db.items()
    assert next(items) == (KEYS[0], KEYS[0] * 300)
    db.close()
    for _ in range(3):
        with pytest.raises(ClosedError):
            next(items)


def test_many_threads_on_one_iterator(tmp_path: Path) -> None:
    """An iterator is for one thread; several get items, or an error that says so, never a crash."""
    with meles.open(str(tmp_path / "db"), workers="inline", memtable_size=1 << 16) as db:
        for key in KEYS:
            db.set(key, key * 3)
        for _ in range(10):
            items = db.items()
            wrong: list[BaseException] = []
            found: list[Any] = []

            def take(items: Any = items, wrong: Any = wrong, found: Any = found) -> None:
                try:
                    for item in items:
                        found.append(item)
                except meles.Error:
                    pass
                except BaseException as error:  # noqa: BLE001 - told to the test
                    wrong.append(error)

            threads = [threading.Thread(target=take) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert wrong == []
            assert all(value == key * 3 for key, value in found)
            items.close()

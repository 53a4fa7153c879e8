"""Stores under one interface, so that the benchmarks ask each of them the same.

Runs in: the process that measures. Peers have their defaults, which sync no write; ours gets
`sync="none"` to match. Where a call exists for raw bytes, it is the one that is used.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from importlib import metadata
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

BATCH = 1000


def make_values(value_bytes: int) -> list[bytes]:
    """Values to go round with: one value everywhere would compress to nothing in peers' blocks."""
    rng = random.Random(8)
    return [rng.randbytes(value_bytes) for _ in range(256)]


class Engine(Protocol):
    """One store, open on a fresh or existing directory."""

    def set_all(self, keys: list[bytes], values: list[bytes]) -> None: ...
    def batch_all(self, keys: list[bytes], values: list[bytes]) -> None: ...
    def get_all(self, keys: list[bytes]) -> int: ...
    def scan(self) -> int: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


def put_each(put: Callable[[bytes, bytes], object], keys: list[bytes], values: list[bytes]) -> None:
    for key, value in zip(keys, cycle(values), strict=False):
        put(key, value)


def found_of(get: Callable[[bytes], object], keys: list[bytes]) -> int:
    return sum(1 for key in keys if get(key) is not None)


class Meles:
    """Ours, with worker processes and default options but for `sync`, as the peers' defaults."""

    def __init__(self, path: Path, **options: Any) -> None:
        import meles

        self.db = meles.open(path, **{"sync": "none", **options})
        self._wait_for_workers()

    def _wait_for_workers(self) -> None:
        """Their start takes the processors for a while and is not what is measured."""
        end = time.monotonic() + 30
        while time.monotonic() < end and any(w.state == "starting" for w in self.db.workers()):
            time.sleep(0.01)

    def set_all(self, keys: list[bytes], values: list[bytes]) -> None:
        put_each(self.db.set, keys, values)

    def txn_all(self, keys: list[bytes], values: list[bytes]) -> None:
        update = self.db.update
        for key, value in zip(keys, cycle(values), strict=False):
            with update() as txn:
                txn.set(key, value)

    def batch_all(self, keys: list[bytes], values: list[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            with self.db.write_batch() as batch:
                put_each(batch.set, keys[start : start + BATCH], values)

    def get_all(self, keys: list[bytes]) -> int:
        return found_of(self.db.get, keys)

    def scan(self) -> int:
        return sum(1 for _ in self.db.items())

    def settle(self) -> None:
        self.db.flush()
        self.db.wait_idle(120)

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.db.workers() if worker.pid]

    def close(self) -> None:
        self.db.close(60)


class Plyvel:
    """LevelDB."""

    def __init__(self, path: Path) -> None:
        import plyvel

        self.db: Any = plyvel.DB(str(path), create_if_missing=True)

    def set_all(self, keys: list[bytes], values: list[bytes]) -> None:
        put_each(self.db.put, keys, values)

    def batch_all(self, keys: list[bytes], values: list[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            with self.db.write_batch() as batch:
                put_each(batch.put, keys[start : start + BATCH], values)

    def get_all(self, keys: list[bytes]) -> int:
        return found_of(self.db.get, keys)

    def scan(self) -> int:
        return sum(1 for _ in self.db)

    def settle(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class RocksDict:
    """RocksDB, raw bytes mode. `changes` are called with its options."""

    def __init__(self, path: Path, *changes: Callable[[Any], object]) -> None:
        import rocksdict

        self.module: Any = rocksdict
        options: Any = rocksdict.Options(raw_mode=True)
        for change in changes:
            change(options)
        self.db: Any = rocksdict.Rdict(str(path), options)

    def set_all(self, keys: list[bytes], values: list[bytes]) -> None:
        put_each(self.db.put, keys, values)

    def batch_all(self, keys: list[bytes], values: list[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            batch = self.module.WriteBatch(raw_mode=True)
            put_each(batch.put, keys[start : start + BATCH], values)
            self.db.write(batch)

    def get_all(self, keys: list[bytes]) -> int:
        return found_of(self.db.get, keys)

    def scan(self) -> int:
        return sum(1 for _ in self.db.items())

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)

    def rests(self) -> bool:
        """Whether nothing runs or waits in the background."""
        names = ("num-running-compactions", "compaction-pending", "num-running-flushes")
        return not any(self.db.property_int_value(f"rocksdb.{name}") for name in names)

    def close(self) -> None:
        self.db.close()


class Lmdb:
    """LMDB without syncing; a put is a transaction of its own, as with the others."""

    def __init__(self, path: Path) -> None:
        import lmdb

        path.mkdir(exist_ok=True)
        self.env: Any = lmdb.open(str(path), map_size=1 << 36, sync=False, metasync=False)

    def set_all(self, keys: list[bytes], values: list[bytes]) -> None:
        begin = self.env.begin
        for key, value in zip(keys, cycle(values), strict=False):
            with begin(write=True) as txn:
                txn.put(key, value)

    def batch_all(self, keys: list[bytes], values: list[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            with self.env.begin(write=True) as txn:
                put_each(txn.put, keys[start : start + BATCH], values)

    def get_all(self, keys: list[bytes]) -> int:
        with self.env.begin() as txn:
            return found_of(txn.get, keys)

    def scan(self) -> int:
        with self.env.begin() as txn:
            return sum(1 for _ in txn.cursor())

    def settle(self) -> None:
        return

    def close(self) -> None:
        self.env.close()


class Sqlite:
    """SQLite as a key-value table, WAL mode, nothing synced; a put is a transaction of its own."""

    def __init__(self, path: Path) -> None:
        import sqlite3

        path.mkdir(exist_ok=True)
        self.db = sqlite3.connect(path / "store.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")

    def set_all(self, keys: list[bytes], values: list[bytes]) -> None:
        execute = self.db.execute
        for key, value in zip(keys, cycle(values), strict=False):
            execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))

    def batch_all(self, keys: list[bytes], values: list[bytes]) -> None:
        for start in range(0, len(keys), BATCH):
            rows = list(zip(keys[start : start + BATCH], cycle(values), strict=False))
            self.db.execute("BEGIN")
            self.db.executemany("INSERT OR REPLACE INTO kv VALUES (?, ?)", rows)
            self.db.execute("COMMIT")

    def get_all(self, keys: list[bytes]) -> int:
        execute = self.db.execute
        ask = "SELECT v FROM kv WHERE k = ?"
        return sum(1 for key in keys if execute(ask, (key,)).fetchone() is not None)

    def scan(self) -> int:
        return sum(1 for _ in self.db.execute("SELECT k, v FROM kv ORDER BY k"))

    def settle(self) -> None:
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self.db.close()


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "meles": Meles,
    "plyvel": Plyvel,
    "rocksdict": RocksDict,
    "lmdb": Lmdb,
    "sqlite3": Sqlite,
}
_PACKAGES = ("meles", "plyvel", "rocksdict", "lmdb", "matplotlib")


def installed() -> list[str]:
    """Engines that are there: plyvel has no wheels for the newest Pythons."""
    found = []
    for name in ENGINES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        found.append(name)
    return found


def versions() -> dict[str, str]:
    import sqlite3

    found = {"sqlite3": sqlite3.sqlite_version}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

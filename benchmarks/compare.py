"""Point operations and scans from Python, beside plyvel, rocksdict and lmdb in the same run.

    python benchmarks/compare.py [--entries 300000] [--value-bytes 100] [--rounds 5]

Runs in: one process; engines take turns, so that a noisy machine is noisy for all of them. Every
figure is a rate, judged as the median over rounds of the ratio to a peer in the same round. Reads
happen after a reopen, with everything in tables and warm. No engine syncs on each write.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

KEY_BYTES = 16
BATCH = 1000
OPERATIONS = ("set", "write_batch", "get", "items")

# operation, peer, least ratio of our rate to theirs
TARGETS = (("set", "rocksdict", 1.0), ("write_batch", "rocksdict", 1.0), ("items", "plyvel", 0.5))


class Engine(Protocol):
    """One store, open on a fresh or existing directory."""

    def set_all(self, keys: list[bytes], value: bytes) -> None: ...
    def batch_all(self, keys: list[bytes], value: bytes) -> None: ...
    def get_all(self, keys: list[bytes]) -> int: ...
    def scan(self) -> int: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...


class Meles:
    """Ours, with worker processes and default options but for `sync`, as the peers' defaults."""

    def __init__(self, path: Path) -> None:
        import meles

        self.db = meles.open(path, sync="none")

    def set_all(self, keys: list[bytes], value: bytes) -> None:
        put = self.db.set
        for key in keys:
            put(key, value)

    def batch_all(self, keys: list[bytes], value: bytes) -> None:
        for start in range(0, len(keys), BATCH):
            with self.db.write_batch() as batch:
                put = batch.set
                for key in keys[start : start + BATCH]:
                    put(key, value)

    def get_all(self, keys: list[bytes]) -> int:
        get = self.db.get
        return sum(1 for key in keys if get(key) is not None)

    def scan(self) -> int:
        return sum(1 for _ in self.db.items())

    def settle(self) -> None:
        self.db.flush()
        self.db.wait_idle(120)

    def close(self) -> None:
        self.db.close(60)


class Plyvel:
    """LevelDB."""

    def __init__(self, path: Path) -> None:
        import plyvel

        self.db: Any = plyvel.DB(str(path), create_if_missing=True)

    def set_all(self, keys: list[bytes], value: bytes) -> None:
        put = self.db.put
        for key in keys:
            put(key, value)

    def batch_all(self, keys: list[bytes], value: bytes) -> None:
        for start in range(0, len(keys), BATCH):
            with self.db.write_batch() as batch:
                put = batch.put
                for key in keys[start : start + BATCH]:
                    put(key, value)

    def get_all(self, keys: list[bytes]) -> int:
        get = self.db.get
        return sum(1 for key in keys if get(key) is not None)

    def scan(self) -> int:
        return sum(1 for _ in self.db)

    def settle(self) -> None:
        self.db.compact_range()

    def close(self) -> None:
        self.db.close()


class RocksDict:
    """RocksDB, raw bytes mode."""

    def __init__(self, path: Path) -> None:
        import rocksdict

        self.module: Any = rocksdict
        self.db: Any = rocksdict.Rdict(str(path), rocksdict.Options(raw_mode=True))

    def set_all(self, keys: list[bytes], value: bytes) -> None:
        put = self.db.put
        for key in keys:
            put(key, value)

    def batch_all(self, keys: list[bytes], value: bytes) -> None:
        for start in range(0, len(keys), BATCH):
            batch = self.module.WriteBatch(raw_mode=True)
            put = batch.put
            for key in keys[start : start + BATCH]:
                put(key, value)
            self.db.write(batch)

    def get_all(self, keys: list[bytes]) -> int:
        get = self.db.get
        return sum(1 for key in keys if get(key) is not None)

    def scan(self) -> int:
        return sum(1 for _ in self.db.items())

    def settle(self) -> None:
        self.db.flush()
        self.db.compact_range(None, None)

    def close(self) -> None:
        self.db.close()


class Lmdb:
    """LMDB without syncing; a put is a transaction of its own, as with the others."""

    def __init__(self, path: Path) -> None:
        import lmdb

        path.mkdir(exist_ok=True)
        self.env: Any = lmdb.open(str(path), map_size=1 << 34, sync=False, metasync=False)

    def set_all(self, keys: list[bytes], value: bytes) -> None:
        begin = self.env.begin
        for key in keys:
            with begin(write=True) as txn:
                txn.put(key, value)

    def batch_all(self, keys: list[bytes], value: bytes) -> None:
        for start in range(0, len(keys), BATCH):
            with self.env.begin(write=True) as txn:
                put = txn.put
                for key in keys[start : start + BATCH]:
                    put(key, value)

    def get_all(self, keys: list[bytes]) -> int:
        with self.env.begin() as txn:
            get = txn.get
            return sum(1 for key in keys if get(key) is not None)

    def scan(self) -> int:
        with self.env.begin() as txn:
            return sum(1 for _ in txn.cursor())

    def settle(self) -> None:
        return

    def close(self) -> None:
        self.env.close()


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "meles": Meles,
    "plyvel": Plyvel,
    "rocksdict": RocksDict,
    "lmdb": Lmdb,
}


@dataclass
class Load:
    """What is written and read: random keys in random order, one value."""

    keys: list[bytes]
    value: bytes
    lookups: list[bytes]


def make_load(entries: int, value_bytes: int) -> Load:
    rng = random.Random(7)
    keys = [rng.randbytes(KEY_BYTES) for _ in range(entries)]
    return Load(keys, rng.randbytes(value_bytes), rng.sample(keys, min(entries, 100_000)))


def timed(action: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(make: Callable[[Path], Engine], home: Path, load: Load) -> Iterator[tuple[str, float]]:
    """(operation, entries a second) of one engine in one round."""
    engine = make(home / "single")
    yield "set", len(load.keys) / timed(lambda: engine.set_all(load.keys, load.value))
    engine.close()
    shutil.rmtree(home / "single")
    engine = make(home / "batch")
    yield "write_batch", len(load.keys) / timed(lambda: engine.batch_all(load.keys, load.value))
    engine.settle()
    engine.close()
    engine = make(home / "batch")
    if engine.scan() != len(load.keys) or engine.get_all(load.lookups) != len(load.lookups):
        raise SystemExit(f"{type(engine).__name__} lost entries")
    yield "get", len(load.lookups) / timed(lambda: engine.get_all(load.lookups))
    yield "items", len(load.keys) / timed(engine.scan)
    engine.close()


def run(load: Load, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Rates by operation and engine, one a round."""
    rates: dict[str, dict[str, list[float]]] = {op: {} for op in OPERATIONS}
    for number in range(rounds):
        for name, make in ENGINES.items():
            home = Path(tempfile.mkdtemp(prefix="meles-compare-"))
            try:
                for operation, rate in measure(make, home, load):
                    rates[operation].setdefault(name, []).append(rate)
            finally:
                shutil.rmtree(home, ignore_errors=True)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return rates


def ratio(rates: dict[str, list[float]], peer: str) -> float:
    """Median over rounds of our rate to the peer's."""
    return statistics.median(a / b for a, b in zip(rates["meles"], rates[peer], strict=True))


def report(rates: dict[str, dict[str, list[float]]]) -> bool:
    """Print the table and the targets; whether all are met."""
    peers = [name for name in ENGINES if name != "meles"]
    columns = "".join(f"{f'to {p}':>14}" for p in peers)
    print(f"{'operation':<12}{'entries/s':>12}{'us each':>10}{columns}")
    for operation in OPERATIONS:
        ours = statistics.median(rates[operation]["meles"])
        ratios = "".join(f"{ratio(rates[operation], peer):>13.2f}x" for peer in peers)
        print(f"{operation:<12}{ours:>12,.0f}{1e6 / ours:>10.2f}{ratios}")
    all_met = True
    for operation, peer, least in TARGETS:
        found = ratio(rates[operation], peer)
        met = found >= least
        all_met = all_met and met
        verdict = "met" if met else "NOT MET"
        print(f"target {operation}: at least {least} x {peer}: {found:.2f} {verdict}")
    return all_met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load = make_load(args.entries, args.value_bytes)
    print(f"{args.entries:,} entries of {KEY_BYTES} B + {args.value_bytes} B, random order")
    return 0 if report(run(load, args.rounds)) else 1


if __name__ == "__main__":
    sys.exit(main())

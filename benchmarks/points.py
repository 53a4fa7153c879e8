"""Point operations and scans of every engine, which take turns in each round.

Runs in: one process and our workers. Writes go into fresh stores (`fill`), or into stores that hold
the entries already (`sample`), where filling them five times would take too long. Reads happen
after a reopen, with everything in tables and read once before.
"""

from __future__ import annotations

import gc
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import memory
from engines import ENGINES, Engine, Meles, make_values
from report import Report, home, ratio

KEY_BYTES = 16
LOOKUPS = 100_000
SHARES = {"sqlite3": 10, "lmdb": 3}  # every tenth key is written: slow, and their place is clear
OPERATIONS = ("set", "txn", "write_batch", "get", "items")
Rates = dict[str, dict[str, list[float]]]  # by operation and engine, one a round

# operation, peer, least ratio of our rate to theirs, aim; txn is compared with the peer's set
TARGETS: tuple[tuple[str, str, float, float | None], ...] = (
    ("set", "rocksdict", 1.5, 3.0),
    ("set", "plyvel", 1.2, None),
    ("set", "lmdb", 0.0, 1.0),
    ("txn", "plyvel", 1 / 2.4, 1 / 1.2),
    ("write_batch", "rocksdict", 2.0, None),
    ("write_batch", "plyvel", 1.5, None),
    ("write_batch", "lmdb", 0.0, 1.0),
    ("get", "rocksdict", 1.5, None),
    ("get", "plyvel", 1.2, None),
    ("get", "lmdb", 0.0, 1.0),
    ("items", "plyvel", 1.5, None),
    ("items", "lmdb", 0.0, 1.0),
)


@dataclass
class Load:
    """What is written and read: random keys in random order, values that do not compress."""

    entries: int
    value_bytes: int
    rounds: int
    engines: list[str]
    sample: int = 0  # entries a round writes into stores that are full already; 0: fill fresh ones
    keys: list[bytes] = field(init=False)
    values: list[bytes] = field(init=False)
    lookups: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = random_keys(self.entries, 7)
        self.values = make_values(self.value_bytes)
        self.lookups = sample_of(self.keys, LOOKUPS)

    @property
    def title(self) -> str:
        return f"{size_name(self.entries)} x {self.value_bytes:,} B"


def random_keys(count: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(KEY_BYTES) for _ in range(count)]


def sample_of(keys: list[bytes], count: int) -> list[bytes]:
    """Some of the keys, as objects that lie side by side: who looks up with those of 10 M entries
    waits for each, wherever it is in a gigabyte of objects, before any store is asked.
    """
    chosen = random.Random(9).sample(keys, min(len(keys), count))
    return [bytes(bytearray(key)) for key in chosen]


def size_name(entries: int) -> str:
    if entries >= 1_000_000:
        return f"{entries / 1e6:g} M"
    return f"{entries / 1000:g} k"


def timed(action: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def measure(load: Load, report: Report) -> Rates:
    """All operations, and the memory each engine holds with this load."""
    rates: Rates = {op: {} for op in OPERATIONS}
    with home() as path:
        if not load.sample:
            for _ in range(load.rounds):
                _fill_round(load, path, rates)
        held = {}
        for name in load.engines:  # each in a process of its own, which tells what it holds
            held[name] = memory.build(name, path / name, load.entries, load.value_bytes)
        open_stores = {name: ENGINES[name](path / name) for name in load.engines}
        try:
            _read_rounds(load, open_stores, rates)
            if load.sample:
                _sample_rounds(load, open_stores, rates)
        finally:
            for store in open_stores.values():
                store.close()
    show(load, rates, report)
    memory.show(load.title, held, report)
    return rates


def _fill_round(load: Load, path: Path, rates: Rates) -> None:
    for name in load.engines:
        for operation in ("set", "txn", "write_batch"):
            if operation == "txn" and name != "meles":
                continue
            engine = ENGINES[name](path / "fill")
            keys = load.keys[:: SHARES.get(name, 1)]
            try:
                _note(rates, operation, name, len(keys), _writing(engine, operation, keys, load))
            finally:
                engine.close()
                shutil.rmtree(path / "fill")


def _writing(engine: Engine, operation: str, keys: list[bytes], load: Load) -> float:
    values = load.values
    if operation == "set":
        return timed(lambda: engine.set_all(keys, values))
    if operation == "txn":
        assert isinstance(engine, Meles)
        return timed(lambda: engine.txn_all(keys, values))
    return timed(lambda: engine.batch_all(keys, values))


def _read_rounds(load: Load, stores: dict[str, Engine], rates: Rates) -> None:
    for name, engine in stores.items():  # warms them, too
        if engine.scan() != load.entries or engine.get_all(load.lookups) != len(load.lookups):
            raise SystemExit(f"{name} lost entries")
    for _ in range(load.rounds):
        for name, engine in stores.items():
            seconds = timed(lambda e=engine: e.get_all(load.lookups))
            _note(rates, "get", name, len(load.lookups), seconds)
            _note(rates, "items", name, load.entries, timed(engine.scan))


def _sample_rounds(load: Load, stores: dict[str, Engine], rates: Rates) -> None:
    """New keys go into full stores; each comes to rest before the next one's turn."""
    for number in range(load.rounds):
        for at, operation in enumerate(("set", "txn", "write_batch")):
            keys = random_keys(load.sample, 1000 + 10 * number + at)
            for name, engine in stores.items():
                if operation == "txn" and name != "meles":
                    continue
                _note(rates, operation, name, load.sample, _writing(engine, operation, keys, load))
                if isinstance(engine, Meles):  # compacting all of a peer would take longer than
                    engine.settle()  # all the rest, and what it does by itself is small
                else:
                    time.sleep(1)


def _note(rates: Rates, operation: str, name: str, count: int, seconds: float) -> None:
    rates[operation].setdefault(name, []).append(count / seconds)


def show(load: Load, rates: Rates, report: Report) -> None:
    """A table in microseconds, and the targets."""
    title = load.title
    report.say(f"{title}, medians of {load.rounds} rounds, microseconds per entry")
    report.say(f"{'':<14}" + "".join(f"{name:>12}" for name in load.engines))
    for operation in OPERATIONS:
        cells = ""
        for name in load.engines:
            found = rates[operation].get(name)
            cells += f"{1e6 / median(found):>12.2f}" if found else f"{'':>12}"
        report.say(f"{operation:<14}{cells}")
    for operation, peer, least, aim in TARGETS:
        if peer not in load.engines:
            continue
        theirs = "set" if operation == "txn" else operation
        both = {"ours": rates[operation]["meles"], "theirs": rates[theirs][peer]}
        found = ratio(both, "ours", "theirs")
        if operation == "txn":
            name = f"{title}: time of a txn with one set / {peer}'s put"
            report.want(name, 1 / found, 2.4, 1.2, unit="x", upwards=False)
        elif least:
            report.want(f"{title}: {operation}, rate to {peer}'s", found, least, aim)
        else:
            report.aim(f"{title}: {operation}, rate to {peer}'s: {found:.2f} x", found >= 1)

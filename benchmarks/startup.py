"""Opening, closing and importing; recovery of a log after a kill; opening with many tables.

Runs in: one process, our workers, and processes that are killed or only import.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import meles
from engines import Meles, make_values
from report import Report, home, wait_for

KEY_BYTES = 16
VALUE_BYTES = 1000  # under the value threshold: all of it is in tables
IMPORT = "import time; t = time.perf_counter(); import meles; print(time.perf_counter() - t)"
FILL_AND_DIE = """
import os, random, signal, sys, meles
path, size = sys.argv[1], int(sys.argv[2])
db = meles.open(path, sync="none", memtable_size="512MiB", workers="inline")
rng, value = random.Random(1), os.urandom(100)
while db.stats().memtables[0].bytes < size:
    with db.write_batch() as batch:
        for _ in range(2000):
            batch.set(rng.randbytes(16), value)
os.kill(os.getpid(), signal.SIGKILL)
"""


def startup(report: Report, rounds: int, gigabytes: float) -> None:
    imports = [_import_seconds(IMPORT) for _ in range(max(5, rounds))]
    report.want("`import meles` in a fresh interpreter", 1e3 * median(imports), 60, 30, unit="ms",
                upwards=False)  # fmt: skip
    with home() as path:
        _fill(path, int(gigabytes * 1e9 / (VALUE_BYTES + KEY_BYTES)))
        opening, closing = [], []
        for _ in range(max(5, rounds)):
            began = time.perf_counter()
            db = meles.open(path)
            opening.append(time.perf_counter() - began)
            wait_for(lambda db=db: all(w.state == "idle" for w in db.workers()), 30)
            began = time.perf_counter()
            db.close()
            closing.append(time.perf_counter() - began)
        tables, at_once = _tables(path), []
        for _ in range(3):
            db = meles.open(path)
            began = time.perf_counter()
            db.close()
            at_once.append(time.perf_counter() - began)
    report.say(f"close right after open, workers still booting: {1e3 * median(at_once):.0f} ms")
    text = f"open of {gigabytes:g} GB ({tables} tables)"
    report.want(text, 1e3 * median(opening), 50, 15, unit="ms", upwards=False)
    report.want("close with an empty memtable", 1e3 * median(closing), 500, 50, unit="ms",
                upwards=False)  # fmt: skip


def _import_seconds(text: str) -> float:
    done = subprocess.run([sys.executable, "-c", text], check=True, stdout=subprocess.PIPE, cwd="/")
    return float(done.stdout)


def _fill(path: Path, entries: int) -> None:
    engine = Meles(path)
    rng = random.Random(2)
    for start in range(0, entries, 50_000):
        keys = [rng.randbytes(KEY_BYTES) for _ in range(min(50_000, entries - start))]
        engine.batch_all(keys, make_values(VALUE_BYTES))
    engine.settle()
    engine.close()


def _tables(path: Path) -> int:
    return sum(name.endswith(".sst") for name in os.listdir(path))


def recovery(report: Report, rounds: int, sizes: tuple[int, ...] = (4, 16, 64)) -> None:
    """Seconds to open after a kill, by MB of log that has to be read again."""
    curve: dict[str, list[float]] = {}
    for megabytes in sizes:
        seconds = []
        for _ in range(rounds):
            with home() as path:
                command = [sys.executable, "-c", FILL_AND_DIE, str(path), str(megabytes * 10**6)]
                died = subprocess.run(command, check=False, cwd="/")
                assert died.returncode == -signal.SIGKILL
                began = time.perf_counter()
                db = meles.open(path, workers="inline", memtable_size="512MiB")
                seconds.append(time.perf_counter() - began)
                assert db.stats().recovery.transactions > 0
                db.close(60)
        curve[str(megabytes)] = seconds
        report.say(
            f"recovery of {megabytes} MB of log: {1e3 * median(seconds):.0f} ms, "
            f"{1e3 * median(seconds) / megabytes:.1f} ms per MB"
        )
    report.keep("recovery", {"seconds by MB": curve})


def many_tables(report: Report, rounds: int, counts: tuple[int, ...] = (10, 100, 400)) -> None:
    """Time to open by the number of tables."""
    curve: dict[str, list[float]] = {}
    for count in counts:
        with home() as path:
            engine = Meles(path, memtable_size="1MiB", workers="inline", num_compactors=0,
                           num_level_zero_tables_stall=10_000)  # fmt: skip
            rng = random.Random(4)
            values = make_values(900)
            keys = sorted(rng.randbytes(KEY_BYTES) for _ in range(100 * count))
            for at in range(0, len(keys), 100):  # a table each; none overlaps another
                engine.batch_all(keys[at : at + 100], values)
                engine.db.flush()
            engine.close()
            tables, seconds = _tables(path), []
            for _ in range(rounds):
                began = time.perf_counter()
                db = meles.open(path, workers="inline")
                seconds.append(time.perf_counter() - began)
                db.close()
        curve[str(tables)] = seconds
        report.say(
            f"open with {tables} tables: {1e3 * median(seconds):.1f} ms, "
            f"{1e6 * median(seconds) / max(1, tables):.0f} us per table"
        )
    report.keep("tables", {"seconds by tables": curve})

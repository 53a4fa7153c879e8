"""Compaction in MB/s of input of one compactor, no compression, beside RocksDB's with one thread.

Runs in: one process; our job runs in it as a compactor would run it, and the check of its outputs,
which is the supervisor's, is counted too. By the clock, and per second of CPU of the whole process:
the second says what the work costs where the disk or a neighbour decides the first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from engines import Meles, RocksDict, make_values
from report import MIB, Report, bytes_in, home

KEY_BYTES = 16
MOST_ENTRIES = 600_000
MOST_BYTES = 128 * MIB
INPUT = {"value_threshold": "64MiB", "num_compactors": 0, "workers": "inline"}


def compaction(report: Report, rounds: int, sizes: tuple[int, ...] = (100, 1024, 16384)) -> None:
    curve: dict[str, dict[str, list[float]]] = {"meles": {}, "rocksdict": {}}
    for value_bytes in sizes:
        entries = min(MOST_ENTRIES, MOST_BYTES // value_bytes)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(_ours(entries, value_bytes))
            theirs.append(_rocks(entries, value_bytes))
        for unit, at in (("s", 0), ("CPU s", 1)):
            mine, other = median(r[at] for r in ours), median(r[at] for r in theirs)
            found = median(a[at] / b[at] for a, b in zip(ours, theirs, strict=True))
            report.say(
                f"compaction, {value_bytes:,} B values: {mine:.0f} MB/{unit}, "
                f"rocksdict {other:.0f} MB/{unit}"
            )
            if unit == "s":
                name = f"compaction, {value_bytes:,} B: MB/s to RocksDB's"
                report.want(name, found, 1.0, 3.0)
            else:
                report.aim(f"compaction, {value_bytes:,} B: MB/{unit}: {found:.2f} x", found >= 1)
        for name, rates in (("meles", ours), ("rocksdict", theirs)):
            curve[name][str(value_bytes)] = [rate for rate, _ in rates]
    report.keep("compaction", curve)


def _rates(size: Callable[[], int], work: Callable[[], object]) -> tuple[float, float]:
    """MB a second by the clock, and a second of this process's CPU."""
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return size() / 1e6 / seconds, size() / 1e6 / cpu


def _keys(entries: int) -> list[bytes]:
    rng = random.Random(3)
    return [rng.randbytes(KEY_BYTES) for _ in range(entries)]


def _ours(entries: int, value_bytes: int) -> tuple[float, float]:
    with home() as path:
        engine = Meles(path, memtable_size="32MiB", **INPUT)
        engine.batch_all(_keys(entries), make_values(value_bytes))
        engine.db.flush()
        db = engine.db
        rates = _rates(lambda: db.stats().compaction_read_bytes, db.flatten)
        engine.close()
        return rates


def _rocks(entries: int, value_bytes: int) -> tuple[float, float]:
    with home() as path:
        engine = RocksDict(path, one_thread)
        engine.set_all(_keys(entries), make_values(value_bytes))
        engine.db.flush()
        size = bytes_in(Path(path))
        rates = _rates(lambda: size, lambda: engine.db.compact_range(None, None))
        engine.close()
        return rates


def one_thread(options: Any) -> None:
    import rocksdict

    options.set_disable_auto_compactions(True)
    options.set_write_buffer_size(32 * MIB)
    options.set_max_background_jobs(2)
    options.set_max_subcompactions(1)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    options.set_level_zero_slowdown_writes_trigger(10_000)
    options.set_level_zero_stop_writes_trigger(10_000)

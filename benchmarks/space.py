"""Space that comes back, write amplification, stalls, latency beside compaction, compactor speed.

    python benchmarks/space.py [churn] [ingest] [latency] [compaction]
    python benchmarks/space.py --gigabytes 1 --seconds 5 --rounds 1      # a quick trial

Runs in: one process and the workers it supervises. Without names all four parts run. Each prints
its figures; at the end stands every target with its figure, met or not.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import meles
import psutil
import rocksdict

MIB = 1 << 20
KEY_BYTES = 16
VALUE_BYTES = 1024
OVERWRITES = 0.3
PACE = 10_000  # sets a second
ARGS = argparse.Namespace()
_verdicts: list[tuple[str, bool]] = []


def target(text: str, met: bool) -> None:
    _verdicts.append((text, met))
    print(f"target {text}: {'met' if met else 'NOT MET'}", flush=True)


@contextmanager
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="meles-space-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def bytes_in(directory: Path) -> int:
    """File sizes below a directory; files may come and go meanwhile."""
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def wait_for(reached: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until `reached()`, None when it never was."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if reached():
            return time.monotonic() - began
        time.sleep(0.1)
    return None


def churn() -> None:
    """200 rounds of 2,000 new keys of 1 KiB, each round deleted again."""
    small = {"memtable_size": "2MiB", "value_log_file_size": "4MiB"}
    for name, options in (("default options", {}), ("small files", small)):
        with home() as path:
            db = meles.open(path, **options)
            began = time.monotonic()
            for number in range(200):
                keys = [b"%05d-%06d" % (number, i) for i in range(2000)]
                for key in keys:
                    db.set(key, random.randbytes(VALUE_BYTES))
                for key in keys:
                    db.delete(key)
            load = time.monotonic() - began
            after = wait_for(lambda p=path: bytes_in(p) <= 16 * MIB, 30)
            left = bytes_in(path) / MIB
            stalls = db.stats().stalls
            print(
                f"churn, {name}: load {load:.1f} s, then {left:.1f} MiB left; "
                f"stalls {stalls.count}, longest {stalls.longest * 1e3:.0f} ms, "
                f"slow-downs {stalls.slowdowns}"
            )
            text = "never" if after is None else f"after {after:.1f} s"
            target(f"churn, {name}: at most 16 MiB within 30 s: {text}", after is not None)
            db.close()


def keys_of_load(entries: int) -> Iterator[bytes]:
    """Random keys, a share of them written before."""
    rng = random.Random(11)
    written: list[bytes] = []
    for _ in range(entries):
        if written and rng.random() < OVERWRITES:
            yield written[rng.randrange(len(written))]
        else:
            key = rng.randbytes(KEY_BYTES)
            written.append(key)
            yield key


def percentiles(latencies: list[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    points = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {name: ordered[int(len(ordered) * p)] * 1e6 for name, p in points.items()}


def timed_sets(put: Callable[[bytes, bytes], None], keys: Iterator[bytes]) -> list[float]:
    """Seconds of each call."""
    pool = [random.randbytes(VALUE_BYTES) for _ in range(256)]
    clock = time.perf_counter
    latencies = []
    for at, key in enumerate(keys):
        value = pool[at & 255]
        began = clock()
        put(key, value)
        latencies.append(clock() - began)
    return latencies


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[meles.DB]:
    """A database with its workers ready: their start is not what is measured."""
    db = meles.open(path, sync="none", **options)
    if options.get("workers", "process") == "process":
        wait_for(lambda: all(worker.state == "idle" for worker in db.workers()), 30)
    try:
        yield db
    finally:
        db.close(60)


def written_by(db: meles.DB) -> int:
    """Bytes this process and the workers have had the kernel write, up to now."""
    pids = [os.getpid(), *(worker.pid for worker in db.workers() if worker.pid)]
    return sum(psutil.Process(pid).io_counters().write_bytes for pid in pids)


def shown(latencies: list[float]) -> str:
    figures = ", ".join(f"{k} {v:,.1f} us" for k, v in percentiles(latencies).items())
    return f"set {figures}, longest {max(latencies) * 1e3:,.1f} ms"


def five_times_better(what: str, found: dict[str, list[float]]) -> None:
    tail = {mode: percentiles(latencies)["p99.9"] for mode, latencies in found.items()}
    ratio = tail["thread"] / tail["process"]
    target(f"{what}: p99.9 with processes 5 x better than with threads: {ratio:.1f} x", ratio >= 5)


def ingest() -> None:
    """A long load of 1 KiB values, 30 % of them over existing keys, beside RocksDB's."""
    gigabytes = ARGS.gigabytes
    entries = int(gigabytes * 1e9 / VALUE_BYTES)
    alive = len(set(keys_of_load(entries))) * (VALUE_BYTES + KEY_BYTES)
    found = {}
    for mode in ("process", "thread"):
        # a smaller trial keeps the shape: as many value-log files, as many flushes
        scale = min(1.0, gigabytes / 5)
        options = {
            "value_log_file_size": int(scale * ((1 << 30) - 1)),
            "memtable_size": int(scale * 64 * MIB),
        }
        with home() as path, opened(path, workers=mode, **options) as db:
            found[mode] = _ingest(db, path, entries, alive, mode)
    five_times_better("ingest at full speed", found)
    with home() as path:
        _rocks_ingest(path, entries, alive)


def _ingest(db: meles.DB, path: Path, entries: int, alive: int, mode: str) -> list[float]:
    before, began = written_by(db), time.monotonic()
    latencies = timed_sets(db.set, keys_of_load(entries))
    load = time.monotonic() - began
    stats, wrote = db.stats(), written_by(db) - before
    user = entries * (VALUE_BYTES + KEY_BYTES)
    print(
        f"ingest, meles, {mode}: {entries:,} sets in {load:.1f} s ({entries / load:,.0f}/s), "
        f"{stats.flushes} flushes, {stats.compactions} compactions, {stats.gc_runs} GC runs"
    )
    print(f"  {shown(latencies)}")
    print(
        f"  stalls {stats.stalls.count}, longest {stats.stalls.longest * 1e3:.0f} ms; "
        f"slow-downs {stats.stalls.slowdowns}, {stats.stalls.slowdown_seconds:.2f} s"
    )
    at_end = bytes_in(path) / alive
    settled = wait_for(lambda: bytes_in(path) <= 1.3 * alive, 60)
    quiet = time.monotonic()
    wait_for(lambda: db.wait_idle(0.5) and time.monotonic() - quiet > 12, 60)
    stats = db.stats()
    print(
        f"  write amplification {wrote / user:.2f} by the kernel's count at the end of the load; "
        f"{stats.write_amplification:.2f} by our own when all is quiet"
    )
    after = "never" if settled is None else f"after {settled:.1f} s"
    target(
        f"ingest, {mode}: space amplification at most 1.3 within 60 s: {after} "
        f"({at_end:.2f} when the load ended, {bytes_in(path) / alive:.2f} when all is quiet)",
        settled is not None,
    )
    return latencies


def _rocks_ingest(path: Path, entries: int, alive: int) -> None:
    """RocksDB with default options but no compression (the values cannot be compressed)."""
    before = psutil.Process().io_counters().write_bytes
    options = rocksdict.Options(raw_mode=True)
    options.set_compression_type(rocksdict.DBCompressionType.none())
    rocks = rocksdict.Rdict(str(path), options)
    began = time.monotonic()
    latencies = timed_sets(rocks.put, keys_of_load(entries))
    load = time.monotonic() - began
    at_end = psutil.Process().io_counters().write_bytes - before
    wait_for(lambda: _rocks_rests(rocks), 60)
    wrote = psutil.Process().io_counters().write_bytes - before
    user = entries * (VALUE_BYTES + KEY_BYTES)
    print(f"ingest, rocksdict: {load:.1f} s ({entries / load:,.0f}/s)")
    print(f"  {shown(latencies)}")
    print(
        f"  write amplification {at_end / user:.2f} by the kernel's count at the end of the load, "
        f"{wrote / user:.2f} when all is quiet; space amplification {bytes_in(path) / alive:.2f}"
    )
    rocks.close()


def _rocks_rests(rocks: Any) -> bool:
    names = ("num-running-compactions", "compaction-pending", "num-running-flushes")
    return not any(rocks.property_int_value(f"rocksdb.{name}") for name in names)


def latency() -> None:
    """`set` while flushes and compactions run: at a fixed rate from the due time, and flat out."""
    for what, run in (("10,000/s", _paced), ("full speed", _flat_out)):
        found: dict[str, list[float]] = {"process": [], "thread": []}
        for _ in range(ARGS.rounds):
            for mode in found:
                found[mode] += _latencies(mode, what, run)
        for mode, latencies in found.items():
            print(f"latency at {what}, {mode}: {shown(latencies)}")
        five_times_better(f"latency at {what}", found)


def _latencies(mode: str, what: str, run: Callable[[meles.DB, float], list[float]]) -> list[float]:
    """One run; memtables are small so that there is always something to compact."""
    options = {"memtable_size": "1MiB", "base_level_size": "2MiB", "workers": mode}
    with home() as path, opened(path, **options) as db:
        cpu, began = time.process_time(), time.monotonic()
        latencies = run(db, ARGS.seconds)
        cpu, took = time.process_time() - cpu, time.monotonic() - began
        stats = db.stats()
        print(
            f"  {what}, {mode}: {len(latencies):,} sets in {took:.1f} s, {stats.flushes} flushes, "
            f"{stats.compactions} compactions of {stats.compaction_read_bytes / 1e6:.0f} MB, "
            f"stalls {stats.stalls.count}, slow-downs {stats.stalls.slowdowns}, "
            f"host on the processor {100 * cpu / took:.0f} %"
        )
        if not stats.compactions:
            print("  nothing was compacted: this run proves nothing")
        return latencies


def _paced(db: meles.DB, seconds: float) -> list[float]:
    rng, clock = random.Random(5), time.perf_counter
    value = rng.randbytes(100)
    began = clock()
    latencies = []
    for number in range(int(seconds * PACE)):
        due = began + number / PACE
        while clock() < due:
            time.sleep(max(0.0, due - clock()))
        db.set(rng.randbytes(KEY_BYTES), value)
        latencies.append(clock() - due)
    return latencies


def _flat_out(db: meles.DB, seconds: float) -> list[float]:
    rng, clock = random.Random(5), time.perf_counter
    value = rng.randbytes(100)
    end = clock() + seconds
    latencies = []
    while (began := clock()) < end:
        key = rng.randbytes(KEY_BYTES)
        began = clock()
        db.set(key, value)
        latencies.append(clock() - began)
    return latencies


def compaction() -> None:
    """MB/s of input of one compactor, no compression, beside RocksDB's with one thread.

    By the clock, and per second of CPU of the whole process: the second says what the work costs
    where the disk or the neighbours of a machine decide the first. Ours includes the supervisor's
    check of every output.
    """
    for value_bytes in (100, 1024, 16 * 1024):
        entries = min(600_000, 128 * MIB // value_bytes)
        ours, theirs = [], []
        for _ in range(ARGS.rounds):
            ours.append(_our_compaction(entries, value_bytes))
            theirs.append(_rocks_compaction(entries, value_bytes))
        for unit, at in (("s", 0), ("CPU s", 1)):
            mine, other = median(r[at] for r in ours), median(r[at] for r in theirs)
            target(
                f"compaction, {value_bytes:,} B values: {mine:.0f} MB/{unit} of input, rocksdict "
                f"{other:.0f} MB/{unit}: {mine / other:.2f} x, at least 1 x",
                mine >= other,
            )


def _rates(size: Callable[[], int], work: Callable[[], object]) -> tuple[float, float]:
    """MB a second by the clock, and a second of this process's CPU."""
    began, began_cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return size() / 1e6 / seconds, size() / 1e6 / cpu


def _our_compaction(entries: int, value_bytes: int) -> tuple[float, float]:
    """The job itself, as a compactor runs it, in this process, and the check of its outputs."""
    with home() as path:
        options = {"value_threshold": "64MiB", "num_compactors": 0, "workers": "inline"}
        with opened(path, memtable_size="32MiB", **options) as db:
            _load(db.write_batch, entries, value_bytes)
            db.flush()
            return _rates(lambda: db.stats().compaction_read_bytes, db.flatten)


def _load(write_batch: Callable[[], Any], entries: int, value_bytes: int) -> None:
    rng = random.Random(3)
    value = rng.randbytes(value_bytes)
    with write_batch() as batch:
        for _ in range(entries):
            batch.set(rng.randbytes(KEY_BYTES), value)


def _rocks_compaction(entries: int, value_bytes: int) -> tuple[float, float]:
    with home() as path:
        options = rocksdict.Options(raw_mode=True)
        options.set_disable_auto_compactions(True)
        options.set_write_buffer_size(32 * MIB)
        options.set_max_background_jobs(2)
        options.set_max_subcompactions(1)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_level_zero_slowdown_writes_trigger(10_000)
        options.set_level_zero_stop_writes_trigger(10_000)
        rocks = rocksdict.Rdict(str(path), options)
        rng = random.Random(3)
        value = rng.randbytes(value_bytes)
        for _ in range(entries):
            rocks.put(rng.randbytes(KEY_BYTES), value)
        rocks.flush()
        size = bytes_in(path)
        rates = _rates(lambda: size, lambda: rocks.compact_range(None, None))
        rocks.close()
        return rates


PARTS: dict[str, Callable[[], None]] = {
    "churn": churn,
    "ingest": ingest,
    "latency": latency,
    "compaction": compaction,
}


def main() -> int:
    global ARGS  # noqa: PLW0603 - a script: its parts read the arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of the ingest")
    parser.add_argument("--seconds", type=float, default=20.0, help="of one run of latency")
    parser.add_argument("--rounds", type=int, default=3, help="of latency and compaction")
    ARGS = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start")
    for name in ARGS.parts or PARTS:
        print(f"-- {name}", flush=True)
        PARTS[name]()
    print("-- targets")
    for text, met in _verdicts:
        print(f"{'met    ' if met else 'NOT MET'} {text}")
    return 0 if all(met for _, met in _verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Space that comes back, write amplification, stalls; latency and compaction in long runs.

    python benchmarks/space.py [churn] [ingest] [latency] [compaction]
    python benchmarks/space.py --gigabytes 1 --seconds 5 --rounds 1      # a quick trial

Runs in: one process and the workers it supervises. Without names all four parts run. Each prints
its figures; at the end stands every target with its figure, met or not.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import compaction
import ingest
import latency
import meles
import psutil
from engines import Meles, RocksDict
from report import MIB, Report, bytes_in, home, percentiles, wait_for

VALUE_BYTES = ingest.VALUE_BYTES


def churn(report: Report) -> None:
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
            took = float("inf") if after is None else after
            report.want(f"churn, {name}: seconds until at most 16 MiB", took, 30, unit="s",
                        upwards=False)  # fmt: skip
            db.close()


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


def written_by(db: meles.DB) -> int:
    """Bytes this process and the workers have had the kernel write, up to now."""
    pids = [os.getpid(), *(worker.pid for worker in db.workers() if worker.pid)]
    return sum(psutil.Process(pid).io_counters().write_bytes for pid in pids)


def long_ingest(report: Report, gigabytes: float) -> None:
    """A long load of 1 KiB values, 30 % of them over existing keys, beside RocksDB's."""
    entries = int(gigabytes * 1e9 / VALUE_BYTES)
    alive = len(set(ingest.keys_of_load(entries))) * (VALUE_BYTES + ingest.KEY_BYTES)
    found = {}
    for mode in ("process", "thread"):
        with home() as path:
            engine = Meles(path, workers=mode, **ingest.shape(gigabytes))
            found[mode] = _ingest(report, engine.db, path, entries, alive, mode)
            engine.close()
    process, thread = (percentiles(found[mode])["p99.9"] for mode in ("process", "thread"))
    report.say(  # judged at a fixed rate (`latency`): here a wait of 5 ms is one set in 5,000
        f"ingest at full speed: p99.9 of set {process:.0f} us with processes, "
        f"{thread:.0f} us with threads"
    )
    with home() as path:
        _rocks_ingest(path, entries, alive)


def _ingest(
    report: Report, db: meles.DB, path: Path, entries: int, alive: int, mode: str
) -> list[float]:
    before, began = written_by(db), time.monotonic()
    latencies = timed_sets(db.set, ingest.keys_of_load(entries))
    load = time.monotonic() - began
    stats, wrote = db.stats(), written_by(db) - before
    user = entries * (VALUE_BYTES + ingest.KEY_BYTES)
    print(
        f"ingest, meles, {mode}: {entries:,} sets in {load:.1f} s ({entries / load:,.0f}/s), "
        f"{stats.flushes} flushes, {stats.compactions} compactions, {stats.gc_runs} GC runs"
    )
    print(f"  {latency.shown(latencies)}")
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
    took = float("inf") if settled is None else settled
    print(
        f"  space amplification {at_end:.2f} when the load ended, {bytes_in(path) / alive:.2f} "
        "when all is quiet"
    )
    report.want(f"ingest, {mode}: seconds until space amplification 1.3", took, 60, unit="s",
                upwards=False)  # fmt: skip
    return latencies


def _rocks_ingest(path: Path, entries: int, alive: int) -> None:
    """RocksDB with default options but no compression (the values cannot be compressed)."""
    before = psutil.Process().io_counters().write_bytes
    engine = RocksDict(path, ingest.no_compression)
    began = time.monotonic()
    latencies = timed_sets(engine.db.put, ingest.keys_of_load(entries))
    load = time.monotonic() - began
    at_end = psutil.Process().io_counters().write_bytes - before
    wait_for(engine.rests, 60)
    wrote = psutil.Process().io_counters().write_bytes - before
    user = entries * (VALUE_BYTES + ingest.KEY_BYTES)
    print(f"ingest, rocksdict: {load:.1f} s ({entries / load:,.0f}/s)")
    print(f"  {latency.shown(latencies)}")
    print(
        f"  write amplification {at_end / user:.2f} by the kernel's count at the end of the load, "
        f"{wrote / user:.2f} when all is quiet; space amplification {bytes_in(path) / alive:.2f}"
    )
    engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts: dict[str, Callable[[], None]] = {
        "churn": lambda: churn(report),
        "ingest": lambda: long_ingest(report, args.gigabytes),
        "latency": lambda: latency.latency(report, args.rounds, args.seconds),
        "compaction": lambda: compaction.compaction(report, args.rounds),
    }
    parser.add_argument("parts", nargs="*", choices=[[], *parts], default=[])
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of the ingest")
    parser.add_argument(
        "--seconds", type=float, default=latency.SECONDS, help="of one run of latency"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of latency and compaction")
    args = parser.parse_args()
    report = Report()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start")
    for name in args.parts or parts:
        print(f"-- {name}", flush=True)
        parts[name]()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

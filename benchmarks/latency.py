"""`set` while flushes and compactions run: at a fixed rate counted from the due time, and flat out.

Runs in: one process and our workers, or their threads. Memtables are small so that there is always
something to compact. "alone" is the same load with a memtable that never fills: nothing runs
beside it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import meles
from engines import Meles
from report import Report, home, percentiles, wait_for

KEY_BYTES = 16
PACE = 10_000  # sets a second
PACED_BYTES = 900  # of a value, so that at this pace there is enough to compact
FLAT_OUT_BYTES = 100
LOOK_EVERY = 0.02  # seconds between two looks at the workers
SMALL = {"memtable_size": "1MiB", "base_level_size": "2MiB"}
MODES: dict[str, dict[str, Any]] = {
    "process": {**SMALL, "workers": "process"},
    "thread": {**SMALL, "workers": "thread"},
    "alone": {"memtable_size": "1GiB", "workers": "process"},
}
Look = Callable[[float], None]


def latency(report: Report, rounds: int, seconds: float) -> None:
    for what, run in (("10,000/s", _paced), ("full speed", _flat_out)):
        found: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
        for _ in range(rounds):
            for mode, options in MODES.items():
                if mode == "alone" and run is _flat_out:
                    continue  # so much fits into no memtable
                with home() as path:
                    found[mode].append(_run(Meles(path, **options), what, mode, run, seconds))
        for mode, runs in found.items():
            if runs:
                report.say(f"latency at {what}, {mode}: {shown(list(chain(*runs)))}")
        judge(report, f"p99.9 of set at {what}, process to thread", found)
        if found["alone"]:
            tails = [
                percentiles(a)["p99.9"] / percentiles(b)["p99.9"]
                for a, b in zip(found["process"], found["alone"], strict=True)
            ]
            ratio = sorted(tails)[len(tails) // 2]
            word = "reached" if ratio <= 1.1 else "not reached"
            report.say(
                f"  aim p99.9 no worse than with no compaction at all: {ratio:.1f} x, {word}"
            )


def judge(report: Report, name: str, found: dict[str, list[list[float]]]) -> None:
    """Median over rounds of how much better the tail is with processes."""
    ratios = [
        percentiles(a)["p99.9"] / percentiles(b)["p99.9"]
        for a, b in zip(found["thread"], found["process"], strict=True)
    ]
    report.want(name, sorted(ratios)[len(ratios) // 2], 5.0, unit="x better")


def shown(latencies: list[float]) -> str:
    figures = ", ".join(f"{k} {v:,.1f} us" for k, v in percentiles(latencies).items())
    return f"set {figures}, longest {max(latencies) * 1e3:,.1f} ms"


def _run(
    engine: Meles,
    what: str,
    mode: str,
    run: Callable[[meles.DB, float], list[float]],
    seconds: float,
) -> list[float]:
    db = engine.db
    # long-running services are meant: three interpreters that boot are felt in the first 0.2 s
    wait_for(lambda: all(worker.state == "idle" for worker in db.workers()), 30)
    cpu, began = time.process_time(), time.monotonic()
    latencies = run(db, seconds)
    cpu, took = time.process_time() - cpu, time.monotonic() - began
    stats = db.stats()
    print(
        f"  {what}, {mode}: {len(latencies):,} sets in {took:.1f} s, {stats.flushes} flushes, "
        f"{stats.compactions} compactions of {stats.compaction_read_bytes / 1e6:.0f} MB, "
        f"stalls {stats.stalls.count}, slow-downs {stats.stalls.slowdowns}, "
        f"host on the processor {100 * cpu / took:.0f} %",
        flush=True,
    )
    if not stats.compactions and mode != "alone":
        print("  nothing was compacted: this run proves nothing")
    engine.close()
    return latencies


def _paced(db: meles.DB, seconds: float) -> list[float]:
    return _at_pace(db, seconds, None, PACED_BYTES, lambda _: None)


def _at_pace(
    db: meles.DB, seconds: float, keys: list[bytes] | None, value_bytes: int, look: Look
) -> list[float]:
    """Seconds from when each set was due to its end; `look` is called between two sets."""
    rng, clock = random.Random(5), time.perf_counter
    value = rng.randbytes(value_bytes)
    latencies = []
    next_look = 0.0
    began = clock()
    for number in range(int(seconds * PACE)):
        due = number / PACE
        if due >= next_look:
            look(due)
            next_look += LOOK_EVERY
        while clock() - began < due:
            time.sleep(max(0.0, due - (clock() - began)))
        key = rng.randbytes(KEY_BYTES) if keys is None else keys[number % len(keys)]
        db.set(key, value)
        latencies.append(clock() - began - due)
    return latencies


def _flat_out(db: meles.DB, seconds: float) -> list[float]:
    rng, clock = random.Random(5), time.perf_counter
    value = rng.randbytes(FLAT_OUT_BYTES)
    end = clock() + seconds
    latencies = []
    while (began := clock()) < end:
        key = rng.randbytes(KEY_BYTES)
        began = clock()
        db.set(key, value)
        latencies.append(clock() - began)
    return latencies


def timeline(report: Report, seconds: float) -> None:
    """One latency per set over time, and when which kind of worker was busy."""
    busy: dict[str, list[float]] = {}
    with home() as path:
        # small value-log files, and few keys, so that there is garbage to collect
        engine = Meles(
            path,
            **{**SMALL, "memtable_size": "256KiB"},
            value_threshold=64,
            value_log_file_size="16MiB",
        )
        db = engine.db
        rng = random.Random(6)

        def look(at: float) -> None:
            for worker in db.workers():
                if worker.state == "busy":
                    busy.setdefault(worker.kind, []).append(round(at, 3))

        keys = [rng.randbytes(KEY_BYTES) for _ in range(20_000)]
        latencies = _at_pace(db, seconds, keys, PACED_BYTES, look)
        stats = db.stats()
        engine.close()
    report.say(
        f"latency over {seconds:g} s: {shown(latencies)}; {stats.flushes} flushes, "
        f"{stats.compactions} compactions, {stats.gc_runs} GC runs"
    )
    figures = {"pace": PACE, "microseconds": [round(s * 1e6, 1) for s in latencies], "busy": busy}
    report.keep("timeline", {**figures, "look_every": LOOK_EVERY})

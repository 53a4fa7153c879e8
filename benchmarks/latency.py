"""`set` while flushes and compactions run: at a fixed rate counted from the due time, and flat out.

Runs in: one process and our workers, or their threads. Memtables are small so that there is always
something to compact. "alone" is the same load with a memtable that never fills: nothing runs
beside it. "nothing" sets nothing: what the machine itself does to a loop.

At the fixed rate the thread is busy between two sets, as a service is that parses what it stores.
A sleeping one would be woken late by the machine, by 0.5 to 2 ms once in a thousand times, with
nothing else running. A busy one loses its processor for 1 to 4 ms some times in ten seconds, and
once in a while for longer, as two processes that do nothing show: percentiles are of a run; of the
runs, which alternate, the median counts. A run lasts long enough that some such losses fit beyond
its p99.9 (`SECONDS`): 40 sets are late by one of 4 ms, and 50 are a thousandth of five seconds, so
that of short runs the percentile says only whether there were one or two.

"reading" makes a system call before each set, as who reads what it stores from a socket does: it
lets go of the interpreter for a moment each time.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from itertools import chain
from statistics import median
from typing import Any

import meles
from engines import Meles
from report import Report, home, percentiles, wait_for

KEY_BYTES = 16
PACE = 10_000  # sets a second
PACED_BYTES = 1000  # of a value, so that at this pace there is enough to compact
FLAT_OUT_BYTES = 100
LOOK_EVERY = 0.02  # seconds between two looks at the workers
SECONDS = 15.0  # of one run, for the percentile of a thousandth
SETTLE = 3.0  # seconds: a virtual machine gives removed pages back 2 s later, and works for it
# Still smaller ones make more jobs than two processors can do, and show the brake, not the workers.
SMALL = {"memtable_size": "4MiB", "base_level_size": "8MiB"}
MODES: dict[str, dict[str, Any]] = {
    "process": {**SMALL, "workers": "process"},
    "thread": {**SMALL, "workers": "thread"},
    "process, reading": {**SMALL, "workers": "process"},
    "thread, reading": {**SMALL, "workers": "thread"},
    "process, zstd": {**SMALL, "workers": "process", "compression": "zstd"},
    "thread, zstd": {**SMALL, "workers": "thread", "compression": "zstd"},
    "alone": {"memtable_size": "1GiB", "workers": "process"},
}
TARGETED = ("process", "thread")
BESIDE = tuple(mode for mode in MODES if "," in mode)  # said beside, has no target
Look = Callable[[float], None]
Load = Callable[[meles.DB, float], list[float]]


def latency(report: Report, rounds: int, seconds: float = SECONDS, beside: bool = True) -> None:
    """`rounds` of what has a target, fewer of the rest; shorter ones of what is said beside."""
    besides = BESIDE if beside else ()
    modes = (*TARGETED, *besides, "alone", "nothing")
    paced: dict[str, list[list[float]]] = {mode: [] for mode in modes}
    for nth in range(rounds):
        for mode in (*TARGETED, "alone") if nth % 3 == 0 else TARGETED:
            paced[mode] += _run("10,000/s", mode, _paced, seconds)
        for mode in besides if nth % 2 == 0 else ():
            load = _paced_reading if mode.endswith("reading") else _paced
            paced[mode] += _run("10,000/s", mode, load, seconds / 3)
        if nth % 2 == 0:
            paced["nothing"].append(
                _at_pace(lambda _key, _value: None, seconds / 3, None, PACED_BYTES, lambda _: None)
            )
    flat_out: dict[str, list[list[float]]] = {mode: [] for mode in TARGETED if beside}
    for _ in range(rounds // 2):
        for mode, runs in flat_out.items():  # not "alone": so much fits into no memtable
            runs += _run("full speed", mode, _flat_out, seconds / 6)
    for mode, runs in paced.items():
        _say(report, f"at 10,000/s, {mode}", runs)
    for mode, runs in flat_out.items():
        _say(report, f"at full speed, {mode}", runs)
    tail = {mode: _typical(runs, "p99.9") for mode, runs in paced.items()}
    report.want(
        "p99.9 of set at 10,000/s, process to thread",
        tail["thread"] / tail["process"], 5.0, unit="x better",
    )  # fmt: skip
    for kind in ("zstd", "reading") if beside else ():
        better = tail[f"thread, {kind}"] / tail[f"process, {kind}"]
        report.say(f"  {kind}: {better:.1f} x")
    ratio = tail["process"] / tail["alone"]
    report.aim(f"p99.9 no worse than with no compaction at all: {ratio:.1f} x", ratio <= 1.1)


def _say(report: Report, load: str, runs: list[list[float]]) -> None:
    if not runs:
        report.say(f"latency {load}: no run in which anything was compacted")
        return
    typical = ", ".join(
        f"{name} {_typical(runs, name):,.1f} us" for name in ("p50", "p99", "p99.9")
    )
    each = ", ".join(f"{percentiles(run)['p99.9']:,.0f}" for run in runs)
    report.say(
        f"latency {load}: set {typical}, medians of {len(runs)} runs (p99.9 of each: {each})"
    )
    report.say(f"  all runs together: {shown(list(chain(*runs)))}")


def _typical(runs: list[list[float]], percentile: str) -> float:
    """Microseconds: the median over the runs."""
    return median(percentiles(run)[percentile] for run in runs) if runs else math.nan


def shown(latencies: list[float]) -> str:
    figures = ", ".join(f"{k} {v:,.1f} us" for k, v in percentiles(latencies).items())
    return f"set {figures}, longest {max(latencies) * 1e3:,.1f} ms"


def _run(what: str, mode: str, load: Load, seconds: float) -> list[list[float]]:
    """One run, or none if it does not count: nothing was compacted."""
    with home() as path:
        engine = Meles(path, **MODES[mode])
        runs = _measured(engine.db, what, mode, load, seconds)
        engine.close()
    os.sync()  # or the next run pays for the pages of this one
    time.sleep(SETTLE)
    return runs


def _measured(db: meles.DB, what: str, mode: str, load: Load, seconds: float) -> list[list[float]]:
    # long-running services are meant: three interpreters that boot are felt in the first 0.2 s
    wait_for(lambda: all(worker.state == "idle" for worker in db.workers()), 30)
    if mode != "alone":
        _begin_compacting(db)
    before = db.stats()
    cpu, began = time.process_time(), time.monotonic()
    latencies = load(db, seconds)
    cpu, took = time.process_time() - cpu, time.monotonic() - began
    stats = db.stats()
    compactions = stats.compactions - before.compactions
    read = stats.compaction_read_bytes - before.compaction_read_bytes
    print(
        f"  {what}, {mode}: {len(latencies):,} sets in {took:.1f} s, "
        f"{stats.flushes - before.flushes} flushes, {compactions} compactions of "
        f"{read / 1e6:.0f} MB, stalls {stats.stalls.count}, "
        f"slow-downs {stats.stalls.slowdowns - before.stalls.slowdowns}, "
        f"host on the processor {100 * cpu / took:.0f} %",
        flush=True,
    )
    if not compactions and mode != "alone":
        print("  nothing was compacted: this run does not count")
        return []
    return [latencies]


def _begin_compacting(db: meles.DB) -> None:
    """Write until the tree has its shape, and wait for the rest."""
    rng = random.Random(4)
    value = rng.randbytes(PACED_BYTES)
    while not db.stats().compactions:
        for _ in range(1000):
            db.set(rng.randbytes(KEY_BYTES), value)
    db.wait_idle(60)


def _paced(db: meles.DB, seconds: float) -> list[float]:
    return _at_pace(db.set, seconds, None, PACED_BYTES, lambda _: None)


def _paced_reading(db: meles.DB, seconds: float) -> list[float]:
    with open(os.devnull, "rb", buffering=0) as source:

        def put(key: bytes, value: bytes) -> None:
            source.read(1)
            db.set(key, value)

        return _at_pace(put, seconds, None, PACED_BYTES, lambda _: None)


def _at_pace(
    put: Callable[[bytes, bytes], None],
    seconds: float,
    keys: list[bytes] | None,
    value_bytes: int,
    look: Look,
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
            pass
        key = rng.randbytes(KEY_BYTES) if keys is None else keys[number % len(keys)]
        put(key, value)
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
        latencies = _at_pace(db.set, seconds, keys, PACED_BYTES, look)
        stats = db.stats()
        engine.close()
    report.say(
        f"latency over {seconds:g} s: {shown(latencies)}; {stats.flushes} flushes, "
        f"{stats.compactions} compactions, {stats.gc_runs} GC runs"
    )
    figures = {"pace": PACE, "microseconds": [round(s * 1e6, 1) for s in latencies], "busy": busy}
    report.keep("timeline", {**figures, "look_every": LOOK_EVERY})

"""Cost per operation over one variable: entries, value size, threads.

Runs in: one process and our workers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from engines import ENGINES, Meles, make_values
from points import KEY_BYTES, random_keys, sample_of, size_name, timed
from report import MIB, Report, home

Curve = dict[str, dict[str, list[float]]]  # by operation and engine, in microseconds
REPEATS = 3  # of what can be repeated
SLACK = 1.3  # over log n: noise of a shared machine


def scaling(report: Report, sizes: tuple[int, ...], engines: list[str]) -> None:
    """Microseconds per operation by entries; ours must grow no faster than log n."""
    curve: Curve = {op: {} for op in ("write_batch", "set", "get", "items")}
    for entries in sizes:
        for name in engines:
            for operation, cost in _costs(name, entries).items():
                curve[operation].setdefault(name, []).append(cost)
        cells = ", ".join(f"{op} {curve[op]['meles'][-1]:.2f}" for op in curve)
        report.say(f"{size_name(entries)} entries, microseconds: {cells}")
    for operation, found in curve.items():
        growth = _growth(sizes, found["meles"])
        name = f"{operation}: growth of cost to growth of log n"
        report.want(name, growth, SLACK, 1.0, upwards=False)
    report.keep("scaling", {"entries": sizes, "microseconds": curve})


def _costs(name: str, entries: int) -> dict[str, float]:
    """Microseconds of each operation with so many entries; sets go into the full store."""
    keys, values = random_keys(entries, 7), make_values(100)
    lookups = sample_of(keys, 100_000)
    more = random_keys(min(entries, 200_000), 11)
    with home() as path:
        engine = ENGINES[name](path)
        batch = timed(lambda: engine.batch_all(keys, values))
        engine.settle()
        engine.get_all(lookups)  # warm
        get = median(timed(lambda: engine.get_all(lookups)) for _ in range(REPEATS))
        items = median(timed(engine.scan) for _ in range(REPEATS))
        put = timed(lambda: engine.set_all(more, values))
        engine.close()
    seconds = {"write_batch": batch / entries, "set": put / len(more)}
    seconds |= {"get": get / len(lookups), "items": items / entries}
    return {operation: 1e6 * each for operation, each in seconds.items()}


def _growth(sizes: tuple[int, ...], costs: list[float]) -> float:
    """How much faster than log n the cost grew between the first size and the last."""
    return costs[-1] / costs[0] / (math.log(sizes[-1]) / math.log(sizes[0]))


def value_sizes(report: Report, engines: list[str], rounds: int) -> None:
    """Microseconds per operation by value size, 16 B to 64 KiB."""
    sizes = [16 << (2 * step) for step in range(7)]
    curve: Curve = {op: {} for op in ("set", "get", "items")}
    for value_bytes in sizes:
        keys = random_keys(min(50_000, 24 * MIB // (value_bytes + KEY_BYTES)), 7)
        values = make_values(value_bytes)
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for name in engines:
                for operation, seconds in _with_values(name, keys, values).items():
                    taken.setdefault((operation, name), []).append(seconds)
        for (operation, name), found in taken.items():
            curve[operation].setdefault(name, []).append(1e6 * median(found) / len(keys))
    report.say("value size, microseconds of meles: set / get / items")
    for at, value_bytes in enumerate(sizes):
        cells = " / ".join(f"{curve[op]['meles'][at]:.2f}" for op in curve)
        report.say(f"{value_bytes:>9,} B  {cells}")
    report.keep("values", {"value bytes": sizes, "microseconds": curve})


def _with_values(name: str, keys: list[bytes], values: list[bytes]) -> dict[str, float]:
    with home() as path:
        engine = ENGINES[name](path)
        put = timed(lambda: engine.set_all(keys, values))
        engine.settle()
        engine.get_all(keys)
        seconds = {"set": put, "get": timed(lambda: engine.get_all(keys))}
        seconds["items"] = timed(engine.scan)
        engine.close()
    return seconds


def threads(report: Report, rounds: int) -> None:
    """Operations a second of 1 to 8 threads on one handle."""
    counts = (1, 2, 4, 8)
    share = 160_000
    curve: Curve = {"set": {}, "get": {}}
    values = make_values(100)
    for count in counts:
        rates: dict[str, list[float]] = {"set": [], "get": []}
        for number in range(rounds):
            parts = [random_keys(share // count, 100 * number + at) for at in range(count)]
            with home() as path:
                engine = Meles(path)
                rates["set"].append(
                    share / _together(parts, partial(engine.set_all, values=values))
                )
                engine.settle()
                rates["get"].append(share / _together(parts, engine.get_all))
                engine.close()
        for operation, found in rates.items():
            curve[operation].setdefault("meles", []).append(median(found))
        report.say(
            f"{count} threads: set {median(rates['set']):,.0f}/s, get {median(rates['get']):,.0f}/s"
        )
    report.keep("threads", {"threads": counts, "per second": curve})


def _together(parts: list[list[bytes]], work: Callable[[list[bytes]], object]) -> float:
    ready = threading.Barrier(len(parts) + 1)

    def run(part: list[bytes]) -> None:
        ready.wait()
        work(part)

    team = [threading.Thread(target=run, args=(part,)) for part in parts]
    for thread in team:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    for thread in team:
        thread.join()
    return time.perf_counter() - began

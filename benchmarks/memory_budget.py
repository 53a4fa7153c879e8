"""Memory of the whole process tree under a mixed load, beside the budget it was given.

    python benchmarks/memory_budget.py --budget 192MiB --minutes 10
    python benchmarks/memory_budget.py --minutes 0.5 --data random   # a quick trial

Runs in: one process and the workers it supervises; a thread samples /proc a few times a second.
What counts is resident memory as `ps` shows it, summed over host and workers: what several of them
map, libraries too, counts in each. Private memory is told apart. `--data random` is what no codec
shrinks: blocks are read in place. Samples and a plot go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import meles
from plots import draw_all
from report import MIB, Report, home

KEYS = 400_000
WORDS = [b"%x " % (n * 2654435761 % (1 << 28)) for n in range(500)]
ALLOWED = 1.2  # of the budget
EVERY = 0.1  # seconds between two samples
PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    """Bytes at a moment: of files (mapped pages, libraries), and of the processes' own."""

    seconds: float
    host_own: int
    host_files: int
    workers_own: int
    workers_files: int

    @property
    def private(self) -> int:
        return self.host_own + self.workers_own

    @property
    def resident(self) -> int:
        return self.private + self.host_files + self.workers_files


def resident_of(pid: int) -> tuple[int, int]:
    """(own, of files) resident bytes of a process; zeros when it is gone."""
    try:
        _, resident, files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except (OSError, ValueError):
        return 0, 0
    return (resident - files) * PAGE, files * PAGE


def sample(seconds: float, workers: list[int]) -> Sample:
    held = [resident_of(pid) for pid in workers]
    return Sample(
        seconds, *resident_of(os.getpid()), sum(own for own, _ in held), sum(f for _, f in held)
    )


def load(db: meles.DB, until: float, data: str) -> dict[str, int]:
    """Sets, deletes, lookups and scans over a fixed range of keys."""
    rng, done = random.Random(1), {"set": 0, "get": 0, "scan": 0}
    while time.monotonic() < until:
        with db.write_batch() as batch:
            for _ in range(500):
                words = 500 if rng.random() < 0.05 else 25
                value = b"".join(rng.choices(WORDS, k=words))
                if data == "random":
                    value = rng.randbytes(len(value))
                batch.set(b"%016d" % rng.randrange(KEYS), value)
            for _ in range(50):
                batch.delete(b"%016d" % rng.randrange(KEYS))
        for _ in range(1000):
            db.get(b"%016d" % rng.randrange(KEYS))
        start = b"%016d" % rng.randrange(KEYS)
        done["scan"] += sum(1 for _ in db.items(start=start, limit=2000))
        done["set"], done["get"] = done["set"] + 500, done["get"] + 1000
    return done


def watched(options: dict[str, Any], minutes: float, data: str) -> tuple[list[Sample], int]:
    """The samples of a load, and the budget."""
    rows: list[Sample] = []
    ended = threading.Event()
    with home() as path, meles.open(path / "db", sync="none", **options) as db:
        began = time.monotonic()

        def watch() -> None:
            while not ended.wait(EVERY):
                pids = [worker.pid for worker in db.workers() if worker.pid]
                rows.append(sample(time.monotonic() - began, pids))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            done = load(db, began + minutes * 60, data)
        finally:
            ended.set()
            watcher.join()
        stats, health, size = db.stats(), db.health(), db.size()
        print(f"{db.options}")
        print(f"{done}, data {(size.lsm_bytes + size.value_log_bytes) / MIB:.0f} MiB")
        print(
            f"block cache {stats.cache_bytes / MIB:.1f} MiB, hit ratio "
            f"{stats.cache_hit_ratio:.2f}; indexes {stats.index_cache_bytes / MIB:.1f} MiB, "
            f"{stats.index_cache_evictions:,} evictions; {health.status} {health.reasons}"
        )
        return rows, db.options.memory_budget or 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", default="192MiB")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--compression", default="zstd", help="a codec makes the block cache work")
    parser.add_argument("--compactors", type=int, default=1)
    parser.add_argument("--data", choices=("text", "random"), default="text")
    args = parser.parse_args()
    options = {
        "memory_budget": args.budget,
        "compression": args.compression,
        "num_compactors": args.compactors,
    }
    rows, budget = watched(options, args.minutes, args.data)
    report = Report()
    top = max(rows, key=lambda row: row.resident)
    print(f"{len(rows)} samples; at the peak: " + ", ".join(
        f"{name} {value / MIB:.0f} MiB" for name, value in top._asdict().items()
        if name != "seconds"
    ))  # fmt: skip
    private = max(row.private for row in rows)
    report.say(f"private: peak {private / MIB:.0f} MiB = {private / budget:.2f} of the budget")
    kernel = meles.engine.kernel.KIND
    name = f"{args.budget}, {args.data}, {kernel} kernel"
    report.want(
        f"resident, {name}", top.resident / budget, ALLOWED, unit="of budget", upwards=False
    )
    report.keep(
        f"memory-budget:{args.budget}-{args.data}-{kernel}",
        {
            "title": f"Mixed load, memory_budget {name}",
            "budget": budget,
            "allowed": ALLOWED,
            "samples": [list(row) for row in rows],
        },
    )
    draw_all(report)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())

"""Memory of the whole process tree under a mixed load, beside the budget it was given.

    python benchmarks/memory_budget.py --budget 192MiB --minutes 10
    python benchmarks/memory_budget.py --minutes 0.5                 # a quick trial

Runs in: one process and the workers it supervises; a thread samples /proc a few times a second.
Two figures are taken of each process: private memory (what goes when it ends, the budget's subject)
and resident memory, which also counts mapped pages of tables and logs: those are the kernel's
cache, shared between processes and taken back under pressure. `--csv` keeps the samples.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import meles
import psutil

MIB = 1 << 20
KEYS = 400_000
WORDS = [b"%x " % (n * 2654435761 % (1 << 28)) for n in range(500)]
ALLOWED = 1.2  # of the budget


def sample(processes: list[int]) -> tuple[int, int]:
    """(private, resident) bytes of all processes together; what just ended counts as nothing."""
    private = resident = 0
    for pid in processes:
        try:
            found = psutil.Process(pid).memory_full_info()
        except psutil.Error:
            continue
        resident += found.rss
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
        private += int(fields["Anonymous"].split()[0]) << 10
    return private, resident


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", default="192MiB")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--compression", default="zstd", help="a codec makes the block cache work")
    parser.add_argument("--data", choices=("text", "random"), default="text")
    parser.add_argument("--csv", default="", help="where the samples go")
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="meles-memory-"))
    rows: list[tuple[float, int, int]] = []
    ended = threading.Event()
    try:
        options = {"memory_budget": args.budget, "compression": args.compression}
        with meles.open(home, sync="none", **options) as db:
            budget = db.options.memory_budget or 0
            began = time.monotonic()

            def watch() -> None:
                while not ended.wait(0.2):
                    pids = [os.getpid(), *(worker.pid for worker in db.workers() if worker.pid)]
                    rows.append((time.monotonic() - began, *sample(pids)))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                done = load(db, began + args.minutes * 60, args.data)
            finally:
                ended.set()
                watcher.join()
            stats, health = db.stats(), db.health()
            print(f"{db.options}")
            print(f"{done}, data {db.size().lsm_bytes / MIB:.0f} MiB in {len(db.tables())} tables")
            print(
                f"block cache {stats.cache_bytes / MIB:.1f} MiB, hit ratio "
                f"{stats.cache_hit_ratio:.2f}; indexes {stats.index_cache_bytes / MIB:.1f} MiB, "
                f"{stats.index_cache_evictions:,} evictions; {health.status} {health.reasons}"
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if args.csv:
        lines = [f"{at:.1f},{private},{resident}" for at, private, resident in rows]
        Path(args.csv).write_text("\n".join(["seconds,private,resident", *lines]) + "\n")
    for name, place in (("private", 1), ("resident", 2)):
        peak = max(row[place] for row in rows)
        met = "met" if peak <= ALLOWED * budget else "NOT MET"
        print(
            f"{name}: peak {peak / MIB:.0f} MiB = {peak / budget:.2f} of the budget "
            f"({ALLOWED} allowed): {met}"
        )


if __name__ == "__main__":
    main()

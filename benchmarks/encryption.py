"""What encryption costs: the same work without and with a key, and the ratio of the two.

    python benchmarks/encryption.py [--entries 50000] [--rounds 3] [--value-size 100]

Figures are seconds of CPU, of this process and its workers together, the median of the rounds: what
else the machine does must not decide. A round does the work without and with a key in turn.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import meles

KEY = bytes(range(32))


def spent(db: meles.DB) -> float:
    """Seconds of CPU so far, of this process and the workers."""
    return time.process_time() + sum(worker.cpu_seconds for worker in db.workers())


def wait_for_workers(db: meles.DB) -> None:
    """Until they have booted, whose CPU is not what is measured."""
    while any(worker.state == "starting" for worker in db.workers()):
        time.sleep(0.02)


def timed(db: meles.DB, work: Callable[[], object]) -> float:
    began = spent(db)
    work()
    return spent(db) - began


def steps(
    home: Path, options: dict[str, Any], count: int, size: int
) -> Iterator[tuple[str, float]]:
    """Name and seconds of each kind of work."""
    dice = random.Random(1)
    keys = [b"key %012d" % n for n in dice.sample(range(10 * count), count)]
    values = [dice.randbytes(size) for _ in range(256)]

    def put(db: meles.DB) -> None:
        for nth, key in enumerate(keys):
            db.set(key, values[nth & 255])

    def batch(db: meles.DB) -> None:
        with db.write_batch() as writing:
            for nth, key in enumerate(keys):
                writing.set(key, values[nth + 1 & 255])

    def get(db: meles.DB) -> None:
        for key in dice.sample(keys, min(count, 20_000)):
            db.get(key)

    def scan(db: meles.DB) -> None:
        for _ in db.items():
            pass

    def settle(db: meles.DB) -> None:
        db.flush()
        db.wait_idle(timeout=600)

    with meles.open(home, sync="none", **options) as db:
        wait_for_workers(db)
        yield "set", timed(db, lambda: put(db))
        yield "get from memory", timed(db, lambda: get(db))
        yield "write_batch", timed(db, lambda: batch(db))
        yield "flush and compaction", timed(db, lambda: settle(db))
        yield "flatten", timed(db, lambda: db.flatten(timeout=600))
    began = time.process_time()
    with meles.open(home, sync="none", **options) as db:
        yield "open", time.process_time() - began
        wait_for_workers(db)
        yield "get from tables, cold", timed(db, lambda: get(db))
        yield "get from tables, warm", timed(db, lambda: get(db))
        yield "scan", timed(db, lambda: scan(db))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--value-size", type=int, default=100)
    args = parser.parse_args()
    found: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(args.rounds):
        for encrypted in (False, True):
            home = Path(tempfile.mkdtemp(prefix="meles-bench-"))
            options = {"encryption_key": KEY} if encrypted else {}
            try:
                for name, seconds in steps(home / "db", options, args.entries, args.value_size):
                    found.setdefault(name, ([], []))[encrypted].append(seconds)
            finally:
                shutil.rmtree(home)
    print(f"{args.entries:,} entries of {args.value_size} B, median of {args.rounds}")
    print(f"{'':<24}{'plain':>10}{'encrypted':>12}{'ratio':>8}")
    for name, (plain, sealed) in found.items():
        a, b = statistics.median(plain), statistics.median(sealed)
        print(f"{name:<24}{a:>9.3f}s{b:>11.3f}s{b / a:>8.2f}")


if __name__ == "__main__":
    main()

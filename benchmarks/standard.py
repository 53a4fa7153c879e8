"""Every target with its figure, and the plots: what `make bench` runs.

    python benchmarks/standard.py [latency] [points] [compaction] [ingest] [startup] [curves]
    python benchmarks/standard.py --quick          # all parts, small: does it work?
    python benchmarks/standard.py --scaling        # 10 k to 10 M entries, not in the standard set
    python benchmarks/standard.py --large          # 2 M x 1 KiB and 5 GB, not in the standard set

Runs in: one process and the workers it supervises; engines take turns in the same run, so that a
noisy machine is noisy for all of them. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

import compaction
import curves
import ingest
import latency
import plots
import points
import startup
from engines import installed
from report import Report

ROUNDS = 5
Sizes = tuple[tuple[int, int, int], ...]  # entries, bytes of a value, sample (`points.Load`)
FULL: Sizes = ((300_000, 100, 0), (300_000, 1024, 0), (2_000_000, 100, 200_000))
LARGE: Sizes = ((2_000_000, 1024, 200_000),)
LARGE_INGEST = 5.0  # GB
QUICK: Sizes = ((20_000, 100, 0), (5_000, 1024, 0), (50_000, 100, 10_000))
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)


def _points(report: Report, quick: bool, rounds: int) -> None:
    _points_at(report, QUICK if quick else FULL, rounds)


def _points_at(report: Report, sizes: Sizes, rounds: int) -> None:
    rates = {}
    for entries, value_bytes, sample in sizes:
        load = points.Load(entries, value_bytes, rounds, _engines(entries * value_bytes), sample)
        rates[load.title] = points.measure(load, report)
    report.keep("points", rates)


def _engines(size: int) -> list[str]:
    """For so many bytes of values: SQLite is slow to fill, and only in the smallest load."""
    return [name for name in installed() if name != "sqlite3" or size <= 30_000_000]


def _compaction(report: Report, quick: bool, rounds: int) -> None:
    sizes = (100,) if quick else (100, 1024)
    compaction.compaction(report, rounds, sizes)


def _ingest(report: Report, quick: bool, rounds: int) -> None:
    ingest.sustained(report, rounds, 0.02 if quick else 0.4)


def _latency(report: Report, quick: bool, rounds: int) -> None:
    latency.latency(report, rounds, 3.0 if quick else latency.SECONDS, beside=False)


def _startup(report: Report, quick: bool, rounds: int) -> None:
    startup.startup(report, rounds, 0.02 if quick else 1.0)


def _curves(report: Report, quick: bool, rounds: int) -> None:
    few = min(rounds, 3)
    curves.value_sizes(report, [n for n in installed() if n != "sqlite3"], 1 if quick else few)
    curves.threads(report, few)
    latency.timeline(report, 2.0 if quick else 10.0)
    startup.recovery(report, few, (1, 2) if quick else (4, 16, 64))
    startup.many_tables(report, few, (4, 8) if quick else (10, 100, 400))


# the tail of `set` first: what others write and remove is with the machine for minutes
PARTS: dict[str, Callable[[Report, bool, int], None]] = {
    "latency": _latency,
    "points": _points,
    "compaction": _compaction,
    "ingest": _ingest,
    "startup": _startup,
    "curves": _curves,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--rounds", type=int, default=0, help=f"of each part, default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--scaling", action="store_true", help="10 k to 10 M entries instead")
    parser.add_argument("--large", action="store_true", help="2 M x 1 KiB and 5 GB instead")
    args = parser.parse_args()
    rounds = args.rounds or (2 if args.quick else ROUNDS)
    report = Report()
    began = time.monotonic()
    report.say(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} at the start")
    if args.scaling:
        sizes = (1_000, 10_000, 100_000) if args.quick else SIZES
        curves.scaling(report, sizes, [n for n in installed() if n != "sqlite3"])
    if args.large:
        _points_at(report, LARGE, rounds)
        ingest.sustained(report, rounds, 0.02 if args.quick else LARGE_INGEST)
    for name in () if args.scaling or args.large else args.parts or PARTS:
        report.say(f"-- {name}, after {time.monotonic() - began:.0f} s")
        PARTS[name](report, args.quick, rounds)
    report.say(f"-- plots, after {time.monotonic() - began:.0f} s")
    plots.draw_all(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

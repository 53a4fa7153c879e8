"""Point operations and scans from Python, beside plyvel, rocksdict, lmdb and sqlite3 in one run.

    python benchmarks/compare.py [--entries 300000] [--value-bytes 100] [--rounds 5] [--sample 0]

Runs in: one process and our workers; what is measured is in points.py. `--sample N` fills the
stores once and writes N entries a round into them, which is quicker with many entries.
"""

from __future__ import annotations

import argparse
import sys

import plots
import points
from engines import ENGINES, installed
from report import Report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=300_000)
    parser.add_argument("--value-bytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", type=int, default=0, help="0: write all entries every round")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=installed())
    args = parser.parse_args()
    names = list(dict.fromkeys(["meles", *args.engines]))
    load = points.Load(args.entries, args.value_bytes, args.rounds, names, args.sample)
    report = Report()
    report.keep("points", {load.title: points.measure(load, report)})
    plots.draw_all(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())

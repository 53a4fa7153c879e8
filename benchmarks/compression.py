"""Codecs for table blocks on real data: size, write, scan and lookup rates, and the right default.

    python benchmarks/compression.py
    python benchmarks/compression.py --megabytes 8 --rounds 1        # a quick trial

Runs in: one process; flushing and compaction happen on its thread. Rates are per second of CPU, so
that what else the machine does does not show; every file is in the kernel's cache.
Data: the source lines of this Python's installation, JSON records made of them, and random bytes.
Each row is the median of `--rounds` runs. Rates count user bytes (keys and values), not stored.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import meles

MIB = 1 << 20
CODECS: list[tuple[str, int]] = [
    ("none", 1), ("snappy", 1), ("lz4", 1), ("zstd", 1), ("zstd", 3), ("zstd", 9),
]  # fmt: skip
LOOKUPS = 20_000
# The default: the codec that saves this share of the bytes on both texts and keeps this share of
# the rates of "none" where it counts, reading.
SAVES, KEEPS = 0.3, 0.8

Entries = list[tuple[bytes, bytes]]
Row = dict[str, float]


def source_lines(limit: int) -> Iterator[tuple[str, int, str]]:
    """(file, line number, text) of the installed library's sources, until `limit` bytes of text."""
    root = Path(sysconfig.get_path("stdlib"))
    taken = 0
    for path in sorted(root.rglob("*.py")):
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, ValueError):
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield str(path.relative_to(root)), number, line
                taken += len(line) + 20
                if taken >= limit:
                    return


def data_sets(limit: int) -> dict[str, Entries]:
    """Entries of about `limit` bytes each, in key order."""
    rng = random.Random(1)
    lines, records = [], []
    for name, number, line in source_lines(limit):
        key = f"{name}:{number:06d}".encode()
        lines.append((key, line.encode()))
        record = {
            "file": name, "line": number, "text": line, "indent": len(line) - len(line.lstrip()),
            "words": len(line.split()), "comment": line.lstrip().startswith("#"),
        }  # fmt: skip
        records.append((key, json.dumps(record).encode()))
    count = limit // 216
    noise = [(b"%016d" % n, rng.randbytes(200)) for n in range(count)]
    total = 0
    for cut, (key, value) in enumerate(records):
        total += len(key) + len(value)
        if total > limit:
            records = records[:cut]
            break
    return {"source lines": sorted(lines), "JSON records": sorted(records), "random bytes": noise}


def measure(entries: Entries, codec: str, level: int) -> Row:
    """One run: write in random order, bring everything to the last level, scan, look up."""
    home = Path(tempfile.mkdtemp(prefix="meles-codec-"))
    user_bytes = sum(len(key) + len(value) for key, value in entries)
    rng = random.Random(2)
    shuffled = entries.copy()
    rng.shuffle(shuffled)
    options: dict[str, Any] = {
        "workers": "inline", "sync": "none", "compression": codec, "zstd_level": level,
        "value_threshold": "1MiB", "memtable_size": "4MiB",
    }  # fmt: skip
    try:
        with meles.open(home, **options) as db:
            began = time.process_time()
            with db.write_batch() as batch:
                for key, value in shuffled:
                    batch.set(key, value)
            db.flush()
            db.flatten()
            wrote = time.process_time() - began
            began = time.process_time()
            found = sum(len(key) + len(value) for key, value in db.items())
            scanned = time.process_time() - began
            if found != user_bytes:
                raise SystemExit("a scan gave something else than was written")
            asked = [shuffled[rng.randrange(len(shuffled))][0] for _ in range(LOOKUPS)]
            began = time.process_time()
            for key in asked:
                db.get(key)
            cold = time.process_time() - began
            began = time.process_time()
            for key in asked:
                db.get(key)
            warm = time.process_time() - began
            size = db.size().lsm_bytes
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return {
        "size": size / user_bytes, "write": user_bytes / wrote / MIB,
        "scan": user_bytes / scanned / MIB, "cold": LOOKUPS / cold, "warm": LOOKUPS / warm,
    }  # fmt: skip


def medians(rows: list[Row]) -> Row:
    return {name: median(row[name] for row in rows) for name in rows[0]}


def default_for(table: dict[str, dict[str, Row]]) -> str:
    """The codec these figures justify: "none" unless one meets SAVES and KEEPS on both texts."""
    best, saved = "none", 0.0
    for name in next(iter(table.values())):
        shares = []
        for data in ("source lines", "JSON records"):
            plain, row = table[data]["none"], table[data][name]
            keeps = min(row[rate] / plain[rate] for rate in ("scan", "cold", "warm", "write"))
            shares.append(1 - row["size"] / plain["size"] if keeps >= KEEPS else 0.0)
        if min(shares) >= SAVES and min(shares) > saved:
            best, saved = name, min(shares)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=16, help="user bytes of each data set")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{args.megabytes} MiB a set, {args.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    table: dict[str, dict[str, Row]] = {}
    for data, entries in data_sets(args.megabytes * MIB).items():
        print(f"\n{data}: {len(entries):,} entries")
        print(f"{'codec':8} {'size':>6} {'write':>8} {'scan':>8} {'get cold':>10} {'get warm':>10}")
        rows: dict[str, list[Row]] = {}
        for _ in range(args.rounds):  # alternating: what else the machine does hits all alike
            for codec, level in CODECS:
                name = f"zstd {level}" if codec == "zstd" else codec
                rows.setdefault(name, []).append(measure(entries, codec, level))
        table[data] = {name: medians(found) for name, found in rows.items()}
        for name, row in table[data].items():
            print(
                f"{name:8} {row['size']:6.2f} {row['write']:5.1f} MB {row['scan']:5.0f} MB "
                f"{row['cold']:8,.0f}/s {row['warm']:8,.0f}/s",
                flush=True,
            )
    print(f"\ndefault these figures justify: {default_for(table)}")


if __name__ == "__main__":
    main()

"""A long load of 1 KiB values, 30 % of them over existing keys, until nothing is left to be done.

Runs in: one process and our workers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from engines import Meles, RocksDict, make_values
from report import MIB, Report, home, wait_for

KEY_BYTES = 16
VALUE_BYTES = 1024
OVERWRITES = 0.3


def keys_of_load(entries: int) -> Iterator[bytes]:
    """Random keys, a share of them written before."""
    rng = random.Random(11)
    written: list[bytes] = []
    for _ in range(entries):
        if written and rng.random() < OVERWRITES:
            yield written[rng.randrange(len(written))]
        else:
            key = rng.randbytes(KEY_BYTES)
            written.append(key)
            yield key


def shape(gigabytes: float) -> dict[str, Any]:
    """A smaller trial keeps the shape: as many value-log files, as many flushes."""
    scale = min(1.0, gigabytes / 5)
    return {
        "value_log_file_size": int(scale * ((1 << 30) - 1)),
        "memtable_size": int(scale * 64 * MIB),
    }


def no_compression(options: Any) -> None:
    """The values cannot be compressed."""
    import rocksdict

    options.set_compression_type(rocksdict.DBCompressionType.none())


def sustained(report: Report, rounds: int, gigabytes: float) -> None:
    """Rates from the first set to quiescence; defaults of both sides, so ours is not scaled."""
    entries = int(gigabytes * 1e9 / VALUE_BYTES)
    keys = list(keys_of_load(entries))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(entries / _our_seconds(keys))
        theirs.append(entries / _rocks_seconds(keys))
    report.say(
        f"ingest of {gigabytes:g} GB to quiescence: {median(ours):,.0f}/s, "
        f"rocksdict {median(theirs):,.0f}/s"
    )
    found = median(a / b for a, b in zip(ours, theirs, strict=True))
    report.want(f"ingest of {gigabytes:g} GB, 1 KiB, to quiescence, rate to rocksdict's", found,
                1.0, 2.0)  # fmt: skip


def _our_seconds(keys: list[bytes]) -> float:
    with home() as path:
        engine = Meles(path)
        values = make_values(VALUE_BYTES)
        began = time.perf_counter()
        engine.set_all(keys, values)
        engine.db.flush()
        engine.db.wait_idle(300)
        seconds = time.perf_counter() - began
        engine.close()
        return seconds


def _rocks_seconds(keys: list[bytes]) -> float:
    with home() as path:
        engine = RocksDict(path, no_compression)
        values = make_values(VALUE_BYTES)
        began = time.perf_counter()
        engine.set_all(keys, values)
        engine.db.flush()
        wait_for(engine.rests, 300)
        seconds = time.perf_counter() - began
        engine.close()
        return seconds

"""What an engine holds in memory with a load: its process and its workers.

    python benchmarks/memory.py ENGINE DIRECTORY ENTRIES VALUE_BYTES

Runs in: a process of its own for each engine, so that none is charged with another's. `own` is
memory that nothing else backs; `pss` adds each process's share of what it maps, `rss` all of it.
Pages of mapped files are page cache: the system takes them back when it wants to, and it keeps the
same pages, uncounted, for stores that read files without mapping them.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from engines import ENGINES, Meles, make_values
from report import Report

MIB = 1 << 20
KINDS = {"own": "Anonymous:", "pss": "Pss:", "rss": "Rss:"}
MOST = 1.5  # times rocksdict's: the aim


def build(name: str, path: Path, entries: int, value_bytes: int) -> dict[str, Any]:
    """Fill a store in a process of its own; what it held, by moment and kind, in bytes."""
    command = [sys.executable, __file__, name, str(path), str(entries), str(value_bytes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def held_by(pids: list[int]) -> dict[str, int]:
    sums = dict.fromkeys(KINDS, 0)
    for pid in pids:
        rows = [row.split() for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
        kib = {row[0]: int(row[1]) for row in rows if len(row) == 3}
        for kind, field in KINDS.items():
            sums[kind] += kib[field] << 10
    return sums


def show(title: str, held: dict[str, Any], report: Report) -> None:
    report.say(f"{title}, MiB of memory beyond an empty interpreter with its keys")
    report.say(f"{'':<14}{'moment':<14}" + "".join(f"{kind:>9}" for kind in KINDS))
    for name, moments in held.items():
        for moment, sums in moments.items():
            cells = "".join(f"{sums[kind] / MIB:>9.0f}" for kind in KINDS)
            report.say(f"{name:<14}{moment:<14}{cells}")
    if "rocksdict" not in held:
        return
    for moment, sums in held["meles"].items():
        for kind in ("own", "rss"):
            found = sums[kind] / max(MIB, held["rocksdict"][moment][kind])
            report.aim(
                f"{title}: {kind} of host and workers {moment}, at most {MOST} x "
                f"rocksdict's: {found:.2f} x",
                found <= MOST,
            )


def _main() -> None:
    name, path, entries, value_bytes = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    rng = random.Random(7)  # the keys of points.random_keys(entries, 7)
    keys = [rng.randbytes(16) for _ in range(entries)]
    values = make_values(value_bytes)
    lookups = random.Random(9).sample(keys, min(entries, 100_000))
    gc.collect()
    before = held_by([os.getpid()])
    engine = ENGINES[name](path)

    def held() -> dict[str, int]:
        gc.collect()
        workers = engine.pids() if isinstance(engine, Meles) else []
        found = held_by([os.getpid(), *workers])
        return {kind: max(0, found[kind] - before[kind]) for kind in KINDS}

    moments = {}
    half = len(keys) // 2
    engine.set_all(keys[:half], values)
    engine.batch_all(keys[half:], values)
    moments["after writes"] = held()
    engine.settle()
    engine.close()
    engine = ENGINES[name](path)
    engine.get_all(lookups)
    engine.scan()
    moments["after reads"] = held()
    engine.close()
    json.dump(moments, sys.stdout)


if __name__ == "__main__":
    _main()

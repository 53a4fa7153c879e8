"""How long after a worker hangs its replacement is ready, alone and beside processes that compute.

    python benchmarks/replacing.py [HANGS]

The bar is the time-out and two seconds more. Runs in: one process, our workers, and processes that
do nothing but compute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import meles
from report import home, wait_for

TIMEOUT = 2.0
KINDS = ("flusher", "compactor", "value_gc")
BUSY = (0, 1, 3)  # computing processes for each processor
HANGS = 10  # of each kind


def ready(db: meles.DB, kind: str, other_than: int = 0) -> int:
    """The pid of a worker that waits for work; 0 while there is none but that one."""
    each = next(each for each in db.workers() if each.kind == kind)
    return each.pid if each.pid not in (None, other_than) and each.state == "idle" else 0


def replaced(path: Path, kind: str) -> float:
    """Seconds; a handle each, for who hangs again is started again after a pause."""
    with meles.open(path, worker_hang_timeout=TIMEOUT) as db:
        wait_for(lambda: ready(db, kind), 60)
        pid = ready(db, kind)
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: ready(db, kind, pid), 60)
        return time.monotonic() - began


def main() -> None:
    hangs = int(sys.argv[1]) if len(sys.argv) > 1 else HANGS
    for each in BUSY:
        count = each * (os.cpu_count() or 1)
        others = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(count)]
        try:
            with home() as path:
                took = [replaced(path, kind) for kind in KINDS for _ in range(hangs)]
        finally:
            for other in others:
                other.kill()
                other.wait()
        print(
            f"{count} computing processes, {len(took)} hangs, time-out {TIMEOUT:g} s: replaced "
            f"after {median(took):.2f} s (median), {max(took):.2f} s (longest)"
        )


if __name__ == "__main__":
    main()

"""The whole process tree beside its memory budget, under a mixed load."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import meles
import pytest

MIB = 1 << 20
ALLOWED = 1.2  # of the budget
WORDS = [b"%x " % (n * 2654435761 % (1 << 28)) for n in range(500)]


def own_memory(pid: int) -> int:
    """Bytes that are this process's alone and no file's; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return int(fields["Anonymous"].split()[0]) << 10


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_all_processes_own_stays_within_the_budget(tmp_path: Path) -> None:
    keys, rng = 800_000, random.Random(1)
    before = own_memory(os.getpid())  # the test runner itself is not the database's
    peaks = [0]
    ended = threading.Event()
    budget = 160 * MIB
    with meles.open(
        tmp_path, memory_budget=budget, compression="zstd", sync="none", num_compactors=1
    ) as db:

        def watch() -> None:
            while not ended.wait(0.1):
                workers = [worker.pid for worker in db.workers() if worker.pid]
                own = own_memory(os.getpid()) - before
                peaks.append(own + sum(map(own_memory, workers)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            for _ in range(2500):
                with db.write_batch() as batch:
                    for _ in range(500):
                        value = b"".join(rng.choices(WORDS, k=25))
                        batch.set(b"%016d" % rng.randrange(keys), value)
                for _ in range(1000):
                    db.get(b"%016d" % rng.randrange(keys))
                start = b"%016d" % rng.randrange(keys)
                assert sum(1 for _ in db.items(start=start, limit=2000)) <= 2000
            stats, health = db.stats(), db.health()
        finally:
            ended.set()
            watcher.join()
    assert health.status == "ok", health.reasons
    assert len(peaks) > 10
    assert max(peaks) <= ALLOWED * budget, f"{max(peaks) / MIB:.0f} MiB"
    assert stats.cache_evictions > 0, "the load did not fill the cache"
    print(f"peak {max(peaks) / MIB:.0f} MiB of {budget / MIB:.0f}")

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
HOST = 13 * MIB  # an interpreter that has imported meles
WORDS = [b"%x " % (n * 2654435761 % (1 << 28)) for n in range(500)]


def resident(pid: int) -> int:
    """Bytes as `ps` shows them; 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("codec", ["zstd", "none"], ids=["unpacked", "in place"])
def test_what_all_processes_have_resident_stays_within_the_budget(
    tmp_path: Path, codec: str
) -> None:
    keys, rng = 800_000, random.Random(1)
    before = resident(os.getpid()) - HOST  # the test runner itself is not the database's
    peaks = [0]
    ended = threading.Event()
    budget = 160 * MIB
    with meles.open(
        tmp_path, memory_budget=budget, compression=codec, sync="none", num_compactors=1
    ) as db:

        def watch() -> None:
            while not ended.wait(0.1):
                workers = [worker.pid for worker in db.workers() if worker.pid]
                peaks.append(resident(os.getpid()) - before + sum(map(resident, workers)))

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
    assert codec == "none" or stats.cache_evictions > 0, "the load did not fill the cache"
    print(f"peak {max(peaks) / MIB:.0f} MiB of {budget / MIB:.0f}")

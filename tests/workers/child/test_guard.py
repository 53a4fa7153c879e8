"""What a worker does to itself before its first job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import mmap, sys
from meles.workers.child.guard import limit_memory
limit_memory(256 << 20)
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
assert mapped[-1] == 0
try:
    bytearray(512 << 20)
except MemoryError:
    print("refused")
"""


def test_the_memory_limit_counts_what_is_the_workers_own_and_no_mapped_file(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as made:
        made.truncate(1 << 30)
    command = [sys.executable, "-P", "-c", SCRIPT, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr

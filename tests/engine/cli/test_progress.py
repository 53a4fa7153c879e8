"""Progress: plain lines for a log, a display for a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

from meles.engine.cli.progress import PlainProgress, Tally, make_progress
from meles.engine.reports import WorkerInfo


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def workers() -> list[WorkerInfo]:
    return [WorkerInfo("flusher", "flusher-1", 7, "busy", "flush memtable 3", 2 << 20, 0.5, 0)]


def test_plain_lines_come_with_the_rate_since_the_last_one() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = PlainProgress("ingest", stream, workers, interval=2.0, clock=clock)
    progress.update(Tally(records=10, size=100))
    assert stream.getvalue() == ""
    clock.now += 2
    progress.update(Tally(records=1000, size=4096, committed=900, total=8192, bad=3))
    clock.now += 1
    progress.update(Tally(records=1500, size=8192, committed=1500, total=8192), final=True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "ingest: 1,000 records, 4.0 KiB of 8.0 KiB, 900 committed, 500 records/s, 2.0 KiB/s, 3 bad"
    )
    assert lines[1].split()[:3] == ["flusher-1", "7", "busy"]
    assert lines[2] == (
        "ingest: 1,500 records, 8.0 KiB of 8.0 KiB, 1,500 committed, 500 records/s, 4.0 KiB/s"
    )
    assert len(lines) == 4


def test_quiet_shows_messages_only() -> None:
    stream = io.StringIO()
    progress = make_progress("ingest", stream, workers, quiet=True)
    progress.update(Tally(records=10), final=True)
    progress.note("bad record: x")
    progress.close()
    assert stream.getvalue() == "bad record: x\n"


def run_display(stream_is_terminal: bool) -> tuple[str, bool]:
    """Draw once in a process of its own; what it wrote, and whether the library was loaded."""
    code = (
        "import sys\n"
        "from meles.engine.cli.progress import Tally, make_progress\n"
        "from meles.engine.reports import WorkerInfo\n"
        "w = WorkerInfo('flusher', 'flusher-1', 7, 'busy', 'flush memtable 3', 1 << 20, 0.5, 0)\n"
        "p = make_progress('ingest', sys.stderr, lambda: [w], quiet=False)\n"
        "p.update(Tally(records=1234, size=50, committed=1000, total=100, bad=1), final=True)\n"
        "p.note('bad record: [x]')\n"
        "p.close(); p.close()\n"
        "print('rich' in sys.modules)\n"
    )
    main_end, other_end = pty.openpty()
    stderr = other_end if stream_is_terminal else subprocess.PIPE
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=stderr, check=True, timeout=60,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )  # fmt: skip
    os.close(other_end)
    drawn = done.stderr or b""
    while stream_is_terminal:
        try:
            drawn += os.read(main_end, 65536)
        except OSError:
            break
    os.close(main_end)
    return drawn.decode(), done.stdout.strip() == b"True"


def test_terminal_gets_a_bar_the_figures_and_the_workers() -> None:
    drawn, loaded = run_display(stream_is_terminal=True)
    assert loaded
    for text in ("1,234 records", "1,000 committed", "1 bad", "flusher-1", "flush memtable 3"):
        assert text in drawn
    assert "bad record: [x]" in drawn
    assert "50/100 bytes" in drawn


def test_elsewhere_the_display_library_is_not_loaded() -> None:
    drawn, loaded = run_display(stream_is_terminal=False)
    assert not loaded
    assert drawn.startswith("ingest: 1,234 records")

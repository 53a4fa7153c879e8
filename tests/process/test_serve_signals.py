"""`supervisor.py serve` under signals at any moment: it ends in time and keeps its promises."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import meles
import pytest

ROOT = Path(__file__).parents[2]
BUDGET = 2.0  # seconds of close_timeout
MARGIN = 40.0  # for a start, a last commit and a loaded machine
SEED = int(os.environ.get("MELES_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)

TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL
# What is sent, and whether to the whole process group; pauses between them are random.
STORMS = {
    "TERM": ([TERM], False),
    "INT": ([INT], False),
    "HUP": ([HUP], False),
    "TERM twice": ([TERM, TERM], False),
    "INT, then TERM, then INT": ([INT, TERM, INT], False),
    "INT to the group": ([INT], True),
    "TERM to the group twice": ([TERM, TERM], True),
    "HUP, then KILL": ([HUP, KILL], False),
    "TERM, then KILL to the group": ([TERM, KILL], True),
}


@pytest.mark.parametrize(
    ("storm", "hung"),
    [*((storm, False) for storm in STORMS), ("TERM", True), ("TERM twice", True),
     ("TERM, then KILL to the group", True)],
)  # fmt: skip
def test_signals(program, tmp_path, storm, hung):
    numbers, to_group = STORMS[storm]
    rng = random.Random(f"{SEED}/{storm}/{hung}")
    served = program(
        str(ROOT / "supervisor.py"), "serve", str(tmp_path / "db"), "-", "--key", "{n:06d}",
        "--ack", "--config", "tiny", "--option", f"close_timeout={BUDGET}",
        "--option", "worker_hang_timeout=60", "--commit-every", "0.01",
    )  # fmt: skip
    feeder = threading.Thread(target=feed, args=(served,))
    feeder.start()
    served.expect("ready:")
    acknowledged = await_ack(served)
    if hung:
        served.stop_workers()
    for number in numbers:
        threading.Event().wait(rng.uniform(0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_group else os.kill)(served.pid, number)
    began = time.monotonic()
    while line := served.line():
        if line.startswith("ack "):
            acknowledged = int(line.split()[-1])
    code = served.wait()
    assert time.monotonic() - began < BUDGET + MARGIN, SEED
    feeder.join()
    late = [-number for number in numbers[1:]]  # it may come when all is closed and done
    assert code in (0, 1, *late), served.errors()
    assert hung or late or code == 0, served.errors()
    stored = {}
    with meles.open(tmp_path / "db", mode="read_only", wait=30.0) as db:
        stored.update(db.items(b"0"))
    assert len(stored) >= acknowledged, SEED
    assert stored == {b"%06d" % n: line_of(n) for n in range(1, len(stored) + 1)}, SEED


def line_of(number):
    return b"line %d " % number + b"x" * (number % 7 * 300)


def feed(served):
    """Lines without end, until nobody reads them."""
    with contextlib.suppress(BrokenPipeError):
        number = 1
        while True:
            lines = [line_of(n) for n in range(number, number + 20)]
            served.popen.stdin.write(b"\n".join(lines) + b"\n")
            number += 20


def await_ack(served):
    while not (line := served.line()).startswith("ack "):
        assert line, served.errors()
    return int(line.split()[-1])

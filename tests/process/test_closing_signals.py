"""Signals in every stage of closing: in time or dead, and nothing lost either way.

The host says which stage is next and waits; there the signal strikes the host, its workers or all
of them, once or twice. `make test` strikes each stage with some of them, the long run with all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import meles
import pytest
from closing_host import KEYS, ROUNDS, value

HOST = str(Path(__file__).parents[1] / "support" / "closing_host.py")
BUDGET = 10.0  # seconds of close_timeout
MARGIN = 40.0  # for a start and an end on a loaded machine
STAGES = (
    "refuse_writes", "stop_value_gc", "drain_writer", "flush_memtables", "stop_flusher",
    "compact_level_zero", "stop_compactors", "seal_value_log", "close_logs", "stop_pool",
    "close_tables", "stop_oracle", "close_manifest", "sync_directories", "release_locks",
)  # fmt: skip
TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL
SIGNALS = {
    "TERM": [TERM], "INT": [INT], "HUP": [HUP], "KILL": [KILL], "TERM twice": [TERM, TERM],
    "INT twice": [INT, INT],
}  # fmt: skip
ONCE = [name for name, numbers in SIGNALS.items() if len(numbers) == 1]
TARGETS = ("host", "workers", "all")
MOMENTS = ("before", "within")  # the stage begins, or while it may be at work
EVERYTHING = list(itertools.product(("plain", "served"), SIGNALS, TARGETS, MOMENTS))
# A sample in which each signal, each target and either kind of host comes by turns.
SAMPLE = [(stage, *EVERYTHING[(29 * n + 5) % len(EVERYTHING)]) for n, stage in enumerate(STAGES)]


class Struck:
    """One closing under fire."""

    def __init__(self, program, path, how):
        self.path = path
        self.host = program(HOST, how, str(path))
        self.workers = [int(word) for word in self.host.expect("workers")]
        self.host.expect("closing")

    def strike(self, numbers, target):
        pids = [
            *(self.workers if target != "host" else []),
            *[self.host.pid] * (target != "workers"),
        ]
        for number in numbers:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def close(self, at, numbers, target, moment):
        """Let it close, and strike at that stage; returns its exit code and its last words."""
        struck, line = False, ""
        began = time.monotonic()
        while line := self.host.line() or "":
            last = line
            if line.startswith("closed"):
                break
            strike_now = not struck and line == f"stage {at}"
            if strike_now and moment == "before":
                self.strike(numbers, target)
            with contextlib.suppress(AssertionError):  # it may be dead
                self.host.say("go")
            if strike_now and moment == "within":
                self.strike(numbers, target)
            struck = struck or strike_now
        assert struck
        code = self.host.wait()
        assert time.monotonic() - began < BUDGET + MARGIN
        return code, last

    def judge(self):
        expected = {b"k%03d" % key: value(ROUNDS - 1, key) for key in range(KEYS)}
        with meles.open(self.path, mode="read_only", wait=30.0) as db:
            assert dict(db.items()) == expected
        with meles.open(self.path, workers="inline") as db:
            assert dict(db.items()) == expected
            assert db.verify(values=True).ok
            tables = {f"{table.id:06d}.sst" for table in db.tables()}
        left = {name for name in os.listdir(self.path) if not name.endswith(".vlog")}
        assert left == {"MANIFEST", *tables}


def ends(how, signals, target):
    """Exit codes that may come of it."""
    deadly = [n for n in signals if n == KILL or (how == "plain" and n in (TERM, HUP))]
    if target != "workers" and deadly:
        return {-deadly[0]}
    interrupted = how == "plain" and INT in signals and target != "workers"
    return {1, -INT} if interrupted else {0}


def strike(program, tally, path, stage, how, name, target, moment):
    struck = Struck(program, path, how)
    code, last = struck.close(stage, SIGNALS[name], target, moment)
    late = {0} if stage == STAGES[-1] and moment == "within" else set()  # it may have ended before
    expected = ends(how, SIGNALS[name], target) | late
    assert code in expected, (code, last, struck.host.errors())
    if target == "workers" or (how == "served" and SIGNALS[name] != [KILL] and name in ONCE):
        assert last == "closed clean"
    struck.judge()
    tally("signal in a stage of closing", 1)


@pytest.mark.parametrize(("stage", "how", "name", "target", "moment"), SAMPLE)
def test_a_signal(program, tally, tmp_path, stage, how, name, target, moment):
    strike(program, tally, tmp_path / "db", stage, how, name, target, moment)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("stage", STAGES)
def test_every_signal(program, tally, tmp_path, stage):
    for number, case in enumerate(EVERYTHING):
        try:
            strike(program, tally, tmp_path / str(number), stage, *case)
        except BaseException as error:
            error.add_note(f"{stage}: {case}")
            raise

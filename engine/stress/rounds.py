"""Rounds of stress on one directory: start the load, strike, look at what is left, judge.

Runs in: the stress process, which never opens the directory itself while a load lives.
Owns: the ledger file, the load's process.
Invariants: (1) the ledger lies outside the directory and outlives every load; (2) after a load has
died nothing of it lives and its lock is free, within `GONE_SECONDS`; (3) the first violation ends
the stress and leaves directory and ledger as they are.
Fails with: `StressError` for what must not be.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import meles
import psutil
from meles.engine.stress.draw import Fault, Round
from meles.engine.stress.judge import Checker
from meles.engine.stress.ledger import Ledger, LedgerFile, observe
from meles.engine.stress.load import KEYS

GONE_SECONDS: Final = 30.0  # at once, where there is a core to spare
_ANSWER_SECONDS: Final = 120.0  # only stops a hang
_LIMIT_SECONDS: Final = 1.0


class StressError(Exception):
    """A promise was not kept."""


class LoadProcess:
    """A load as a child process: what it says line by line, and its end."""

    def __init__(self, directory: str, ledger: str, round_: Round) -> None:
        words = (directory, ledger, str(round_.number), str(round_.seed))
        options = json.dumps({**round_.options, "patient": True})
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "meles.engine.stress.load", *words, options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
        )  # fmt: skip
        self._buffer = b""
        self.pid = self._popen.pid

    def say(self, *words: str) -> None:
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.write((" ".join(words) + "\n").encode())

    def expect(self, word: str) -> str:
        """Its next line, which must begin with this word."""
        stdout = self._popen.stdout
        until = time.monotonic() + _ANSWER_SECONDS
        while b"\n" not in self._buffer:
            left = max(0.0, until - time.monotonic())
            if stdout is None or not select.select([stdout], [], [], left)[0]:
                raise StressError(f"the load did not say {word!r} within {_ANSWER_SECONDS:.0f} s")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise StressError(f"the load ended instead of saying {word!r}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        text = line.decode()
        if text.split()[:1] != [word]:
            raise StressError(f"the load said {text!r} instead of {word!r}")
        return text

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill(self, victims: list[psutil.Process]) -> None:
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self._popen.wait()

    def limit(self, spare: int) -> None:
        """Leave it so many descriptors for a moment."""
        process = psutil.Process(self.pid)
        before = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        few = (process.num_fds() + spare, before[1])
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, few)
        pause(_LIMIT_SECONDS)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, before)

    def end(self) -> int:
        """Wait for its end by itself."""
        return self._popen.wait(_ANSWER_SECONDS)

    def close(self) -> None:
        self.kill(self.tree())
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                stream.close()


def is_tied(pid: int) -> bool:
    """Whether a worker has told the kernel to end it with its parent, as it first of all does.

    One that somebody stops before, and whose parent dies, stays until it is continued.
    """
    with contextlib.suppress(OSError):
        return "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    return False


def pause(seconds: float) -> None:
    """Let time pass, to strike at some moment."""
    select.select([], [], [], seconds)


@dataclass
class Stress:
    """A directory under stress. `struck` counts faults, `checker` holds what was promised."""

    directory: str
    ledger_path: str
    say: Callable[[str], None] = lambda _line: None
    checker: Checker = field(default_factory=Checker)
    struck: Counter[str] = field(default_factory=Counter)
    rounds: int = 0

    def __post_init__(self) -> None:
        Ledger(self.ledger_path).close()
        self._ledger = LedgerFile(self.ledger_path)

    def run(self, round_: Round) -> None:
        """One round, from start to verdict."""
        load = LoadProcess(self.directory, self.ledger_path, round_)
        try:
            load.expect("opening")
            struck = self._strike(load, round_)
        finally:
            load.close()
        self._expect_gone(struck)
        self._look()
        self.struck[round_.fault.value] += 1
        self.rounds += 1
        self.say(
            f"round {round_.number}: {round_.fault.value}; {self.checker.acked:,} commits "
            "acknowledged so far, all of them there"
        )

    def _strike(self, load: LoadProcess, round_: Round) -> list[psutil.Process]:
        """The processes there were, which must be gone by and by."""
        fault = round_.fault
        if fault is Fault.KILL_IN_OPENING:
            pause(round_.seconds / 10)
            tree = load.tree()
            load.kill(tree)
            return tree
        load.expect("open")
        pause(round_.seconds)
        if fault in (Fault.WORKER_KILLED, Fault.WORKER_HUNG):
            load.say("kill" if fault is Fault.WORKER_KILLED else "hang", round_.kind)
            load.expect("killed")
            load.expect("replaced")
        if fault in (Fault.CLOSE, Fault.WORKER_KILLED, Fault.WORKER_HUNG):
            tree = load.tree()
            load.say("stop")
            load.expect("closing")
            if load.expect("closed").split()[1] != "clean" or load.end() != 0:
                raise StressError("closing was not clean")
            return tree
        if fault is Fault.NO_DESCRIPTORS:
            load.limit(round_.seed % 6)
        if fault is Fault.KILL_IN_CLOSING:
            load.say("stop")
            load.expect("closing")
            pause(round_.seconds / 10)
        tree = load.tree()
        if fault is Fault.STOPPED_WORKERS:
            for worker in tree[1:]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if is_tied(worker.pid):
                        worker.send_signal(signal.SIGSTOP)
        load.kill(tree if fault is Fault.KILL_TREE else tree[:1])
        return tree

    def _expect_gone(self, processes: list[psutil.Process]) -> None:
        until = time.monotonic() + GONE_SECONDS
        while alive := [p for p in processes if _is_alive(p)]:
            if time.monotonic() > until:
                raise StressError(f"still alive after {GONE_SECONDS} s: {alive}")
            pause(0.02)

    def _look(self) -> None:
        """Read everything without changing anything, and judge all that is known so far."""
        with contextlib.suppress(meles.DirectoryMissingError):
            with meles.open(self.directory, mode="read_only", wait=GONE_SECONDS) as db:
                ledger = Ledger(self.ledger_path)
                ledger.found(observe(db, KEYS, "read_only"))
                ledger.close()
                report = db.verify(values=True)
            if not report.ok:
                raise StressError(f"verification failed: {report.problems[:3]}")
        self.checker.feed(self._ledger.more())
        if self.checker.violations:
            found = "; ".join(map(str, self.checker.violations[:5]))
            raise StressError(f"{len(self.checker.violations)} violations: {found}")


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False

"""Real processes, killed for real: starting a load, ending it, and what must be left: nothing.

The test process makes itself the reaper of orphans, so that every process of a dead load is found,
seen to end, and leaves no zombie.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import meles
import psutil
import pytest
from meles.engine.stress.judge import Checker
from meles.engine.stress.ledger import Ledger, LedgerFile, observe
from meles.engine.stress.load import KEYS
from meles.engine.stress.rounds import is_tied
from syscalls import missing
from waiting import wait_until

SUPPORT = Path(__file__).parents[1] / "support"
DEADLINE = 80.0  # seconds; for what ends by itself, on a loaded machine
GONE_SECONDS = 30.0  # for orphans to end, and a lock to come free: at once, where there is a core
_PR_SET_CHILD_SUBREAPER = 36

# Everything happens often: a flush each few hundred commits, four levels, value-log files of 1 MiB.
OPTIONS = {
    "memtable_size": 256 << 10,
    "num_memtables": 3,
    "base_table_size": 16 << 10,
    "base_level_size": 64 << 10,
    "level_size_multiplier": 2,
    "num_level_zero_tables": 2,
    "num_level_zero_tables_stall": 8,
    "value_log_file_size": 1 << 20,
    "gc_discard_ratio": 0.3,
    "worker_heartbeat": 0.2,
    "close_timeout": 60.0,  # a close that is not clean is a failure here, not a busy machine
}


@pytest.fixture(autouse=True)
def _reaper() -> Iterator[None]:
    """Orphans become children of this process. What lives on is left to the leak guard to name."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    with contextlib.suppress(AssertionError):
        wait_until(_all_reaped, GONE_SECONDS)


def _all_reaped() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def reap_orphans(known: set[int]) -> None:
    """Children of this process that are none of `known` are orphans: they must be ending."""

    def strangers() -> list[int]:
        return [p.pid for p in psutil.Process().children() if p.pid not in known]

    try:
        wait_until(lambda: all(map(is_dead, strangers())), GONE_SECONDS)
    except AssertionError:
        alive = [str(psutil.Process(pid)) for pid in strangers() if not is_dead(pid)]
        for pid in strangers():
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"outlived their supervisor: {alive}") from None
    finally:
        for pid in strangers():
            os.waitpid(pid, 0)


def assert_lock_free(directory: Path) -> None:
    """Nobody holds the lock of the directory, or will in a moment."""
    if not directory.exists():
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        wait_until(lambda: _locks(fd), GONE_SECONDS, f"the lock of {directory}")
    finally:
        os.close(fd)


def _locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


class Program:
    """A Python program with a conversation on its standard input and output."""

    def __init__(self, *args: str, cwd: Path, strict: bool = True) -> None:
        self.known = {child.pid for child in psutil.Process().children()}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `ended`
        warnings = ["-W", "error"] if strict else []
        paths = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        self.popen = subprocess.Popen(
            [sys.executable, *warnings, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            cwd=cwd, env=environ, bufsize=0, start_new_session=True,
        )  # fmt: skip
        self.known.add(self.popen.pid)
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def say(self, *words: str) -> None:
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write((" ".join(words) + "\n").encode())
        except BrokenPipeError:
            self.popen.wait()
            raise AssertionError(f"it has ended; {self.errors()}") from None

    def line(self, seconds: float = DEADLINE) -> str:
        """Its next line; an empty text when it has ended."""
        assert self.popen.stdout is not None
        fd = self.popen.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not select.select([fd], [], [], max(0, until - time.monotonic()))[0]:
                raise AssertionError(f"it said nothing for {seconds} s; {self.errors()}")
            data = os.read(fd, 65536)
            if not data:
                return self._buffer.decode()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def expect(self, *words: str) -> list[str]:
        """Its next line must begin with these words; returns those that follow."""
        line = self.line()
        assert line.split()[: len(words)] == list(words), (line, self.errors())
        return line.split()[len(words) :]

    def reply(self, word: str) -> Any:
        """The JSON behind a word that its next line begins with."""
        line = self.line()
        assert line.startswith(word + " "), (line, self.errors())
        return json.loads(line[len(word) :])

    def workers(self) -> list[psutil.Process]:
        """Its children that are workers of Meles (one that is just being spawned is not yet)."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children()
            return [child for child in children if role_of(child)]
        return []

    def errors(self) -> str:
        """What it said on standard error."""
        self._stderr.seek(0)
        return self._stderr.read().decode()

    def wait(self, seconds: float = DEADLINE) -> int:
        """Wait for its end by itself; all that belonged to it must end too."""
        code = self.popen.wait(seconds)
        self.buried()
        return code

    def kill(self) -> None:
        """Only the program itself: what it started has to notice."""
        self.popen.kill()
        self.popen.wait()
        self.buried()

    def kill_tree(self, rng: random.Random) -> None:
        """The program and its children at once, in any order."""
        tree = [psutil.Process(self.pid)]
        tree += tree[0].children(recursive=True)
        rng.shuffle(tree)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait()
        self.buried()

    def hold_still(self) -> None:
        """Stop the program and its children; when this returns no call of theirs is under way."""
        tree = [psutil.Process(self.pid)]
        tree += tree[0].children(recursive=True)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        wait_until(lambda: all(_is_still(process.pid) for process in tree), DEADLINE, "a stop")

    def stop_workers(self) -> None:
        """Make its workers hang. (One stopped before it could ask the kernel to end it with its
        parent would stay, without a lock, until it is continued: such a one is let be.)"""
        for worker in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_tied(worker.pid):
                    worker.suspend()

    def kill_with_stopped_workers(self) -> None:
        """A stopped process notices nothing; the kernel must end it."""
        self.stop_workers()
        self.kill()

    def buried(self) -> None:
        reap_orphans(self.known)

    def close(self) -> None:
        """Whatever state it is in, let nothing of it live on. A second call does nothing."""
        if self._stderr.closed:
            return
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self._stderr):
            assert stream is not None
            stream.close()
        reap_orphans(self.known)


def role_of(process: psutil.Process) -> str:
    """Which kind of worker a process is; an empty text for none."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if "meles.workers.child.main" in words:
            return words[words.index("meles.workers.child.main") + 1]
    return ""


def _is_still(pid: int) -> bool:
    """Whether every thread of a process is stopped or gone."""
    states = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            states.add((task / "stat").read_text().rpartition(")")[2].split()[0])
    return states <= set("TZX")


@pytest.fixture(scope="session")
def syscalls_watched() -> None:
    """Skips where calls of other processes cannot be watched."""
    if reason := missing():
        pytest.skip(f"kills at system calls: {reason}")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[type[Program]]:
    """Starts programs; ends those that still run."""
    started: list[Program] = []

    def start(*args: str, strict: bool = True) -> Program:
        started.append(Program(*args, cwd=tmp_path, strict=strict))
        return started[-1]

    yield start  # type: ignore[misc]
    for each in started:
        each.close()


class Campaign:
    """One directory, killed again and again under load, with its ledger and the judge of it."""

    def __init__(self, home: Path, program: type[Program], seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.path = home / "db"
        self.checker = Checker()
        self.runs = 0
        self.crashes: Counter[str] = Counter()
        self.ripe: Counter[str] = Counter()  # of these, those in a directory that has seen all
        self.unheard: set[str] = set()  # kinds of events that do not count
        self._program = program
        shm = Path("/dev/shm")
        folder = shm if os.access(shm, os.W_OK) else home
        fd, name = tempfile.mkstemp(prefix="meles-ledger-", dir=folder)
        os.close(fd)
        self.ledger_path = Path(name)
        self._file = LedgerFile(name)
        self.load: Program

    def start(self, **options: object) -> Program:
        """The next run; it is about to open the directory when this returns."""
        if self.runs:
            self.load.close()
        self.runs += 1
        chosen = json.dumps({**OPTIONS, **options})
        seed = str(self.rng.randrange(1 << 30))
        load = self._program(
            "-m", "meles.engine.stress.load", str(self.path), str(self.ledger_path),
            str(self.runs), seed, chosen,
        )  # type: ignore[call-arg]  # fmt: skip
        load.expect("opening")
        self.load = load
        return load

    def pause(self, longest: float) -> None:
        """Let a random time pass: not to wait for anything, but to strike at any moment."""
        threading.Event().wait(self.rng.uniform(0, longest))

    def crash(self) -> None:
        """End the run the hard way, one of several; nothing of it may remain."""
        how = self.rng.choice(
            ["of the whole tree", "of the supervisor", "of the supervisor, workers stopped"]
        )
        if how == "of the whole tree":
            self.load.kill_tree(self.rng)
        elif how == "of the supervisor":
            self.load.kill()
        else:
            self.load.kill_with_stopped_workers()
        assert_lock_free(self.path)
        self.judge()
        self.crashes[f"SIGKILL {how}"] += 1
        self.ripe[f"SIGKILL {how}"] += self.is_ripe()

    def is_ripe(self) -> bool:
        """Whether this directory has seen all that a crash may meet; one before that counts for
        nothing."""
        seen = Counter(self.checker.totals) + Counter(self.checker.current)
        return all(seen[name] for name in ("flushes", "compactions", "deep", "relocated"))

    def stop(self) -> None:
        """End the run by closing, with the writers at work."""
        self.load.say("stop")
        self.load.expect("closing")
        self.load.expect("closed", "clean")
        assert self.load.wait() == 0, self.load.errors()
        assert_lock_free(self.path)
        self.judge()

    def look(self) -> None:
        """Open for reading only, which recovers in memory and changes nothing."""
        before = _listing(self.path)
        with meles.open(self.path, mode="read_only") as db:
            ledger = Ledger(self.ledger_path)
            ledger.found(observe(db, KEYS, "read_only"))
            ledger.close()
        assert _listing(self.path) == before
        self.judge()

    def judge(self) -> None:
        """Judge the ledger so far; what the load printed as an error counts too."""
        assert self.load.errors() == "", self.where()
        self.checker.feed(event for event in self._file.more() if event[0] not in self.unheard)
        found = self.checker.violations
        assert not found, f"{self.where()}\n" + "\n".join(map(str, found[:20]))

    def expect_commits(self) -> None:
        """Writers get through (again), soon."""
        before = self.checker.acked
        wait_until(lambda: self.judge() or self.checker.acked > before + 20, 30, "commits")

    def where(self) -> str:
        return (
            f"seed {self.seed}, run {self.runs}, directory {self.path}, ledger {self.ledger_path}"
        )

    def last_look(self, *, power_cuts: bool = False) -> dict[str, int]:
        """Close cleanly, verify every checksum and pointer, and that no file is too many.

        Returns the counters over all runs. After power cuts, part of a log may have been set aside.
        """
        self.start()
        self.load.expect("open")
        self.stop()
        self.look()
        with meles.open(self.path, mode="read_only") as db:
            report = db.verify(values=True)
            assert report.ok, (self.where(), report.problems)
            tables = {f"{table.id:06d}.sst" for table in db.tables()}
            values = db.stats().value_log.files
        left = set(os.listdir(self.path)) - tables
        if power_cuts:
            left = {name for name in left if not name.endswith(".aside")}
        assert len([name for name in left if name.endswith(".vlog")]) == values, self.where()
        assert {name for name in left if not name.endswith(".vlog")} == {"MANIFEST"}, self.where()
        return self.checker.finish()

    def done(self) -> None:
        """The test passed: its ledger is of no more use."""
        self.ledger_path.unlink()


def _listing(path: Path) -> list[tuple[str, int, int]]:
    stats = [(entry.name, entry.stat()) for entry in os.scandir(path)]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


@pytest.fixture
def campaign(tmp_path: Path, program: type[Program]) -> Campaign:
    """A new directory; `MELES_SEED` in the environment repeats a campaign."""
    seed = int(os.environ.get("MELES_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
    return Campaign(tmp_path, program, seed)

"""`supervisor.py serve` as a process: signals, kill -9, restarts, with workers of its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import meles
import psutil
import pytest
from waiting import wait_until

pytestmark = pytest.mark.leak_guard

ROOT = Path(__file__).parents[3]
SECONDS = 30.0


class Served:
    """A running service; its lines of output come in a queue, so that waits have a deadline."""

    def __init__(self, *args: str | os.PathLike[str], merged: bool = False) -> None:
        stderr = subprocess.STDOUT if merged else subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "supervisor.py"), "serve", *map(os.fspath, args), "--ack"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip("\n"))

    def until(self, wanted: Callable[[str], bool]) -> str:
        """Read lines up to the first one wanted."""
        while True:
            line = self._queue.get(timeout=SECONDS)
            self.lines.append(line)
            if wanted(line):
                return line

    def until_text(self, text: str) -> str:
        return self.until(lambda line: line.startswith(text))

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def worker(self, kind: str) -> psutil.Process:
        """The service's worker process of a kind."""

        def found() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children():
                if kind in child.cmdline():
                    return child
            return None

        worker = wait_until(found, SECONDS, f"a {kind} process")
        assert worker is not None
        return worker

    def end(self) -> tuple[int, str, str]:
        """Wait for the process; exit code and what it printed."""
        code = self.process.wait(SECONDS)
        errors = "" if self.process.stderr is None else self.process.stderr.read()
        self._reader.join(SECONDS)
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        return code, "\n".join(self.lines), errors


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    running: list[Served] = []

    def start(*args: str | os.PathLike[str], merged: bool = False) -> Served:
        running.append(Served(*args, merged=merged))
        return running[-1]

    yield start
    for served in running:
        if served.process.poll() is None:
            served.process.kill()
        served.end()
        for pipe in (served.process.stdin, served.process.stdout, served.process.stderr):
            if pipe is not None:
                pipe.close()


def entries(database: Path) -> dict[bytes, bytes]:
    """What is stored, positions left out.

    The wait is for a worker that was being started when its supervisor was killed: until it has
    executed its program it shares the lock.
    """
    with meles.open(database, mode="read_only", wait=SECONDS) as db:
        return {k: v for k, v in db.items() if not k.startswith(b"_serve/")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_by_stages(
    serve: Callable[..., Served], tmp_path: Path, number: signal.Signals
) -> None:
    served = serve(tmp_path / "db", "-", "--key", "{n}")
    served.until_text("ready: ")
    served.send("one\ntwo\nunfinished")
    served.until_text("ack stdin 2")
    with pytest.raises(meles.LockedError, match=f"process {served.process.pid}"):
        meles.open(tmp_path / "db")
    served.process.send_signal(number)
    code, output, errors = served.end()
    assert code == 0, errors
    assert "stopped: 2 records acknowledged, 0 bad" in output
    assert "unfinished last line of stdin: 10 bytes, not taken" in output
    stages = output[output.index("close stage") :].splitlines()[1:]
    assert stages[0].startswith("refuse_writes")
    assert stages[-1].startswith("release_locks")
    assert all(" done" in stage or " skipped" in stage for stage in stages)
    assert entries(tmp_path / "db") == {b"1": b"one", b"2": b"two"}


def test_the_end_of_standard_input_ends_it(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(tmp_path / "db", "-", "--key", "{n}")
    served.send("one\ntwo")
    assert served.process.stdin is not None
    served.process.stdin.close()
    code, output, _ = served.end()
    assert code == 0
    assert "ack stdin 2" in output
    assert entries(tmp_path / "db") == {b"1": b"one", b"2": b"two"}


def test_killed_over_and_over_it_takes_each_line_once(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    log, database = tmp_path / "app.log", tmp_path / "db"
    lines = [b"line %d" % number for number in range(1, 30_001)]
    log.write_bytes(b"\n".join(lines[:20_000]) + b"\n")
    args = (database, log, "--config", "tiny", "--key", "{n:06d}", "--wait", "30")
    for _ in range(3):
        served = serve(*args)
        ready = served.until(lambda line: line.startswith(("ready: ", "ack ")))
        assert ready.startswith("ready: ")
        line = served.until_text("ack ")
        served.process.kill()
        code, _, _ = served.end()
        assert code == -signal.SIGKILL
        acknowledged = int(line.split()[-1])
        stored = entries(database)
        assert len(stored) >= acknowledged
        assert stored == {b"%06d" % n: lines[n - 1] for n in range(1, len(stored) + 1)}
    log.rename(log.with_name("app.log.1"))
    log.write_bytes(b"\n".join(lines[20_000:]) + b"\n")
    served = serve(*args)
    served.until_text(f"ack {log} 30000")
    served.process.send_signal(signal.SIGTERM)
    code, _, errors = served.end()
    assert code == 0, errors
    assert entries(database) == {b"%06d" % n: line for n, line in enumerate(lines, 1)}


def test_a_second_signal_cuts_the_close_short_and_loses_nothing(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve(
        tmp_path / "db", "-", "--key", "{n}", "--option", "close_timeout=600",
        "--option", "worker_hang_timeout=600",
    )  # fmt: skip
    served.until_text("ready: ")
    served.send("one\n")
    served.until_text("ack stdin 1")
    flusher = served.worker("flusher")
    flusher.suspend()
    served.process.send_signal(signal.SIGTERM)
    served.until_text("stopping")
    served.process.send_signal(signal.SIGTERM)
    code, output, _ = served.end()
    assert code == 1
    flush = next(line for line in output.splitlines() if line.startswith("flush_memtables"))
    assert "timeout" in flush
    assert "release_locks" in output
    assert entries(tmp_path / "db") == {b"1": b"one"}


def test_a_database_that_cannot_take_more_is_waited_for(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    log.touch()
    served = serve(
        tmp_path / "db", log, "--key", "{n:06d}", "--config", "tiny", "--option", "num_memtables=1",
        "--option", "worker_hang_timeout=600", merged=True,
    )  # fmt: skip
    served.until_text("ready: ")
    flusher = served.worker("flusher")
    flusher.suspend()
    lines = [b"line %d" % number for number in range(1, 6001)]
    log.write_bytes(b"\n".join(lines) + b"\n")
    served.until_text("waiting: ")
    flusher.resume()
    served.until_text("writing again")
    served.until_text(f"ack {log} 6000")
    served.process.send_signal(signal.SIGTERM)
    assert served.end()[0] == 0
    assert entries(tmp_path / "db") == {b"%06d" % n: line for n, line in enumerate(lines, 1)}


def test_a_locked_database_is_one_line_and_exit_code_3(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    with meles.open(tmp_path / "db", workers="inline"):
        code, output, errors = serve(tmp_path / "db").end()
    assert code == 3
    assert output == ""
    assert errors.startswith("meles: ")
    assert len(errors.splitlines()) == 1

"""Log records of workers: where they appear, and that no kill can tear them."""

import logging
import os
import signal
import subprocess
import sys

import pytest
from meles.workers.child.log_pipe import LogPipeHandler
from meles.workers.parent.log_pipe import LogReader
from meles.workers.parent.spawn import child_environment
from meles.workers.wire.log_frames import LogDecoder, LogLine
from multiprocessing_logging import MultiProcessingHandler

DEADLINE = 80.0


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(read)
    os.close(write)


def records_of(fd):
    decoder, lines = LogDecoder(), []
    while True:
        try:
            data = os.read(fd, 65_536)
        except BlockingIOError:
            return lines
        if not data:
            return lines + decoder.finish()
        lines += decoder.feed(data)


def log(fd, *arguments, level=logging.INFO, **more):
    record = logging.LogRecord("meles.engine.x", level, "/x/y.py", 12, *arguments, **more)
    LogPipeHandler(fd).emit(record)


def test_it_is_the_library_s_handler_without_its_queue_and_thread(pipe):
    handler = LogPipeHandler(pipe[1])
    assert isinstance(handler, MultiProcessingHandler)
    assert not hasattr(handler, "queue")
    assert not hasattr(handler, "_receive_thread")
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.close()
    handler.close()


def test_a_record_arrives_with_its_arguments_filled_in(pipe):
    log(pipe[1], "%s of %d", ("three", 7), None)
    (line,) = records_of(pipe[0])
    assert (line.message, line.level, line.logger) == ("three of 7", 20, "meles.engine.x")
    assert (line.path, line.line) == ("/x/y.py", 12)


def test_an_exception_arrives_as_text(pipe):
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        log(pipe[1], "failed", (), sys.exc_info())
    (line,) = records_of(pipe[0])
    assert line.message == "failed"
    assert "ZeroDivisionError: by zero" in line.trace


def test_a_full_pipe_loses_records_and_says_how_many(pipe):
    handler = LogPipeHandler(pipe[1])
    for number in range(5000):
        handler.emit(logging.LogRecord("n", 20, "p", 1, "x" * 100 + str(number), (), None))
    kept = records_of(pipe[0])
    assert 100 < len(kept) < 5000
    handler.emit(logging.LogRecord("n", 20, "p", 1, "after", (), None))
    lost, after = records_of(pipe[0])
    assert lost.message == f"{5000 - len(kept)} records lost: the log pipe was full"
    assert lost.level == logging.WARNING
    assert after.message == "after"


def test_records_are_re_emitted_under_the_worker_s_name(pipe, caplog):
    caplog.set_level(logging.INFO, "meles")
    reader = LogReader(pipe[0], "compactor-1", 4711)
    log(pipe[1], "merged %d tables", (3,), None)
    log(pipe[1], "too fine", (), None, level=logging.DEBUG)
    os.write(pipe[1], b"Fatal Python error: printed\n")
    assert reader.read()
    assert [r.name for r in caplog.records] == ["meles.worker.compactor-1"] * 2
    first, second = caplog.records
    assert first.getMessage() == "merged 3 tables"
    assert (first.process, first.processName) == (4711, "compactor-1")
    assert (first.pathname, first.lineno, first.origin) == ("/x/y.py", 12, "meles.engine.x")
    assert second.getMessage() == "Fatal Python error: printed"
    assert reader.tail.splitlines() == [
        "merged 3 tables", "too fine", "Fatal Python error: printed"
    ]  # fmt: skip


def test_percent_signs_of_a_record_are_left_alone(pipe, caplog):
    caplog.set_level(logging.INFO, "meles")
    log(pipe[1], "100%d done", (), None)
    LogReader(pipe[0], "flusher-1", 1).read()
    assert caplog.records[0].getMessage() == "100%d done"


STORM = """
import logging, os, sys
from meles.workers.child.log_pipe import install
install(int(sys.argv[1]), logging.INFO)
log = logging.getLogger("storm")
number = 0
while True:
    log.info("record %d of many %s", number, "x" * (number * 37 % 900))
    number += 1
"""


def test_a_storm_of_kills_tears_no_record(pipe):
    """Each writer is killed while it logs without a pause; the reader sees all records whole."""
    read, write = pipe
    os.set_blocking(read, True)
    decoder = LogDecoder()
    for _ in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-P", "-c", STORM, str(write)],
            pass_fds=[write],
            env=child_environment(os.environ),
        )
        lines = []
        while len(lines) < 500:
            lines += decoder.feed(os.read(read, 65_536))
        writer.send_signal(signal.SIGKILL)
        writer.wait(DEADLINE)
        os.set_blocking(read, False)
        try:
            while data := os.read(read, 65_536):
                lines += decoder.feed(data)
        except BlockingIOError:
            os.set_blocking(read, True)
        assert decoder.finish() == []
        assert all(isinstance(line, LogLine) for line in lines)
        texts = [line.message for line in lines if "lost" not in line.message]
        numbers = [int(text.split()[1]) for text in texts]
        assert numbers == sorted(set(numbers))


def test_a_pool_logs_on_after_its_loggers_were_killed(
    process_pool, recorder, acts, job, caplog, until
):
    caplog.set_level(logging.INFO, "meles")
    pool = process_pool({"flusher": 2})
    for number in range(4):
        pool.submit(number, job(acts.LOG, 100_000))
    for _ in range(3):
        seen = len(caplog.records)
        until(lambda seen=seen: len(caplog.records) > seen + 200, "records")
        busy = [info.pid for info in pool.infos() if info.state == "busy"]
        for pid in busy[:1]:
            os.kill(pid, signal.SIGKILL)
    for number in range(4):
        pool.cancel(number)
    pool.submit(9, job(acts.LOG, 3))
    recorder.wait(9)
    pool.close(DEADLINE)
    own = [r for r in caplog.records if r.name.startswith("meles.worker.")]
    texts = {r.getMessage().split()[0] for r in own}
    assert texts <= {"line"} | {r.getMessage().split()[0] for r in own if "lost" in r.getMessage()}


def test_the_host_s_level_decides_what_workers_send(process_pool, recorder, acts, job, caplog):
    caplog.set_level(logging.WARNING, "meles")
    pool = process_pool()
    pool.submit(1, job(acts.LOG, 50))
    recorder.wait(1)
    pool.close(DEADLINE)
    assert [r for r in caplog.records if r.name.startswith("meles.worker.")] == []

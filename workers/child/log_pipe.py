"""Log records of a worker go to the supervisor through a pipe.

Runs in: worker.
`MultiProcessingHandler` carries records from children over a queue that only a fork shares, with a
lock that a killed child keeps for ever. Here its transport is a pipe with frames small enough to be
written at once or not at all: no lock, no thread, and a kill at any moment tears nothing.
Invariants: (1) logging never waits: when the supervisor does not read, records are counted and
lost, and the next one that passes says how many; (2) no queue and no thread is ever made.
"""

from __future__ import annotations

import logging
import os
import select

from meles.workers.wire.log_frames import LogLine, encode_line
from multiprocessing_logging import MultiProcessingHandler


class LogPipeHandler(MultiProcessingHandler):  # type: ignore[misc] # the package has no types
    """Writes each record as one frame to `fd`, which the caller keeps open."""

    def __init__(self, fd: int) -> None:
        # Not the base's __init__: it makes the queue and starts the thread that drains it.
        logging.Handler.__init__(self)
        self.sub_handler = logging.NullHandler()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lost = 0

    def _send(self, record: logging.LogRecord) -> None:
        """Called by `emit` with arguments and exception already turned into text."""
        if not self._poll.poll(0):  # a pipe is writable when a whole frame fits
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            text = f"{lost} records lost: the log pipe was full"
            self._write(LogLine(logging.WARNING, __name__, text, created=record.created))
            if not self._poll.poll(0):
                self._lost = 1
                return
        self._write(
            LogLine(
                level=record.levelno,
                logger=record.name,
                message=str(record.msg),
                trace=record.exc_text or "",
                created=record.created,
                path=record.pathname,
                line=record.lineno,
                thread=record.threadName or "",
            )
        )

    def _write(self, line: LogLine) -> None:
        os.write(self._fd, encode_line(line))

    def close(self) -> None:
        """Nothing to drain: what was written is in the pipe."""
        logging.Handler.close(self)


def install(fd: int, level: int) -> None:
    """Send everything this process logs at `level` or above to `fd`."""
    root = logging.getLogger()
    root.addHandler(LogPipeHandler(fd))
    root.setLevel(level)

"""A worker's records, re-emitted in the host's logging tree.

Runs in: supervisor, control thread.
Invariants: (1) a worker's record appears under `meles.worker.<its name>`, as if logged there; (2)
at most a pipeful is read at a time; (3) the last lines are kept, to say how a worker ended.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import Final

from meles.workers.wire.log_frames import LogDecoder, LogLine

ROOT: Final = "meles.worker"
_READ_BYTES: Final = 65_536  # what a pipe holds
_TAIL_LINES: Final = 20
_TAIL_CHARACTERS: Final = 500  # of each


def logger_of(worker: str) -> logging.Logger:
    """Where the records of a worker appear."""
    return logging.getLogger(f"{ROOT}.{worker}")


class LogReader:
    """Reads one worker's log pipe without waiting; the descriptor stays the caller's."""

    def __init__(self, fd: int, worker: str, pid: int) -> None:
        self._fd = fd
        self._worker = worker
        self._pid = pid
        self._logger = logger_of(worker)
        self._decoder = LogDecoder()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def read(self) -> bool:
        """Pass on what has come; False at the end of the pipe."""
        return self._take() != b""

    def read_rest(self) -> None:
        """Pass on what is left in the pipe of a worker that is dead."""
        while self._take():
            pass

    def _take(self) -> bytes | None:
        """One pipeful, passed on already; None when there is nothing now, b"" at the end."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return None
        for line in self._decoder.feed(data) if data else self._decoder.finish():
            self._emit(line)
        return data

    def _emit(self, line: LogLine | str) -> None:
        if isinstance(line, str):  # printed: a traceback before logging was set up, a last gasp
            line = LogLine(logging.WARNING, "printed", line)
        last = f"{line.message}\n{line.trace}" if line.trace else line.message
        self._tail.append(last[-_TAIL_CHARACTERS:])
        if not self._logger.isEnabledFor(line.level):
            return
        record = logging.LogRecord(
            self._logger.name, line.level, line.path, line.line, "%s", (line.message,), None
        )
        if line.created:
            record.created = line.created
            record.msecs = (line.created % 1) * 1000
        record.exc_text = line.trace or None
        record.process = self._pid
        record.processName = self._worker
        record.threadName = line.thread
        record.origin = line.logger  # the logger's name in the worker
        self._logger.handle(record)

    @property
    def tail(self) -> str:
        """The last lines, newest last."""
        return "\n".join(self._tail)

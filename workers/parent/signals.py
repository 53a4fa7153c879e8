"""Signals of a service: requests to stop, as bytes in a pipe.

Runs in: supervisor, main thread.
Owns: the pipe, and the handlers while inside.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Final

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def stop_signals() -> Iterator[int]:
    """While inside, SIGTERM, SIGINT and SIGHUP become bytes in a pipe; its read end is given.

    Handlers only write that byte: all handling happens in whoever reads it.
    """
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(number: int, frame: object) -> None:
        del number, frame
        with contextlib.suppress(BlockingIOError):
            os.write(write_fd, b"s")

    before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
    try:
        yield read_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)

"""The requests to stop, as a descriptor that a loop can wait on together with its inputs.

Runs in: supervisor.
Owns: nothing; whoever catches the signals owns the pipe.
Invariants: (1) one byte read from the pipe is one request; (2) nothing here runs inside a signal
handler: a handler writes its byte, everything else happens in the loop that waits.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable


class StopSource:
    """Counts stop requests. `fd` is the non-blocking read end of a pipe."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._count = 0

    @property
    def count(self) -> int:
        """Requests so far, those still in the pipe included."""
        while True:
            try:
                data = os.read(self.fd, 64)
            except BlockingIOError:
                return self._count
            if not data:
                return self._count
            self._count += len(data)

    def wait(self, inputs: Iterable[int], timeout: float | None) -> list[int]:
        """The `inputs` that can be read, ended ones included.

        Returns at the latest after `timeout` seconds, and at once when a request arrives.
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        for fd in inputs:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return [fd for fd, _ in ready if fd != self.fd]

"""The worker's ends of its two message pipes.

Runs in: worker.
Invariants: (1) frames go out whole, one thread at a time; (2) the end of the job pipe, or nobody
left to answer, means the supervisor is gone: the process leaves at once.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Final, NoReturn

from meles.workers.child.guard import leave
from meles.workers.wire.errors import RemoteProtocolError
from meles.workers.wire.exit_codes import EXIT_PARENT_GONE, EXIT_PROTOCOL
from meles.workers.wire.framing import FrameDecoder
from meles.workers.wire.messages import Message, encode, parse

_READ_BYTES: Final = 65_536  # what a pipe holds


class Channel:
    """Blocking ends; `receive` belongs to one thread, `send` to any."""

    def __init__(self, jobs_fd: int, answers_fd: int) -> None:
        self.jobs_fd = jobs_fd
        self._answers_fd = answers_fd
        self._decoder = FrameDecoder()
        self._lock = threading.Lock()

    def receive(self) -> list[Message]:
        """Wait for bytes; the messages they complete, maybe none. Does not return at the end."""
        data = os.read(self.jobs_fd, _READ_BYTES)
        if not data:
            leave(EXIT_PARENT_GONE)
        try:
            return [parse(plain, to_child=True) for plain in self._decoder.feed(data)]
        except RemoteProtocolError as error:
            self.refuse(str(error))

    def refuse(self, reason: str) -> NoReturn:
        """The supervisor said what makes no sense: say so and leave."""
        print(f"meles worker: {reason}", file=sys.stderr, flush=True)
        leave(EXIT_PROTOCOL)

    def send(self, message: Message) -> None:
        """Put one message into the pipe, waiting for room. `LocalProtocolError` if too long."""
        view = memoryview(encode(message))
        with self._lock:
            try:
                while view:
                    view = view[os.write(self._answers_fd, view) :]
            except BrokenPipeError:
                leave(EXIT_PARENT_GONE)

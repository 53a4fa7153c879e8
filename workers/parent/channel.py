"""The supervisor's ends of a worker's two message pipes.

Runs in: supervisor, control thread.
Invariants: (1) nothing here waits: what a pipe does not take is kept, up to a bound; (2) at most a
pipeful is read at a time, so no worker starves the others.
Fails with: `RemoteProtocolError` for what a worker sent, `LocalProtocolError` for too much kept.
"""

from __future__ import annotations

import os
from typing import Final

from meles.engine.giving_way import step_aside
from meles.workers.parent.spawn import ChildProcess
from meles.workers.wire.errors import LocalProtocolError
from meles.workers.wire.framing import MAX_PAYLOAD, FrameDecoder
from meles.workers.wire.messages import Message, encode, parse

_READ_BYTES: Final = 65_536  # what a pipe holds
# A worker has one job at a time; beside its request there are only Setup, Cancel and Stop.
MAX_KEPT: Final = MAX_PAYLOAD + 65_536


class Channel:
    """Non-blocking; `answers_fd` and `jobs_fd` of the child belong to the child object."""

    __slots__ = ("_child", "_decoder", "_kept")

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self._decoder = FrameDecoder()
        self._kept = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that wait for room in the job pipe."""
        return len(self._kept)

    def send(self, message: Message) -> None:
        """Write now what the pipe takes, keep the rest for `flush`."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """As `send`, for a message encoded before."""
        if len(self._kept) + len(frame) > MAX_KEPT:
            raise LocalProtocolError(f"{len(self._kept):,} bytes already wait for the worker")
        self._kept += frame
        self.flush()

    def flush(self) -> None:
        """Write what the pipe takes. A pipe nobody reads any more swallows it all."""
        fd = self._child.jobs_fd
        while self._kept and fd >= 0:
            step_aside()
            try:
                done = os.write(fd, self._kept)
            except BlockingIOError:
                return
            except BrokenPipeError:
                break
            del self._kept[:done]
        self._kept.clear()

    def read(self) -> list[Message] | None:
        """The messages that have come, maybe none; None at the end of the pipe."""
        try:
            data = os.read(self._child.answers_fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            return None
        return [parse(plain, to_child=False) for plain in self._decoder.feed(data)]

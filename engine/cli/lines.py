"""Bytes in pieces to whole lines.

Runs in: supervisor.
Invariants: (1) a line comes out once its newline was fed, or at `finish()`; (2) of a line longer
than `max_line` only `max_line + 1` bytes are kept, so memory is bounded and the caller sees that it
is too long; (3) only `\\n` ends a line, every other byte is the line's own.
"""

from __future__ import annotations


class LineSplitter:
    """`pending` is the true length in bytes of the line not yet ended, newline excluded."""

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.pending = 0
        self._held: list[bytes] = []
        self._room = max_line + 1

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, in order, without their newlines."""
        end = data.rfind(b"\n")
        if end < 0:
            self._hold(data)
            return []
        lines = data[:end].split(b"\n")
        if self.pending:
            self._hold(lines[0])
            lines[0] = self._release()
        if end + 1 < len(data):
            self._hold(data[end + 1 :])
        return lines

    def finish(self) -> list[bytes]:
        """The line that ended without a newline, if there is one."""
        return [self._release()] if self.pending else []

    def _hold(self, data: bytes) -> None:
        self.pending += len(data)
        if self._room:
            kept = data[: self._room]
            self._room -= len(kept)
            self._held.append(kept)

    def _release(self) -> bytes:
        line = b"".join(self._held)
        self._held.clear()
        self.pending = 0
        self._room = self.max_line + 1
        return line

"""sync="interval": what was written reaches the medium within a bounded time.

Runs in: supervisor, on a thread of its own: an fsync may take long and must block nobody.
Invariant: `stop` sets its flag before the event, and the thread clears the event before it looks at
the flag, so it never waits for an event that was already set to end it.
"""

from __future__ import annotations

import threading
from typing import Final

from meles.engine.errors import Error
from meles.engine.writing.writer import Writer

_JOIN_SECONDS: Final = 30.0


class IntervalSync:
    """Syncs `interval` seconds after the first unsynced commit; sleeps while nothing is written."""

    def __init__(self, writer: Writer, interval: float) -> None:
        self._writer = writer
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meles-sync", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        writer = self._writer
        while True:
            writer.dirty_event.wait()
            self._stop.wait(self._interval)
            writer.dirty_event.clear()
            if self._stop.is_set():
                return
            writer.plain.dirty = False
            try:
                writer.sync()
            except Error:
                return  # the writer refuses everything from now on

    def stop(self) -> None:
        """End the thread; idempotent. What is unsynced stays so."""
        self._stop.set()
        self._writer.dirty_event.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)

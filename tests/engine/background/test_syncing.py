"""Interval syncing ends when it is told to, whatever it is doing at that moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import meles
import pytest
from meles.engine.background.syncing import IntervalSync
from waiting import wait_until

SECONDS = 20.0  # far below what `stop` waits for a thread that does not end


class Marked(threading.Event):
    """An event that lets something happen just before it is cleared."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before = before

    def clear(self) -> None:
        self._before()
        super().clear()


@pytest.mark.parametrize("told", ["before it has waited", "as it has waited", "after a sync"])
def test_it_ends_at_once(tmp_path: Path, told: str) -> None:
    with meles.open(tmp_path / "db", workers="inline", sync="none") as db:
        writer = db._engine.writer
        assert writer is not None
        sync = IntervalSync(writer, 3600 if told == "before it has waited" else 0.001)
        stopping = threading.Thread(target=sync.stop)

        def tell_and_wait() -> None:  # on the thread that clears the event
            if stopping.ident is None:
                stopping.start()
            wait_until(lambda: sync._stop.is_set() and writer.dirty_event.is_set())

        if told == "as it has waited":  # it has seen no wish to end, and is about to sync
            writer.dirty_event = Marked(tell_and_wait)
        sync.start()
        db[b"k"] = b"v"
        writer.dirty_event.set()
        if told == "before it has waited":
            stopping.start()
        elif told == "after a sync":
            wait_until(lambda: not writer.dirty_event.is_set())
            stopping.start()
        wait_until(lambda: stopping.ident is not None)
        stopping.join(SECONDS)
        assert not stopping.is_alive()
        assert not sync._thread.is_alive()

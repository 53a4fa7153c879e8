"""Room for another sealed memtable: waiting for it, and for how long.

Runs in: supervisor, on whichever thread of the host commits.
Invariants: a writer that waits holds no lock, and hears at once when writing ends or the disk is
full.
Fails with: `WriteStallError`, `DiskFullError`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from meles.engine.errors import Error, WriteStallError
from meles.engine.options import Options
from meles.engine.store import Store
from meles.engine.writing.counters import WriteCounters
from meles.engine.writing.plain_writer import Lock


class Room:
    """At most `num_memtables` sealed memtables wait to be flushed; then writers do."""

    def __init__(
        self,
        lock: Lock,
        store: Store,
        options: Options,
        counters: WriteCounters,
        poke: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._store = store
        self._max_sealed = options.num_memtables
        self._stall_timeout = options.write_stall_timeout
        self._inline = options.workers == "inline"
        self._counters = counters
        self._poke = poke
        # under the write lock
        self._made = threading.Condition(lock)
        self.disk_full: Callable[[], Error] | None = None  # why nothing can be flushed just now

    def notify_locked(self) -> None:
        """Something changed that writers wait for."""
        self._made.notify_all()

    def wait_locked(
        self, refused: Callable[[], bool], patience: Callable[[], float] | None = None
    ) -> None:
        """Return when a memtable may be sealed, or `refused()`.

        `patience` says how many seconds are left; without it `write_stall_timeout` does.
        """
        if len(self._store.view.sealed) < self._max_sealed:
            return
        began = time.monotonic()
        left_of = patience or (lambda: began + self._stall_timeout - time.monotonic())
        self._counters.stalls += 1
        try:
            while len(sealed := self._store.view.sealed) >= self._max_sealed:
                if refused():
                    return
                if self.disk_full is not None and not self._inline:
                    raise self.disk_full()
                left = min(left_of(), threading.TIMEOUT_MAX)
                waited = self._flush_inline_locked() if self._inline else self._made.wait(left)
                if not waited and sealed == self._store.view.sealed:
                    raise WriteStallError(
                        f"{len(sealed)} memtables wait to be flushed after "
                        f"{time.monotonic() - began:.1f} s"
                    )
        finally:
            seconds = time.monotonic() - began
            self._counters.stall_seconds += seconds
            self._counters.longest_stall = max(self._counters.longest_stall, seconds)

    def _flush_inline_locked(self) -> bool:
        """Without workers nobody else makes room: run the scheduler here. False: it did run."""
        self._lock.release()
        try:
            self._poke()
        finally:
            self._lock.acquire()
        return False

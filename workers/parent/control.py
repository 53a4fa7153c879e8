"""The control loop: one thread that waits for descriptors, timers and calls from other threads.

Runs in: supervisor.
Owns: its thread, its selector and its wake-up descriptor.
Invariants: (1) the thread lives from `start` to `stop`, because worker processes die with the
thread that spawned them; (2) it sleeps until the next timer, no shorter: an idle loop costs
nothing; (3) an exception from a callback goes to `on_error` and the loop goes on; (4) descriptors
are served before timers, so a loop that was late hears what was said in the meantime before it
judges silence.
"""

from __future__ import annotations

import heapq
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from meles.engine.giving_way import give_way, in_background, rest
from meles.workers.parent.protocol import OnError

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE
_LAST_ROUNDS: Final = 100  # of calls made by calls, before a stopping loop takes it for a defect


class ControlLoop:
    """`call_soon`, `call_later` and `stop` from any thread; everything else on the loop's own."""

    def __init__(
        self, name: str, on_error: OnError, clock: Callable[[], float] = time.monotonic
    ) -> None:
        # fixed after construction
        self._name = name
        self._on_error = on_error
        self._clock = clock
        # under _lock
        self._lock = threading.Lock()
        self._soon: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._wake_fd = -1
        self._stopping = False
        self._ended = False
        # loop thread only
        self._selector: selectors.EpollSelector
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin. What was called before runs first."""
        self._selector = selectors.EpollSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, READ, self._woken)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this code runs on the loop's thread."""
        return threading.current_thread() is self._thread

    @property
    def ended(self) -> bool:
        """Whether nothing will be called any more."""
        return self._ended

    def call_soon(self, fn: Callable[[], None]) -> bool:
        """Run `fn` on the loop's thread. False, and never, once the loop has ended."""
        with self._lock:
            if self._ended:
                return False
            self._soon.append(fn)
            self._wake_locked()
        return True

    def call_later(self, seconds: float, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop's thread after `seconds`. Timers die with the loop."""
        with self._lock:
            self._sequence += 1
            due = self._clock() + max(0.0, seconds)
            heapq.heappush(self._timers, (due, self._sequence, fn))
            self._wake_locked()

    def stop(self) -> None:
        """End after what was called so far. Does not wait."""
        with self._lock:
            self._stopping = True
            self._wake_locked()

    def join(self, timeout: float) -> bool:
        """Wait for the end; False if it has not come."""
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def _wake_locked(self) -> None:
        if self._wake_fd >= 0 and not self.is_current:
            os.eventfd_write(self._wake_fd, 1)

    def _woken(self, _events: int) -> None:
        os.eventfd_read(self._wake_fd)

    def watch(self, fd: int, events: int, fn: Callable[[int], None]) -> None:
        """Call `fn(events)` whenever `fd` is ready; replaces what was watched before."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, fn)
        else:
            self._selector.register(fd, events, fn)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor, before it is closed. One that is not watched is no error."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _run(self) -> None:
        with in_background():
            self._serve()
        self._end()

    def _serve(self) -> None:
        rounds_left = _LAST_ROUNDS
        while True:
            with self._lock:
                if self._stopping:
                    rounds_left -= 1
                    if not self._soon or rounds_left <= 0:
                        self._ended = True
                        break
                wait = self._wait_locked()
            wait = rest(self._selector.fileno(), wait)
            for key, events in self._selector.select(wait):
                self.guard(partial(key.data, events))
            self._call_due()

    def _call_due(self) -> None:
        """A frame of its own: what was called is not held while the loop waits."""
        for fn in self._due():
            self.guard(fn)

    def _wait_locked(self) -> float | None:
        if self._soon or self._stopping:
            return 0.0
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - self._clock())

    def _due(self) -> list[Callable[[], None]]:
        """What was called by now, then the timers that are due by now."""
        with self._lock:
            calls = list(self._soon)
            self._soon.clear()
            now = self._clock()
            while self._timers and self._timers[0][0] <= now and not self._stopping:
                calls.append(heapq.heappop(self._timers)[2])
        return calls

    def guard(self, fn: Callable[[], None]) -> None:
        """Call `fn`; what it raises goes to `on_error`."""
        give_way()
        try:
            fn()
        except Exception as error:  # noqa: BLE001 - the loop must outlive any callback
            self._on_error(error)

    def _end(self) -> None:
        with self._lock:
            self._timers.clear()
            fd, self._wake_fd = self._wake_fd, -1
        self._selector.close()
        os.close(fd)

    def end_unstarted(self) -> None:
        """End a loop that was never started: what was called is dropped."""
        with self._lock:
            self._ended = True
            self._soon.clear()
            self._timers.clear()

    def forget(self) -> None:
        """In a forked child, which has no such thread: close the copies of its descriptors."""
        self._lock = threading.Lock()
        self._ended = True
        if self._wake_fd >= 0:
            fd, self._wake_fd = self._wake_fd, -1
            self._selector.close()
            os.close(fd)

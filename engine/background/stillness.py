"""Since when nobody has written: the time to get space back that would disturb writers.

Runs in: supervisor, on the control thread.
Commits tell nobody, so this looks at their count: it is right as of the last look.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

QUIET_SECONDS: Final = 5.0


class Stillness:
    """`written` says how many entries were committed."""

    def __init__(
        self, written: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._written = written
        self._clock = clock
        self._seen = written()
        self._since = clock()

    def seconds(self) -> float:
        """How long the count has been what it is."""
        written, now = self._written(), self._clock()
        if written != self._seen:
            self._seen, self._since = written, now
        return now - self._since

    @property
    def quiet(self) -> bool:
        return self.seconds() >= QUIET_SECONDS

"""When to restart a worker, when to give up on it or on a job, and when silence means nothing.

Runs in: supervisor. Pure: the clock and the dice are passed in.
Invariants: (1) the first restart is immediate, later ones wait 0.2 s and twice as long each, up to
30 s; (2) a worker that was well for 60 s starts afresh; (3) never more than 5 restarts in 10 s;
(4) a worker that cannot even boot three times is a fault to report, then tried every 30 s; (5) one
that cannot be spawned for want of descriptors, processes or memory is no fault of its own: it is
tried every second.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from typing import Final

FIRST_GAP: Final = 0.2
GAP_FACTOR: Final = 2.0
LONGEST_GAP: Final = 30.0
JITTER: Final = 0.2  # of a gap, so that workers that fell together do not rise together
HEALTHY_AFTER: Final = 60.0
SHORTAGE_GAP: Final = 1.0
SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
BURST: Final = 5
BURST_SECONDS: Final = 10.0
BOOT_TRIES: Final = 3
POISON_DEATHS: Final = 3  # workers a job may end before it is taken for the cause
WORRYING_DEATHS: Final = 3  # in a row, of one worker: worth a word in health()
STUCK_FACTOR: Final = (
    4.0  # hang timeouts without progress of a worker that still beats: a slow disk
)
# Of the hang timeout. With the gap between two beats, a third of it at most, they are less than all
# of it: however late a look comes, a worker that beats is not taken for silent.
SLEPT_SHARE: Final = 0.25  # a loop later than this was asleep itself
LOOK_SHARE: Final = 0.25  # at the latest after so long the next look is due


@dataclass(slots=True)
class Restarts:
    """The history of one worker, as far as it decides when the next one starts."""

    deaths: int = 0  # in a row, the last one included
    boot_failures: int = 0  # in a row
    shortages: int = 0  # times it could not be spawned since it last was
    ready_at: float | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=BURST))

    def ready(self, now: float) -> None:
        """The worker takes jobs."""
        self.ready_at = now
        self.boot_failures = 0

    def not_spawned(self, error: OSError, now: float, dice: float) -> float:
        """There is no process; returns seconds to wait."""
        if error.errno not in SHORTAGES:
            return self.died(now, dice)
        self.shortages += 1
        return SHORTAGE_GAP * (1 + JITTER * (2 * dice - 1))

    def spawned(self) -> None:
        self.shortages = 0

    def died(self, now: float, dice: float) -> float:
        """The worker is dead; returns seconds to wait. `dice` is uniform in [0, 1)."""
        booted = self.ready_at is not None
        if self.ready_at is not None and now - self.ready_at >= HEALTHY_AFTER:
            self.deaths = 0
        self.deaths += 1
        self.boot_failures = 0 if booted else self.boot_failures + 1
        self.ready_at = None
        gap = self._gap() * (1 + JITTER * (2 * dice - 1))
        if len(self.recent) == BURST:
            gap = max(gap, self.recent[0] + BURST_SECONDS - now)
        self.recent.append(now + gap)
        return gap

    def _gap(self) -> float:
        if self.gave_up:
            return LONGEST_GAP
        if self.deaths <= 1:
            return 0.0
        exponent = min(self.deaths - 2, 16)  # beyond, the gap is at its longest anyway
        return min(LONGEST_GAP, FIRST_GAP * GAP_FACTOR**exponent)

    @property
    def gave_up(self) -> bool:
        """It could not boot so often that trying is a formality."""
        return self.boot_failures >= BOOT_TRIES

    @property
    def first_in_a_row(self) -> bool:
        """The next start replaces a worker that was well: it is awaited, and comes alone."""
        return self.deaths == 1 and self.boot_failures == 0

    @property
    def worrying(self) -> bool:
        return self.deaths >= WORRYING_DEATHS


@dataclass(slots=True)
class Silence:
    """How long a worker may be silent, not counting the time for which we slept ourselves.

    `look_at` is when the loop meant to look next. A process that was stopped, or a machine that was
    frozen, finds all workers silent for as long as it slept. No more than it came too late is
    forgiven: a host that is late each time still notices who hangs, in some multiple of the
    time-out. What of a sleep lay before the look was due counts, at most LOOK_SHARE.
    """

    hang_timeout: float
    look_at: float | None = None

    def plan(self, now: float, due: float) -> float:
        """When to look next, where somebody could be too silent at `due`."""
        self.look_at = max(now, min(due, now + self.hang_timeout * LOOK_SHARE))
        return self.look_at

    def slept(self, now: float) -> float:
        """Looking now: the seconds up to now in which silence proves nothing."""
        look_at, self.look_at = self.look_at, None
        late = 0.0 if look_at is None else now - look_at
        return late if late > self.hang_timeout * SLEPT_SHARE else 0.0

    def silent(self, now: float, heard_at: float) -> bool:
        return now - heard_at >= self.hang_timeout

    def stuck(self, now: float, progressed_at: float) -> bool:
        """Of a busy worker that still beats."""
        return now - progressed_at >= self.hang_timeout * STUCK_FACTOR

    def next_look(self, heard_at: float, progressed_at: float | None) -> float:
        """When one of the two above could first be true."""
        due = heard_at + self.hang_timeout
        if progressed_at is not None:
            due = min(due, progressed_at + self.hang_timeout * STUCK_FACTOR)
        return due

"""Stages: a table of what is done in order, each with its part of one deadline, and the driver.

Runs in: supervisor.
Invariants: (1) a stage that fails or runs out of time does not keep later ones from running; (2)
one deadline holds for all of them, and can be drawn closer while they run; (3) time a stage leaves
is there for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meles.engine.reports import Stage


class Deadline:
    """A point in time. Thread-safe: it only ever moves closer."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        within: Deadline | None = None,
    ) -> None:
        self._clock = clock
        self._within = within
        self._at = clock() + max(0.0, seconds)

    def left(self) -> float:
        """Seconds that remain, 0 when there are none."""
        left = max(0.0, self._at - self._clock())
        return left if self._within is None else min(left, self._within.left())

    @property
    def expired(self) -> bool:
        return self.left() == 0.0

    def shorten(self, seconds: float) -> None:
        """At most `seconds` from now."""
        self._at = min(self._at, self._clock() + max(0.0, seconds))

    def part(self, share: float) -> Deadline:
        """A deadline after this share of what is left, and never after this one."""
        return Deadline(self.left() * share, self._clock, within=self)


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage. The action does its work within the deadline it is given.

    It returns a detail for the report ("" for none), or None when there was nothing to do; it
    raises `TimeoutError` when time ran out, anything else when it failed. `share` is the part of
    the time left, when the stage begins, that it may use.
    """

    name: str
    action: Callable[[Deadline], str | None]
    share: float = 0.5


def run_stages(
    rows: Iterable[StageRow],
    deadline: Deadline,
    on_trouble: Callable[[Stage, Exception], None] = lambda _stage, _error: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Stage]:
    """Run every stage, in order. `on_trouble` hears of each that failed or ran out of time."""
    report = []
    for row in rows:
        began = clock()
        trouble: Exception | None = None
        try:
            detail = row.action(deadline.part(row.share))
            outcome = "skipped" if detail is None else "done"
        except Exception as error:  # noqa: BLE001 - later stages must run; the report tells
            outcome = "timeout" if isinstance(error, TimeoutError) else "failed"
            detail, trouble = f"{type(error).__name__}: {error}", error
        stage = Stage(row.name, clock() - began, outcome, detail or "")
        report.append(stage)
        if trouble is not None:
            on_trouble(stage, trouble)
    return report

"""How far a long run is: what is counted, and plain lines of it for a log.

Runs in: supervisor.
Invariants: (1) the display library is imported only when the stream is a terminal; (2) nothing is
drawn more often than every `interval` seconds, so drawing costs the run nothing; (3) messages never
break the display.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TextIO

from meles.engine.cli.render import rate_text, size_text, worker_lines
from meles.engine.reports import WorkerInfo

_PLAIN_SECONDS: Final = 2.0


@dataclass(slots=True)
class Tally:
    """What a run has done so far; sizes in bytes, `total` where it is known beforehand."""

    records: int = 0
    size: int = 0
    committed: int = 0
    bad: int = 0
    total: int | None = None


class Progress(Protocol):
    """Where a run reports to."""

    def update(self, tally: Tally, *, final: bool = False) -> None:
        """Show the figures, if it is time to."""

    def note(self, text: str) -> None:
        """Show a message at once."""

    def close(self) -> None:
        """Leave the terminal as it was; a second call does nothing."""


Workers = Callable[[], Iterable[WorkerInfo]]


def make_progress(title: str, stream: TextIO, workers: Workers, *, quiet: bool) -> Progress:
    """A live display if `stream` is a terminal, else plain lines; only messages when `quiet`."""
    if quiet:
        return PlainProgress(title, stream, workers, interval=float("inf"))
    if stream.isatty():
        from meles.engine.cli.live import LiveProgress

        return LiveProgress(title, stream, workers)
    return PlainProgress(title, stream, workers)


def tally_line(title: str, tally: Tally, records: int, size: int, seconds: float) -> str:
    """One line of figures; the rates are over the last `seconds`."""
    done = f"{title}: {tally.records:,} records, {size_text(tally.size)}"
    if tally.total:
        done += f" of {size_text(tally.total)}"
    line = f"{done}, {tally.committed:,} committed, {rate_text(records, size, seconds)}"
    return line + (f", {tally.bad:,} bad" if tally.bad else "")


class PlainProgress:
    """A line of figures and one line per worker, every few seconds."""

    def __init__(
        self,
        title: str,
        stream: TextIO,
        workers: Workers,
        *,
        interval: float = _PLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._stream = stream
        self._workers = workers
        self._interval = interval
        self._clock = clock
        self._shown_at = clock()
        self._shown = Tally()

    def update(self, tally: Tally, *, final: bool = False) -> None:
        now = self._clock()
        seconds = now - self._shown_at
        due = seconds >= self._interval or (final and self._interval != float("inf"))
        if not due:
            return
        records, size = tally.records - self._shown.records, tally.size - self._shown.size
        lines = [tally_line(self._title, tally, records, size, seconds)]
        lines += [f"  {line}" for line in worker_lines(self._workers())[1:]]
        self.note("\n".join(lines))
        self._shown_at = now
        self._shown = Tally(tally.records, tally.size)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is held."""

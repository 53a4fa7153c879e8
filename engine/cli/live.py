"""The live display of a long run on a terminal: a bar with rates, and a line per worker below it.

Runs in: supervisor.
Owns: the display while it is shown.
Invariants: (1) drawn by the run's own thread, at most every `_SECONDS`; (2) messages go through the
display's console, so they appear above it and never tear it.
"""

from __future__ import annotations

import time
from typing import Final, TextIO

from meles.engine.cli.progress import Tally, Workers
from meles.engine.cli.render import worker_lines
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_SECONDS: Final = 0.2


class LiveProgress:
    """Implements `progress.Progress`."""

    def __init__(self, title: str, stream: TextIO, workers: Workers) -> None:
        self._workers = workers
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(title, total=None, figures="")
        self._console = Console(file=stream)
        self._live = Live(
            self._picture(), console=self._console, auto_refresh=False, transient=False
        )
        self._live.start()
        self._shown_at = 0.0
        self._started_at = time.monotonic()

    def update(self, tally: Tally, *, final: bool = False) -> None:
        now = time.monotonic()
        if now - self._shown_at < _SECONDS and not final:
            return
        self._shown_at = now
        rate = tally.records / max(now - self._started_at, 1e-9)
        figures = f"{tally.records:,} records  {rate:,.0f}/s  {tally.committed:,} committed"
        if tally.bad:
            figures += f"  {tally.bad:,} bad"
        self._bar.update(self._task, completed=tally.size, total=tally.total, figures=figures)
        self._live.update(self._picture(), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> Group:
        lines = worker_lines(self._workers())
        return Group(self._bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

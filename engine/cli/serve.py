"""`meles serve`: a database held open in the foreground and fed from endless inputs.

Runs in: supervisor.
Owns: the database handle and the inputs, from opening to the end of the staged shutdown.
Invariants: (1) whatever happens after opening, the shutdown is staged and its table is printed;
(2) stopping is a byte in a pipe: no code of ours runs in a signal handler; (3) a second request
shortens the deadlines and loses nothing that was acknowledged.
Fails with: errors of the database and `OSError` of an input, after the shutdown.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, TextIO

import meles
from meles.engine.cli.follow import follower
from meles.engine.cli.intake import Intake
from meles.engine.cli.position import Position, position_key
from meles.engine.cli.progress import PlainProgress
from meles.engine.cli.render import stage_lines
from meles.engine.cli.service import ServeReport, ServeSettings, Service, commit_budget
from meles.engine.cli.stop import StopSource
from meles.engine.options import load_with_origin

STALL_SECONDS: Final = 1.0  # how long one commit may wait for room before signals are looked at
HURRY_SECONDS: Final = 1.0  # what a second stop request leaves of the deadlines


def serve(
    directory: str,
    sources: Sequence[str],
    *,
    settings: ServeSettings,
    stop: StopSource,
    output: TextIO,
    log: TextIO,
    config: str | None = None,
    options: Mapping[str, Any] | None = None,
    wait: float = 0.0,
) -> int:
    """Open, say so, serve, close by stages, print the stage table. Returns the exit code.

    `-` is standard input, a FIFO is reopened when its writers leave, any other path is followed by
    name. Without sources the database is only held open. Errors come out after the shutdown.
    """
    chosen = dict(options or {})
    if "write_stall_timeout" not in load_with_origin(chosen, config=config)[1]:
        chosen["write_stall_timeout"] = STALL_SECONDS
    db = meles.open(directory, config=config, wait=wait, **chosen)
    interval = settings.status_every or float("inf")
    progress = PlainProgress("serve", log, db.workers, interval=interval)
    service: Service | None = None
    try:
        with ExitStack() as inputs:
            intakes = [_intake(db, name, len(sources), settings, inputs) for name in sources]
            service = Service(db, intakes, settings, stop=stop, log=progress, output=output)
            names = ", ".join(intake.source.name for intake in intakes) or "nothing"
            print(
                f"ready: {db.path}, pid {os.getpid()}, ingesting {names}", file=output, flush=True
            )
            service.run()
    finally:
        print("stopping", file=output, flush=True)
        closed = close_watching(db, stop)
        _print_end(service.report if service is not None else ServeReport(), closed, output)
    report = service.report
    lost = report.pending or report.tally.bad or report.stopped_at is not None
    return 1 if lost or not closed.clean else 0


def _intake(
    db: meles.DB, name: str, count: int, settings: ServeSettings, inputs: ExitStack
) -> Intake:
    shown = "stdin" if name == "-" else name
    stored = db.get(position_key(settings.position_prefix, shown))
    position = Position() if stored is None else Position.decode(stored)
    source = follower(name, position.mark)
    inputs.callback(source.close)
    budget = commit_budget(db, count)
    return Intake(source, os.fsencode(shown), settings.format, position, budget)


def close_watching(db: meles.DB, stop: StopSource) -> meles.CloseReport:
    """Close by stages; the second stop request, whenever it came, shortens the deadlines."""
    reports: list[meles.CloseReport] = []
    closing = threading.Thread(target=lambda: reports.append(db.close()), name="meles-close")
    closing.start()
    while closing.is_alive():
        closing.join(0.05)
        if stop.count > 1:
            reports.append(db.close(timeout=HURRY_SECONDS))
            closing.join()
    return reports[0] if reports else db.close()


def _print_end(report: ServeReport, closed: meles.CloseReport, output: TextIO) -> None:
    tally = report.tally
    lines = [f"stopped: {tally.committed:,} records acknowledged, {tally.bad:,} bad"]
    if report.pending:
        lines.append(f"not acknowledged: {report.pending:,} records that were read")
    lines += [
        f"unfinished last line of {name}: {size:,} bytes, not taken"
        for name, size in report.torn.items()
    ]
    if report.stopped_at is not None:
        lines.append(f"stopped at bad record: {report.stopped_at}")
    print("\n".join([*lines, *stage_lines(closed.stages)]), file=output, flush=True)

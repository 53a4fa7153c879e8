"""The verbs that bring data in: ingest, which ends, and serve, which does not.

Runs in: supervisor.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click
import meles
from meles.engine.cli.ingest import Ingest, IngestReport
from meles.engine.cli.position import DEFAULT_PREFIX
from meles.engine.cli.progress import make_progress
from meles.engine.cli.records import MAX_RECORD
from meles.engine.cli.render import rate_text, size_text, stage_lines
from meles.engine.cli.serve import serve
from meles.engine.cli.service import ServeSettings
from meles.engine.cli.sources import FORMATS, open_sources, source_format
from meles.engine.cli.stop import StopSource
from meles.engine.cli.verb import OK, PROBLEM, Output, Target, verb


def _record_options(formats: tuple[str, ...], on_error: str) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in (
            click.option("--format", "kind", type=click.Choice(formats), default="lines"),
            click.option("--key", metavar="TEMPLATE", help="How a key is made."),
            click.option(
                "--on-error",
                type=click.Choice(("stop", "skip")),
                default=on_error,
                show_default=True,
                help="What to do at a bad record.",
            ),
            click.option(
                "--max-record",
                default=MAX_RECORD,
                type=click.IntRange(min=1),
                metavar="BYTES",
                help="A longer record is a bad one.",
            ),
        ):
            command = option(command)
        return command

    return add


@click.command("ingest")
@verb
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@_record_options(FORMATS, "stop")
def ingest_verb(
    target: Target,
    output: Output,
    sources: tuple[str, ...],
    kind: str,
    key: str | None,
    on_error: str,
    max_record: int,
) -> int:
    """Write every record of every SOURCE into DIR; `-` is standard input.

    \b
    lines  a line is a value; key {source}:{n}
    csv    a row under the header row is a JSON object; --key names a column
    jsonl  a line is a JSON value; --key names a field
    tree   a file below the directory SOURCE is a value; key {path}

    Key templates such as "{source}:{n:09d}" or "user/{id}" take {source}, the line number {n},
    and the names of columns or fields ({path} and {name} for a tree).
    """
    how = source_format(kind, key, max_record)
    opened = open_sources(sources, how)
    with target.open() as db:
        progress = make_progress("ingest", sys.stderr, db.workers, quiet=output.quiet)
        run = Ingest(db, progress, skip=on_error == "skip")
        try:
            run.run(opened)
        except (meles.Error, KeyboardInterrupt):
            progress.note(f"ingest: {run.report.tally.committed:,} records were committed")
            raise
        finally:
            progress.close()
        closed = db.close()
    output.result(
        [*_summary(run.report), *stage_lines(closed.stages)],
        {"report": run.report, "close": closed},
    )
    return OK if run.report.complete and closed.clean else PROBLEM


def _summary(report: IngestReport) -> list[str]:
    tally = report.tally
    lines = [
        f"{tally.committed:,} records committed, {size_text(tally.size)} in "
        f"{report.seconds:.1f} s ({rate_text(tally.committed, tally.size, report.seconds)})"
    ]
    if tally.bad:
        lines.append(f"{tally.bad:,} bad records were not written")
    if report.stopped_at is not None:
        last = "nothing" if report.last is None else f"{report.last[0]}, line {report.last[1]}"
        lines.append(f"stopped at {report.stopped_at}; the last record written is {last}")
    return lines


@click.command("serve")
@verb
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@_record_options(("lines", "jsonl"), "skip")
@click.option("--position-prefix", default=os.fsdecode(DEFAULT_PREFIX), show_default=True,
              help="Keys under which the place reached in each source is kept.")  # fmt: skip
@click.option("--commit-every", default=0.1, show_default=True, metavar="SECONDS",
              help="Longest wait of a record for its commit.")  # fmt: skip
@click.option("--status-every", default=10.0, show_default=True, metavar="SECONDS",
              help="Between lines of figures; 0: none.")  # fmt: skip
@click.option("--ack", is_flag=True, help="Print `ack SOURCE LINE` after each commit.")
def serve_verb(
    target: Target,
    output: Output,
    sources: tuple[str, ...],
    kind: str,
    key: str | None,
    on_error: str,
    max_record: int,
    position_prefix: str,
    commit_every: float,
    status_every: float,
    ack: bool,
) -> int:
    """Hold DIR open and ingest until SIGTERM or SIGINT; a second one shortens the deadlines.

    SOURCE is `-` (standard input, until it ends), a FIFO (reopened when its writers leave) or a
    file followed by name over its rotations. A record is acknowledged when it is committed, and a
    restart goes on right after the last one.
    """
    from meles.supervisor import stop_signals

    settings = ServeSettings(
        format=source_format(kind, key, max_record),
        skip=on_error == "skip",
        position_prefix=os.fsencode(position_prefix),
        commit_every=commit_every,
        status_every=0.0 if output.quiet else status_every,
        acknowledge=ack,
    )
    with stop_signals() as stop_fd:
        return serve(
            target.directory,
            sources,
            settings=settings,
            stop=StopSource(stop_fd),
            output=sys.stdout,
            log=sys.stderr,
            config=target.config,
            options=target.options,
            wait=target.wait,
        )


VERBS = (ingest_verb, serve_verb)

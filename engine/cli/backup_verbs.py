"""The verbs `backup` and `restore`.

Runs in: supervisor.
Invariants: (1) backup opens read-only: the database is closed, and nothing in it is changed; (2) a
stream on standard output has it for itself: the report then goes to standard error.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any, BinaryIO

import click
import meles
from meles.engine.cli.backup_files import written_whole
from meles.engine.cli.render import printable, size_text
from meles.engine.cli.verb import (
    OK,
    Output,
    Target,
    config_path,
    output_options,
    parse_options,
    setting_options,
    verb,
)
from meles.engine.cli.verb import plain as as_plain

_STANDARD = "-"


@click.command("backup")
@verb
@click.argument("file", metavar="[FILE|-]", default=_STANDARD)
@click.option(
    "--since", default=0, type=click.IntRange(min=0), metavar="VERSION",
    help="Only what came after the version an earlier backup reported.",
)  # fmt: skip
@click.option("--plain", is_flag=True, help="Of an encrypted database too: the backup is not.")
@click.option("--force", is_flag=True, help="Replace FILE.")
def backup_verb(
    target: Target, output: Output, file: str, since: int, plain: bool, force: bool
) -> int:
    """Write a closed database to FILE or standard output, whole or since an earlier backup."""
    with ExitStack() as opened:
        db = opened.enter_context(target.open("read_only"))
        if file == _STANDARD:
            sink: BinaryIO = sys.stdout.buffer
            if sink.isatty():
                raise click.UsageError("a backup is no text for a terminal: name a file")
        else:
            sink = opened.enter_context(written_whole(file, force=force))
        report = db.backup(sink, since=since, plain=plain)
    line = (
        f"{report.entries:,} entries, {size_text(report.bytes)}; for an increment from here on: "
        f"--since {report.version}"
    )
    if file != _STANDARD:
        output.result([line], report)
    elif output.as_json:
        click.echo(json.dumps(as_plain(report)), err=True)
    elif not output.quiet:
        click.echo(line, err=True)
    return OK


@click.command("restore")
@click.argument("arguments", metavar="DIR FILE...", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Without DIR: only read the files through.")
@setting_options
@output_options
def restore_verb(
    arguments: tuple[str, ...],
    check: bool,
    config: str | None,
    pairs: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Make the new directory DIR of a backup and its increments in order; - is standard input."""
    files = arguments if check else arguments[1:]
    if not files:
        raise click.UsageError("name the backup, then its increments in order")
    if files.count(_STANDARD) > 1:
        raise click.UsageError("standard input can be read once")
    sources: list[Any] = [sys.stdin.buffer if file == _STANDARD else file for file in files]
    if check:
        report = meles.check_backup(sources)
        where = "whole"
    else:
        options = parse_options(pairs)
        report = meles.restore(sources, arguments[0], config=config_path(config), **options)
        where = str(report.path)
    lines = [f"{where}: {report.entries:,} entries, newest version {report.version:,}"]
    for leftover in report.leftovers:
        click.echo(
            _shown(f"meles: {leftover} is left of a restore that was cut short; remove it"),
            err=True,
        )
    Output(as_json, quiet).result([_shown(line) for line in lines], report)
    return OK


def _shown(text: str) -> str:
    return printable(text.encode("utf-8", "surrogateescape"))


VERBS = (backup_verb, restore_verb)

"""The verbs `config show` and `config check`.

Runs in: supervisor.
"""

from __future__ import annotations

import json

import click
import meles
from meles.engine.cli.verb import (
    OK,
    PROBLEM,
    Output,
    config_path,
    output_options,
    parse_options,
    setting_options,
)
from meles.engine.options import FIELDS, load_with_origin


def toml_value(value: object) -> str:
    """A value as TOML writes it; nothing, which TOML cannot say, as the empty text."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return '"<hidden>"'
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


@click.group("config")
def config_group() -> None:
    """Show or check options: flags, MELES_* variables, a TOML file, defaults, in that order."""


@config_group.command("show")
@setting_options
@output_options
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
def show_verb(
    config: str | None, pairs: tuple[str, ...], as_json: bool, quiet: bool, origin: bool
) -> int:
    """Print every option as it would hold for an open with these settings."""
    options, origins = load_with_origin(parse_options(pairs), config=config_path(config))
    lines, data = ["[meles]"], {}
    for name in FIELDS:
        value = getattr(options, name)
        where = origins.get(name, "default").replace("keyword", "command line")
        line = f"{name} = {toml_value(value)}"
        lines.append(f"{line:<44}# {where}" if origin else line)
        shown = "<hidden>" if isinstance(value, bytes) else value
        data[name] = {"value": shown, "origin": where} if origin else shown
    Output(as_json, quiet).result(lines, data)
    return OK


@config_group.command("check")
@click.argument("file")
@output_options
def check_verb(file: str, as_json: bool, quiet: bool) -> int:
    """Check a TOML file; exit code 1 and the reason when an open would refuse it."""
    problem = ""
    try:
        load_with_origin({}, config=config_path(file), environ={})
    except meles.ConfigError as error:
        problem = error.message
    lines = [f"problem: {problem}" if problem else f"ok: {file}"]
    Output(as_json, quiet).result(lines, {"ok": not problem, "problem": problem})
    return PROBLEM if problem else OK

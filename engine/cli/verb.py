"""What every verb of the command line shares: the directory, its options, the form of the output.

Runs in: supervisor.
Invariants: (1) results go to standard output, everything said about the work to standard error;
(2) with `--json` standard output holds JSON and nothing else; (3) names and values of the command
line are bytes as the shell gave them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
import meles

P = ParamSpec("P")
OK, PROBLEM, USAGE, LOCKED, CORRUPT = 0, 1, 2, 3, 4  # exit codes
KEY_SIZES = (16, 24, 32)
_KEY = "meles.key"  # where a command notes the key it was given


@dataclass(frozen=True)
class Target:
    """The database a verb works on."""

    directory: str
    config: str | None
    options: dict[str, str] = dataclasses.field(repr=False)  # a key may be among them
    wait: float

    def open(self, mode: str = "own") -> meles.DB:
        return meles.open(
            self.directory, mode=mode, config=self.config, wait=self.wait, **self.options
        )


@dataclass(frozen=True)
class Output:
    """Where results go. `quiet` leaves only results that were asked for."""

    as_json: bool
    quiet: bool

    def result(self, lines: Iterable[str], data: object) -> None:
        """Print a report: its lines, or with `--json` its data."""
        if self.as_json:
            click.echo(json.dumps(plain(data), ensure_ascii=False))
        elif not self.quiet:
            for line in lines:
                click.echo(line)


def plain(value: object) -> Any:
    """A report as what JSON can say: dataclasses as maps, bytes as text or `{"hex": ...}`."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"hex": value.hex()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def parse_options(pairs: Iterable[str]) -> dict[str, str]:
    """`name=value` texts as a map, with the key from `--key-file`; the values are checked where
    they are used.
    """
    context = click.get_current_context(silent=True)
    options = dict(context.meta.get(_KEY, {}) if context is not None else {})
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise click.UsageError(f"--option {pair!r} is not name=value")
        if name.strip().replace("-", "_") == "encryption_key":
            raise click.UsageError("everybody can read a command line: use --key-file")
        options[name.strip().replace("-", "_")] = value
    return options


def read_key(where: str, prompt: str) -> str:
    """A master key from a file, as hexadecimal text; `-` asks for that on the terminal.

    A file holds the 16, 24 or 32 bytes themselves, or their hexadecimal text.
    """
    if where == "-":
        return str(click.prompt(f"{prompt} (hexadecimal)", hide_input=True, err=True))
    try:
        content = Path(where).read_bytes()
    except OSError as error:
        raise click.UsageError(f"key file {where!r} cannot be read: {error.strerror}") from None
    if len(content) in KEY_SIZES:
        return content.hex()
    try:
        return bytes.fromhex(content.decode("ascii")).hex()
    except ValueError:
        sizes = ", ".join(map(str, KEY_SIZES))
        raise click.UsageError(
            f"key file {where!r} holds neither a key of {sizes} bytes nor its hexadecimal text"
        ) from None


def _note_key(context: click.Context, _parameter: click.Parameter, where: str | None) -> None:
    if where is not None:
        context.meta[_KEY] = {"encryption_key": read_key(where, "Key")}


def config_path(name: str | None) -> str | None:
    """A path as it is; a bare name such as `ingest` is a configuration shipped with the package."""
    if name is None or os.path.exists(name):
        return name
    shipped = Path(__file__).parents[2] / "configs" / f"{name}.toml"
    return str(shipped) if name.isidentifier() and shipped.is_file() else name


def key_bytes(text: str, in_hex: bool) -> bytes:
    """A key given on the command line."""
    if not in_hex:
        return os.fsencode(text)
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is not hexadecimal") from None


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json` and `--quiet`."""
    command = click.option("--quiet", is_flag=True, help="Print no report.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`, `--option` and `--key-file`."""
    command = click.option(
        "--key-file",
        metavar="FILE",
        expose_value=False,
        callback=_note_key,
        help="File with the encryption key, raw or hexadecimal; - asks for it.",
    )(command)
    command = click.option(
        "--option", "pairs", multiple=True, metavar="NAME=VALUE", help="An option of the database."
    )(command)
    return click.option(
        "--config", metavar="FILE", help="TOML file, or default, tiny, durable, ingest."
    )(command)


def verb(function: Callable[Concatenate[Target, Output, P], int]) -> Callable[..., int]:
    """Make `function(target, output, ...) -> exit code` a command on a database directory."""

    @click.argument("directory", metavar="DIR")
    @setting_options
    @click.option("--wait", default=0.0, metavar="SECONDS", help="How long to wait for the lock.")
    @output_options
    @functools.wraps(function)
    def command(
        directory: str,
        config: str | None,
        pairs: tuple[str, ...],
        wait: float,
        as_json: bool,
        quiet: bool,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> int:
        target = Target(directory, config_path(config), parse_options(pairs), wait)
        return function(target, Output(as_json, quiet), *args, **kwargs)

    return command

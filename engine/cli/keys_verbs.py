"""The verbs that read and write single keys and ranges: get, set, del, scan, count.

Runs in: supervisor.
Invariants: (1) reading verbs open read-only, so they write nothing and start no process; (2) bytes
that are no printable text are shown escaped, unless `raw` asks for them as they are.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from meles.engine.cli.render import printable
from meles.engine.cli.verb import OK, PROBLEM, Output, Target, key_bytes, plain, verb

FORMATS = ("text", "raw", "hex", "json")
_hex_option = click.option("--hex", "in_hex", is_flag=True, help="Keys are hexadecimal.")
_format_option = click.option(
    "--format", "shape", type=click.Choice(FORMATS), default="text", help="How bytes are shown."
)


def _shown(data: bytes, shape: str) -> bytes:
    if shape == "raw":
        return data
    return data.hex().encode() if shape == "hex" else printable(data).encode()


@click.command("get")
@verb
@click.argument("key")
@_hex_option
@_format_option
def get_verb(target: Target, output: Output, key: str, in_hex: bool, shape: str) -> int:
    """Print the value of KEY; exit code 1 when there is none. `raw` adds no newline."""
    with target.open("read_only") as db:
        value = db.get(key_bytes(key, in_hex))
    if value is None:
        if not output.quiet:
            click.echo("meles: no such key", err=True)
        return PROBLEM
    if output.as_json or shape == "json":
        click.echo(json.dumps(plain(value), ensure_ascii=False))
    else:
        click.echo(_shown(value, shape), nl=shape != "raw")
    return OK


@click.command("set")
@verb
@click.argument("key")
@click.argument("value")
@_hex_option
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time to live.",
)
def set_verb(
    target: Target, output: Output, key: str, value: str, in_hex: bool, ttl: float | None
) -> int:
    """Set KEY to VALUE; `-` reads the value from standard input as it is."""
    data = sys.stdin.buffer.read() if value == "-" else key_bytes(value, False)
    with target.open() as db:
        db.set(key_bytes(key, in_hex), data, ttl=ttl)
    output.result([], {"set": 1})
    return OK


@click.command("del")
@verb
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_hex_option
def del_verb(target: Target, output: Output, keys: tuple[str, ...], in_hex: bool) -> int:
    """Delete every KEY, all or none of them; one that is absent is fine."""
    with target.open() as db, db.update() as txn:
        for key in keys:
            txn.delete(key_bytes(key, in_hex))
    output.result([], {"deleted": len(keys)})
    return OK


def _range_options(command: Any) -> Any:
    for name, text in (
        ("--prefix", "Only keys that begin so."),
        ("--start", "First key, inclusive."),
        ("--stop", "Last key, exclusive."),
    ):
        command = click.option(name, metavar="KEY", help=text)(command)
    return _hex_option(command)


def _range(prefix: str | None, start: str | None, stop: str | None, in_hex: bool) -> dict[str, Any]:
    given = {"prefix": prefix, "start": start, "stop": stop}
    return {name: key_bytes(text, in_hex) for name, text in given.items() if text is not None}


@click.command("scan")
@verb
@_range_options
@click.option("--reverse", is_flag=True, help="Last key first.")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many.")
@click.option("--keys-only", is_flag=True, help="No values.")
@click.option("--all-versions", is_flag=True, help="Older versions, deletes and expired ones too.")
@_format_option
def scan_verb(
    target: Target,
    output: Output,
    prefix: str | None,
    start: str | None,
    stop: str | None,
    in_hex: bool,
    reverse: bool,
    limit: int | None,
    keys_only: bool,
    all_versions: bool,
    shape: str,
) -> int:
    """Print keys and values in key order, one entry a line, a tab between the two."""
    as_json = output.as_json or shape == "json"
    wanted = _range(prefix, start, stop, in_hex)
    write = sys.stdout.buffer.write
    with (
        target.open("read_only") as db,
        db.view() as txn,
        txn.iterate(
            reverse=reverse, limit=limit, keys_only=keys_only, all_versions=all_versions, **wanted
        ) as items,
    ):
        for item in items:
            if as_json:
                row: dict[str, Any] = {"key": plain(item.key)}
                if not keys_only:
                    row["value"] = None if item.deleted else plain(item.value)
                if all_versions:
                    row |= {"version": item.version, "deleted": item.deleted}
                write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                continue
            cells = [_shown(item.key, shape)]
            if all_versions:
                cells.append(f"{item.version}{' deleted' if item.deleted else ''}".encode())
            if not keys_only:
                cells.append(b"" if item.deleted else _shown(item.value, shape))
            write(b"\t".join(cells) + b"\n")
        sys.stdout.buffer.flush()
    return OK


@click.command("count")
@verb
@_range_options
def count_verb(
    target: Target,
    output: Output,
    prefix: str | None,
    start: str | None,
    stop: str | None,
    in_hex: bool,
) -> int:
    """Print the number of keys, by reading them."""
    with (
        target.open("read_only") as db,
        db.keys(**_range(prefix, start, stop, in_hex)) as keys,
    ):
        count = sum(1 for _ in keys)
    if output.as_json:
        click.echo(json.dumps({"count": count}))
    else:
        click.echo(str(count))
    return OK


VERBS = (get_verb, set_verb, del_verb, scan_verb, count_verb)

"""The verb `rotate`: another master key, a first one, or none.

Runs in: supervisor.
Invariant: a key comes from a file or a prompt, never from the command line.
"""

from __future__ import annotations

import click
import meles
from meles.engine.cli.verb import OK, Output, output_options, read_key


@click.command("rotate")
@click.argument("directory", metavar="DIR")
@click.option("--old-key-file", metavar="FILE", help="The key until now; - asks for it.")
@click.option("--new-key-file", metavar="FILE", help="The key from now on; - asks for it.")
@click.option("--plaintext", is_flag=True, help="No key from now on: ends encryption.")
@click.option("--wait", default=0.0, metavar="SECONDS", help="How long to wait for the lock.")
@output_options
def rotate_verb(
    directory: str,
    old_key_file: str | None,
    new_key_file: str | None,
    plaintext: bool,
    wait: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Give a closed database another key. Without an old one it becomes encrypted."""
    keys = [
        None if where is None else read_key(where, prompt)
        for where, prompt in ((old_key_file, "Old key"), (new_key_file, "New key"))
    ]
    done = meles.rotate(directory, old_key=keys[0], new_key=keys[1], plaintext=plaintext, wait=wait)
    state = "is encrypted under the new key" if done.encrypted else "is not encrypted any more"
    more = "what is there already follows when it is rewritten"
    Output(as_json, quiet).result([f"{done.path}: new data {state}; {more}"], done)
    return OK


VERBS = (rotate_verb,)

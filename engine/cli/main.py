"""The `meles` command: verbs, exit codes, and errors as one line.

Runs in: supervisor.
Invariants: (1) exit codes are 0 ok, 1 problem found, 2 usage, 3 locked, 4 corrupt, and 130 after an
interrupt; (2) an error is one line on standard error with its hint; (3) this is a front end over
the public API alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click
import meles
from meles.engine.cli import (
    backup_verbs,
    care_verbs,
    feed_verbs,
    keys_verbs,
    rotate_verbs,
    stress_verbs,
)
from meles.engine.cli.config_verbs import config_group
from meles.engine.cli.render import printable
from meles.engine.cli.verb import CORRUPT, LOCKED, OK, PROBLEM, USAGE

INTERRUPTED = 130


@click.group("meles", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(meles.__version__, prog_name="meles")
def commands() -> None:
    """A key-value storage engine whose heavy work runs in processes of its own."""


for _verb in (
    *feed_verbs.VERBS,
    *keys_verbs.VERBS,
    *care_verbs.VERBS,
    *rotate_verbs.VERBS,
    *backup_verbs.VERBS,
    *stress_verbs.VERBS,
    config_group,
):
    commands.add_command(_verb)


def exit_code(error: Exception) -> int:
    """The exit code an error stands for."""
    if isinstance(error, meles.LockedError):
        return LOCKED
    if isinstance(error, meles.CorruptionError):
        return CORRUPT
    if isinstance(error, meles.ConfigError | meles.InvalidKeyError | ValueError):
        return USAGE
    return PROBLEM


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with commands.make_context("meles", args) as context:
            code = commands.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough of it; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except meles.Error as error:
        _say(str(error))
        return exit_code(error)
    except OSError as error:
        _say(str(error))
        return PROBLEM
    return code if isinstance(code, int) else OK


def _say(text: str) -> None:
    click.echo(f"meles: {printable(text.encode('utf-8', 'surrogateescape'))}", err=True)

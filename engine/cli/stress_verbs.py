"""The verbs that put a database to the test: stress and bank.

Runs in: supervisor (bank), or beside the loads it kills (stress).
Invariants: (1) stress wants a directory of its own, new or one it has worked on before; (2) what
was found is the exit code too; (3) the seed is said first, so that it is known whatever happens.
"""

from __future__ import annotations

import os
import random
import time

import click
import meles
from meles.engine.cli.verb import CORRUPT, OK, Output, Target, output_options, verb
from meles.engine.errors import ConfigError
from meles.engine.stress.bank import Bank
from meles.engine.stress.draw import draw
from meles.engine.stress.rounds import Stress, StressError


def _codecs() -> list[str]:
    """Compressions that are installed here."""
    found = ["none"]
    for name in ("snappy", "lz4", "zstd"):
        try:
            meles.open(None, mode="memory", workers="inline", compression=name).close()
        except ConfigError:
            continue
        found.append(name)
    return found


@click.command("stress")
@click.argument("directory", metavar="DIR")
@click.option("--minutes", default=1.0, help="How long; the round at hand is finished.")
@click.option("--rounds", type=click.IntRange(min=1), help="Stop after so many rounds.")
@click.option("--seed", type=int, help="Repeat what this seed draws.")
@output_options
def stress_verb(
    directory: str, minutes: float, rounds: int | None, seed: int | None, as_json: bool, quiet: bool
) -> int:
    """Load a new directory with random options, strike at random, check all that was promised.

    Every commit is noted in a ledger outside of DIR (DIR.ledger) before and after it; after each
    blow everything is read and judged by it. Exit code 4 at the first violation, which leaves both
    as they are.
    """
    ledger = directory.rstrip("/") + ".ledger"
    if os.path.exists(directory) or os.path.exists(ledger):
        raise click.UsageError(f"{directory} or its ledger exists: stress wants a new directory")
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    output = Output(as_json, quiet)
    click.echo(f"seed {seed}", err=True)
    stress = Stress(directory, ledger, lambda line: None if quiet else click.echo(line, err=True))
    codecs = _codecs()
    until = time.monotonic() + minutes * 60
    problem = ""
    number = 0
    while time.monotonic() < until and number != rounds and not problem:
        number += 1
        round_ = draw(seed, number, codecs)
        try:
            stress.run(round_)
        except (StressError, meles.Error) as error:
            problem = f"round {number} ({round_.fault.value}, {round_.options}): {error}"
    totals = stress.checker.finish()
    lines = [f"{count:>6} {fault}" for fault, count in sorted(stress.struck.items())]
    lines.append(
        f"{stress.rounds} rounds, {stress.checker.acked:,} commits acknowledged, "
        f"{totals.get('flushes', 0):,} flushes, {totals.get('compactions', 0):,} compactions, "
        f"{totals.get('gc_runs', 0):,} collections, {len(stress.checker.violations)} violations"
    )
    lines += [f"violation: {problem}", f"repeat with --seed {seed}"] if problem else []
    report = {
        "seed": seed, "rounds": stress.rounds, "struck": dict(stress.struck),
        "acknowledged": stress.checker.acked, "totals": totals, "problem": problem,
    }  # fmt: skip
    output.result(lines, report)
    if not problem:
        os.unlink(ledger)
    return CORRUPT if problem else OK


@click.command("bank")
@verb
@click.option("--seconds", default=10.0, help="How long.")
@click.option("--writers", default=4, type=click.IntRange(min=1), help="Threads that transfer.")
@click.option("--seed", default=1, help="Of the transfers.")
def bank_verb(target: Target, output: Output, seconds: float, writers: int, seed: int) -> int:
    """Move money between accounts in DIR and audit every snapshot; exit code 4 if a sum is wrong.

    Keys lie below `_bank/`; a second run goes on with the accounts of the first.
    """
    with target.open() as db:
        figures = Bank(db, seed).run(seconds, writers)
    lines = [
        *(f"violation: {violation}" for violation in figures.violations),
        f"{figures.transfers:,} transfers, {figures.conflicts:,} conflicts, "
        f"{figures.snapshots:,} snapshots audited, {len(figures.violations)} violations",
    ]
    output.result(lines, figures)
    return CORRUPT if figures.violations else OK


VERBS = (stress_verb, bank_verb)

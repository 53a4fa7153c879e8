"""The verbs that look at and look after a database: info, space, verify, doctor, gc, flatten,
workers.

Runs in: supervisor.
Invariants: (1) info and verify open read-only; the others own the directory while they run;
(2) what a verb finds wrong is its exit code too.
"""

from __future__ import annotations

import time

import click
import meles
from meles.engine.cli.render import aligned, printable, size_text, worker_lines
from meles.engine.cli.verb import CORRUPT, OK, PROBLEM, Output, Target, verb

_BOOT_SECONDS = 30.0  # workers boot in the background; far more than they need
_POLL_SECONDS = 0.05
_NUMBERS = frozenset(range(6))


def _level_lines(levels: list[meles.LevelInfo]) -> list[str]:
    rows = [("level", "tables", "size", "target", "score", "stale")]
    rows += [
        (
            f"L{level.level}{' base' if level.is_base else ''}",
            str(level.tables),
            size_text(level.size),
            size_text(level.target_size),
            f"{level.score:.2f}",
            size_text(level.stale_bytes),
        )
        for level in levels
    ]
    return aligned(rows, right=_NUMBERS - {0})


@click.command("space")
@verb
def space_verb(target: Target, output: Output) -> int:
    """Show what holds each byte: live data, or what is waiting to go and why."""
    with target.open("read_only") as db:
        report = db.space()
    kinds = sorted({*report.table_bytes, *report.value_log_bytes})
    rows = [("kind", "tables", "value log")]
    rows += [
        (
            kind,
            size_text(report.table_bytes.get(kind, 0)),
            size_text(report.value_log_bytes.get(kind, 0)),
        )
        for kind in kinds
    ]
    lines = [
        f"{size_text(report.total_bytes)} in all, {size_text(report.log_bytes)} of it in logs",
        *aligned(rows, right=_NUMBERS - {0}),
        *(
            f"pinned by thread {pin.owner} of process {pin.pid} at version {pin.read_ts:,} "
            f"for {pin.age_seconds:.0f} s: {size_text(pin.held_bytes)}"
            for pin in report.pins
        ),
    ]
    output.result(lines, {"space": report})
    return OK


def _encryption_lines(tables: list[meles.TableInfo], log: meles.ValueLogInfo) -> list[str]:
    """How many files are encrypted, and which are not, where any is."""
    files = {f"{table.id:06d}.sst": table.key_id for table in tables}
    files |= {f"{number:06d}.vlog": key_id for number, key_id in log.key_ids.items()}
    if not any(files.values()):
        return []
    plain = sorted(name for name, key_id in files.items() if not key_id)
    keys = sorted({key_id for key_id in files.values() if key_id})
    lines = [
        f"encrypted: {len(files) - len(plain)} of {len(files)} files, "
        f"with data key {', '.join(map(str, keys))}"
    ]
    if plain:
        lines.append(f"not encrypted yet: {', '.join(plain)}")
    return lines


@click.command("info")
@verb
def info_verb(target: Target, output: Output) -> int:
    """Show sizes, levels, the value log and what opening had to repair."""
    with target.open("read_only") as db:
        stats, size, health = db.stats(), db.size(), db.health()
        newest, path, tables = db.max_version(), db.path, db.tables()
    log, recovery = stats.value_log, stats.recovery
    lines = [
        f"{path}: {health.status}, newest version {newest:,}",
        f"tables and logs {size_text(size.lsm_bytes)}, value log "
        f"{size_text(size.value_log_bytes)} in {log.files} files, "
        f"{log.garbage_ratio:.0%} of the sealed ones garbage",
        f"space amplification {stats.space_amplification:.2f}",
        *_encryption_lines(tables, log),
        *_level_lines(stats.levels),
        *(f"recovery: {problem}" for problem in recovery.problems),
    ]
    data = {
        "path": path, "health": health, "max_version": newest, "size": size, "stats": stats,
    }  # fmt: skip
    output.result(lines, data)
    return PROBLEM if recovery.problems else OK


@click.command("verify")
@verb
@click.option("--values", is_flag=True, help="Follow every pointer into the value log too.")
def verify_verb(target: Target, output: Output, values: bool) -> int:
    """Check every checksum and invariant; exit code 4 when one does not hold."""
    with target.open("read_only") as db:
        report = db.verify(values=values)
    checked = f"{report.tables:,} tables, {report.blocks:,} blocks, {report.values:,} values"
    lines = [f"problem: {printable(problem.encode())}" for problem in report.problems]
    output.result([*lines, f"{'ok' if report.ok else 'damaged'}: {checked}"], report)
    return OK if report.ok else CORRUPT


def _doctor_lines(found: meles.Diagnosis, fix: bool) -> list[str]:
    lines = [] if not found.problem else [f"{found.path}: {found.problem}"]
    for finding in found.findings:
        lines.append(f"{finding.file}: {finding.what}")
        if finding.plan:
            lines.append(f"  plan: {finding.plan}; this loses {finding.loses}")
    lines += [f"done: {line}" for line in found.done]
    if found.ok:
        lines.append("ok: it opens, and every checksum holds")
    elif not fix and any(finding.plan for finding in found.findings):
        lines.append("nothing was changed; copy the directory, then run this again with --fix")
    return [printable(line.encode("utf-8", "surrogateescape")) for line in lines]


@click.command("doctor")
@verb
@click.option("--fix", is_flag=True, help="Repair; damaged files are set aside, never deleted.")
def doctor_verb(target: Target, output: Output, fix: bool) -> int:
    """Explain why a directory does not open and propose a plan; exit code 4 while it is damaged."""
    found = meles.doctor(
        target.directory, fix=fix, config=target.config, wait=target.wait, **target.options
    )
    output.result(_doctor_lines(found, fix), found)
    if found.ok:
        return OK
    return CORRUPT if found.findings else PROBLEM


@click.command("gc")
@verb
@click.option("--discard-ratio", default=0.5, help="Share of garbage that makes a file due.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long.")
def gc_verb(target: Target, output: Output, discard_ratio: float, timeout: float | None) -> int:
    """Collect the value log until no file qualifies."""
    with target.open() as db:
        report = db.gc(discard_ratio, timeout=timeout)
    rows = [("file", "outcome", "reason")]
    rows += [(str(number), outcome, reason) for number, outcome, reason in report.files]
    lines = [
        f"{report.examined:,} files examined, {report.rewritten:,} rewritten, "
        f"{size_text(report.freed_bytes)} freed",
        *(aligned(rows, right=frozenset({0})) if report.files else ()),
    ]
    output.result(lines, report)
    return OK


@click.command("flatten")
@verb
@click.option("--workers", default=2, type=click.IntRange(min=1), help="Compactions at once.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long.")
def flatten_verb(target: Target, output: Output, workers: int, timeout: float | None) -> int:
    """Compact until at most one level holds data."""
    with target.open() as db:
        db.flatten(workers, timeout)
        levels = db.levels()
    output.result(_level_lines(levels), levels)
    return OK


@click.command("workers")
@verb
def workers_verb(target: Target, output: Output) -> int:
    """Own the directory, start its workers and show them; exit code 1 when one does not start."""
    with target.open() as db:
        deadline = time.monotonic() + _BOOT_SECONDS
        workers = db.workers()
        while any(w.state in ("starting", "restarting") for w in workers):
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
            workers = db.workers()
        health = db.health()
    lines = [*worker_lines(workers), *(f"{health.status}: {why}" for why in health.reasons)]
    output.result(lines, {"workers": workers, "health": health})
    return OK if health.status == "ok" else PROBLEM


VERBS = (
    space_verb, info_verb, verify_verb, doctor_verb, gc_verb, flatten_verb, workers_verb,
)  # fmt: skip

"""The main job on real data: what `make run` runs.

Ingests every line and every file of the Python installation that runs it, overwrites and deletes a
part, lets the workers flush, compact and collect, closes, reopens, and compares every key with the
files it came from: by `get`, and by iterating over everything in both directions. Prints what was
done by whom; exits 1 when any check fails.

Runs in: a host process; the database's workers are processes of their own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import meles
from meles.engine.cli.ingest import Ingest
from meles.engine.cli.progress import make_progress
from meles.engine.cli.records import Chunk, open_chunk
from meles.engine.cli.render import rate_text, size_text, stage_lines, worker_lines
from meles.engine.cli.sources import open_sources, read_file, source_format, walk

# Smaller than the defaults, so that a run of a minute rotates, compacts and collects many times.
OPTIONS: dict[str, Any] = {
    "memtable_size": "8MiB",
    "value_log_file_size": "32MiB",
    "base_level_size": "32MiB",
    "close_timeout": 60,
}
LINE_KEY = "line:{source}:{n:06d}"
LONGEST_FILE = 4 << 20
CHUNK_BYTES = 4 << 20
IDLE_SECONDS = 120.0
BOOT_SECONDS = 60.0
KINDS = ("flusher", "compactor", "value_gc")


# -- what is ingested --------------------------------------------------------------------------


@dataclass
class Corpus:
    """Files of the installation: `scripts` go in line by line, `files` as a whole.

    Which keys are changed afterwards follows from a file's place in these lists.
    """

    scripts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    lines: int = 0
    size: int = 0


def installation() -> Iterator[str]:
    """Paths of the files of the running Python: its library first, then installed packages.

    Compiled files are left out: any process that imports something may rewrite them meanwhile.
    """
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    library = sysconfig.get_path("stdlib")
    packages = sysconfig.get_path("purelib", vars=base)
    for root in (library, packages):
        for relative, problem in walk(root):
            path = os.path.join(root, relative)
            nested = root == library and path.startswith(packages + os.sep)
            if problem is None and not nested and "__pycache__" not in path:
                yield path


def choose(most_lines: int, most_bytes: int) -> Corpus:
    """As much of the installation as the limits allow."""
    corpus = Corpus()
    for path in installation():
        size = os.path.getsize(path)
        if size > LONGEST_FILE or not os.access(path, os.R_OK):
            continue
        if path.endswith(".py") and corpus.lines < most_lines:
            corpus.lines += len(lines_of(path))
            corpus.scripts.append(path)
        if corpus.size + size <= most_bytes:
            corpus.size += size
            corpus.files.append(path)
        if corpus.lines >= most_lines and corpus.size >= most_bytes * 0.99:
            break
    corpus.scripts.sort(key=lambda path: os.fsencode(path) + b":")
    corpus.files.sort(key=os.fsencode)
    return corpus


def lines_of(path: str) -> list[bytes]:
    lines = Path(path).read_bytes().split(b"\n")
    return lines if lines[-1] else lines[:-1]


class Bodies:
    """The files of the corpus as one source of an ingest run."""

    name = "bodies"

    def __init__(self, corpus: Corpus) -> None:
        self.size: int | None = corpus.size
        self._files = corpus.files

    def chunks(self) -> Generator[Chunk, None, None]:
        chunk, numbers = open_chunk()
        for number, path in enumerate(self._files, 1):
            body = read_file(path, LONGEST_FILE)
            chunk.keys.append(body_key(path))
            chunk.values.append(body)
            numbers.append(number)
            chunk.size += len(body)
            if chunk.size >= CHUNK_BYTES:
                yield chunk
                chunk, numbers = open_chunk()
        yield chunk


def body_key(path: str) -> bytes:
    return b"body:" + os.fsencode(path)


def line_keys(path: str, count: int) -> list[bytes]:
    prefix = b"line:" + os.fsencode(path).replace(b"%", b"%%") + b":%06d"
    return [prefix % number for number in range(1, count + 1)]


# -- what is changed, and so what must be found --------------------------------------------------


def final_line(at: int, line: bytes) -> bytes | None:
    """What a line of script number `at` is in the end; None = deleted."""
    return (line[::-1], None, line, line)[at % 4]


def final_body(at: int, body: bytes) -> bytes | None:
    """What file number `at` is in the end; None = deleted."""
    return (body[::-1], None, body)[at % 3]


def change(db: meles.DB, corpus: Corpus) -> tuple[int, int]:
    """Overwrite and delete; bodies are overwritten twice. Returns (sets, deletes)."""
    sets = deletes = 0
    with db.write_batch() as batch:
        for at, path in enumerate(corpus.scripts):
            if at % 4 > 1:
                continue
            lines = lines_of(path)
            for key, line in zip(line_keys(path, len(lines)), lines, strict=True):
                value = final_line(at, line)
                if value is None:
                    batch.delete(key)
                    deletes += 1
                else:
                    batch.set(key, value)
                    sets += 1
        for round_number in (1, 2):
            for at, path in enumerate(corpus.files):
                value = final_body(at, read_file(path, LONGEST_FILE))
                if at % 3 == 0 and value is not None:
                    batch.set(body_key(path), value if round_number == 2 else value + b"#")
                    sets += 1
                elif value is None and round_number == 2:
                    batch.delete(body_key(path))
                    deletes += 1
    return sets, deletes


Expected = tuple[bytes, bytes | None]


def expected_of_file(at: int, path: str) -> list[Expected]:
    return [(body_key(path), final_body(at, read_file(path, LONGEST_FILE)))]


def expected_of_script(at: int, path: str) -> list[Expected]:
    lines = lines_of(path)
    finals = [final_line(at, line) for line in lines]
    return list(zip(line_keys(path, len(lines)), finals, strict=True))


def expected(corpus: Corpus, *, reverse: bool = False) -> Iterator[Expected]:
    """Every key ever written with what it must be now, in key order, from the files themselves."""
    parts: Iterable[list[Expected]]
    if not reverse:
        parts = chain(
            (expected_of_file(at, path) for at, path in enumerate(corpus.files)),
            (expected_of_script(at, path) for at, path in enumerate(corpus.scripts)),
        )
        return chain.from_iterable(parts)
    parts = chain(
        (expected_of_script(at, path) for at, path in reversed(list(enumerate(corpus.scripts)))),
        (expected_of_file(at, path) for at, path in reversed(list(enumerate(corpus.files)))),
    )
    return chain.from_iterable(part[::-1] for part in parts)


# -- checking ------------------------------------------------------------------------------------


@dataclass
class Checks:
    """Results of the checks, printed as they come."""

    failed: int = 0

    def expect(self, holds: bool, text: str) -> None:
        self.failed += not holds
        print(f"  {'ok    ' if holds else 'FAILED'}  {text}", flush=True)


def check_by_get(db: meles.DB, corpus: Corpus, checks: Checks) -> None:
    present = absent = wrong = 0
    for key, value in expected(corpus):
        wrong += db.get(key) != value
        present += value is not None
        absent += value is None
    checks.expect(wrong == 0, f"get: {present:,} values equal, {absent:,} deleted keys absent")


def check_by_iterating(db: meles.DB, corpus: Corpus, checks: Checks, *, reverse: bool) -> None:
    alive = (pair for pair in expected(corpus, reverse=reverse) if pair[1] is not None)
    seen = wrong = 0
    with db.items(reverse=reverse) as items:
        for found, wanted in zip_longest(items, alive):
            seen += 1
            wrong += found != wanted
    direction = "backward" if reverse else "forward"
    checks.expect(wrong == 0, f"iterating {direction}: {seen:,} pairs equal and in order")


def booted(db: meles.DB) -> dict[str, float]:
    """CPU seconds of each kind of worker once all have booted: what they took before any job."""
    deadline = time.monotonic() + BOOT_SECONDS
    while any(worker.state == "starting" for worker in db.workers()):
        if time.monotonic() >= deadline:
            raise SystemExit(f"workers do not boot: {db.health().reasons}")
        time.sleep(0.02)
    return cpu_by_kind(db.workers())


def cpu_by_kind(workers: list[meles.WorkerInfo]) -> dict[str, float]:
    return {kind: sum(w.cpu_seconds for w in workers if w.kind == kind) for kind in KINDS}


def check_workers(
    stats: meles.Stats,
    workers: list[meles.WorkerInfo],
    before: dict[str, float],
    checks: Checks,
) -> None:
    """Each kind of worker did its work, in processes that are not this one."""
    runs = {"flusher": stats.flushes, "compactor": stats.compactions, "value_gc": stats.gc_runs}
    after = cpu_by_kind(workers)
    for kind in KINDS:
        pids = [worker.pid for worker in workers if worker.kind == kind]
        apart = bool(pids) and None not in pids and os.getpid() not in pids
        cpu = after[kind] - before[kind]
        worked = apart and cpu > 0 and runs[kind] > 0
        text = f"{kind}: {runs[kind]} jobs took {cpu:.2f} s of CPU in process"
        checks.expect(worked, f"{text} {', '.join(map(str, pids))}")
    checks.expect(len({w.pid for w in workers}) == len(workers), "every worker is its own process")
    freed = stats.value_log.gc_freed_bytes
    checks.expect(freed > 0, f"value-log collection freed {size_text(freed)}")


# -- the job -------------------------------------------------------------------------------------


def ingest(db: meles.DB, corpus: Corpus) -> None:
    """Lines and bodies through the ingest of the command line, with its progress display."""
    lines = open_sources(corpus.scripts, source_format("lines", LINE_KEY, LONGEST_FILE))
    progress = make_progress("ingest", sys.stderr, db.workers, quiet=False)
    try:
        report = Ingest(db, progress, skip=False).run([*lines, Bodies(corpus)])
    finally:
        progress.close()
    tally = report.tally
    if not report.complete:
        raise SystemExit(f"ingest stopped: {report.stopped_at}")
    rates = rate_text(tally.committed, tally.size, report.seconds)
    print(f"ingested {tally.committed:,} entries in {report.seconds:.1f} s: {rates}")


def work(directory: str, corpus: Corpus, checks: Checks) -> None:
    """Everything up to the first close."""
    with meles.open(directory, **OPTIONS) as db:
        before = booted(db)
        ingest(db, corpus)
        began = time.monotonic()
        sets, deletes = change(db, corpus)
        print(f"changed: {sets:,} entries set again, {deletes:,} deleted in "
              f"{time.monotonic() - began:.1f} s")  # fmt: skip
        began = time.monotonic()
        db.flush()
        idle = db.wait_idle(IDLE_SECONDS)
        db.flatten()  # what was overwritten and deleted meets its older versions
        collected = db.gc()
        idle = db.wait_idle(IDLE_SECONDS) and idle
        checks.expect(idle, f"background work came to rest in {time.monotonic() - began:.1f} s")
        stats, workers = db.stats(), db.workers()
        report(db, stats, collected)
        print("\n".join(worker_lines(workers)))
        print(f"this process: pid {os.getpid()}, {time.process_time():.2f} s of CPU")
        check_workers(stats, workers, before, checks)
        closed = db.close()
    print("\n".join(stage_lines(closed.stages)))
    checks.expect(closed.clean, "closed cleanly")


def report(db: meles.DB, stats: meles.Stats, collected: meles.GCReport) -> None:
    size, log = db.size(), stats.value_log
    tables = ", ".join(f"L{level.level} {level.tables}" for level in stats.levels if level.tables)
    print(
        f"{stats.flushes} flushes, {stats.compactions} compactions and {stats.moves} moves, "
        f"{stats.gc_runs} value-log collections freed {size_text(log.gc_freed_bytes)} "
        f"({size_text(collected.freed_bytes)} by the last call)\n"
        f"tables and logs {size_text(size.lsm_bytes)} ({tables}), "
        f"value log {size_text(size.value_log_bytes)} in {log.files} files\n"
        f"write amplification {stats.write_amplification:.2f}, "
        f"space amplification {stats.space_amplification:.2f}, "
        f"{stats.stalls.count} stalls of {stats.stalls.seconds:.1f} s together"
    )


def verify(directory: str, corpus: Corpus, checks: Checks) -> None:
    """Reopen and compare everything with the files."""
    began = time.monotonic()
    with meles.open(directory, **OPTIONS) as db:
        print(f"reopened in {time.monotonic() - began:.2f} s")
        damage = db.verify(values=True)
        checks.expect(damage.ok, f"checksums: {damage.tables} tables, {damage.values:,} values")
        check_by_get(db, corpus, checks)
        check_by_iterating(db, corpus, checks, reverse=False)
        check_by_iterating(db, corpus, checks, reverse=True)


def run(directory: str, most_lines: int, most_bytes: int) -> int:
    began = time.monotonic()
    checks = Checks()
    corpus = choose(most_lines, most_bytes)
    print(f"python {sys.version.split()[0]}: {corpus.lines:,} lines of {len(corpus.scripts):,} "
          f"scripts, {len(corpus.files):,} whole files of {size_text(corpus.size)}")  # fmt: skip
    work(directory, corpus, checks)
    verify(directory, corpus, checks)
    verdict = f"{checks.failed} checks FAILED" if checks.failed else "all checks passed"
    print(f"{verdict} in {time.monotonic() - began:.1f} s")
    return 1 if checks.failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Ingest, change, reopen and verify real data.")
    parser.add_argument("--lines", type=int, default=1_500_000, help="at most about so many lines")
    parser.add_argument("--mib", type=int, default=300, help="at most so many MiB of whole files")
    parser.add_argument("--dir", default=os.environ.get("RUN_DIR"), help="keep the data here")
    args = parser.parse_args()
    directory = args.dir or tempfile.mkdtemp(prefix="meles-run-")
    database = os.path.join(directory, "db")
    if os.path.exists(database):
        parser.error(f"{database} is there already: remove it or choose another directory")
    try:
        return run(database, args.lines, args.mib << 20)
    finally:
        if args.dir is None:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

"""A host that closes one stage at a time: it says which is next, and goes on when told.

    python closing_host.py plain|served DIRECTORY

`plain` is a host without handlers: Ctrl-C is a KeyboardInterrupt in the middle of the stage,
SIGTERM and SIGHUP are death. `served` catches them as `meles serve` does. Every commit it makes is
acknowledged before it says `closing`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable

import meles
from meles import supervisor
from meles.engine.cli.serve import close_watching
from meles.engine.cli.stop import StopSource
from meles.workers.parent.stages import Deadline, Stage, StageRow, run_stages

OPTIONS = {
    "memtable_size": 128 << 10, "num_memtables": 3, "value_log_file_size": 1 << 20,
    "base_table_size": 16 << 10, "base_level_size": 64 << 10, "num_level_zero_tables": 2,
    "num_compactors": 1, "compact_l0_on_close": True, "close_timeout": 10.0,
}  # fmt: skip
KEYS, ROUNDS = 150, 6


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def heard() -> str:
    """The next line of standard input, byte by byte: nothing is buffered when a signal comes."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            os._exit(71)
        line += byte
    return line.decode().strip()


def observed(row: StageRow) -> StageRow:
    def action(deadline: Deadline) -> str | None:
        say("stage", row.name)
        heard()
        return row.action(deadline)

    return StageRow(row.name, action, row.share)


def stage_by_stage(rows: Iterable[StageRow], deadline: Deadline) -> list[Stage]:
    return run_stages(map(observed, rows), deadline)


def value(number: int, key: int) -> bytes:
    return b"%d/%d " % (number, key) + b"." * (key % 5 * 700)


def fill(db: meles.DB) -> None:
    """Something for every stage: full memtables, tables, garbage in the value log."""
    for number in range(ROUNDS):
        for key in range(KEYS):
            db[b"k%03d" % key] = value(number, key)


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests by `nohup` ignores it
    how, path = sys.argv[1:]
    db = meles.open(path, **OPTIONS)
    fill(db)
    supervisor.run_stages = stage_by_stage
    say("workers", *(w.pid for w in db.workers() if w.pid is not None))
    say("closing")
    if how == "served":
        with supervisor.stop_signals() as fd:
            report = close_watching(db, StopSource(fd))
    else:
        report = db.close()
    say("closed", "clean" if report.clean else report)


if __name__ == "__main__":
    main()

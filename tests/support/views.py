"""Read views made of random writes: memtables, level zero, and levels of disjoint tables."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.log.writer import LogWriter
from meles.engine.manifest.version import Version
from meles.engine.memtable.memtable import Memtable
from meles.engine.read_view import ReadView
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from meles.engine.vlog.value_log import ValueLogView

NOW_MS = 1_800_000_000_000
CODECS = ("none", "snappy", "lz4", "zstd")
KEYS = [b"a", b"a\0", b"ab", b"b", b"c" * 40, b"d", b"d\xff", b"dd", b"e", b"f", b"\xff"]

Row = tuple[bytes, int, int, int, bytes]  # as in Columns


@dataclass
class Sources:
    """A view, and what it was made of."""

    view: ReadView
    rows: list[Row]
    tables: list[Table]
    logs: list[LogWriter] = field(default_factory=list)

    def close(self) -> None:
        for table in self.tables:
            table.close()
        for log in self.logs:
            log.close()


def random_rows(rng: random.Random, count: int) -> list[Row]:
    """Writes of versions 1, 2, ...: some keys are written often, so that they span blocks."""
    names = rng.sample(KEYS, rng.randint(1, len(KEYS)))
    rows = []
    for version in range(1, count + 1):
        kind = rng.randrange(8)
        meta = META_DELETE if kind == 0 else rng.randrange(256) << 8 if kind == 1 else 0
        expiry = NOW_MS + rng.choice((-5, 0, 5, 1 << 40)) if kind == 2 else 0
        value = b"" if kind in (0, 3) else b"%d:" % version * rng.randrange(12)
        rows.append((rng.choice(names), version, meta, expiry, value))
    return rows


def columns_of(rows: list[Row]) -> Columns:
    columns = Columns()
    for row in sorted(rows, key=lambda row: (row[0], -row[1])):
        columns.append(*row)
    return columns


def random_view(rng: random.Random, directory: Directory) -> Sources:
    """The older a write, the deeper it lies, as in a database."""
    rows = random_rows(rng, rng.randrange(1, 160))
    cuts = sorted(rng.randrange(len(rows) + 1) for _ in range(6))
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    tables: list[Table] = []

    def build(columns: Columns) -> Table:
        options = BuildOptions(
            block_size=rng.choice((40, 200, 4096)), compression=rng.choice(CODECS)
        )
        builder = TableBuilder(directory, len(tables) + 1, options, created_ms=NOW_MS)
        builder.add(columns)
        builder.finish()
        tables.append(Table(directory, len(tables) + 1))
        return tables[-1]

    def level(found: list[Row]) -> list[Table]:
        names = sorted({row[0] for row in found})
        borders = sorted({rng.randrange(len(names) + 1) for _ in range(3)} | {0, len(names)})
        runs = [set(names[a:b]) for a, b in pairwise(borders)]
        return [build(columns_of([r for r in found if r[0] in run])) for run in runs if run]

    levels = [level(part) for part in (parts[1], parts[0]) if part]
    level_zero = [build(columns_of(part)) for part in (parts[3], parts[2]) if part]
    memtables, logs = [], []
    for number, part in enumerate(parts[4:], 1):
        logs.append(LogWriter(directory, number))
        memtables.append(Memtable.create(logs[-1]))
        for key, version, meta, expiry, value in part:
            memtables[-1].put(key, value, meta & 255, meta >> 8, expiry, version)
            memtables[-1].last_ts = version
    view = ReadView(
        active=memtables[-1],
        sealed=tuple(memtables[-2::-1]),
        level_zero=tuple(level_zero),
        levels=tuple(([table.meta.max_key for table in found], found) for found in levels),
        version=Version.empty(7),
        values=ValueLogView(""),
        ordered=True,
    )
    return Sources(view, rows, tables, logs)

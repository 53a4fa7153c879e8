"""A small LSM tree without a database around it: real tables, a Version, plans run, installed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_DELETE, META_DISCARD_EARLIER, META_MERGE
from meles.engine.compaction.execute import run_compaction
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.plan import Plan, hull, jobs_for
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.jobs import (
    BuildOptions,
    CompactJob,
    JobResult,
    job_from_plain,
    job_to_plain,
)
from meles.engine.manifest.version import Drop, TableMeta, Version
from meles.engine.options import Options
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table

TINY = {
    "memtable_size": 1 << 16, "base_table_size": 1 << 14, "base_level_size": 1 << 16,
    "block_size": 1 << 10, "level_size_multiplier": 2, "table_size_multiplier": 1,
    "max_levels": 5, "num_level_zero_tables": 2, "num_level_zero_tables_stall": 4,
    "num_compactors": 2,
}  # fmt: skip
FLAGS = {"del": META_DELETE, "discard": META_DISCARD_EARLIER, "merge": META_MERGE}


class Quiet:
    """A job context that never cancels and remembers the reports."""

    def __init__(self) -> None:
        self.reports: list[int] = []

    def progress(self, done_bytes: int) -> None:
        self.reports.append(done_bytes)


def new_meta(
    table_id: int,
    low: bytes,
    high: bytes,
    *,
    size: int = 1000,
    versions: tuple[int, int] = (1, 1),
    **more: Any,
) -> TableMeta:
    """A table that exists only as metadata."""
    count = more.pop("count", max(1, size // 100))
    raw = more.pop("raw_bytes", size)
    return TableMeta(table_id, size, 0, count, low, high, *versions, raw_bytes=raw, **more)


@dataclass
class Lsm:
    """Levels of real tables."""

    directory: Directory
    options: Options
    version: Version
    build: BuildOptions = field(default_factory=lambda: BuildOptions(block_size=512))
    in_flight: InFlight = field(default_factory=InFlight)
    next_id: int = 1
    discard_ts: int = 0
    now_ms: int = 1_000_000
    parallel: int = 1
    jobs: list[CompactJob] = field(default_factory=list)
    results: list[JobResult] = field(default_factory=list)

    def reserve(self, count: int) -> int:
        first = self.next_id
        self.next_id += count
        return first

    def add(self, level: int, columns: Columns, **more: Any) -> TableMeta:
        """Build a table and put it on a level."""
        builder = TableBuilder(
            self.directory, self.reserve(1), self.build, created_ms=self.now_ms, **more
        )
        builder.add(columns)
        meta = builder.finish().meta
        self.install(level, [meta], level, [])
        return meta

    def install(
        self, add_level: int, add: list[TableMeta], remove_level: int, remove: list[int]
    ) -> None:
        if add_level != remove_level:
            self.version = self.version.with_tables(remove_level, [], remove)
            remove = []
        self.version = self.version.with_tables(add_level, add, remove)
        self.check()

    def check(self) -> None:
        for level in self.version.levels[1:]:
            for left, right in pairwise(level):
                assert left.max_key < right.min_key, "tables of one level overlap"

    def drop(self, prefixes: tuple[bytes, ...], ts: int) -> None:
        self.version = replace(self.version, drops=(*self.version.drops, Drop(prefixes, ts)))

    def start(self, plan: Plan) -> list[CompactJob]:
        """Claim a plan and make its jobs, as they come out of a pipe."""
        self.in_flight.claim(plan)
        if plan.kind == "move":
            return []
        drops = tuple((prefix, drop.ts) for drop in self.version.drops for prefix in drop.prefixes)
        jobs = jobs_for(
            plan, self.version, self.options, reserve=self.reserve, discard_ts=self.discard_ts,
            now_ms=self.now_ms, drops=drops, parallel=self.parallel, build=self.build,
        )  # fmt: skip
        plain = [job_from_plain(job_to_plain(job)) for job in jobs]
        assert plain == jobs, "a job does not survive the wire"
        return jobs

    def finish(self, plan: Plan, jobs: list[CompactJob]) -> None:
        """Run the jobs, install what they made, remove what they replace."""
        made: list[TableMeta] = list(plan.top) if plan.kind == "move" else []
        for job in jobs:
            result = run_compaction(job, self.directory, Quiet())
            self.jobs.append(job)
            self.results.append(result)
            for file in result.files:
                with Table(self.directory, file.id, crc=file.crc) as table:
                    table.verify()
                    made.append(table.meta)
        if plan.from_level == plan.to_level:
            self.install(plan.to_level, made, plan.from_level, [table.id for table in plan.inputs])
        else:
            self.version = self.version.with_tables(
                plan.to_level, [], [table.id for table in plan.bottom]
            )
            self.install(plan.to_level, made, plan.from_level, [table.id for table in plan.top])
        self.in_flight.release(plan)
        if plan.kind != "move":
            for table in plan.inputs:
                self.directory.unlink(file_name(Kind.TABLE, table.id))

    def run(self, plan: Plan) -> None:
        self.finish(plan, self.start(plan))

    def columns(self, meta: TableMeta) -> Columns:
        out = Columns()
        with Table(self.directory, meta.id) as table:
            for batch in table.scan():
                out.extend(batch)
        return out

    def sources(self) -> list[Columns]:
        """The contents, newest source first, the tables of a deeper level together."""
        found = [self.columns(table) for table in self.version.levels[0]]
        for level in self.version.levels[1:]:
            together = Columns()
            for table in level:
                together.extend(self.columns(table))
            found.append(together)
        return found

    def plan(self, from_level: int, to_level: int, ids: list[int], target: int = 1 << 20) -> Plan:
        """A plan as told, with the tables it meets."""
        top = tuple(t for t in self.version.levels[from_level] if t.id in ids)
        assert len(top) == len(ids)
        bottom = () if from_level == to_level else self.version.overlapping(to_level, *hull(top))
        kind = "rewrite" if from_level == to_level else "level"
        if from_level == 0:
            kind = "l0_to_l0" if to_level == 0 else "l0_to_base"
        return Plan(
            kind, from_level, to_level, top, bottom, target, *hull(top + bottom),  # type: ignore[arg-type]
            self.now_ms / 1000,
        )  # fmt: skip


def parse_entries(text: str) -> Columns:
    """`a@5=x b@4:del c@3=y,ttl=100,discard,merge`: keys with versions, values and properties."""
    columns = Columns()
    for word in text.split():
        match = re.fullmatch(r"([^@]+)@(\d+)(?:=([^,]*))?((?:[:,][a-z]+(?:=\d+)?)*)", word)
        assert match is not None, f"not an entry: {word}"
        key, version, value, rest = match.groups()
        meta = expiry = 0
        for item in re.findall(r"[:,]([a-z]+)(?:=(\d+))?", rest):
            if item[0] == "ttl":
                expiry = int(item[1])
            else:
                meta |= FLAGS[item[0]]
        columns.append(key.encode(), int(version), meta, expiry, (value or "").encode())
    columns.check()
    return columns


def show_entries(columns: Columns) -> str:
    words = []
    for key, version, meta, expiry, value in zip(
        columns.keys, columns.versions, columns.metas, columns.expiries, columns.values,
        strict=True,
    ):  # fmt: skip
        word = f"{key.decode()}@{version}"
        if value:
            word += f"={value.decode()}"
        flags = [name for name, bit in FLAGS.items() if meta & bit]
        if expiry:
            flags.append(f"ttl={expiry}")
        if flags:
            word += ("," if value else ":") + ",".join(flags)
        words.append(word)
    return " ".join(words)


@dataclass(frozen=True)
class Tools:
    """What the tests of this folder share."""

    quiet: type[Quiet]
    meta: Callable[..., TableMeta]
    parse: Callable[[str], Columns]
    show: Callable[[Columns], str]
    options: Callable[..., Options]

    @contextmanager
    def lsm(self, path: str, **options: Any) -> Iterator[Lsm]:
        """An empty tree in a directory that exists."""
        chosen = self.options(**options)
        with Directory(path) as directory:
            yield Lsm(directory, chosen, Version.empty(chosen.max_levels))


@pytest.fixture(scope="session")
def tools() -> Tools:
    def options(**changes: Any) -> Options:
        return Options(**{**TINY, **changes})

    return Tools(Quiet, new_meta, parse_entries, show_entries, options)


@pytest.fixture
def lsm(tmp_path: Path, tools: Tools) -> Iterator[Lsm]:
    with tools.lsm(str(tmp_path)) as tree:
        yield tree


@pytest.fixture
def check_script() -> Callable[[Path, Callable[[str, list[str]], str]], None]:
    """Run a text script and compare, or rewrite it when MELES_REWRITE is set.

    Blocks are separated by blank lines: a command, its input lines, `----`, the expected output.
    """

    def check(path: Path, execute: Callable[[str, list[str]], str]) -> None:
        produced = []
        for block in path.read_text().strip("\n").split("\n\n"):
            asked = block.split("\n----")[0]
            lines = [line for line in asked.split("\n") if not line.startswith("#")]
            if not lines:
                produced.append(block)
                continue
            shown = execute(lines[0], lines[1:]).rstrip("\n")
            produced.append(f"{asked}\n----\n{shown}" if shown else f"{asked}\n----")
        text = "\n\n".join(produced) + "\n"
        if os.environ.get("MELES_REWRITE"):
            path.write_text(text)
        assert text == path.read_text()

    return check

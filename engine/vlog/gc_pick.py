"""Which value-log files to collect: dropped unread, relocated together, or kept and why.

Runs in: supervisor. Pure.
Invariants: (1) every file of the Version is in exactly one of the plan's parts; (2) a file is
touched only when sealed, fully flushed and in no other job; (3) one plan is at most one relocation,
whose output stays under the size asked for unless a single file alone exceeds it, and is smaller
than what it replaces; (4) its job fits one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meles.engine.codec.header import HEADER_BYTES
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.jobs import RelocateJob
from meles.engine.manifest.version import Version
from meles.engine.vlog.layout import TRAILER_BYTES, maps_bytes
from meles.engine.vlog.liveness import VlogSpace, space

ACTIVE: Final = "active: not sealed"
BUSY: Final = "busy: another job works on it"
UNFLUSHED: Final = "unflushed: a memtable may refer to it"
BELOW_RATIO: Final = "below ratio: too little garbage"
NO_GAIN: Final = "no gain: the copy would not be smaller"
NEXT_RUN: Final = "next run: no room left in this run's output"
SCATTERED: Final = "scattered: more tables refer to it than one job can name"
MAX_NAMED: Final = 80_000  # files a job names, at up to 11 bytes each: it is one message of 1 MiB
MAX_OUTPUT_ENTRIES: Final = 4_000_000  # bounds the worker's memory: some 100 bytes an entry


@dataclass(frozen=True, slots=True)
class GCPlan:
    """Physical file ids: `drop` hold nothing live, `relocate` go into one new file, `kept` stay."""

    drop: tuple[int, ...]
    relocate: tuple[int, ...]
    kept: tuple[tuple[int, str], ...]

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.drop and not self.relocate


def pick_gc(
    version: Version,
    *,
    ratio: float,
    active: int,
    unflushed: frozenset[int],
    busy: frozenset[int],
    max_output_bytes: int,
) -> GCPlan:
    """Judge every file; those with a garbage share >= `ratio` are taken, most garbage first.

    `unflushed` are logical ids that memtables may refer to, `busy` physical ids of running jobs.
    """
    drop: list[int] = []
    due: list[VlogSpace] = []
    kept: dict[int, str] = {}
    for file in space(version):
        if not file.sealed or file.id == active:
            kept[file.id] = ACTIVE
        elif file.id in busy:
            kept[file.id] = BUSY
        elif not unflushed.isdisjoint(file.logical):
            kept[file.id] = UNFLUSHED
        elif file.live_entries == 0:
            drop.append(file.id)
        elif file.garbage_ratio < ratio:
            kept[file.id] = BELOW_RATIO
        elif _output_bytes([file]) >= min(file.size, MAX_FILE_BYTES + 1):
            kept[file.id] = NO_GAIN
        else:
            due.append(file)
    chosen: list[VlogSpace] = []
    tables = _referring(version, due)
    named: set[int] = set()
    for file in sorted(due, key=lambda f: (-f.garbage_ratio, f.id)):
        if _named([file], tables[file.id]) > MAX_NAMED:
            kept[file.id] = SCATTERED
        elif chosen and not (
            _fits([*chosen, file], max_output_bytes)
            and _named([*chosen, file], named | tables[file.id]) <= MAX_NAMED
        ):
            kept[file.id] = NEXT_RUN
        else:
            chosen.append(file)
            named |= tables[file.id]
    return GCPlan(tuple(drop), tuple(sorted(f.id for f in chosen)), tuple(sorted(kept.items())))


def _referring(version: Version, files: list[VlogSpace]) -> dict[int, set[int]]:
    """Per file, the ids of the tables that refer to it."""
    physical = {logical: file.id for file in files for logical in file.logical}
    found: dict[int, set[int]] = {file.id: set() for file in files}
    for _, table in version.walk():
        for logical, _, _ in table.value_log:
            if logical in physical:
                found[physical[logical]].add(table.id)
    return found


def _named(files: list[VlogSpace], tables: set[int]) -> int:
    """Ids in the job that relocates these files."""
    return len(tables) + len(files) + sum(len(file.logical) for file in files)


def relocation(
    version: Version, files: tuple[int, ...], *, output: int, rate: int, created_ms: int
) -> RelocateJob:
    """The job for a plan's `relocate` files; `rate` in bytes a second, 0 = unbounded."""
    wanted = frozenset(files)
    sources = tuple((vlog.id, vlog.logical) for vlog in version.vlogs if vlog.id in wanted)
    logical = frozenset(file_id for _, ids in sources for file_id in ids)
    tables = tuple(
        sorted(
            table.id
            for _, table in version.walk()
            if any(reference[0] in logical for reference in table.value_log)
        )
    )
    return RelocateJob(sources, tables, output, rate, created_ms)


def _fits(files: list[VlogSpace], max_output_bytes: int) -> bool:
    entries = sum(file.live_entries for file in files)
    limit = min(max_output_bytes, MAX_FILE_BYTES)
    return _output_bytes(files) <= limit and entries <= MAX_OUTPUT_ENTRIES


def _output_bytes(files: list[VlogSpace]) -> int:
    """Size of a file that holds these files' live entries, with all its maps."""
    logical = sum(len(file.logical) for file in files)
    entries = sum(file.live_entries for file in files)
    live = sum(file.live for file in files)
    return HEADER_BYTES + live + maps_bytes(logical, entries) + TRAILER_BYTES

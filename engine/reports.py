"""What calls of the public API answer with: plain dataclasses.

Runs in: supervisor. Sizes in bytes, times in seconds, ratios as fractions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meles.engine.worker_info import WorkerInfo

__all__ = [
    "BackupReport",
    "CloseReport",
    "Diagnosis",
    "Finding",
    "GCReport",
    "Health",
    "LevelInfo",
    "MemtableInfo",
    "Recovery",
    "RestoreReport",
    "Size",
    "SpacePin",
    "SpaceReport",
    "Stage",
    "StallInfo",
    "Stats",
    "TableInfo",
    "ValueLogInfo",
    "VerifyReport",
    "WorkerInfo",
]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of closing. `outcome` is one of done, timeout, failed, skipped."""

    name: str
    seconds: float
    outcome: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CloseReport:
    """How closing went; `clean` when every stage was done or had nothing to do."""

    stages: list[Stage]
    clean: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a directory: the file, what it is, what would be done about it (an empty
    text: nothing can be), and what that loses.
    """

    file: str
    what: str
    plan: str
    loses: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `meles.doctor` says. `ok`: it opens and every checksum holds, now.

    `problem` is why not, in plain words. `findings` are of the first look, `done` what was changed.
    """

    path: str
    ok: bool
    problem: str
    findings: list[Finding]
    done: list[str]


@dataclass(frozen=True, slots=True)
class Rotation:
    """What `meles.rotate` did: whether new files are encrypted now, and how many data keys there
    are.
    """

    path: str
    encrypted: bool
    data_keys: int


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What `backup()` wrote: `entries`, with those that only say that they are still there, in so
    many `bytes` of the stream. It holds what came after `since` up to `version`, which is what the
    next increment is to be given as `since`.
    """

    since: int
    version: int
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What `meles.restore` made, or `meles.check_backup` would have (`path` is None): the newest
    `version`, and how many `entries`. `leftovers` are directories beside it that restores which
    were killed left behind; they can be removed.
    """

    path: str | None
    version: int
    entries: int
    leftovers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GCReport:
    """A value-log collection. `files` lists (file id, outcome, reason); outcome is one of kept,
    dropped, rewritten."""

    examined: int
    rewritten: int
    freed_bytes: int
    files: list[tuple[int, str, str]]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify()` checked and found. `problems` is empty exactly when `ok`."""

    ok: bool
    problems: list[str]
    tables: int
    blocks: int
    values: int


@dataclass(slots=True)
class Recovery:
    """What opening had to do after the last owner. Zeros after a clean close.

    `problems` are sentences; `set_aside` names files kept for a human.
    """

    logs: int = 0
    transactions: int = 0
    entries: int = 0
    cut_bytes: int = 0
    manifest_cut_bytes: int = 0
    value_log_cut_bytes: int = 0
    removed_files: int = 0
    set_aside: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Health:
    """`status` is one of ok, degraded, read_only, closed; `reasons` say why it is not ok."""

    status: str
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes on disk: tables and logs, and the value log."""

    lsm_bytes: int
    value_log_bytes: int


@dataclass(frozen=True, slots=True)
class SpacePin:
    """A snapshot in use: thread `owner` of process `pid` holds `held_bytes` with it."""

    owner: str
    read_ts: int
    age_seconds: float
    held_bytes: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """What holds each byte, by kind: live, superseded, pinned (by a snapshot), tombstone, expired,
    dropped, overhead (indexes, filters), dead (values nothing points to)."""

    total_bytes: int
    log_bytes: int
    table_bytes: dict[str, int]
    value_log_bytes: dict[str, int]
    pins: list[SpacePin]


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """A level. `score` is its size over its target (L0: tables over the number that makes it
    due).
    """

    level: int
    tables: int
    size: int
    target_size: int
    target_table_size: int
    is_base: bool
    score: float
    adjusted: float
    stale_bytes: int


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table. `min_key` and `max_key` are inclusive; `key_id` is the data key it is sealed with,
    0: it is not.
    """

    id: int
    level: int
    min_key: bytes
    max_key: bytes
    entries: int
    size: int
    raw_bytes: int
    stale_bytes: int
    max_version: int
    compression: str
    key_id: int = 0


@dataclass(frozen=True, slots=True)
class MemtableInfo:
    """A memtable: `bytes` of log, `records` in it, `keys` distinct."""

    id: int
    state: str
    bytes: int
    records: int
    keys: int


@dataclass(frozen=True, slots=True)
class ValueLogInfo:
    """The value log. `garbage_ratio` is the share of sealed files' bytes that nothing refers to;
    `key_ids` are the data keys of the files by number, 0: not encrypted.
    """

    files: int
    size: int
    live_bytes: int
    garbage_ratio: float
    gc_freed_bytes: int
    gc_dropped_files: int
    gc_relocated_files: int
    key_ids: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StallInfo:
    """Times writers had to wait for flushing, and before that, were slowed down."""

    count: int
    seconds: float
    longest: float
    slowdowns: int = 0
    slowdown_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """The database at one moment. Sums count since open.

    `write_amplification`: bytes written to files for each byte of user data; `space_amplification`:
    bytes on disk for each byte that is alive.
    """

    levels: list[LevelInfo]
    memtables: list[MemtableInfo]
    value_log: ValueLogInfo
    workers: list[WorkerInfo]
    recovery: Recovery
    flushes: int
    compactions: int
    gc_runs: int
    stalls: StallInfo
    bytes_written: int
    write_amplification: float
    space_amplification: float
    entries_written: int = 0
    syncs: int = 0
    moves: int = 0
    compaction_read_bytes: int = 0
    compaction_written_bytes: int = 0
    flush_written_bytes: int = 0
    gc_written_bytes: int = 0
    dropped_entries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_hit_ratio: float = 0.0
    cache_bytes: int = 0
    cache_evictions: int = 0
    index_cache_bytes: int = 0
    index_cache_loads: int = 0
    index_cache_evictions: int = 0
    published_ts: int = 0
    discard_ts: int = 0
    readers: int = 0

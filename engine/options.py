"""Options: one frozen dataclass, one table of what each may be, one loader.

Runs in: supervisor. Workers get the few values a job needs inside the job.
Invariants: (1) an `Options` that exists is valid; (2) every refusal is a `ConfigError` naming the
option, the value, what is allowed and where it came from; (3) precedence is keyword, then
`MELES_<OPTION>`, then TOML table `[meles]`, then default.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from meles.engine import option_checks as checks
from meles.engine.errors import ConfigError
from meles.engine.ids import MAX_LEVELS
from meles.engine.memory_budget import block_room, index_room, sizes_for
from meles.engine.option_checks import GIB, KIB, MIB, Refused, shown


def _opt(default: object, check: Callable[[object], Any], badger: str, doc: str) -> Any:
    meta = {"check": check, "badger": badger, "doc": doc}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True, repr=False)
class Options:
    """Every option, checked. Sizes in bytes, times in seconds. Meanings follow Badger's options of
    the same name; `field.metadata` holds Badger's name and one line of help."""

    value_dir: str | None = _opt(
        None,
        checks.path_or_none,
        "ValueDir",
        "directory of the value log; default: with the tables",
    )
    sync: str = _opt(
        "interval",
        checks.one_of("none", "interval", "commit"),
        "SyncWrites",
        "when commits reach the medium",
    )
    sync_interval: float = _opt(
        0.1, checks.seconds(0.001, 3600), "", "seconds between syncs under sync='interval'"
    )
    num_versions_to_keep: int = _opt(
        1,
        checks.integer(1, 1 << 62),
        "NumVersionsToKeep",
        "versions kept per key once no reader needs them",
    )
    compression: str = _opt(
        "none",
        checks.one_of("none", "snappy", "lz4", "zstd"),
        "Compression",
        "codec of table blocks",
    )
    zstd_level: int = _opt(
        1, checks.integer(1, 22), "ZSTDCompressionLevel", "level of the zstd codec"
    )
    memory_budget: int | None = _opt(
        None,
        checks.budget_or_none,
        "",
        "bytes all processes may take together; sizes left open follow from it; nothing: no budget",
    )
    memtable_size: int = _opt(
        None,
        checks.left_open(checks.size(64 * KIB, 1 << 31)),
        "MemTableSize",
        "bytes of write-ahead log at which a memtable is flushed",
    )
    num_memtables: int = _opt(
        5,
        checks.integer(1, 1000),
        "NumMemtables",
        "sealed memtables that may wait before writers stall",
    )
    base_table_size: int = _opt(
        2 * MIB, checks.size(16 * KIB, 1 << 31), "BaseTableSize", "table size at the base level"
    )
    base_level_size: int = _opt(
        10 * MIB, checks.size(64 * KIB, 1 << 50), "BaseLevelSize", "smallest level target"
    )
    level_size_multiplier: int = _opt(
        10, checks.integer(2, 1000), "LevelSizeMultiplier", "size ratio of neighbouring levels"
    )
    table_size_multiplier: int = _opt(
        2,
        checks.integer(1, 100),
        "TableSizeMultiplier",
        "table size ratio per level below the base level",
    )
    max_levels: int = _opt(7, checks.integer(2, MAX_LEVELS), "MaxLevels", "levels, L0 included")
    value_threshold: int = _opt(
        KIB,
        checks.size(0, 1 << 31),
        "ValueThreshold",
        "values of at least this size live in the value log",
    )
    vlog_percentile: float = _opt(
        0.0,
        checks.number(0.0, 1.0),
        "VLogPercentile",
        "percentile of value sizes that sets the threshold; 0: fixed",
    )
    value_log_file_size: int = _opt(
        GIB - 1,
        checks.size(MIB, 2 * GIB - 1),
        "ValueLogFileSize",
        "size at which a value-log file is sealed",
    )
    value_log_max_entries: int = _opt(
        1_000_000,
        checks.integer(1, 1 << 40),
        "ValueLogMaxEntries",
        "entries at which a value-log file is sealed",
    )
    block_size: int = _opt(
        4 * KIB, checks.size(256, 16 * MIB), "BlockSize", "uncompressed bytes of a table block"
    )
    bloom_false_positive: float = _opt(
        0.01,
        checks.number(0.0, 0.5),
        "BloomFalsePositive",
        "wanted false-positive rate; 0: no filter",
    )
    block_cache_size: int = _opt(
        None,
        checks.left_open(checks.size(0, 1 << 50)),
        "BlockCacheSize",
        "bytes of decoded blocks kept",
    )
    index_cache_size: int = _opt(
        None,
        checks.left_open(checks.size(0, 1 << 50)),
        "IndexCacheSize",
        "bytes of table indexes and filters kept; 0: all",
    )
    num_level_zero_tables: int = _opt(
        5,
        checks.integer(1, 1000),
        "NumLevelZeroTables",
        "L0 tables that make L0 due for compaction",
    )
    num_level_zero_tables_stall: int = _opt(
        15, checks.integer(2, 10_000), "NumLevelZeroTablesStall", "L0 tables at which writers stall"
    )
    num_compactors: int = _opt(
        None, checks.compactors, "NumCompactors", "compactor workers; 0: never compact"
    )
    compact_l0_on_close: bool = _opt(
        False, checks.flag, "CompactL0OnClose", "one L0 compaction while closing"
    )
    lmax_compaction: bool = _opt(
        True, checks.flag, "LmaxCompaction", "rewrite last-level tables that hold much garbage"
    )
    detect_conflicts: bool = _opt(True, checks.flag, "DetectConflicts", "serializable transactions")
    namespace_offset: int = _opt(
        -1,
        checks.integer(-1, 65_000),
        "NamespaceOffset",
        "offset of the 8-byte namespace in keys; -1: none",
    )
    encryption_key: bytes | None = _opt(
        None, checks.key_or_none, "EncryptionKey", "master key, 16, 24 or 32 bytes"
    )
    encryption_key_rotation: float = _opt(
        10 * 86400.0,
        checks.seconds(1, 1e10),
        "EncryptionKeyRotationDuration",
        "seconds a data key is used for",
    )
    bypass_lock_guard: bool = _opt(
        False,
        checks.flag,
        "BypassLockGuard",
        "take no lock: only where nothing else can open the directory",
    )
    trust_directory: bool = _opt(
        False,
        checks.flag,
        "",
        "open a directory that somebody else owns or may write to",
    )
    external_magic_version: int = _opt(
        0,
        checks.integer(0, 65_535),
        "ExternalMagicVersion",
        "number of yours in the MANIFEST header",
    )
    metrics_enabled: bool = _opt(
        True, checks.flag, "MetricsEnabled", "count operations for stats()"
    )
    managed: bool = _opt(False, checks.flag, "OpenManaged", "the caller supplies timestamps")
    workers: str = _opt(
        "process", checks.one_of("process", "thread", "inline"), "", "where background jobs run"
    )
    gc: bool = _opt(True, checks.flag, "", "value-log GC runs by itself")
    gc_discard_ratio: float = _opt(
        0.5,
        checks.number(0.0, 1.0, open_ends=True),
        "",
        "share of garbage at which GC rewrites a file; half of it while nobody writes",
    )
    worker_heartbeat: float = _opt(
        1.0, checks.seconds(0.01, 3600), "", "seconds between a worker's heartbeats"
    )
    worker_hang_timeout: float = _opt(
        30.0, checks.seconds(0.1, 86400), "", "silence after which a worker is killed"
    )
    worker_memory_limit: int | None = _opt(
        None,
        checks.memory_or_none,
        "",
        "bytes of memory of its own a worker may use; nothing: no limit",
    )
    close_timeout: float = _opt(10.0, checks.seconds(0.1, 86400), "", "seconds close() may take")
    write_stall_timeout: float = _opt(
        60.0,
        checks.seconds(0.0, 86400),
        "",
        "seconds a write waits for flushing before WriteStallError",
    )

    def __post_init__(self) -> None:
        for name, spec in FIELDS.items():
            try:
                object.__setattr__(self, name, spec.metadata["check"](getattr(self, name)))
            except Refused as allowed:
                raise _refusal(name, getattr(self, name), str(allowed), "keyword") from None
        given = {name: "keyword" for name in FIELDS if getattr(self, name) != FIELDS[name].default}
        for name, size in _settled({name: getattr(self, name) for name in FIELDS}, given).items():
            object.__setattr__(self, name, size)

    @property
    def txn_limit(self) -> int:
        """Bytes a transaction may write: 15 % of the memtable, as Badger."""
        return self.memtable_size * 15 // 100

    def __repr__(self) -> str:
        """Without the encryption key: options end up in logs."""
        given = (
            f"{name}={'<set>' if name == 'encryption_key' and value else value!r}"
            for name, plain in _plain().items()
            if (value := getattr(self, name)) != plain
        )
        return f"Options({', '.join(given)})"


_PAIRS: Final = (
    ("num_level_zero_tables_stall", operator.gt, "num_level_zero_tables", "more than"),
    ("block_size", operator.le, "base_table_size", "at most"),
)
FIELDS: Final[dict[str, dataclasses.Field[Any]]] = {f.name: f for f in dataclasses.fields(Options)}


def _refusal(name: str, value: object, allowed: str, origin: str) -> ConfigError:
    text = "<hidden>" if name == "encryption_key" else shown(value)
    return ConfigError(f"option {name}={text} (from {origin}): allowed is {allowed}")


def _plain() -> dict[str, Any]:
    """What each option is when nothing is given."""
    plain = {name: spec.metadata["check"](spec.default) for name, spec in FIELDS.items()}
    return {**plain, **sizes_for(plain)}


def _settled(values: Mapping[str, Any], origin: Mapping[str, str]) -> dict[str, int | None]:
    """The sizes left open, found; raises `ConfigError` when options do not go together.

    `origin` lacks the options that have their default.
    """
    try:
        sizes = sizes_for(values)
    except Refused as allowed:
        budget = values["memory_budget"]
        where = origin.get("memory_budget", "the default")
        raise _refusal("memory_budget", budget, str(allowed), where) from None
    _check_together({**values, **sizes}, origin)
    return sizes


def _check_together(values: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    block_size, table_size = values["block_size"], values["base_table_size"]
    _check_cache("block_cache_size", block_room(block_size), "a block", values, origin)
    room = index_room(table_size, min(block_size, table_size))
    _check_cache("index_cache_size", room, "a table's index", values, origin)
    for name, holds, other, how in _PAIRS:
        if not holds(values[name], values[other]):
            limit = f"{how} {other} ({values[other]:,}, from {origin.get(other, 'the default')})"
            raise _refusal(name, values[name], limit, origin.get(name, "the default"))


def _check_cache(
    name: str, room: int, what: str, values: Mapping[str, Any], origin: Mapping[str, str]
) -> None:
    if 0 < values[name] < room:
        limit = f"0, or at least {room:,} bytes, for {what}"
        raise _refusal(name, values[name], limit, origin.get(name, "the default"))


def _unknown(name: str, origin: str) -> ConfigError:
    near = difflib.get_close_matches(name, FIELDS, n=1)
    more = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown option {name!r} (from {origin}){more}")


def read_config(path: str | os.PathLike[str]) -> dict[str, object]:
    """The table `[meles]` of a TOML file. Raises `ConfigError` if it cannot be read as one."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"config={path!r}: allowed is the path of a TOML file")
    where = os.fsdecode(os.fspath(path))
    try:
        with Path(where).open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"config file {where!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a path, of a huge number
        raise ConfigError(f"config file {where!r} is not TOML: {error}") from error
    table = content.get("meles", {})
    if not isinstance(table, dict):
        raise ConfigError(f"config file {where!r}: [meles] is not a table")
    return table


def load_options(
    keywords: Mapping[str, object],
    *,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Options:
    """Options from keywords, environment, TOML file and defaults, each value checked at its source.

    Raises `ConfigError`. Unknown `MELES_*` variables are ignored; unknown keys elsewhere are not.
    """
    return load_with_origin(keywords, config=config, environ=environ)[0]


def load_with_origin(
    keywords: Mapping[str, object],
    *,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Options, dict[str, str]]:
    """As `load_options`, and where each value that is not a default came from."""
    chosen: dict[str, object] = {}
    origin: dict[str, str] = {}

    def take(name: str, value: object, source: str) -> None:
        if name not in FIELDS:
            raise _unknown(name, source)
        try:
            chosen[name] = FIELDS[name].metadata["check"](value)
        except Refused as allowed:
            raise _refusal(name, value, str(allowed), source) from None
        origin[name] = source

    if config is not None:
        for name, value in read_config(config).items():
            take(name, value, f"config file {os.fsdecode(os.fspath(config))!r}")
    environ = os.environ if environ is None else environ
    for name in FIELDS:
        if (text := environ.get(variable := f"MELES_{name.upper()}")) is not None:
            take(name, text, f"environment variable {variable}")
    for name, value in keywords.items():
        take(name, value, "keyword")
    values = {name: spec.metadata["check"](spec.default) for name, spec in FIELDS.items()}
    _settled({**values, **chosen}, origin)
    return Options(**chosen), origin  # type: ignore[arg-type]

"""The files of a database made of entries in order: tables of the deepest level, their values, the
MANIFEST.

Runs in: supervisor, on the caller's thread.
Owns: the files until the caller gives the directory its place; who fails removes the directory.
Invariants: (1) every name is a number counted here; (2) all versions of a key are in one table; (3)
when `finish` returns everything is on the medium, the MANIFEST last.
Fails with: `ConfigError`, `OSError`, `DiskFullError`, `Error` for a key no table can hold.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from meles.engine.clock import now_ms
from meles.engine.codec.columns import Columns
from meles.engine.codec.compression import require
from meles.engine.codec.entry import META_DELETE, META_POINTER
from meles.engine.errors import Error
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.keys_of_directory import open_directory_keys
from meles.engine.manifest.manifest_file import ManifestFile
from meles.engine.manifest.version import TableMeta, Version, VlogMeta
from meles.engine.options import Options
from meles.engine.run_job import JobDirs
from meles.engine.table.builder import TableBuilder
from meles.engine.vlog.layout import ENTRY_BYTES
from meles.engine.vlog.sealed import new_value_log
from meles.engine.vlog.writer import ValueLogWriter

_LARGEST_TABLE: Final = 1 << 30  # bytes; offsets in a file end at 4 GiB
_MOST_OF_A_KEY: Final = 3 << 30  # bytes in one table: all versions of a key are


class Building:
    """Takes entries in order and makes a database of them in an empty directory.

    A context manager: leaving it closes what is open.
    """

    def __init__(self, directory: Directory, options: Options) -> None:
        require(options.compression)
        self._directory = directory
        self._options = options
        directory.keys = open_directory_keys(
            JobDirs(directory, directory), options.encryption_key,
            options.encryption_key_rotation, read_only=False,
        )  # fmt: skip
        self._build = BuildOptions(
            options.block_size, options.compression, options.zstd_level,
            options.bloom_false_positive,
        )  # fmt: skip
        self._tables: list[TableMeta] = []
        self._builder: TableBuilder | None = None
        self._vlogs: list[VlogMeta] = []
        self._values: ValueLogWriter | None = None
        self._last_key = b""
        self._written = 0  # bytes of tables
        self._deeper = 0  # how often tables became larger
        self._level_limit = options.base_level_size
        self._table_limit = options.base_table_size
        self.entries = 0

    def add(self, columns: Columns) -> None:
        """Append entries; they come after all before."""
        builder = self._builder
        if builder is None or (
            builder.size >= self._table_limit and columns.keys[0] != self._last_key
        ):
            self._end_table()
            builder = self._builder = TableBuilder(
                self._directory, len(self._tables) + 1, self._build, created_ms=now_ms()
            )
        elif builder.size > _MOST_OF_A_KEY:
            raise Error(
                f"a key has more than {_MOST_OF_A_KEY:,} bytes of versions: no table holds them",
                hint="restore with a lower value_threshold",
            )
        builder.add(self._with_addresses(columns))
        self._last_key = columns.keys[-1]
        self.entries += len(columns)

    def _with_addresses(self, columns: Columns) -> Columns:
        """With large values in the value log."""
        threshold = self._options.value_threshold
        large = [
            at
            for at, value in enumerate(columns.values)
            if len(value) >= threshold and not columns.metas[at] & META_DELETE
        ]
        if large:
            columns = replace(columns, values=list(columns.values), metas=list(columns.metas))
        for at in large:
            value = columns.values[at]
            writer = self._values_for(len(value))
            columns.values[at] = writer.append(value, columns.versions[at]).encode()
            columns.metas[at] |= META_POINTER
        return columns

    def _values_for(self, size: int) -> ValueLogWriter:
        """The value-log file that takes a value of so many bytes."""
        writer, options = self._values, self._options
        if writer is not None and (
            writer.end >= options.value_log_file_size
            or writer.entries >= options.value_log_max_entries
            or size + ENTRY_BYTES + writer.more > writer.room
        ):
            self._end_values()
            writer = None
        if writer is None:
            writer = self._values = new_value_log(self._directory, len(self._vlogs) + 1)
        return writer

    def _end_table(self) -> None:
        if self._builder is not None:
            self._tables.append(self._builder.finish().meta)
            self._builder = None
            self._written += self._tables[-1].size
            self._grow_tables()

    def _grow_tables(self) -> None:
        """Larger tables the more there is, as the engine has them further down: not too many."""
        options = self._options
        if self._deeper < options.max_levels - 2 and self._written > self._level_limit:
            self._deeper += 1
            self._level_limit *= options.level_size_multiplier
            self._table_limit = min(
                self._table_limit * options.table_size_multiplier, _LARGEST_TABLE
            )

    def _end_values(self) -> None:
        if self._values is not None:
            self._vlogs.append(self._values.seal())
            self._values.close()
            self._values = None

    def finish(self, newest: int, banned: tuple[int, ...]) -> None:
        """Make the MANIFEST. `newest`: timestamps up to here were used."""
        self._end_table()
        self._end_values()
        self._directory.sync()
        empty = Version.empty(self._options.max_levels)
        version = replace(
            empty.with_tables(len(empty.levels) - 1, self._tables, ()),
            vlogs=tuple(self._vlogs),
            next_table=len(self._tables) + 1,
            next_vlog=len(self._vlogs) + 1,
            max_ts=newest,
            banned=banned,
        )
        version.check()
        external = self._options.external_magic_version
        ManifestFile.create(self._directory, version, external).close()

    def __enter__(self) -> Building:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as ending:
            if self._values is not None:
                ending.callback(self._values.close)
            if self._builder is not None:
                ending.callback(self._builder.abandon)

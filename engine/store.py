"""The store: which files make up the database, and the one read view over them.

Runs in: supervisor.
Owns: the MANIFEST, the Version, open tables and value-log files, memtables, file ids, every unlink.
Invariants: (1) a file is named in the MANIFEST before anything reads it and unlinked only after the
MANIFEST stopped naming it; (2) `view` is replaced whole, under `_lock`; (3) edits are made durable
one after the other, under `_edit_lock`; (4) an id is covered by the MANIFEST's high-water mark
before it is handed out, so ids are never used twice; (5) a file a running job needs is not
unlinked. Fails with: `OSError`, after which the caller must refuse writes; `CorruptionError`.

Lock order: write lock (writer.py) > `_spare_lock` > `_edit_lock` > `_lock`.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from meles.engine.crypt.keys import seals
from meles.engine.errors import DiskFullError, InvariantError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import Kind, file_name
from meles.engine.fs.pages import Pages
from meles.engine.giving_way import give_way, step_aside
from meles.engine.jobs import NewFile
from meles.engine.log.sealed import new_log
from meles.engine.log.writer import LogWriter
from meles.engine.manifest.edit import Edit
from meles.engine.manifest.manifest_file import ManifestFile
from meles.engine.manifest.version import Level, TableMeta, Version, VlogMeta
from meles.engine.memtable.memtable import Memtable
from meles.engine.options import Options
from meles.engine.read_view import ReadView
from meles.engine.run_job import JobDirs
from meles.engine.table.cache import NO_BLOCKS, BlockCache, CacheStats
from meles.engine.table.index_cache import NO_INDEXES, IndexCache, IndexCacheStats
from meles.engine.table.reader import Table
from meles.engine.vlog.reader import ValueLogFile
from meles.engine.vlog.sealed import new_value_log
from meles.engine.vlog.value_log import ValueLogView, ValueSource
from meles.engine.vlog.writer import ValueLogWriter

log = logging.getLogger("meles.store")
_ID_BLOCK = 256  # ids covered by one high-water mark: an fsync per so many files


class Store:
    """The durable state of one open directory. Constructed by recovery, driven by the scheduler."""

    def __init__(
        self,
        dirs: JobDirs,
        options: Options,
        manifest: ManifestFile | None,
        version: Version,
        *,
        next_mem: int,
        cache: BlockCache | None = None,
        indexes: IndexCache | None = None,
        pages: Pages | None = None,
    ) -> None:
        # fixed after construction
        self.dirs = dirs
        self.options = options
        self.seals = seals(dirs.tables.keys)
        self.cache = cache
        self.indexes = indexes
        self.pages = pages
        self._manifest = manifest  # None: read-only
        # under _lock (writing; reading one attribute needs none)
        self._lock = threading.Lock()
        self.view: ReadView
        self._tables: dict[int, Table] = {}
        self._open_levels: list[tuple[Level, list[Table]]]  # of `version`; lists do not change
        self._open_levels = [(Level(), []) for _ in version.levels]
        self._values = ValueLogView(dirs.values.path)
        # under _edit_lock
        self._edit_lock = threading.RLock()
        self.version = version
        self._next_table = version.next_table
        self._next_vlog = version.next_vlog
        # under _spare_lock
        self._spare_lock = threading.Lock()
        self._next_mem = next_mem
        self._spare_log: LogWriter | None = None
        self._spare_values: ValueLogWriter | None = None
        # under _pin_lock
        self._pin_lock = threading.Lock()
        self._pins: Counter[tuple[Kind, int]] = Counter()
        self._unlink_later: set[tuple[Kind, int]] = set()

    # -- making views ----------------------------------------------------------------------------

    def start(self, active: Memtable, sealed: Iterable[Memtable]) -> None:
        """The first view, once recovery has opened everything."""
        with self._lock:
            self._take_locked(self.version)
            self._publish_locked(active, tuple(sealed))

    def _take_locked(self, version: Version) -> None:
        """The Version from now on, with its tables open. A level that it keeps, keeps its list."""
        self.version = version
        self._open_levels = [
            kept if kept[0] is level else (level, [self._tables[meta.id] for meta in level])
            for kept, level in zip(self._open_levels, version.levels, strict=True)
        ]

    def _publish_locked(self, active: Memtable, sealed: tuple[Memtable, ...]) -> None:
        (_, level_zero), *deeper = self._open_levels
        self.view = ReadView(
            active=active,
            sealed=sealed,
            level_zero=tuple(level_zero),
            levels=tuple((level.max_keys, tables) for level, tables in deeper if level),
            version=self.version,
            values=self._values,
            ordered=all(m.ordered for m in sealed)
            and all(level.ordered for level in self.version.levels),
        )

    def open_table(self, table_id: int, crc: int) -> Table:
        return Table(
            self.dirs.tables, table_id, crc=crc, cache=self.cache, indexes=self.indexes,
            pages=self.pages,
        )  # fmt: skip

    def open_values(self, meta: VlogMeta) -> ValueLogFile:
        return ValueLogFile(self.dirs.values, meta, pages=self.pages)

    def cache_picture(self) -> tuple[CacheStats, IndexCacheStats]:
        """What the caches hold and did since opening."""
        blocks = NO_BLOCKS if self.cache is None else self.cache.stats()
        return blocks, NO_INDEXES if self.indexes is None else self.indexes.stats()

    def add_open_files(self, tables: Iterable[Table], values: Iterable[ValueSource]) -> None:
        """What recovery opened; before `start`."""
        self._tables.update((table.meta.id, table) for table in tables)
        self._values = self._values.replaced(values, ())

    def commit_edit(
        self,
        edit: Edit,
        *,
        opened: Iterable[Table] = (),
        values: Callable[[ValueLogView], ValueLogView] | None = None,
        flushed: Memtable | None = None,
    ) -> None:
        """Make an edit durable, then show it: one new view with all that changed."""
        with self._edit_lock:
            if self._manifest is None:
                raise InvariantError("an edit on a read-only store")
            give_way()
            after = edit.apply(self.version)
            give_way()
            self._manifest.append(edit, after)
            give_way()
            with self._lock:
                self._tables.update((table.meta.id, table) for table in opened)
                gone = [self._tables.pop(i) for _, i in edit.remove if i not in after.tables]
                self._take_locked(after)
                if values is not None:
                    self._values = values(self._values)
                view = self.view
                sealed = tuple(m for m in view.sealed if m is not flushed)
                self._publish_locked(view.active, sealed)
            give_way()
            for table in gone:
                if self.cache is not None:
                    self.cache.drop(table.meta.id)
                self.unlink(Kind.TABLE, table.meta.id)
            step_aside()  # the last mappings of what was removed go with `gone`

    # -- ids -------------------------------------------------------------------------------------

    def reserve_tables(self, count: int) -> int:
        """The first of `count` fresh table ids."""
        with self._edit_lock:
            first = self._next_table
            self._next_table += count
            if self._next_table > self.version.next_table:
                self.commit_edit(Edit(next_table=self._next_table + _ID_BLOCK))
            return first

    def reserve_vlog(self) -> int:
        """A fresh value-log file id."""
        with self._edit_lock:
            first = self._next_vlog
            self._next_vlog += 1
            if self._next_vlog > self.version.next_vlog:
                self.commit_edit(Edit(next_vlog=self._next_vlog + _ID_BLOCK))
            return first

    # -- logs and memtables ----------------------------------------------------------------------

    def _create_log_locked(self) -> LogWriter:
        log = new_log(self.dirs.tables, self._next_mem, self.options.memtable_size)
        try:
            self.dirs.tables.sync()
        except BaseException:
            log.discard()
            raise
        self._next_mem += 1  # only now: the ids of logs must have no gap
        return log

    def new_log(self) -> LogWriter:
        """The log prepared ahead, or a new one."""
        with self._spare_lock:
            log, self._spare_log = self._spare_log, None
            return log if log is not None else self._create_log_locked()

    def return_log(self, log: LogWriter) -> None:
        """Take back a log from `new_log` that was not used after all."""
        with self._spare_lock:
            if self._spare_log is None:
                self._spare_log = log
                return
            self._spare_log.discard()
            self._spare_log, self._next_mem = log, log.id + 1

    def new_values(self) -> ValueLogWriter:
        """The value-log file prepared ahead, or a new one; named in the MANIFEST and readable."""
        with self._spare_lock:
            writer, self._spare_values = self._spare_values, None
            return writer if writer is not None else self._create_values_locked()

    def _create_values_locked(self) -> ValueLogWriter:
        file_id = self.reserve_vlog()
        writer = new_value_log(self.dirs.values, file_id, pages=self.pages)
        try:
            self.dirs.values.sync()
            self.commit_edit(
                Edit(put_vlogs=(writer.described(),)),
                values=lambda view: view.with_file(writer),
            )
        except DiskFullError:  # then the MANIFEST does not name it
            writer.close()
            self.dirs.values.unlink(file_name(Kind.VLOG, file_id))
            raise
        except BaseException:  # it may: the file stays, an unnamed one goes at the next open
            writer.close()
            raise
        return writer

    def prepare_spares(self, *, values: bool) -> None:
        """Make the next log (and value-log file) ready, so that rotation does not stall a
        writer.
        """
        with self._spare_lock:
            if self._spare_log is None:
                self._spare_log = self._create_log_locked()
        give_way()
        with self._spare_lock:
            if values and self._spare_values is None:
                self._spare_values = self._create_values_locked()

    def rotate(self, active: Memtable) -> None:
        """Show a new active memtable; the old one, already sealed, becomes the newest sealed."""
        with self._lock:
            view = self.view
            self._publish_locked(active, (view.active, *view.sealed))

    def discard_spares(self) -> None:
        """Remove what was prepared and never used (closing)."""
        with self._spare_lock:
            log, self._spare_log = self._spare_log, None
            writer, self._spare_values = self._spare_values, None
        if log is not None:
            log.discard()
        if writer is not None:
            self.drop_values([writer.file_id])
            writer.close()

    def close_spares(self) -> None:
        """Close what was prepared and leave it in place: the MANIFEST takes no more edits."""
        with self._spare_lock:
            log, self._spare_log = self._spare_log, None
            writer, self._spare_values = self._spare_values, None
        for spare in (log, writer):
            if spare is not None:
                spare.close()

    # -- installing what jobs made ---------------------------------------------------------------

    def install_flush(
        self, memtable: Memtable, tables: list[Table], synced: list[VlogMeta]
    ) -> None:
        """A memtable is on L0: record it, show it, remove its log.

        `synced` are open value-log files with the end that is known to be durable.
        """
        self.commit_edit(
            Edit(
                add=tuple((0, table.meta) for table in tables),
                min_mem=memtable.id + 1,
                max_ts=memtable.last_ts,
                put_vlogs=tuple(synced),
            ),
            opened=tables,
            flushed=memtable,
        )
        self.unlink(Kind.WAL, memtable.id)

    def install_tables(
        self,
        add: list[tuple[int, TableMeta]],
        remove: list[tuple[int, int]],
        opened: list[Table],
        *,
        max_ts: int,
        remove_drops: tuple[int, ...] = (),
    ) -> None:
        """The result of a compaction, whole."""
        self.commit_edit(
            Edit(add=tuple(add), remove=tuple(remove), max_ts=max_ts, remove_drops=remove_drops),
            opened=opened,
        )

    def install_sealed_values(self, meta: VlogMeta) -> None:
        """A value-log file was sealed: read it through a mapping from now on."""
        file = self.open_values(meta)
        self.commit_edit(Edit(put_vlogs=(meta,)), values=lambda view: view.with_file(file))

    def install_relocation(self, sources: tuple[int, ...], made: VlogMeta | None) -> None:
        """Values of `sources` now live in `made`; None when nothing of them was alive."""
        file = None if made is None else self.open_values(made)
        self.commit_edit(
            Edit(remove_vlogs=sources, put_vlogs=() if made is None else (made,)),
            values=lambda view: view.replaced(() if file is None else (file,), sources),
        )
        for vlog_id in sources:
            self.unlink(Kind.VLOG, vlog_id)

    def drop_values(self, vlog_ids: Iterable[int]) -> None:
        """Remove value-log files nothing refers to."""
        self.install_relocation(tuple(vlog_ids), None)

    def note_end(self, ts: int) -> None:
        """Closing with empty logs: timestamps and log ids go on from here at the next open."""
        with self._spare_lock:
            next_mem = self._next_mem
        if ts > self.version.max_ts or next_mem > self.version.min_mem:
            self.commit_edit(Edit(max_ts=ts, min_mem=next_mem))

    # -- unlinking -------------------------------------------------------------------------------

    def pin(self, files: Iterable[tuple[Kind, int]]) -> None:
        """Keep names in place while a job may open them."""
        with self._pin_lock:
            self._pins.update(files)

    def unpin(self, files: Iterable[tuple[Kind, int]]) -> None:
        with self._pin_lock:
            due = []
            for item in files:
                self._pins[item] -= 1
                if self._pins[item] <= 0:
                    del self._pins[item]
                    if item in self._unlink_later:
                        self._unlink_later.discard(item)
                        due.append(item)
        for kind, file_id in due:
            self._unlink_now(kind, file_id)

    def unlink(self, kind: Kind, file_id: int) -> None:
        """Remove a file the MANIFEST no longer names, now or when the last job let go of it."""
        with self._pin_lock:
            if (kind, file_id) in self._pins:
                self._unlink_later.add((kind, file_id))
                return
        self._unlink_now(kind, file_id)

    def _unlink_now(self, kind: Kind, file_id: int) -> None:
        name = file_name(kind, file_id)
        try:
            self.directory_of(kind).unlink(name)
        except OSError as error:  # nothing refers to it: the next opening removes it
            log.warning("%s stays for now: %s", name, error)

    def directory_of(self, kind: Kind) -> Directory:
        return self.dirs.values if kind is Kind.VLOG else self.dirs.tables

    def remove_outputs(self, kind: Kind, files: Iterable[NewFile | int]) -> None:
        """Remove what a failed job may have left under ids reserved for it."""
        for file in files:
            file_id = file if isinstance(file, int) else file.id
            self.directory_of(kind).unlink(file_name(kind, file_id))

    # -- the end ---------------------------------------------------------------------------------

    def close_manifest(self) -> None:
        if self._manifest is not None:
            self._manifest.close()

    def close_files(self) -> None:
        """Close tables and value-log files; views still held stop working. Logs that stay for the
        next open are let go of: whoever still reads one keeps it.
        """
        with self._lock:
            tables, self._tables = list(self._tables.values()), {}
            values, self._values = self._values, ValueLogView(self._values.path)
            memtables = (self.view.active, *self.view.sealed)
            self._take_locked(replace(self.version, levels=(Level(),) * len(self.version.levels)))
            self._publish_locked(Memtable(self.view.active.id, b"", None), ())
        for table in tables:
            table.close()
        values.close()
        for memtable in memtables:
            memtable.index.release()

    def live_table(self, table_id: int) -> Table:
        """The open table; `KeyError` when the Version no longer has it."""
        return self._tables[table_id]

    def synced_values(self, writer: ValueLogWriter, end: int, entries: int) -> VlogMeta:
        """What to record of an open value-log file whose first `end` bytes are durable."""
        vlog = next(v for v in self.version.vlogs if v.id == writer.file_id)
        return replace(vlog, size=end, entries=entries)

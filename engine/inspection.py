"""Looking at an open database: levels, tables, sizes, amplification.

Runs in: supervisor, on the caller's thread. Reads only.
"""

from __future__ import annotations

from meles.engine.compaction.drops import prefix_end
from meles.engine.compaction.in_flight import InFlight
from meles.engine.compaction.targets import level_targets, scores
from meles.engine.fs.names import Kind, file_name
from meles.engine.manifest.version import Version
from meles.engine.options import Options
from meles.engine.read_view import ReadView
from meles.engine.reports import (
    LevelInfo,
    MemtableInfo,
    Size,
    TableInfo,
    ValueLogInfo,
)
from meles.engine.store import Store
from meles.engine.table.reader import Table
from meles.engine.vlog.liveness import space


def level_infos(version: Version, options: Options) -> list[LevelInfo]:
    """One entry per level."""
    targets = level_targets(version, options)
    score_of = {s.level: s for s in scores(version, targets, InFlight(), options)}
    infos = []
    for number, level in enumerate(version.levels):
        score = score_of.get(number)
        infos.append(
            LevelInfo(
                level=number,
                tables=len(level),
                size=version.level_size(number),
                target_size=targets.level_sizes[number],
                target_table_size=targets.table_sizes[number],
                is_base=number == targets.base_level,
                score=0.0 if score is None else score.score,
                adjusted=0.0 if score is None else score.adjusted,
                stale_bytes=sum(table.stale_bytes for table in level),
            )
        )
    return infos


def table_infos(version: Version) -> list[TableInfo]:
    """One entry per table, level by level."""
    return [
        TableInfo(
            id=meta.id, level=level, min_key=meta.min_key, max_key=meta.max_key,
            entries=meta.count, size=meta.size, raw_bytes=meta.raw_bytes,
            stale_bytes=meta.stale_bytes, max_version=meta.max_version,
            compression=meta.compression, key_id=meta.key_id,
        )
        for level, meta in version.walk()
    ]  # fmt: skip


def memtable_infos(view: ReadView) -> list[MemtableInfo]:
    """The active memtable first, then sealed ones from new to old."""
    return [
        MemtableInfo(m.id, "active" if m is view.active else "sealed", m.size, m.records,
        len(m.index)) for m in (view.active, *view.sealed)
    ]  # fmt: skip


def size_on_disk(store: Store) -> Size:
    """What the files take now, the active ones included."""
    view = store.view
    tables = sum(meta.size for _, meta in view.version.walk())
    logs = sum(memtable.size for memtable in (view.active, *view.sealed))
    values = 0
    for vlog in view.version.vlogs:
        values += vlog.size if vlog.sealed else _size_of(store, vlog.id)
    return Size(tables + logs, values)


def _size_of(store: Store, vlog_id: int) -> int:
    try:
        return store.dirs.values.size_of(file_name(Kind.VLOG, vlog_id))
    except FileNotFoundError:
        return 0


def value_log_info(store: Store, freed: int, dropped: int, relocated: int) -> ValueLogInfo:
    """The value log as the current Version refers to it."""
    files = space(store.version)
    sealed = [file for file in files if file.sealed]
    live, size = sum(f.live for f in sealed), sum(f.size for f in sealed)
    return ValueLogInfo(
        files=len(files),
        size=size_on_disk(store).value_log_bytes,
        live_bytes=sum(file.live for file in files),
        garbage_ratio=max(0.0, 1 - live / size) if size else 0.0,
        gc_freed_bytes=freed,
        gc_dropped_files=dropped,
        gc_relocated_files=relocated,
        key_ids={vlog.id: vlog.key_id for vlog in store.version.vlogs},
    )


def estimate_size(view: ReadView, prefix: bytes) -> int:
    """Bytes under a prefix, about: tables by their blocks' keys, values by the tables' references,
    logs by their keys. Values that only a log points to are not counted.
    """
    total = 0
    for _, meta in view.version.walk():
        low, high = meta.min_key[: len(prefix)], meta.max_key[: len(prefix)]
        if not low <= prefix <= high:
            continue
        referenced = sum(ref[1] for ref in meta.value_log)
        table = _open_table(view, meta.id)
        if low == high or table is None:
            total += meta.size + referenced
            continue
        keys = table.index.last_keys
        inside = sum(1 for key in keys if key.startswith(prefix)) + 1
        total += (meta.size + referenced) * min(inside, len(keys)) // max(len(keys), 1)
    for memtable in (view.active, *view.sealed):
        count = memtable.keys.count(prefix, prefix_end(prefix))
        total += memtable.size * count // max(len(memtable.index), 1)
    return total


def _open_table(view: ReadView, table_id: int) -> Table | None:
    tables = [*view.level_zero, *(table for _, level in view.levels for table in level)]
    return next((table for table in tables if table.meta.id == table_id), None)


def space_amplification(store: Store) -> float:
    """Bytes on disk for each byte alive in tables and value log; 0 when nothing is there."""
    version = store.version
    alive = sum(meta.raw_bytes - meta.stale_bytes for _, meta in version.walk())
    alive += sum(file.live for file in space(version))
    held = sum(meta.size for _, meta in version.walk()) + size_on_disk(store).value_log_bytes
    return held / alive if alive > 0 else 0.0

"""Live bytes of every value-log file, exactly, from the tables' properties.

Runs in: supervisor. Pure.
Invariants: (1) nothing is counted on the side, so nothing can drift: the figures follow from the
Version alone; (2) what memtables still refer to is not in them, so they hold only for files whose
entries are all flushed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from meles.engine.codec.header import HEADER_BYTES
from meles.engine.manifest.version import Version, VlogMeta
from meles.engine.vlog.layout import TRAILER_BYTES, maps_bytes, more_of


@dataclass(frozen=True, slots=True)
class VlogSpace:
    """Space of one physical file. `size` and `live` in bytes, `live` with entry headers.

    `garbage_ratio` is the share of the entries' bytes that no table refers to; 0 while unsealed.
    """

    id: int
    logical: tuple[int, ...]
    sealed: bool
    size: int
    entries: int
    live: int
    live_entries: int
    garbage_ratio: float


def live_bytes(version: Version) -> dict[int, tuple[int, int]]:
    """Physical file id to (bytes, entries) that tables refer to; every file of the Version."""
    sizes: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    for _, table in version.walk():
        for logical, size, entries in table.value_log:
            sizes[logical] += size
            counts[logical] += entries
    return {
        vlog.id: (
            sum(
                sizes[logical] + more_of(vlog.key_id) * counts[logical] for logical in vlog.logical
            ),
            sum(counts[logical] for logical in vlog.logical),
        )
        for vlog in version.vlogs
    }


def space(version: Version) -> list[VlogSpace]:
    """The space of every value-log file, in id order."""
    live = live_bytes(version)
    return [_space_of(vlog, *live[vlog.id]) for vlog in sorted(version.vlogs, key=lambda v: v.id)]


def _space_of(vlog: VlogMeta, live: int, live_entries: int) -> VlogSpace:
    data = vlog.size - HEADER_BYTES - TRAILER_BYTES
    if vlog.logical != (vlog.id,):
        data -= maps_bytes(len(vlog.logical), vlog.entries)
    garbage = max(0, data - live) / data if vlog.sealed and data > 0 else 0.0
    return VlogSpace(
        vlog.id, vlog.logical, vlog.sealed, vlog.size, vlog.entries, live, live_entries, garbage
    )

"""Entries as parallel columns: what blocks decode to, merges produce and builders consume.

Runs in: supervisor and workers.
Invariants: (1) all columns have one length; (2) order is key ascending, then version descending;
(3) `metas[i]` is the entry's meta bits with the user's byte above them (`user << 8 | meta`).
Bulk columns instead of entry objects let CPython do a block's work in a few C calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from meles.engine.errors import InvariantError


@dataclass(slots=True)
class Columns:
    """A run of entries. `expiries` are unix milliseconds, 0 = never."""

    keys: list[bytes] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    metas: list[int] = field(default_factory=list)
    expiries: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def slice(self, start: int, stop: int) -> Columns:
        return Columns(
            self.keys[start:stop],
            self.versions[start:stop],
            self.metas[start:stop],
            self.expiries[start:stop],
            self.values[start:stop],
        )

    def take(self, order: list[int]) -> Columns:
        """The entries at these positions, in this order."""
        return Columns(
            list(map(self.keys.__getitem__, order)),
            list(map(self.versions.__getitem__, order)),
            list(map(self.metas.__getitem__, order)),
            list(map(self.expiries.__getitem__, order)),
            list(map(self.values.__getitem__, order)),
        )

    def extend(self, other: Columns) -> None:
        self.keys += other.keys
        self.versions += other.versions
        self.metas += other.metas
        self.expiries += other.expiries
        self.values += other.values

    def append(self, key: bytes, version: int, meta: int, expiry: int, value: bytes) -> None:
        self.keys.append(key)
        self.versions.append(version)
        self.metas.append(meta)
        self.expiries.append(expiry)
        self.values.append(value)

    def check(self) -> None:
        """Raise `InvariantError` unless the invariants above hold."""
        sizes = {len(c) for c in (self.keys, self.versions, self.metas, self.expiries, self.values)}
        if len(sizes) != 1:
            raise InvariantError(f"columns of different lengths {sizes}")
        order = [(key, -version) for key, version in zip(self.keys, self.versions, strict=True)]
        if any(a >= b for a, b in pairwise(order)):
            raise InvariantError("columns are not in order")

"""The Version: one immutable picture of which files exist and what they hold.

Runs in: supervisor; workers see only ids.
Invariants: (1) L0 is newest first by version (a merged L0 table has a high id but old data),
deeper levels ascend by key and never overlap; (2) a Version is never changed, `apply` makes the
next; (3) every byte range a table refers to in the value log lies in a logical file that exactly
one live physical file holds. The idea of replacing one immutable picture by one assignment is
LevelDB's VersionSet, done by value.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any, Final

from meles.engine.errors import InvariantError
from meles.engine.ids import MAX_FILE_ID

_AGE: Final = attrgetter("max_version", "min_key")
_MIN_KEY: Final = attrgetter("min_key")


def number(value: object) -> int:
    """A number as the MANIFEST has them; `TypeError` or `ValueError` for anything else."""
    if type(value) is not int:
        raise TypeError(f"a {type(value).__name__} where a number belongs")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value:#x} is out of range")
    return value


def file_id(value: object) -> int:
    """A number a file may have; `TypeError` or `ValueError` for anything else."""
    if not 0 < (found := number(value)) <= MAX_FILE_ID:
        raise ValueError(f"{found} is no file id")
    return found


def moment(value: object) -> float:
    """Unix seconds; `TypeError` or `ValueError` for anything else."""
    if not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} where a time belongs")
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} is no time")
    return float(value)


def octets(value: object) -> bytes:
    """Bytes; `TypeError` for anything else, above all for a number: `bytes(n)` would allocate."""
    if not isinstance(value, bytes):
        raise TypeError(f"a {type(value).__name__} where bytes belong")
    return value


@dataclass(frozen=True, slots=True)
class TableMeta:
    """What the MANIFEST knows of a table. Sizes in bytes; keys inclusive.

    `value_log` lists (logical file id, bytes referenced with entry headers, entries referenced).
    `stale_bytes` counts tombstones, expired entries and versions that older readers alone still
    need; `expiries` are up to 8 unix milliseconds by which equal shares of the entries that expire
    will have: the last one is when all have. Empty when there are none or a file does not say.
    `salt` is that in the header of a file sealed with data key `key_id`, empty without one: it
    tells the file from any other of its number, also from one of a copy of the directory.
    `ordered` is False when a newer source may hold an older version (managed mode, restored data).
    """

    id: int
    size: int
    crc: int
    count: int
    min_key: bytes
    max_key: bytes
    min_version: int
    max_version: int
    tombstones: int = 0
    expiring: int = 0
    stale_bytes: int = 0
    raw_bytes: int = 0
    value_log: tuple[tuple[int, int, int], ...] = ()
    compression: str = "none"
    key_id: int = 0
    created: float = 0.0
    ordered: bool = True
    expiries: tuple[int, ...] = ()
    salt: bytes = b""

    def to_plain(self) -> dict[str, Any]:
        """As msgpack-able data; short names, since the MANIFEST repeats them."""
        plain = {
            "i": self.id, "s": self.size, "c": self.crc, "n": self.count, "k": self.min_key,
            "K": self.max_key, "v": self.min_version, "V": self.max_version, "t": self.tombstones,
            "e": self.expiring, "g": self.stale_bytes, "r": self.raw_bytes,
            "l": [list(ref) for ref in self.value_log], "z": self.compression, "y": self.key_id,
            "a": self.created, "o": self.ordered,
        }  # fmt: skip
        if self.expiries:
            plain["x"] = list(self.expiries)
        if self.salt:
            plain["w"] = self.salt
        return plain

    @staticmethod
    def from_plain(plain: dict[str, Any]) -> TableMeta:
        """`KeyError`, `TypeError` or `ValueError` when the data is not what `to_plain` makes."""
        expiries = tuple(map(number, plain.get("x", ())))
        if list(expiries) != sorted(expiries):
            raise ValueError("expiry times are out of order")
        return TableMeta(
            file_id(plain["i"]), number(plain["s"]), number(plain["c"]), number(plain["n"]),
            octets(plain["k"]), octets(plain["K"]), number(plain["v"]), number(plain["V"]),
            number(plain["t"]), number(plain["e"]), number(plain["g"]), number(plain["r"]),
            tuple((file_id(a), number(b), number(c)) for a, b, c in plain["l"]),
            str(plain["z"]), number(plain["y"]), moment(plain["a"]), bool(plain["o"]),
            expiries, octets(plain.get("w", b"")),
        )  # fmt: skip

    def overlaps(self, low: bytes | None, high: bytes | None) -> bool:
        """Whether any key in [low, high] may be here; None is unbounded."""
        return (high is None or self.min_key <= high) and (low is None or self.max_key >= low)


@dataclass(frozen=True, slots=True)
class VlogMeta:
    """A physical value-log file. `size` and `entries` are exact once `sealed`.

    `logical` are the logical file ids whose values it holds: itself when it was appended to, others
    when GC moved values here. `key_id` and `salt` as of a table.
    """

    id: int
    logical: tuple[int, ...]
    sealed: bool = False
    size: int = 0
    entries: int = 0
    key_id: int = 0
    salt: bytes = b""

    def to_plain(self) -> list[Any]:
        plain = [self.id, list(self.logical), self.sealed, self.size, self.entries]
        return [*plain, self.key_id, self.salt] if self.key_id else plain

    @staticmethod
    def from_plain(plain: list[Any]) -> VlogMeta:
        vlog_id, logical, sealed, size, entries, *sealing = plain
        key_id, salt = sealing or (0, b"")
        return VlogMeta(
            file_id(vlog_id),
            tuple(map(file_id, logical)),
            bool(sealed),
            number(size),
            number(entries),
            number(key_id),
            octets(salt),
        )


@dataclass(frozen=True, slots=True)
class Drop:
    """Versions <= ts of keys with one of the prefixes (all keys if b"" is among them) are gone."""

    prefixes: tuple[bytes, ...]
    ts: int


class Level(tuple[TableMeta, ...]):
    """The tables of one level, and what picking needs to know of it as a whole.

    Unchanged, a level is one object in all Versions, so this is computed once.
    """

    @cached_property
    def size(self) -> int:
        """Bytes of all its tables."""
        return sum([table.size for table in self])

    @cached_property
    def oldest_first(self) -> tuple[TableMeta, ...]:
        """By newest version: what has not changed for longest comes first."""
        return tuple(sorted(self, key=_AGE))

    @cached_property
    def max_keys(self) -> list[bytes]:
        """The tables' largest keys: what a point read bisects (not on L0)."""
        return [table.max_key for table in self]

    @cached_property
    def min_keys(self) -> list[bytes]:
        """The tables' smallest keys."""
        return [table.min_key for table in self]

    @cached_property
    def ordered(self) -> bool:
        """Whether all its tables are."""
        return all(table.ordered for table in self)

    @cached_property
    def _sizes_before(self) -> list[int]:
        return list(accumulate([table.size for table in self], initial=0))

    def bytes_between(self, low: bytes, high: bytes) -> int:
        """Bytes of the tables that overlap [low, high]; not on L0."""
        first = bisect_left(self.max_keys, low)
        sums = self._sizes_before
        return sums[max(first, bisect_right(self.min_keys, high))] - sums[first]

    @cached_property
    def with_garbage(self) -> tuple[TableMeta, ...]:
        """Tables that hold, or will come to hold, entries nobody can see."""
        return tuple(
            [table for table in self if table.stale_bytes or table.expiring or table.tombstones]
        )


@dataclass(frozen=True)
class Version:
    """The state the MANIFEST describes. `min_mem` is the lowest write-ahead log still needed."""

    levels: tuple[Level, ...]
    vlogs: tuple[VlogMeta, ...] = ()
    min_mem: int = 1
    next_table: int = 1
    next_vlog: int = 1
    max_ts: int = 0
    drops: tuple[Drop, ...] = ()
    banned: tuple[int, ...] = ()
    data_keys: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if any(type(level) is not Level for level in self.levels):
            levels = tuple(level if type(level) is Level else Level(level) for level in self.levels)
            object.__setattr__(self, "levels", levels)

    @staticmethod
    def empty(max_levels: int) -> Version:
        return Version(levels=(Level(),) * max_levels)

    def with_levels(self, count: int) -> Version:
        """The same with at least so many levels."""
        missing = max(0, count - len(self.levels))
        return replace(self, levels=(*self.levels, *(Level(),) * missing)) if missing else self

    @cached_property
    def tables(self) -> dict[int, TableMeta]:
        return {table.id: table for level in self.levels for table in level}

    @cached_property
    def physical(self) -> dict[int, VlogMeta]:
        """Logical value-log file id to the physical file that holds it now."""
        return {logical: vlog for vlog in self.vlogs for logical in vlog.logical}

    def level_size(self, level: int) -> int:
        return self.levels[level].size

    def level_of(self, table_id: int) -> int:
        """The level a table is on; `KeyError` when it is on none."""
        for at, level in enumerate(self.levels):
            if any(table.id == table_id for table in level):
                return at
        raise KeyError(table_id)

    def overlapping(
        self, level: int, low: bytes | None, high: bytes | None
    ) -> tuple[TableMeta, ...]:
        """Tables of a level that may hold keys in [low, high], in the level's order."""
        tables = self.levels[level]
        if level == 0:
            return tuple(table for table in tables if table.overlaps(low, high))
        first = 0 if low is None else bisect_left(tables.max_keys, low)
        found = []
        for table in tables[first:]:
            if high is not None and table.min_key > high:
                break
            found.append(table)
        return tuple(found)

    def with_tables(self, level: int, add: Iterable[TableMeta], remove: Iterable[int]) -> Version:
        """A level changed; L0 stays newest (highest version) first, others ascend by key."""
        gone = set(remove)
        kept = [table for table in self.levels[level] if table.id not in gone]
        if len(kept) + len(gone) != len(self.levels[level]):
            raise InvariantError(f"level {level} lacks a table of {sorted(gone)}")
        if level == 0:
            kept = sorted([*kept, *add], key=lambda table: (-table.max_version, -table.id))
        else:
            for table in add:
                insort(kept, table, key=_MIN_KEY)
        levels = list(self.levels)
        levels[level] = Level(kept)
        return replace(self, levels=tuple(levels))

    def walk(self) -> Iterator[tuple[int, TableMeta]]:
        for at, level in enumerate(self.levels):
            for table in level:
                yield at, table

    def check(self) -> None:
        """Raise `InvariantError` unless the invariants hold."""
        for at, level in enumerate(self.levels):
            for table in level:
                _check_table(at, table)
            if at:
                _check_apart(at, level)
        self._check_whole()
        self._check_values(table for _, table in self.walk())

    def check_step(self, before: Version, added: Iterable[tuple[int, TableMeta]]) -> None:
        """As `check`, where one edit made this of `before`, which holds them.

        It looks at what the edit touched, not at each of ten thousand tables for every flush.
        """
        tables = list(added)
        for at, table in tables:
            _check_table(at, table)
            if at:
                level = self.levels[at]
                nth = bisect_left(level.min_keys, table.min_key)
                _check_apart(at, level[max(0, nth - 1) : nth + 2])
        self._check_whole()
        if before.physical.keys() <= self.physical.keys():
            self._check_values(table for _, table in tables)
        else:
            self._check_values(table for _, table in self.walk())

    def _check_whole(self) -> None:
        ages = [(table.max_version, table.id) for table in self.levels[0]]
        if any(left <= right for left, right in pairwise(ages)):
            raise InvariantError("L0 is not newest first")
        if len(self.tables) != sum(map(len, self.levels)):
            raise InvariantError("a table is on two levels")
        if len(self.physical) != sum(len(vlog.logical) for vlog in self.vlogs):
            raise InvariantError("a logical value-log file lies in two physical files")

    def _check_values(self, tables: Iterable[TableMeta]) -> None:
        named = {ref[0] for table in tables for ref in table.value_log}
        if missing := named - self.physical.keys():
            raise InvariantError(f"tables refer to value-log files {sorted(missing)} that are gone")


def _check_table(at: int, table: TableMeta) -> None:
    if table.min_key > table.max_key or table.min_version > table.max_version:
        raise InvariantError(f"table {table.id} on level {at} is inside out")


def _check_apart(at: int, tables: tuple[TableMeta, ...]) -> None:
    """Tables that lie side by side on a level."""
    for left, right in pairwise(tables):
        if left.max_key >= right.min_key:
            raise InvariantError(f"tables {left.id} and {right.id} overlap on level {at}")

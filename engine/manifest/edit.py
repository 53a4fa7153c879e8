"""One atomic change of the MANIFEST, and what it makes of a Version. Pure.

Runs in: supervisor.
Invariants: (1) an edit is applied whole or not at all; (2) counters only grow; (3) parsing trusts
nothing: what is not an edit raises `ValueError`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from meles.engine.errors import InvariantError
from meles.engine.ids import MAX_LEVELS
from meles.engine.manifest.version import Drop, TableMeta, Version, VlogMeta, number, octets


@dataclass(frozen=True, slots=True)
class Edit:
    """What changes. Counters of 0 mean "as before".

    `snapshot` replaces everything: the first record of a file. `remove` and `add` pair a level
    with a table; a table that moves is in both.
    """

    add: tuple[tuple[int, TableMeta], ...] = ()
    remove: tuple[tuple[int, int], ...] = ()
    put_vlogs: tuple[VlogMeta, ...] = ()
    remove_vlogs: tuple[int, ...] = ()
    min_mem: int = 0
    next_table: int = 0
    next_vlog: int = 0
    max_ts: int = 0
    add_drops: tuple[Drop, ...] = ()
    remove_drops: tuple[int, ...] = ()  # their timestamps
    ban: tuple[int, ...] = ()
    snapshot: int = 0  # when this edit is a whole Version: of at least so many levels

    @staticmethod
    def of_version(version: Version) -> Edit:
        """The edit that makes this Version out of nothing."""
        return Edit(
            add=tuple(version.walk()),
            put_vlogs=version.vlogs,
            min_mem=version.min_mem,
            next_table=version.next_table,
            next_vlog=version.next_vlog,
            max_ts=version.max_ts,
            add_drops=version.drops,
            ban=version.banned,
            snapshot=len(version.levels),
        )

    def apply(self, before: Version, *, check: bool = True) -> Version:
        """The next Version. `InvariantError` when the edit does not fit this one, which holds them.

        `check=False` leaves the invariants of the whole to be checked after more edits.
        """
        version = Version.empty(self.snapshot) if self.snapshot else before
        for level in sorted({level for level, _ in (*self.add, *self.remove)}):
            if not 0 <= level < MAX_LEVELS:
                raise InvariantError(f"no level {level}")
            version = version.with_levels(level + 1)  # `max_levels` may have grown since
            version = version.with_tables(
                level,
                [table for at, table in self.add if at == level],
                [table_id for at, table_id in self.remove if at == level],
            )
        version = replace(
            version,
            vlogs=self._vlogs(version.vlogs),
            min_mem=max(version.min_mem, self.min_mem),
            next_table=max(version.next_table, self.next_table),
            next_vlog=max(version.next_vlog, self.next_vlog),
            max_ts=max(version.max_ts, self.max_ts),
            drops=self._drops(version.drops),
            banned=tuple(sorted({*version.banned, *self.ban})),
        )
        if check and self.snapshot:
            version.check()
        elif check:
            version.check_step(before, self.add)
        return version

    def _vlogs(self, before: tuple[VlogMeta, ...]) -> tuple[VlogMeta, ...]:
        files = {vlog.id: vlog for vlog in before}
        for vlog_id in self.remove_vlogs:
            if files.pop(vlog_id, None) is None:
                raise InvariantError(f"no value-log file {vlog_id}")
        files.update((vlog.id, vlog) for vlog in self.put_vlogs)
        return tuple(files[vlog_id] for vlog_id in sorted(files))

    def _drops(self, before: tuple[Drop, ...]) -> tuple[Drop, ...]:
        kept = [drop for drop in before if drop.ts not in self.remove_drops]
        return tuple(sorted({*kept, *self.add_drops}, key=lambda drop: (drop.ts, drop.prefixes)))

    def to_plain(self) -> dict[str, Any]:
        """As msgpack-able data, empty fields left out."""
        plain: dict[str, Any] = {
            "add": [[level, table.to_plain()] for level, table in self.add],
            "remove": [list(pair) for pair in self.remove],
            "put_vlogs": [vlog.to_plain() for vlog in self.put_vlogs],
            "remove_vlogs": list(self.remove_vlogs),
            "min_mem": self.min_mem,
            "next_table": self.next_table,
            "next_vlog": self.next_vlog,
            "max_ts": self.max_ts,
            "add_drops": [[list(drop.prefixes), drop.ts] for drop in self.add_drops],
            "remove_drops": list(self.remove_drops),
            "ban": list(self.ban),
            "snapshot": self.snapshot,
        }
        return {name: value for name, value in plain.items() if value}

    @staticmethod
    def from_plain(plain: object) -> Edit:
        """`ValueError` when `plain` is not what `to_plain` makes."""
        if not isinstance(plain, dict) or not set(plain) <= set(Edit.__dataclass_fields__):
            raise ValueError("not a change set")
        try:
            return Edit(
                add=tuple((number(a), TableMeta.from_plain(b)) for a, b in plain.get("add", ())),
                remove=tuple((number(a), number(b)) for a, b in plain.get("remove", ())),
                put_vlogs=tuple(VlogMeta.from_plain(v) for v in plain.get("put_vlogs", ())),
                remove_vlogs=tuple(map(number, plain.get("remove_vlogs", ()))),
                min_mem=number(plain.get("min_mem", 0)),
                next_table=number(plain.get("next_table", 0)),
                next_vlog=number(plain.get("next_vlog", 0)),
                max_ts=number(plain.get("max_ts", 0)),
                add_drops=tuple(
                    Drop(tuple(map(octets, a)), number(b)) for a, b in plain.get("add_drops", ())
                ),
                remove_drops=tuple(map(number, plain.get("remove_drops", ()))),
                ban=tuple(map(number, plain.get("ban", ()))),
                snapshot=_levels(plain.get("snapshot", 0)),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"bad change set: {error!r}") from None


def _levels(value: object) -> int:
    if (found := number(value)) > MAX_LEVELS:
        raise ValueError(f"{found} levels")
    return found

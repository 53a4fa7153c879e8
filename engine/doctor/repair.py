"""Doing what was decided, one case at a time.

Runs in: supervisor, with the directory locked.
Invariants: (1) no byte that was there is destroyed: a file that is replaced or no longer wanted
gets the suffix `.aside`, the MANIFEST a copy with it; (2) a new MANIFEST is put in place by rename,
after everything it names is durable; (3) whenever it is cut short, it can be run again.
Fails with: `CorruptionError`, `OSError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Final

from meles.engine.doctor.decide import chosen_values, counters
from meles.engine.doctor.examine import header_of
from meles.engine.doctor.facts import Case, Do, Facts
from meles.engine.doctor.salvage import (
    blank_values,
    copy_file,
    merge_tables,
    salvage_table,
    salvage_values,
)
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import ASIDE_SUFFIX, MANIFEST, Kind, file_name
from meles.engine.manifest.manifest_file import ManifestFile
from meles.engine.manifest.version import TableMeta, Version, VlogMeta
from meles.engine.options import Options
from meles.engine.run_job import JobDirs

_MARGIN: Final = 1000  # numbers left out, so that none that was ever used comes again


class Repair:
    """Changes a directory according to the facts that were found in it."""

    def __init__(self, dirs: JobDirs, options: Options, facts: Facts) -> None:
        self._dirs = dirs
        self._options = options
        self._facts = facts
        self._version = facts.version

    def do(self, cases: list[Case]) -> list[str]:
        """Do everything; one line for each thing done."""
        return [self._do(case) for case in cases if case.do is not Do.NOTHING]

    def _do(self, case: Case) -> str:
        steps: dict[Do, Callable[[Case], str]] = {
            Do.SWAP_BACK: self._swap_back,
            Do.TAKE_BACK: self._take_back,
            Do.RESTORE_HEADER: self._restore_header,
            Do.SALVAGE_TABLE: self._salvage_table,
            Do.DROP_TABLE: self._drop_table,
            Do.SALVAGE_VALUES: self._salvage_values,
            Do.BLANK_VALUES: self._blank_values,
            Do.SET_LOGS_ASIDE: self._set_logs_aside,
            Do.CUT_MANIFEST: self._cut_manifest,
            Do.REBUILD: self._rebuild,
        }
        return f"{case.name}: {steps[case.do](case)}"

    def _home(self, kind: Kind) -> Directory:
        return self._dirs.values if kind is Kind.VLOG else self._dirs.tables

    # -- names ---------------------------------------------------------------------------------

    def _set_aside(self, kind: Kind, number: int) -> str:
        """Give a file the suffix of what is kept for a human; returns its name then."""
        directory, name = self._home(kind), file_name(kind, number)
        aside = free_name(directory, name)
        directory.rename(name, aside)
        directory.sync()
        return aside

    def _swap_back(self, case: Case) -> str:
        directory = self._home(case.kind)
        one, other = (file_name(case.kind, number) for number in case.ids)
        if other in directory.names():
            between = free_name(directory, other)
            directory.rename(other, between)
            directory.rename(one, other)
            directory.rename(between, one)
        else:
            directory.rename(one, other)
        directory.sync()
        return f"renamed to {other}, as it says itself"

    def _take_back(self, case: Case) -> str:
        directory, name = self._home(case.kind), case.name
        directory.rename(name + ASIDE_SUFFIX, name)
        directory.sync()
        return "has its name again"

    def _restore_header(self, case: Case) -> str:
        kind, number = case.kind, case.ids[0]
        directory = self._home(kind)
        aside = free_name(directory, case.name)
        copy_file(directory, case.name, aside)
        with directory.open(case.name, write=True) as file:
            file.pwrite(header_of(kind, number, self._facts.named(kind, number)), 0)
            file.sync()
        return f"new header, a copy from before is {aside}"

    def _set_logs_aside(self, case: Case) -> str:
        for number in reversed(case.ids):
            self._set_aside(Kind.WAL, number)
        return f"set {len(case.ids)} logs aside"

    # -- files ---------------------------------------------------------------------------------

    def _salvage_table(self, case: Case) -> str:
        version, number = self._known(), case.ids[0]
        level, old = next((at, meta) for at, meta in version.walk() if meta.id == number)
        fresh = max(version.next_table, counters(self._facts)[0])
        made = salvage_table(self._dirs.tables, number, fresh)
        aside = self._set_aside(Kind.TABLE, number)
        add = [] if made is None else [made]
        after = version.with_tables(level, add, [number])
        self._install(replace(after, next_table=fresh + 1))
        kept = 0 if made is None else made.count
        return f"{kept:,} of {old.count:,} entries are in table {fresh}, the old one is {aside}"

    def _drop_table(self, case: Case) -> str:
        version, number = self._known(), case.ids[0]
        level = version.level_of(number)
        done = "is no longer named"
        if (Kind.TABLE, number) in self._facts.files:
            done += f", and is {self._set_aside(Kind.TABLE, number)}"
        self._install(version.with_tables(level, (), [number]))
        return done

    def _salvage_values(self, case: Case) -> str:
        number = case.ids[0]
        aside = self._set_aside(Kind.VLOG, number)
        known = next((v for v in self._known().vlogs if v.id == number), None)
        meta = salvage_values(self._dirs.values, number, aside, known)
        self._replace_values(number, [meta])
        return f"{meta.entries:,} values kept, the old file is {aside}"

    def _blank_values(self, case: Case) -> str:
        version, number = self._known(), case.ids[0]
        old = next(vlog for vlog in version.vlogs if vlog.id == number)
        done = "replaced by an empty one"
        if (Kind.VLOG, number) in self._facts.files:
            done += f", the old one is {self._set_aside(Kind.VLOG, number)}"
        self._replace_values(number, [self._blank(logical) for logical in old.logical])
        return done

    def _blank(self, logical: int) -> VlogMeta:
        if (Kind.VLOG, logical) in self._facts.files:
            with_name = file_name(Kind.VLOG, logical)
            if with_name in self._dirs.values.names():
                self._set_aside(Kind.VLOG, logical)
        return blank_values(self._dirs.values, logical)

    def _replace_values(self, number: int, made: list[VlogMeta]) -> None:
        version = self._known()
        others = [vlog for vlog in version.vlogs if vlog.id != number]
        vlogs = sorted([*others, *made], key=lambda vlog: vlog.id)
        self._install(replace(version, vlogs=tuple(vlogs)))

    # -- the MANIFEST --------------------------------------------------------------------------

    def _known(self) -> Version:
        if self._version is None:
            raise CorruptionError(
                "nothing is known of it yet", path=self._dirs.tables.join(MANIFEST), offset=0,
                kind="manifest missing",
            )  # fmt: skip
        return self._version

    def _install(self, version: Version) -> None:
        """Put a new MANIFEST in place; the old one is kept as a copy."""
        version.check()
        directory = self._dirs.tables
        if MANIFEST in directory.names():
            copy_file(directory, MANIFEST, free_name(directory, MANIFEST))
        ManifestFile.create(directory, version, self._external()).close()
        self._version = version

    def _external(self) -> int:
        return self._facts.external or self._options.external_magic_version

    def _cut_manifest(self, _: Case) -> str:
        self._install(self._known())
        return "written anew"

    def _rebuild(self, _: Case) -> str:
        """Everything readable goes into new tables on the deepest level, in one order."""
        facts = self._facts
        next_table, next_vlog, min_mem = counters(facts)
        first = next_table + _MARGIN
        there = facts.of(Kind.TABLE)
        usable = [number for number, fact in there.items() if isinstance(fact.known, TableMeta)]
        made = merge_tables(self._dirs.tables, usable, first, self._options.compression)
        vlogs = chosen_values(facts)
        wanted = {ref[0] for meta in made for ref in meta.value_log}
        missing = wanted.difference(number for vlog in vlogs for number in vlog.logical)
        unused = set(facts.of(Kind.VLOG)) - {vlog.id for vlog in vlogs}
        for number in sorted(unused):
            self._set_aside(Kind.VLOG, number)
        vlogs += [blank_values(self._dirs.values, logical) for logical in sorted(missing)]
        self._install(self._version_of(made, vlogs, (first + len(made), next_vlog, min_mem)))
        for number in there:
            self._set_aside(Kind.TABLE, number)
        entries = sum(meta.count for meta in made)
        return f"made anew, with {entries:,} entries of {len(usable)} tables"

    def _version_of(
        self, tables: list[TableMeta], vlogs: list[VlogMeta], numbers: tuple[int, int, int]
    ) -> Version:
        old = self._version
        next_table, next_vlog, min_mem = numbers
        empty = Version.empty(max(2, self._options.max_levels))
        newest = max((meta.max_version for meta in tables), default=0)
        return replace(
            empty.with_tables(len(empty.levels) - 1, tables, ()),
            vlogs=tuple(sorted(vlogs, key=lambda vlog: vlog.id)),
            min_mem=min_mem,
            next_table=next_table,
            next_vlog=next_vlog + _MARGIN,
            max_ts=newest if old is None else max(newest, old.max_ts),
            drops=() if old is None else old.drops,
            banned=() if old is None else old.banned,
        )


def free_name(directory: Directory, name: str) -> str:
    """`name.aside`, or `name.2.aside` and so on when that is taken."""
    taken = set(directory.names())
    names = (f"{name}{f'.{n}' * (n > 1)}{ASIDE_SUFFIX}" for n in count(1))
    return next(free for free in names if free not in taken)

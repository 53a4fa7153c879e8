"""From facts to cases: what is wrong, what to do about it, and what that costs. Pure.

Runs in: supervisor.
Invariants: (1) what loses nothing is proposed first, and alone: the rest is looked at again after
it; (2) a file of a newer version is never touched; (3) every proposal says what it loses.
"""

from __future__ import annotations

from itertools import chain

from meles.engine.doctor.facts import Case, Do, Facts, FileFact
from meles.engine.fs.names import MANIFEST, Kind, file_name
from meles.engine.manifest.version import TableMeta, Version, VlogMeta

_STALE = "older values of these keys, also deleted ones, may show again"
_KIND = {Kind.TABLE: "table", Kind.VLOG: "value-log file", Kind.WAL: "log"}


def decide(facts: Facts) -> list[Case]:
    """What is wrong with a directory that nothing but its files explains."""
    newer = _of_newer_version(facts)
    if newer:
        return newer
    harmless = [*_swapped(facts), *_bad_headers(facts)]
    if harmless:
        return harmless
    if facts.version is None or facts.manifest_problem:
        return [_manifest(facts)]
    version = facts.version
    named = [*_tables(facts, version), *_values(facts, version)]
    newer_manifest = _manifest_too_old(facts, version)
    if newer_manifest is not None:
        return [newer_manifest]
    return [*named, *_logs(facts, version)]


def _of_newer_version(facts: Facts) -> list[Case]:
    hint = "install the version of meles that wrote it; nothing here can read it"
    found = [Case(MANIFEST, f"{facts.manifest_problem}: {hint}")] if facts.manifest_newer else []
    return found + [
        Case(file_name(*at), f"{fact.problem}: {hint}", kind=at[0], ids=(at[1],))
        for at, fact in facts.files.items()
        if fact.newer
    ]


# -- what loses nothing --------------------------------------------------------------------------


def _swapped(facts: Facts) -> list[Case]:
    """Two files that have each other's names."""
    found = []
    for (kind, number), fact in sorted(facts.files.items(), key=lambda item: item[0][1]):
        other = fact.says
        if other is None or other <= number:
            continue
        there = facts.files.get((kind, other))
        if there is not None and there.says == number:
            what = f"and {file_name(kind, other)} have each other's names"
            found.append(
                Case(file_name(kind, number), what, Do.SWAP_BACK, "nothing", kind, (number, other))
            )
        elif there is None:
            what = f"is {_KIND[kind]} {other} by its own account, and no file has that name"
            found.append(
                Case(file_name(kind, number), what, Do.SWAP_BACK, "nothing", kind, (number, other))
            )
    return found


def lost_values(keys: list[bytes]) -> list[Case]:
    """Keys whose newest value is gone, once everything else is in order."""
    if not keys:
        return []
    return [
        Case(
            "value log", f"{len(keys):,} keys point to values that are lost", Do.DELETE_LOST,
            "nothing more: reading such a key raises CorruptionError, deleted it is absent",
        )
    ]  # fmt: skip


def _bad_headers(facts: Facts) -> list[Case]:
    """A header holds nothing but kind and number: it can be written anew, the rest has checksums
    that begin with it.
    """
    return [
        Case(
            file_name(kind, number),
            "has a damaged header; all the rest may be whole",
            Do.RESTORE_HEADER, "nothing by itself; what else is wrong shows after it",
            kind, (number,),
        )
        for (kind, number), fact in sorted(facts.files.items(), key=lambda item: item[0][1])
        if fact.says is None and fact.problem and not fact.blank
        and (kind, number) not in facts.aside and facts.header_known(kind, number)
    ]  # fmt: skip


# -- the MANIFEST --------------------------------------------------------------------------------


def _manifest(facts: Facts) -> Case:
    what = facts.manifest_problem
    if facts.version is not None and _covers(facts, facts.version):
        return Case(
            MANIFEST, f"{what}; what it says before that fits the files that are there",
            Do.CUT_MANIFEST, "nothing, as far as the files show",
        )  # fmt: skip
    return Case(
        MANIFEST, f"{what}; without it the files have no order", Do.REBUILD,
        "prefixes that were dropped a short while ago may show again, banned namespaces are open"
        " again, and deleted keys may show if files were there that no longer counted",
    )  # fmt: skip


def _covers(facts: Facts, version: Version) -> bool:
    """Whether a Version names exactly the tables and value-log files that are there."""
    tables, values = set(facts.of(Kind.TABLE)), set(facts.of(Kind.VLOG))
    return tables == set(version.tables) and values == {vlog.id for vlog in version.vlogs}


def _manifest_too_old(facts: Facts, version: Version) -> Case | None:
    """Files that a MANIFEST of this directory would name, and this one does not."""
    tables = facts.of(Kind.TABLE)
    logs = any(number >= version.min_mem for number in facts.of(Kind.WAL))
    newest = max([version.max_ts, *(meta.max_version for _, meta in version.walk())])
    unknown = [
        file_name(Kind.TABLE, number)
        for number, fact in tables.items()
        if number not in version.tables
        and isinstance(fact.known, TableMeta)
        and (number >= version.next_table or (not logs and fact.known.max_version > newest))
    ]
    named = {logical for vlog in version.vlogs for logical in vlog.logical}
    pointed = {number for fact in facts.of(Kind.WAL).values() for number in fact.refers}
    unknown += [
        file_name(Kind.VLOG, number)
        for number in sorted(pointed - named)
        if (Kind.VLOG, number) in facts.files
    ]
    if not unknown:
        return None
    return Case(
        MANIFEST,
        f"is an older copy: it knows nothing of {', '.join(unknown[:3])}",
        Do.REBUILD,
        "what was deleted or dropped may show again where files that no longer count are there",
    )


# -- tables, values, logs ------------------------------------------------------------------------


def _tables(facts: Facts, version: Version) -> list[Case]:
    found, there = [], facts.of(Kind.TABLE)
    for level, meta in version.walk():
        name, fact = file_name(Kind.TABLE, meta.id), there.get(meta.id)
        entries = f"{meta.count:,} entries of level {level}"
        if fact is None:
            if (Kind.TABLE, meta.id) in facts.aside:
                found.append(Case(name, "was set aside and not replaced", Do.TAKE_BACK,
                                  "nothing", Kind.TABLE, (meta.id,)))  # fmt: skip
                continue
            found.append(Case(name, "is missing", Do.DROP_TABLE,
                              f"{entries}; {_STALE}", Kind.TABLE, (meta.id,)))  # fmt: skip
        elif fact.known is None or (not fact.problem and fact.known != meta):
            what = fact.problem or "is another one than the MANIFEST names"
            found.append(Case(name, what, Do.DROP_TABLE,
                              f"{entries}; {_STALE}", Kind.TABLE, (meta.id,)))  # fmt: skip
        elif fact.problem:
            found.append(Case(name, fact.problem, Do.SALVAGE_TABLE,
                              f"those of {entries} that lie in damaged blocks; {_STALE}",
                              Kind.TABLE, (meta.id,)))  # fmt: skip
    return found


def _values(facts: Facts, version: Version) -> list[Case]:
    found, there = [], facts.of(Kind.VLOG)
    needed = {ref[0]: ref for _, meta in version.walk() for ref in meta.value_log}
    for vlog in version.vlogs:
        fact, name = there.get(vlog.id), file_name(Kind.VLOG, vlog.id)
        used = sum(needed[logical][2] for logical in vlog.logical if logical in needed)
        loses = f"up to {used:,} values; reading one raises CorruptionError until it is overwritten"
        if fact is None:
            taken = (Kind.VLOG, vlog.id) in facts.aside
            what = "was set aside and not replaced" if taken else "is missing"
            do = Do.TAKE_BACK if taken else Do.BLANK_VALUES
            found.append(Case(name, what, do, "nothing" if taken else loses, Kind.VLOG, (vlog.id,)))
        elif fact.problem and vlog.logical == (vlog.id,):
            found.append(Case(name, fact.problem, Do.SALVAGE_VALUES,
                              f"values that do not check out; {loses}",
                              Kind.VLOG, (vlog.id,)))  # fmt: skip
        elif fact.problem and fact.known is None:
            found.append(Case(name, fact.problem, Do.BLANK_VALUES, loses, Kind.VLOG, (vlog.id,)))
        elif fact.problem:
            found.append(Case(name, f"{fact.problem}; it can be opened, and the values that check "
                              "out can be read", kind=Kind.VLOG, ids=(vlog.id,)))  # fmt: skip
    return found


def _logs(facts: Facts, version: Version) -> list[Case]:
    """Recovery deals with damage inside a log by itself; a gap between logs it refuses."""
    there = facts.of(Kind.WAL)
    needed = [number for number in there if number >= version.min_mem]
    full = [number for number in needed if not there[number].blank]
    if not full:
        return []
    known = {number for kind, number in facts.aside if kind is Kind.WAL}
    lost = [n for n in full if there[n].says is None and not facts.header_known(Kind.WAL, n)]
    if lost:
        behind = tuple(number for number in needed if number >= lost[0])
        return [
            Case(
                file_name(Kind.WAL, lost[0]), "lost its header, so it cannot be decrypted",
                Do.SET_LOGS_ASIDE, "the commits in it and all later ones", Kind.WAL, behind,
            )
        ]  # fmt: skip
    gaps = [n for n in range(version.min_mem, full[-1]) if n not in needed and n not in known]
    if not gaps:
        return []
    behind = tuple(number for number in needed if number > gaps[0])
    names = ", ".join(file_name(Kind.WAL, number) for number in behind)
    return [
        Case(
            file_name(Kind.WAL, gaps[0]), f"is missing in front of {names}", Do.SET_LOGS_ASIDE,
            "the commits in it and all later ones; those before it stay, without a hole",
            Kind.WAL, behind,
        )
    ]  # fmt: skip


# -- a new MANIFEST ------------------------------------------------------------------------------


def chosen_values(facts: Facts) -> list[VlogMeta]:
    """Value-log files for a new MANIFEST: each logical file once, the whole original first."""
    chosen: list[VlogMeta] = []
    taken: set[int] = set()
    originals = sorted(
        facts.of(Kind.VLOG).items(),
        key=lambda item: (_logical(item[0], item[1]) != (item[0],), -item[0]),
    )
    for number, fact in originals:
        logical = _logical(number, fact)
        if fact.says is None or taken.intersection(logical):
            continue
        taken.update(logical)
        known = fact.known
        chosen.append(known if isinstance(known, VlogMeta) else VlogMeta(number, (number,)))
    return sorted(chosen, key=lambda vlog: vlog.id)


def _logical(number: int, fact: FileFact) -> tuple[int, ...]:
    return fact.known.logical if isinstance(fact.known, VlogMeta) else (number,)


def counters(facts: Facts) -> tuple[int, int, int]:
    """Numbers for the next table and value-log file, and for the first log still needed."""
    known = chain(facts.files, facts.aside)
    highest = dict.fromkeys(Kind, 0)
    for kind, number in known:
        highest[kind] = max(highest[kind], number)
    version = facts.version
    if version is not None:
        highest[Kind.TABLE] = max(highest[Kind.TABLE], version.next_table - 1)
        highest[Kind.VLOG] = max(highest[Kind.VLOG], version.next_vlog - 1)
    logs = list(facts.of(Kind.WAL))
    before = 1 if version is None else version.min_mem
    return highest[Kind.TABLE] + 1, highest[Kind.VLOG] + 1, min(logs) if logs else before

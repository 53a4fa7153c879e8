"""Looking at every file of a directory by itself, whatever the others say.

Runs in: supervisor.
Invariants: (1) reads only; (2) one bad file keeps no other from being looked at; (3) every checksum
of every file is checked, so this takes as long as reading the directory.
Fails with: `OSError`.
"""

from __future__ import annotations

from dataclasses import replace

from meles.engine.codec.entry import META_POINTER, ValuePointer
from meles.engine.codec.header import (
    HEADER_BYTES,
    MAGIC_MANIFEST,
    SUFFIX_MAGICS,
    FileHeader,
    decode_header,
)
from meles.engine.crypt.keys import seals
from meles.engine.doctor.facts import Facts, FileFact
from meles.engine.errors import CorruptionError, Error, FormatVersionError
from meles.engine.fs.files import Directory
from meles.engine.fs.names import ASIDE_SUFFIX, MANIFEST, Kind, file_name, parse_name
from meles.engine.log.reader import LogReader
from meles.engine.log.sealed import map_log
from meles.engine.manifest.manifest_file import replay_manifest
from meles.engine.manifest.version import TableMeta, Version, VlogMeta
from meles.engine.run_job import JobDirs
from meles.engine.table.reader import Table
from meles.engine.vlog.reader import ValueLogFile, load_meta

_HEAD_BYTES = 64 << 10


def plain(error: Exception) -> str:
    """An error without its path and hint, which the report has by itself."""
    if isinstance(error, CorruptionError):
        return f"at byte {error.offset} {error.message.partition(': ')[2].rpartition(' [')[0]}"
    return error.message if isinstance(error, Error) else str(error)


def examine(dirs: JobDirs) -> Facts:
    """Everything there is to know about a directory."""
    facts = Facts(encrypted=seals(dirs.tables.keys))
    _examine_manifest(dirs.tables, facts)
    directories = {dirs.tables.fd: dirs.tables, dirs.values.fd: dirs.values}
    for directory in directories.values():
        for name in directory.names():
            ours = parse_name(name.removesuffix(ASIDE_SUFFIX))
            if ours is None or directory is not _home(dirs, ours[0]):
                continue
            if name.endswith(ASIDE_SUFFIX):
                facts.aside.add(ours)
            else:
                facts.files[ours] = _examine_file(directory, *ours, facts.version)
    return facts


def _home(dirs: JobDirs, kind: Kind) -> Directory:
    return dirs.values if kind is Kind.VLOG else dirs.tables


def _examine_manifest(directory: Directory, facts: Facts) -> None:
    if MANIFEST not in directory.names():
        facts.manifest_problem = "is missing"
        return
    path = directory.join(MANIFEST)
    data = directory.read(MANIFEST)
    try:
        facts.external = decode_header(data, MAGIC_MANIFEST, path).external
        facts.version = replay_manifest(data, path, directory.keys).version
    except FormatVersionError as error:
        facts.manifest_problem, facts.manifest_newer = plain(error), True
    except CorruptionError as error:
        facts.manifest_problem = f"is damaged: {plain(error)}"
        facts.version = _before_damage(data[: error.offset], path, directory)


def _before_damage(data: bytes, path: str, directory: Directory) -> Version | None:
    """What the whole records in front of the damage say."""
    try:
        return replay_manifest(data, path, directory.keys).version
    except (CorruptionError, FormatVersionError):
        return None


def _examine_file(
    directory: Directory, kind: Kind, number: int, version: Version | None
) -> FileFact:
    try:
        says, blank = _beginning(directory, kind, number)
        if blank and kind is not Kind.VLOG:
            return FileFact(says, "" if kind is Kind.WAL else "is empty", blank=True)
        if kind is Kind.TABLE:
            return _examine_table(directory, number, says)
        if kind is Kind.VLOG:
            return _examine_values(directory, number, says, version)
        return _examine_log(directory, number, says)
    except FormatVersionError as error:
        return FileFact(problem=plain(error), newer=True)


def _beginning(directory: Directory, kind: Kind, number: int) -> tuple[int | None, bool]:
    """The number in a file's header, and whether nothing follows it."""
    name = file_name(kind, number)
    with directory.open(name) as file:
        head = file.pread(_HEAD_BYTES, 0)
    blank = not any(head[HEADER_BYTES:])
    try:
        return decode_header(
            head[:HEADER_BYTES], SUFFIX_MAGICS[kind.value], directory.join(name)
        ).file_id, blank
    except CorruptionError:
        return None, blank


def header_of(kind: Kind, number: int, known: TableMeta | VlogMeta | None = None) -> bytes:
    """The header every file of this kind and number has that is not sealed, or the one `known`
    has.
    """
    if known is None or not known.key_id:
        return FileHeader(SUFFIX_MAGICS[kind.value], number).encode()
    return FileHeader(
        SUFFIX_MAGICS[kind.value], number, key_id=known.key_id, salt=known.salt
    ).encode()


def _examine_table(directory: Directory, number: int, says: int | None) -> FileFact:
    try:
        with Table(directory, number) as table:
            fact = FileFact(says, known=replace(table.meta, crc=table.file_crc()))
            try:
                table.verify()
            except CorruptionError as error:
                return replace(fact, problem=f"is damaged: {plain(error)}")
            return fact
    except CorruptionError as error:
        return FileFact(says, f"is damaged: {plain(error)}")


def _examine_values(
    directory: Directory, number: int, says: int | None, version: Version | None
) -> FileFact:
    named = {} if version is None else {vlog.id: vlog for vlog in version.vlogs}
    meta = named.get(number)
    try:
        if meta is None or meta.sealed:
            meta = load_meta(directory, number)
        file = ValueLogFile(directory, replace(meta, size=meta.size if meta.sealed else 0))
    except CorruptionError as error:
        return FileFact(says, f"is damaged: {plain(error)}")
    try:
        if meta.sealed:
            file.verify()
    except CorruptionError as error:
        return FileFact(says, f"is damaged: {plain(error)}", known=meta)
    finally:
        file.close()
    if number in named and named[number].sealed and meta != named[number]:
        return FileFact(says, "is another one than the MANIFEST names", known=meta)
    return FileFact(says, known=meta)


def _examine_log(directory: Directory, number: int, says: int | None) -> FileFact:
    name = file_name(Kind.WAL, number)
    if says is None:
        data = directory.read(name)
        problem = "has a damaged header" if any(data[:HEADER_BYTES]) else "lost its beginning"
        return FileFact(None, problem)
    refers: set[int] = set()
    try:
        with map_log(directory, name) as mapping:
            reader = LogReader(mapping, directory.join(name))
            for frame in reader.frames():
                for record in reader.records(frame):
                    if record.meta & META_POINTER:
                        address = mapping[record.value_at : record.stop]
                        refers.add(ValuePointer.decode(address).file_id)
    except CorruptionError as error:
        return FileFact(says, f"is damaged: {plain(error)}", refers=frozenset(refers))
    return FileFact(says, refers=frozenset(refers))

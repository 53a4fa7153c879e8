"""Making a new directory of backup streams, or only reading them to see whether they are whole.

Runs in: supervisor, in a process that has opened nothing.
Owns: the files it opened by path, and the new directory until it is in its place.
Invariants: (1) streams are read to their end and judged before anything is visible under the path;
(2) a name in the new directory is never one from a stream; (3) whatever is raised, nothing is left
behind; a process that is killed leaves at most `.NAME.restoring-...` beside the path.
Fails with: `ConfigError`, `CorruptionError`, `FormatVersionError`, `DirectoryMissingError`,
`LockedError`, `DiskFullError`, `OSError`, whatever a source raises.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Final, TypeAlias

from meles.engine.backup.building import Building
from meles.engine.backup.format import MAX_VALUE_BYTES
from meles.engine.backup.joining import check_chain, joined
from meles.engine.backup.reading import Readable, StreamReader
from meles.engine.errors import ConfigError
from meles.engine.fs.staging import Staging
from meles.engine.fs.streams import open_stream
from meles.engine.options import Options
from meles.engine.reports import RestoreReport

log = logging.getLogger("meles.restore")
_MOST_STREAMS: Final = 1000  # each has a descriptor and a frame in memory

Source: TypeAlias = "str | os.PathLike[str] | Readable"


def check_streams(sources: Source | Iterable[Source]) -> RestoreReport:
    """Read everything; see `meles.check_backup`."""
    with ExitStack() as opened:
        streams = _streams(sources, opened, MAX_VALUE_BYTES)
        entries = sum(len(batch) for batch in joined(streams))
        return RestoreReport(None, streams[-1].start.token, entries)


def restore_streams(
    sources: Source | Iterable[Source], path: str, options: Options
) -> RestoreReport:
    """See `meles.restore`."""
    if options.value_dir is not None:
        raise ConfigError(
            f"value_dir={options.value_dir!r}: a restored database is one directory",
            hint="restore without value_dir",
        )
    with ExitStack() as opened:
        staging = opened.enter_context(Staging(path, "restoring"))
        for leftover in staging.leftovers:
            log.warning("%s is left of a restore that was cut short; it can be removed", leftover)
        streams = _streams(sources, opened, options.value_log_file_size)
        newest = streams[-1].start
        building = opened.enter_context(Building(staging.directory, options))
        for batch in joined(streams):
            building.add(batch)
        building.finish(newest.token, newest.banned)
        staging.put_in_place()
        return RestoreReport(staging.path, newest.token, building.entries, tuple(staging.leftovers))


def _streams(
    sources: Source | Iterable[Source], opened: ExitStack, largest: int
) -> list[StreamReader]:
    """The streams with their beginnings read; they follow one another."""
    if isinstance(sources, Iterable) and not isinstance(sources, str) and not _reads(sources):
        given: list[Any] = list(sources)
    else:
        given = [sources]
    if not 0 < len(given) <= _MOST_STREAMS:
        raise ConfigError(
            f"{len(given):,} backups; from 1 to {_MOST_STREAMS:,} can be restored together",
            hint="give the full backup and its increments",
        )
    streams: list[StreamReader] = []
    for number, source in enumerate(given, 1):
        if isinstance(source, str | os.PathLike):
            file: Readable = opened.enter_context(open_stream(source))
            name: object = os.fspath(source)
        else:
            file, name = source, getattr(source, "name", None)
        if not _reads(file):
            raise TypeError(f"a backup is a path or a file of bytes, not {type(source).__name__}")
        if isinstance(file, io.TextIOBase):
            raise TypeError("a backup is a file of bytes: this one was opened in text mode")
        path = name if isinstance(name, str) else f"<stream {number}>"
        streams.append(StreamReader(file, path, largest=largest))
    check_chain(streams)
    return streams


def _reads(source: object) -> bool:
    """Whether it is a file, which one may iterate over, too."""
    return hasattr(source, "read")

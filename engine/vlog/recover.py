"""The newest value-log file after a crash: where its entries end, and sealing it there.

Runs in: supervisor, while nothing else has the file open or mapped.
Invariants: (1) looking changes nothing; (2) bytes are cut only where a complete search found no
valid entry behind them: damage in the middle never costs what follows it; (3) a recovered file is
sealed and never appended to, so no address is ever used twice.
Fails with: `CorruptionError` (missing, or another file's header), `FormatVersionError`, `OSError`.

Which entries matter is not known here: a frame of the write-ahead log whose pointer does not check
out counts as damage there.
"""

from __future__ import annotations

from dataclasses import dataclass

from meles.engine.codec.header import HEADER_BYTES
from meles.engine.crypt.keys import cipher_for
from meles.engine.errors import CorruptionError, InvariantError
from meles.engine.fs.files import Directory, File
from meles.engine.fs.names import Kind, file_name
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.layout import ENTRY_BYTES, Trailer, described, more_of
from meles.engine.vlog.reader import open_vlog, read_trailer, unsealed_header
from meles.engine.vlog.scan import Walk, walk


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an unsealed file holds. Offsets and sizes in bytes.

    `end`, `entries` and `lost` are what `seal_recovered` takes; `cut_bytes` lie behind `end`.
    `holes` are (offset, length) of damage before `end`; `clean_end` and `clean_entries` describe
    the part before the first. The caller may seal at `clean_end` instead if no table and no frame
    it keeps refers to anything behind it. `sealed` says that a complete trailer was already there,
    only not in the MANIFEST. Entries are counted from the `start` the caller gave.
    """

    end: int
    entries: int
    cut_bytes: int
    clean_end: int
    clean_entries: int
    holes: tuple[tuple[int, int], ...] = ()
    sealed: bool = False

    @property
    def lost(self) -> int:
        """Bytes before `end` that are no entries."""
        return sum(length for _, length in self.holes)


def recover_tail(
    directory: Directory, file_id: int, start: int = HEADER_BYTES, known: VlogMeta | None = None
) -> Recovered:
    """Walk the entries of an unsealed file from `start`, a place known to begin one (or its end).

    `known` is what the MANIFEST says of the file.

    A file that never got its first bytes (empty, or zeros where the header belongs) holds nothing,
    and is no damage: its creation was not synced before the crash.
    """
    path = directory.join(file_name(Kind.VLOG, file_id))
    with open_vlog(directory, file_id) as file:
        size = file.size()
        header = unsealed_header(file, file_id, path, known)
        cipher_for(directory.keys, header, path)  # refuses here, with nothing touched
        stop = _data_end(file, size, header.seed, path)
        sealed = stop < size
        if stop <= HEADER_BYTES:
            cut = 0 if sealed else max(size - HEADER_BYTES, 0)
            return Recovered(HEADER_BYTES, 0, cut, HEADER_BYTES, 0, (), sealed)
        start = max(HEADER_BYTES, start)
        if start > stop:
            raise CorruptionError(
                f"file ends before byte {start}, which it once had",
                path=path, offset=stop, kind="vlg file",
            )  # fmt: skip
        with memoryview(file.map(stop)) as view:
            found = walk(view, file_id, stop, start, more_of(header.key_id))
    return _judge(found, stop, sealed)


def _judge(found: Walk, stop: int, sealed: bool) -> Recovered:
    end, holes = found.end, found.holes
    if sealed and end < stop:
        holes = (*holes, (end, stop - end))
        end = stop
    return Recovered(
        end, found.entries, stop - end, found.clean_end, found.clean_entries, holes, sealed
    )


def seal_recovered(
    directory: Directory,
    file_id: int,
    end: int,
    entries: int,
    lost: int = 0,
    known: VlogMeta | None = None,
) -> VlogMeta:
    """Cut the file to `end`, write its trailer, sync. The caller syncs nothing more.

    Nothing may map the file. `entries` are those before `end`, `lost` the bytes that are none.
    """
    path = directory.join(file_name(Kind.VLOG, file_id))
    with open_vlog(directory, file_id, write=True) as file:
        header = unsealed_header(file, file_id, path, known)
        size = file.size()
        if not HEADER_BYTES <= end <= max(size, HEADER_BYTES):
            raise InvariantError(f"{path} of {size} bytes cannot be sealed at {end}")
        if entries < 0 or lost < 0 or entries * ENTRY_BYTES + lost > end - HEADER_BYTES:
            raise InvariantError(
                f"{path}: {entries} entries do not fit {end} bytes, {lost} of them lost"
            )
        file.pwrite(header.encode(), 0)
        file.truncate(end)
        trailer = Trailer(end, entries, end, lost=lost)
        file.pwrite(trailer.encode(header.seed), end)
        file.sync()
    return described(header, (file_id,), trailer)


def _data_end(file: File, size: int, seed: int, path: str) -> int:
    """Where entries may end: before a complete trailer, else the end of the file."""
    try:
        trailer = read_trailer(file, size, seed, path)
    except CorruptionError:
        return size
    if trailer.maps_count:
        raise InvariantError(f"{path} was made by GC: it is sealed from the start")
    return trailer.data_end

"""Read values from a physical value-log file that is no longer appended to.

Runs in: supervisor (reads) and value-log GC workers (copies).
Owns: the mapping of a sealed file, the descriptor of an unsealed one.
Invariants: (1) every value is checked under its logical address before it is returned; (2) a sealed
file is opened only if header, size, trailer and offset maps agree with each other and with the
MANIFEST; (3) the bytes stay readable while any reference lives, also after the file is unlinked.
Fails with: `CorruptionError`, `FormatVersionError`, `EncryptionKeyError`; after `close`,
`ClosedError`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from mmap import mmap
from operator import add, ge
from typing import Any, Final

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.entry import ValuePointer
from meles.engine.codec.header import HEADER_BYTES, MAGIC_VLOG, FileHeader, decode_header
from meles.engine.crypt.file_cipher import FileCipher
from meles.engine.crypt.keys import SALT_BYTES, KeyRing, cipher_for
from meles.engine.errors import ClosedError, CorruptionError
from meles.engine.fs.files import AROUND_BYTES, Directory, File, forget_pages
from meles.engine.fs.names import Kind, file_name
from meles.engine.fs.pages import PageMarks, Pages
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.kernel import NATIVE
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.layout import (
    CHECKED_FROM,
    ENTRY,
    ENTRY_BYTES,
    KIND_FILE,
    KIND_MAPS,
    POINTER,
    TRAILER_BYTES,
    OffsetMap,
    Trailer,
    damaged_value,
    decode_maps,
    decode_trailer,
    described,
    entry_error,
    more_of,
    value_of,
)
from meles.engine.vlog.scan import run_of_entries, walk
from meles.engine.vlog.sealed_entry import open_entry, opened_entry

_BATCH: Final = 4096  # entries checked at a time
_STEP_BYTES: Final = 1 << 20


def open_vlog(directory: Directory, file_id: int, *, write: bool = False) -> File:
    """Open a value-log file. `CorruptionError` naming it when it is missing."""
    name = file_name(Kind.VLOG, file_id)
    try:
        return directory.open(name, write=write)
    except FileNotFoundError as error:
        raise CorruptionError(
            "value-log file is missing",
            path=directory.join(name),
            offset=0,
            kind="value log missing",
        ) from error


def check_header(data: bytes, file_id: int, path: str) -> FileHeader:
    """Parse the header and check that the file is the one its name says."""
    header = decode_header(data, MAGIC_VLOG, path)
    if header.file_id != file_id:
        raise CorruptionError(
            f"file says it is number {header.file_id}", path=path, offset=0, kind="vlg header"
        )
    return header


def _check_known(header: FileHeader, known: VlogMeta, path: str) -> None:
    """A sealed file has a salt of its own: no other of its number passes for it."""
    if header != header_of(known):
        raise CorruptionError(
            "file is not the one the MANIFEST knows", path=path, offset=0, kind="vlg header"
        )


def header_of(meta: VlogMeta) -> FileHeader:
    """The header of the file that the MANIFEST knows."""
    return FileHeader(MAGIC_VLOG, meta.id, key_id=meta.key_id, salt=meta.salt or bytes(SALT_BYTES))


def unsealed_header(
    file: File, file_id: int, path: str, known: VlogMeta | None = None
) -> FileHeader:
    """The header; the one it was to have if it was never written (nothing, or zeros, is there)."""
    data = file.pread(HEADER_BYTES, 0)
    if len(data) < HEADER_BYTES or not any(data):
        return FileHeader(MAGIC_VLOG, file_id) if known is None else header_of(known)
    header = check_header(data, file_id, path)
    if known is not None:
        _check_known(header, known, path)
    return header


def read_trailer(file: File, size: int, seed: int, path: str) -> Trailer:
    data = file.pread(TRAILER_BYTES, max(size - TRAILER_BYTES, 0))
    return decode_trailer(data, seed, size, path)


def load_meta(directory: Directory, physical_id: int) -> VlogMeta:
    """What a sealed file says of itself, fully checked but for the entries; for installing it."""
    path = directory.join(file_name(Kind.VLOG, physical_id))
    with open_vlog(directory, physical_id) as file:
        size = file.size()
        header = check_header(file.pread(HEADER_BYTES, 0), physical_id, path)
        seed = header.seed
        trailer = read_trailer(file, size, seed, path)
        section = memoryview(file.pread(trailer.maps_length, trailer.maps_offset))
    maps = decode_maps(section, trailer, seed, path)
    for old, new in maps.values():
        _check_map(old, new, trailer.data_end, path)
    return described(header, tuple(maps) or (physical_id,), trailer)


def _check_map(old: memoryview, new: memoryview, data_end: int, path: str) -> None:
    """Both columns ascend (entries are copied in order) and point behind the header."""
    for name, column, last in (
        ("old", old, MAX_FILE_BYTES),
        ("new", new, data_end - ENTRY_BYTES),
    ):
        offsets = column.tolist()
        if any(map(ge, offsets, offsets[1:])):
            raise _bad_map(f"{name} offsets do not ascend", data_end, path)
        if offsets and not HEADER_BYTES <= offsets[0] <= offsets[-1] <= last:
            raise _bad_map(f"{name} offsets lie outside the file", data_end, path)


def _bad_map(message: str, data_end: int, path: str) -> CorruptionError:
    return CorruptionError(message, path=path, offset=data_end, kind=KIND_MAPS)


class ValueLogFile:
    """A sealed physical file, mapped; or an unsealed old one, read by `pread`.

    Opened at once, so that it stays readable after it is unlinked.
    """

    __slots__ = (
        "_cipher",
        "_compiled",
        "_data",
        "_end",
        "_file",
        "_lost",
        "_maps",
        "_marks",
        "_more",
        "_view",
        "file_id",
        "logical",
        "meta",
        "path",
    )

    def __init__(self, directory: Directory, meta: VlogMeta, *, pages: Pages | None = None) -> None:
        """`meta.size` of an unsealed file is where its entries end; 0: where the file does.

        `pages` bounds what of a sealed one is resident, whoever reads it.
        """
        self.meta = meta
        self.file_id = meta.id
        self.logical = meta.logical
        self.path = directory.join(file_name(Kind.VLOG, meta.id))
        self._compiled: list[Any] | None = None
        self._data: mmap | None = None
        self._view: memoryview | None = None  # of the same mapping: a slice of it is no copy
        self._maps: dict[int, OffsetMap] = {}
        self._file: File | None = None
        self._lost = 0
        self._more = more_of(meta.key_id)
        self._cipher: FileCipher | None = None
        file = open_vlog(directory, meta.id)
        try:
            self._open(file, directory.keys)
        finally:
            if self._file is None:
                file.close()
        self._marks = self._watched(pages)

    def _watched(self, pages: Pages | None) -> PageMarks | None:
        return None if pages is None or self._data is None else pages.watch(self._data)

    def _open(self, file: File, keys: KeyRing | None) -> None:
        size = file.size()
        if not self.meta.sealed:
            header = unsealed_header(file, self.file_id, self.path, self.meta)
            self._cipher = cipher_for(keys, header, self.path)
            size = max(size, HEADER_BYTES)
            if self.meta.size > size:
                raise self._mismatch(f"file has {size} bytes, entries end at {self.meta.size}")
            self._end = self.meta.size or size
            self._file = file
            return
        header = check_header(file.pread(HEADER_BYTES, 0), self.file_id, self.path)
        self._cipher = cipher_for(keys, header, self.path)
        _check_known(header, self.meta, self.path)
        seed = header.seed
        if size != self.meta.size:
            raise self._mismatch(f"file has {size} bytes, the MANIFEST says {self.meta.size}")
        trailer = read_trailer(file, size, seed, self.path)
        data = file.map(size)
        view = memoryview(data)
        section = view[trailer.maps_offset : trailer.maps_offset + trailer.maps_length]
        self._maps = decode_maps(section, trailer, seed, self.path)
        if (tuple(self._maps) or (self.file_id,)) != tuple(sorted(self.logical)):
            raise self._mismatch(f"file holds logical files {list(self._maps)}")
        if trailer.entries != self.meta.entries:
            raise self._mismatch(f"file has {trailer.entries} entries, not {self.meta.entries}")
        self._end = trailer.data_end
        self._lost = trailer.lost
        self._data, self._view = data, view

    def fetch(self, pointer: bytes, version: int | None = None) -> bytes:
        """The value at an encoded logical address, checked; `version` is checked too when given."""
        maps = self._maps  # before the view: close() lets go of them in the other order
        data, view = self._data, self._view
        if data is None or view is None:
            return self._fetch_unmapped(pointer, version)
        file_id, offset, length = POINTER.unpack(pointer)
        if maps:
            offset = self._moved_to(maps.get(file_id), file_id, offset)
        after = offset + ENTRY_BYTES + length + self._more
        if offset < HEADER_BYTES or after > self._end:
            raise entry_error(self.path, offset, "address lies outside the file")
        crc, stored, found = ENTRY.unpack_from(view, offset)
        if stored != length:
            raise entry_error(self.path, offset, f"entry of {stored} bytes, expected {length}")
        if version is not None and found != version:
            raise entry_error(self.path, offset, f"entry of version {found}, expected {version}")
        if crc32c(view[offset + CHECKED_FROM : after], crc32c(pointer)) != crc:
            raise entry_error(self.path, offset, "value checksum does not match")
        if self._marks is not None:
            self._marks.used(offset, after)
        if self._cipher is not None:
            return open_entry(self._cipher, view[offset:after], pointer, offset, self.path)
        return data[offset + ENTRY_BYTES : after]

    def compiled(self) -> list[Any]:
        """A compiled reader (`NATIVE.ValueFile`) for each logical file of a mapped file, unless
        its values are sealed.
        """
        data = self._data
        if data is None or self._cipher is not None:
            return []
        if self._compiled is not None:
            return self._compiled
        damaged = partial(damaged_value, self.path)
        nothing = memoryview(b"")
        self._compiled = [
            NATIVE.ValueFile(
                data, self._end, logical,
                *((self._maps.get(logical) or (nothing, nothing)) if self._maps else (None, None)),
                damaged, partial(ClosedError, f"{self.path} is closed"), pages=self._marks,
            )
            for logical in self.logical
        ]  # fmt: skip
        return self._compiled

    def read(self, pointer: ValuePointer, version: int | None = None) -> bytes:
        """As `fetch`."""
        return self.fetch(pointer.encode(), version)

    def entries(
        self, logical: int, offsets: Sequence[int], lengths: Sequence[int]
    ) -> list[memoryview]:
        """The whole entries at these addresses of one logical file, each checked: for copying.

        Views into the mapping of a sealed file.
        """
        maps = self._maps
        view = self._view
        if view is None:
            raise self._unreadable()
        places = offsets
        if maps:
            moved_to, columns = self._moved_to, maps.get(logical)
            places = [moved_to(columns, logical, offset) for offset in offsets]
        stops = list(map(add, map(add, places, lengths), repeat(ENTRY_BYTES + self._more)))
        if min(places, default=HEADER_BYTES) < HEADER_BYTES or max(stops, default=0) > self._end:
            lost = (
                a for a, b in zip(places, stops, strict=True) if a < HEADER_BYTES or b > self._end
            )
            raise entry_error(self.path, next(lost), "address lies outside the file")
        heads = list(map(ENTRY.unpack_from, repeat(view), places))
        seeds = map(crc32c, map(POINTER.pack, repeat(logical), offsets, lengths))
        bodies = [view[at + CHECKED_FROM : stop] for at, stop in zip(places, stops, strict=True)]
        crcs = map(crc32c, bodies, seeds)
        for at, length, crc, (stored_crc, stored, _) in zip(
            places, lengths, crcs, heads, strict=True
        ):
            if crc != stored_crc or stored != length:
                raise entry_error(self.path, at, "value checksum does not match")
        return [view[at:stop] for at, stop in zip(places, stops, strict=True)]

    def contents(
        self, logical: int, offsets: Sequence[int], lengths: Sequence[int]
    ) -> Iterator[tuple[int, bytes]]:
        """Version and value at each of these addresses, checked: for writing them in another way
        than they are stored here.
        """
        entries = self.entries(logical, offsets, lengths)
        for entry, offset, length in zip(entries, offsets, lengths, strict=True):
            version = ENTRY.unpack_from(entry)[2]
            yield version, self.fetch(POINTER.pack(logical, offset, length), version)

    def forget_between(self, logical: int, first: int, last: int) -> None:
        """The entries written at these offsets of a logical file, and those between, were read for
        the last time: they need not stay resident.
        """
        columns = self._maps.get(logical)
        if columns is not None:
            first, last = (self._moved_to(columns, logical, at) for at in (first, last))
        if self._data is not None:
            forget_pages(self._data, max(0, first - AROUND_BYTES), last)

    def verify(self) -> int:
        """Check every entry; how many there are. `CorruptionError` at the first bad one.

        Damage that recovery found before it sealed the file is not reported again.
        """
        if self._view is not None and not self._maps:
            return self._verify_run(self._view, self.meta.entries)
        if self._view is not None:
            return self._verify_relocated()
        if self._file is None:
            raise self._unreadable()
        if self._end == HEADER_BYTES:
            return 0
        return self._verify_run(memoryview(self._file.map(self._end)), None)

    def file_crc(self) -> int:
        """CRC-32C of the whole sealed file, as a job's answer has it."""
        view = self._view
        if view is None:
            raise self._unreadable()
        crc = 0
        for at in range(0, len(view), _STEP_BYTES):
            crc = crc32c(view[at : at + _STEP_BYTES], crc)
            if self._data is not None:
                forget_pages(self._data, max(0, at - AROUND_BYTES), at + _STEP_BYTES)
        return crc

    def close(self) -> None:
        """Let go of the file; a second call does nothing. Its memory goes with the last reader."""
        compiled, self._compiled = self._compiled, None
        for part in compiled or ():
            part.close()
        self._data = self._view = None
        if self._marks is not None:
            self._marks.release()
        self._maps = {}
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def _moved_to(self, columns: OffsetMap | None, logical: int, offset: int) -> int:
        """Where GC put the entry that was written at `offset` of `logical`, whose map this is."""
        if columns is not None:
            old, new = columns
            at = bisect_left(old, offset)
            if at < len(old) and old[at] == offset:
                return int(new[at])
        raise entry_error(
            self.path, 0, f"no value of address {offset} of logical file {logical} is kept here"
        )

    def _fetch_unmapped(self, pointer: bytes, version: int | None) -> bytes:
        file = self._file
        if file is None:
            raise self._unreadable()
        file_id, offset, length = POINTER.unpack(pointer)
        size = ENTRY_BYTES + length + self._more
        if file_id != self.file_id or offset < HEADER_BYTES or offset + size > self._end:
            raise entry_error(self.path, offset, "address lies outside the file")
        try:
            entry = file.pread(size, offset)
        except OSError as error:
            raise entry_error(self.path, offset, f"value cannot be read: {error}") from error
        if len(entry) != size:
            raise entry_error(self.path, offset, "file is shorter than it was")
        if self._cipher is not None:
            return opened_entry(self._cipher, entry, pointer, version, offset, self.path)
        return value_of(entry, pointer, version, offset, self.path)

    def _verify_run(self, view: memoryview, expected: int | None) -> int:
        end, entries = run_of_entries(view, self.file_id, HEADER_BYTES, self._end, self._more)
        if end != self._end and self._lost:
            found = walk(view, self.file_id, self._end, end, self._more)
            entries += found.entries
            lost = sum(length for _, length in found.holes) + self._end - found.end
            if lost != self._lost:
                message = f"{lost} bytes are no entries, {self._lost} were when it was sealed"
                raise entry_error(self.path, end, message)
        elif end != self._end:
            raise entry_error(self.path, end, "entry does not check out")
        if expected is not None and entries != expected:
            raise self._mismatch(f"file has {entries} entries, not {expected}")
        return entries

    def _verify_relocated(self) -> int:
        """The maps' entries follow one another without a gap, and each checks under its address."""
        places = list(chain.from_iterable(new for _, new in self._maps.values()))
        edges = [*places, self._end]
        head = ENTRY_BYTES + self._more
        lengths = [b - a - head for a, b in zip(places, edges[1:], strict=True)]
        if edges[0] != HEADER_BYTES or any(length < 0 for length in lengths):
            raise self._mismatch("relocated entries do not follow one another", KIND_MAPS)
        first = 0
        for logical, (old, new) in self._maps.items():
            _check_map(old, new, self._end, self.path)
            for at in range(0, len(old), _BATCH):
                offsets = old[at : at + _BATCH].tolist()
                self.entries(logical, offsets, lengths[first : first + len(offsets)])
                first += len(offsets)
        return self.meta.entries

    def _mismatch(self, message: str, kind: str = KIND_FILE) -> CorruptionError:
        return CorruptionError(message, path=self.path, offset=0, kind=kind)

    def _unreadable(self) -> ClosedError:
        return ClosedError(f"{self.path} is closed")

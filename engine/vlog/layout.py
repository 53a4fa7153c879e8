"""Byte layout of a value-log file: entry header, offset maps, trailer. See FORMAT.md beside it.

Runs in: supervisor and workers.
Invariants: (1) an entry is checked under its logical address, so it may be copied verbatim into
another file and fails anywhere else; (2) maps and trailer are checked under the physical file's
header, so they fail in any other file; (3) no length, offset or count read here is used unchecked.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from typing import Final, TypeAlias

from meles.engine.codec.checksum import crc32c
from meles.engine.codec.entry import POINTER_BYTES
from meles.engine.codec.header import HEADER_BYTES, FileHeader
from meles.engine.crypt.file_cipher import TAG_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Buffer
from meles.engine.manifest.version import VlogMeta

ENTRY: Final = struct.Struct("<IIQ")  # crc, value length, version
ENTRY_BYTES: Final = ENTRY.size
SEEDED: Final = struct.Struct("<IIIQ")  # logical file, logical offset, value length, version
SERIAL: Final = struct.Struct("<I")  # of the append that wrote an entry of a sealed file
POINTER: Final = struct.Struct("<III")  # as codec.entry.ValuePointer
SEAL_BYTES: Final = SERIAL.size + TAG_BYTES  # what an entry takes more in a sealed file
CHECKED_FROM: Final = 8  # an entry's checksum covers it from here on: version and value
MAX_LOGICAL_ID: Final = (1 << 32) - 1  # a pointer holds the file id in a u32

MAGIC_TRAILER: Final = b"MELESVLT"
_TRAILER: Final = struct.Struct("<QQQQIIQ4s")  # data end .. reserved; checksum and magic follow
_TRAILER_END: Final = struct.Struct("<I8s")
TRAILER_BYTES: Final = 64
_MAP_HEAD: Final = struct.Struct("<II")  # logical file, entries
MAP_HEAD_BYTES: Final = _MAP_HEAD.size
MAP_ENTRY_BYTES: Final = 8  # an old and a new offset
_WORD: Final = "I"  # four bytes, checked below

assert ENTRY_BYTES == 16, "FORMAT.md says 16"  # noqa: S101
assert POINTER.size == POINTER_BYTES, "one pointer layout"  # noqa: S101
assert _TRAILER.size + _TRAILER_END.size == TRAILER_BYTES, "FORMAT.md says 64"  # noqa: S101
assert array(_WORD).itemsize * 2 == MAP_ENTRY_BYTES, "offsets are u32"  # noqa: S101

KIND_FILE: Final = "vlg file"
KIND_TRAILER: Final = "vlg trailer"
KIND_MAPS: Final = "vlg offset map"
KIND_VALUE: Final = "value"

OffsetMap: TypeAlias = tuple[memoryview, memoryview]  # old offsets ascending, new offsets


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last 64 bytes of a sealed file. Offsets and lengths in bytes from the file's start.

    `lost` are bytes before `data_end` that were known to be no entries when it was sealed.
    """

    data_end: int
    entries: int
    maps_offset: int
    maps_length: int = 0
    maps_count: int = 0
    maps_crc: int = 0
    lost: int = 0

    def encode(self, seed: int) -> bytes:
        """`seed` is the seed of the file's header."""
        fixed = _TRAILER.pack(
            self.data_end, self.entries, self.maps_offset, self.maps_length,
            self.maps_count, self.maps_crc, self.lost, bytes(4),
        )  # fmt: skip
        return fixed + _TRAILER_END.pack(crc32c(fixed, seed), MAGIC_TRAILER)

    @property
    def file_size(self) -> int:
        return self.maps_offset + self.maps_length + TRAILER_BYTES


def described(
    header: FileHeader, logical: tuple[int, ...], trailer: Trailer | None = None
) -> VlogMeta:
    """What the MANIFEST says of a file; without a trailer it is not sealed yet."""
    salt = header.salt if header.key_id else b""
    if trailer is None:
        return VlogMeta(header.file_id, logical, key_id=header.key_id, salt=salt)
    return VlogMeta(
        header.file_id, logical, True, trailer.file_size, trailer.entries, header.key_id, salt
    )


def more_of(key_id: int) -> int:
    """Bytes an entry takes beside header and value, in a file sealed with this data key."""
    return SEAL_BYTES if key_id else 0


def decode_trailer(data: Buffer, seed: int, size: int, path: str) -> Trailer:
    """Parse and check the last bytes of a file of `size` bytes."""
    where = max(size - TRAILER_BYTES, 0)

    def bad(message: str) -> CorruptionError:
        return CorruptionError(message, path=path, offset=where, kind=KIND_TRAILER)

    if len(data) != TRAILER_BYTES or size < HEADER_BYTES + TRAILER_BYTES:
        raise bad("sealed file is too short for its trailer")
    crc, magic = _TRAILER_END.unpack_from(data, _TRAILER.size)
    if magic != MAGIC_TRAILER:
        raise bad("sealed file does not end with a trailer")
    if crc != crc32c(data[: _TRAILER.size], seed):
        raise bad("trailer checksum does not match")
    *fields, _ = _TRAILER.unpack_from(data)
    trailer = Trailer(*fields)
    if (
        trailer.file_size != size
        or trailer.maps_offset != trailer.data_end
        or trailer.data_end < HEADER_BYTES
        or trailer.entries * ENTRY_BYTES + trailer.lost > trailer.data_end - HEADER_BYTES
    ):
        raise bad("trailer contradicts itself or the file's size")
    return trailer


def encode_maps(maps: list[tuple[int, array[int], array[int]]]) -> bytes:
    """The map section: (logical file, old offsets, new offsets), by ascending logical id."""
    heads = b"".join(_MAP_HEAD.pack(logical, len(old)) for logical, old, _ in maps)
    return heads + b"".join(old.tobytes() + new.tobytes() for _, old, new in maps)


def maps_bytes(files: int, entries: int) -> int:
    """Size of a map section of so many logical files and entries."""
    return files * MAP_HEAD_BYTES + entries * MAP_ENTRY_BYTES


def decode_maps(data: memoryview, trailer: Trailer, seed: int, path: str) -> dict[int, OffsetMap]:
    """The map section as views into `data`; empty for a file that was appended to."""

    def bad(message: str) -> CorruptionError:
        return CorruptionError(message, path=path, offset=trailer.maps_offset, kind=KIND_MAPS)

    count = trailer.maps_count
    if count == 0:
        if trailer.maps_length:
            raise bad("a map section without maps")
        return {}
    if len(data) != trailer.maps_length or crc32c(data, seed) != trailer.maps_crc:
        raise bad("offset map checksum does not match")
    if len(data) != maps_bytes(count, trailer.entries):
        raise bad("offset maps do not fill their section")
    heads = list(_MAP_HEAD.iter_unpack(data[: count * MAP_HEAD_BYTES]))
    if sum(entries for _, entries in heads) != trailer.entries:
        raise bad("offset maps do not cover all entries")
    words = data[count * MAP_HEAD_BYTES :].cast(_WORD)
    maps: dict[int, OffsetMap] = {}
    at = 0
    for logical, entries in heads:
        maps[logical] = (words[at : at + entries], words[at + entries : at + 2 * entries])
        at += 2 * entries
    if list(maps) != sorted(maps) or len(maps) != count:
        raise bad("offset maps are not in order")
    return maps


def entry_error(path: str, offset: int, message: str) -> CorruptionError:
    return CorruptionError(message, path=path, offset=offset, kind=KIND_VALUE)


def damaged_value(path: str, what: str, offset: int) -> CorruptionError:
    """As `entry_error`, in the order in which the compiled kernel asks for it."""
    return entry_error(path, offset, what)


def value_of(entry: bytes, pointer: bytes, version: int | None, offset: int, path: str) -> bytes:
    """The value in the bytes of one whole entry, checked under its address."""
    check_entry(entry, len(entry) - ENTRY_BYTES, pointer, version, offset, path)
    return entry[ENTRY_BYTES:]


def check_entry(
    entry: bytes, length: int, pointer: bytes, version: int | None, offset: int, path: str
) -> None:
    """A whole entry is that of a value of `length` bytes, of this version, under its address."""
    crc, stored, found = ENTRY.unpack_from(entry)
    if stored != length:
        raise entry_error(path, offset, f"entry of {stored} bytes where {length} were written")
    if version is not None and found != version:
        raise entry_error(path, offset, f"entry of version {found}, expected {version}")
    if crc32c(memoryview(entry)[CHECKED_FROM:], crc32c(pointer)) != crc:
        raise entry_error(path, offset, "value checksum does not match")

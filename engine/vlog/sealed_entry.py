"""One sealed entry of a value-log file: header, serial number, sealed value. See FORMAT.md.

Runs in: supervisor and workers.
Invariants: (1) the associated data of a value is its address and version, as its checksum has them:
swapped, moved or of another version it does not open; (2) a nonce is the place in the file and a
serial number.
Fails with: `CorruptionError`.
"""

from __future__ import annotations

from typing import Final

from meles.engine.codec.checksum import crc32c
from meles.engine.crypt.file_cipher import FileCipher, SealBroken, What
from meles.engine.fs.files import Buffer
from meles.engine.vlog.layout import (
    CHECKED_FROM,
    ENTRY,
    ENTRY_BYTES,
    SEAL_BYTES,
    SEEDED,
    SERIAL,
    check_entry,
    entry_error,
)

_SEALED_FROM: Final = ENTRY_BYTES + SERIAL.size


def seal_entry(
    cipher: FileCipher,
    address: tuple[int, int],
    value: bytes,
    version: int,
    place: int,
    serial: int,
) -> bytes:
    """The whole entry of a value whose logical address is (file, offset), to be put at `place`."""
    seeded = SEEDED.pack(*address, len(value), version)
    sealed = SERIAL.pack(serial) + cipher.seal(value, What.VALUE, place, seeded, serial)
    return ENTRY.pack(crc32c(sealed, crc32c(seeded)), len(value), version) + sealed


def open_entry(cipher: FileCipher, entry: Buffer, pointer: bytes, place: int, path: str) -> bytes:
    """The value in a whole entry, whose checksum held, under its encoded logical address."""
    serial = SERIAL.unpack_from(entry, ENTRY_BYTES)[0]
    seeded = pointer + bytes(entry[CHECKED_FROM:ENTRY_BYTES])
    try:
        return cipher.open(bytes(entry[_SEALED_FROM:]), What.VALUE, place, seeded, serial)
    except SealBroken as error:
        raise entry_error(path, place, str(error)) from None


def opened_entry(
    cipher: FileCipher, entry: bytes, pointer: bytes, version: int | None, offset: int, path: str
) -> bytes:
    """The value in the bytes of one whole entry, checked under its address, as `value_of`."""
    check_entry(entry, len(entry) - ENTRY_BYTES - SEAL_BYTES, pointer, version, offset, path)
    return open_entry(cipher, entry, pointer, offset, path)

"""A sealed value opens under its own address and version, at its place, and nowhere else, also
where every checksum was put right.
"""

from __future__ import annotations

import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import MAGIC_VLOG, FileHeader
from meles.engine.crypt.file_cipher import FileCipher
from meles.engine.errors import CorruptionError
from meles.engine.vlog.layout import CHECKED_FROM, ENTRY, POINTER, SERIAL
from meles.engine.vlog.sealed_entry import open_entry, opened_entry, seal_entry

CIPHER = FileCipher(bytes(range(32)), FileHeader(MAGIC_VLOG, 9, key_id=1, salt=b"s" * 16))
VALUE = b"a value"
ADDRESS, VERSION, PLACE, SERIAL_NUMBER = (3, 640), 17, 128, 5
ENTRY_OF_IT = seal_entry(CIPHER, ADDRESS, VALUE, VERSION, PLACE, SERIAL_NUMBER)
POINTER_TO_IT = POINTER.pack(*ADDRESS, len(VALUE))


def mended(entry: bytes, pointer: bytes) -> bytes:
    return crc32c(entry[CHECKED_FROM:], crc32c(pointer)).to_bytes(4, "little") + entry[4:]


def test_it_opens_as_it_was_sealed() -> None:
    assert open_entry(CIPHER, ENTRY_OF_IT, POINTER_TO_IT, PLACE, "x") == VALUE
    assert opened_entry(CIPHER, ENTRY_OF_IT, POINTER_TO_IT, VERSION, PLACE, "x") == VALUE
    assert VALUE not in ENTRY_OF_IT


def changed(**fields: int) -> tuple[bytes, bytes, int]:
    """Entry, pointer and place with another number somewhere, and a checksum that fits."""
    entry = bytearray(ENTRY_OF_IT)
    version = fields.get("version", VERSION)
    entry[: ENTRY.size] = ENTRY.pack(0, len(VALUE), version)
    serial = fields.get("serial", SERIAL_NUMBER)
    entry[ENTRY.size : ENTRY.size + SERIAL.size] = SERIAL.pack(serial)
    file, offset = fields.get("file", ADDRESS[0]), fields.get("offset", ADDRESS[1])
    pointer = POINTER.pack(file, offset, len(VALUE))
    return mended(bytes(entry), pointer), pointer, fields.get("place", PLACE)


@pytest.mark.parametrize(
    "field", [{"version": 18}, {"file": 4}, {"offset": 641}, {"place": 129}, {"serial": 6}]
)
def test_it_opens_as_nothing_else(field: dict[str, int]) -> None:
    assert opened_entry(CIPHER, *changed()[:2], VERSION, PLACE, "x") == VALUE
    entry, pointer, place = changed(**field)
    version = field.get("version", VERSION)
    with pytest.raises(CorruptionError, match="the seal is broken") as caught:
        opened_entry(CIPHER, entry, pointer, version, place, "x")
    assert caught.value.offset == place

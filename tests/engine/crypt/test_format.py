"""FORMAT.md's example is what the code reads, its tables say where the fields lie."""

from __future__ import annotations

import hmac
import re
import struct
from pathlib import Path

import meles.engine.crypt
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import (
    HEADER_BYTES,
    MAGIC_REGISTRY,
    MAGIC_TABLE,
    FileHeader,
    decode_header,
)
from meles.engine.crypt import keys
from meles.engine.crypt.file_cipher import NONCE_BYTES, TAG_BYTES, FileCipher, What, derive
from meles.engine.crypt.keys import DataKey, KeyRing
from meles.engine.crypt.registry import decode_registry
from meles.engine.errors import CorruptionError, EncryptionKeyError

TEXT = Path(meles.engine.crypt.__path__[0], "FORMAT.md").read_text()
EXAMPLE = bytes.fromhex(TEXT.split("```hex KEYREGISTRY\n")[1].split("```")[0])
MASTER = bytes(range(16))


def test_the_example() -> None:
    ring = decode_registry(EXAMPLE, MASTER, "x")
    key = ring.keys[1]
    assert (ring.active, ring.mixed, list(ring.keys)) == (1, False, [1])
    assert key == DataKey(1, 1_700_000_000.0, bytes(range(0x80, 0xA0)))
    assert EXAMPLE[32:48] == bytes(range(0x20, 0x30))
    assert EXAMPLE[72:84] == bytes(range(0x40, 0x4C))


def test_the_sizes() -> None:
    ring = keys._RING.size + keys._KEY.size
    assert f"| {keys._KEY.size} x keys |" in TEXT
    assert len(EXAMPLE) == HEADER_BYTES + 8 + NONCE_BYTES + ring + TAG_BYTES


def test_every_what_has_its_row() -> None:
    table = TEXT.split("| what | sealed |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ((?:\d, )*\d) \|", table, re.MULTILINE)
    assert {int(number) for row in rows for number in row.split(", ")} == set(What)


def test_no_byte_of_the_example_can_be_another() -> None:
    for at in range(len(EXAMPLE)):
        data = bytearray(EXAMPLE)
        data[at] ^= 0x10
        with pytest.raises((CorruptionError, EncryptionKeyError)):
            decode_registry(bytes(data), MASTER, "x")
        with pytest.raises(CorruptionError):
            decode_registry(EXAMPLE[:at], MASTER, "x")


def test_no_byte_of_what_is_sealed_can_be_another_under_a_checksum_that_fits() -> None:
    """What somebody does who can write to it: made `mixed`, it would take files without a seal."""
    header = decode_header(EXAMPLE[:HEADER_BYTES], MAGIC_REGISTRY, "x")
    for at in range(HEADER_BYTES + 8, len(EXAMPLE)):
        sealed = bytearray(EXAMPLE[HEADER_BYTES + 8 :])
        sealed[at - HEADER_BYTES - 8] ^= 1
        prefix = struct.pack("<II", len(sealed), crc32c(sealed, header.seed ^ len(sealed)))
        with pytest.raises(EncryptionKeyError):
            decode_registry(EXAMPLE[:HEADER_BYTES] + prefix + sealed, MASTER, "x")


def test_a_seal_is_what_the_page_says() -> None:
    """Nonce and associated data, made here from the page's table."""
    header = FileHeader(MAGIC_TABLE, 7, key_id=1, salt=b"s" * 16)
    cipher = FileCipher(bytes(range(32)), header)
    about = b"MELESSST" + (7).to_bytes(8, "little")
    by_hand = AESGCM(derive(bytes(range(32)), header.salt, b"meles file " + about))
    for what, place, serial, more in [(What.BLOCK, 64, 0, b"more"), (What.VALUE, 1 << 40, 3, b"")]:
        bound = about + bytes([what]) + place.to_bytes(8, "little")
        nonce = place.to_bytes(8, "little") + serial.to_bytes(4, "little")
        sealed = cipher.seal(b"data", what, place, more, serial)
        assert sealed == by_hand.encrypt(nonce, b"data", bound + more)
        again = cipher.seal_again(b"data", what, place)
        assert by_hand.decrypt(again[:12], again[12:], bound) == b"data"
        end_key = derive(bytes(range(32)), header.salt, b"meles end " + about)
        marked = cipher.mark(b"data", what, place)
        assert marked == hmac.digest(end_key, bound + b"data", "sha256")[:16]


def test_keys_are_derived_as_rfc_5869_says() -> None:
    """Its third test case: no salt, no purpose."""
    made = derive(b"\x0b" * 22, b"", b"")
    assert made.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_a_ring_shows_no_key() -> None:
    ring = KeyRing([DataKey(1, 2.0, b"CANARY".ljust(32))], 1)
    assert "CANARY" not in f"{ring!r} {ring.keys!r} {vars(ring)!r}"
    assert KeyRing.unpack(ring.pack()).keys == ring.keys


@pytest.mark.parametrize("change", [b"", b"\0", b"\0" * 9 + b"x", b"\1" + bytes(8)])
def test_what_is_no_ring_is_refused(change: bytes) -> None:
    with pytest.raises(ValueError, match="no data keys"):
        KeyRing.unpack(change)
    packed = KeyRing([DataKey(1, 2.0, bytes(32))], 1).pack()
    for wrong in (packed[:-1], packed + packed[9:], b"\7" + packed[1:]):
        with pytest.raises(ValueError, match="no data keys"):
            KeyRing.unpack(wrong)

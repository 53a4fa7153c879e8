"""The file header: what is written is read, and nothing else is believed."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import (
    HEADER_BYTES,
    MAGIC_MANIFEST,
    MAGIC_TABLE,
    MAGIC_VLOG,
    MAGIC_WAL,
    FileHeader,
    decode_header,
)
from meles.engine.errors import CorruptionError, FormatVersionError

MAGICS = (MAGIC_WAL, MAGIC_TABLE, MAGIC_VLOG, MAGIC_MANIFEST)
U64 = (1 << 64) - 1

headers = st.builds(
    FileHeader,
    magic=st.sampled_from(MAGICS),
    file_id=st.integers(0, U64),
    external=st.integers(0, 0xFFFF),
    key_id=st.integers(0, U64),
    salt=st.binary(min_size=16, max_size=16),
)


@given(headers, st.binary(max_size=40))
def test_what_is_written_is_read(header: FileHeader, rest: bytes) -> None:
    encoded = header.encode()
    assert len(encoded) == HEADER_BYTES
    found = decode_header(encoded + rest, header.magic, "x")
    assert found == header
    assert found.seed == header.seed


@given(headers)
def test_the_seed_is_the_stored_checksum(header: FileHeader) -> None:
    assert struct.pack("<I", header.seed) == header.encode()[-4:]


def test_seeds_differ_from_file_to_file() -> None:
    files = [FileHeader(magic, n) for magic in MAGICS for n in range(1, 200)]
    files += [FileHeader(MAGIC_MANIFEST, 0, salt=bytes([n] * 16)) for n in range(1, 200)]
    assert len({header.seed for header in files}) == len(files)


def test_every_damaged_bit_is_found() -> None:
    encoded = FileHeader(MAGIC_TABLE, 7, salt=bytes(range(16))).encode()
    for at, bit in itertools.product(range(HEADER_BYTES), range(8)):
        damaged = bytearray(encoded)
        damaged[at] ^= 1 << bit
        with pytest.raises(CorruptionError) as caught:
            decode_header(bytes(damaged), MAGIC_TABLE, "dir/000007.sst")
        assert (caught.value.path, caught.value.offset) == ("dir/000007.sst", 0)
        assert caught.value.kind == "sst header"


@given(st.binary(max_size=200), st.sampled_from(MAGICS))
def test_anything_else_is_refused(data: bytes, magic: bytes) -> None:
    with pytest.raises((CorruptionError, FormatVersionError)):
        decode_header(data, magic, "x")


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1])
def test_a_short_file_is_damage(size: int) -> None:
    with pytest.raises(CorruptionError, match="shorter than its header"):
        decode_header(FileHeader(MAGIC_WAL, 1).encode()[:size], MAGIC_WAL, "x")


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(CorruptionError, match="begins with b'MELESWAL', expected b'MELESSST'"):
        decode_header(FileHeader(MAGIC_WAL, 1).encode(), MAGIC_TABLE, "x")


def test_a_newer_version_is_named() -> None:
    newer = FileHeader(MAGIC_WAL, 1, version=2).encode()
    with pytest.raises(
        FormatVersionError, match="x has format version 2, this meles reads up to 1"
    ):
        decode_header(newer, MAGIC_WAL, "x")


def test_a_newer_version_is_named_whatever_became_of_the_rest() -> None:
    newer = MAGIC_WAL + struct.pack("<H", 9) + bytes(range(54))
    with pytest.raises(FormatVersionError, match="version 9"):
        decode_header(newer, MAGIC_WAL, "x")


def test_version_0_never_existed() -> None:
    with pytest.raises(FormatVersionError, match="never existed"):
        decode_header(FileHeader(MAGIC_WAL, 1, version=0).encode(), MAGIC_WAL, "x")


def test_reserved_bytes_are_ignored_but_covered() -> None:
    encoded = bytearray(FileHeader(MAGIC_WAL, 1).encode())
    encoded[50] = 1
    with pytest.raises(CorruptionError, match="checksum"):
        decode_header(bytes(encoded), MAGIC_WAL, "x")
    encoded[60:] = struct.pack("<I", crc32c(bytes(encoded[:60])))
    assert decode_header(bytes(encoded), MAGIC_WAL, "x") == FileHeader(MAGIC_WAL, 1)

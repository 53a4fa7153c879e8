"""CRC-32C and XXH64 in C against the libraries, at every length and alignment."""

from __future__ import annotations

import random

import crc32c as crc32c_library
import pytest
import xxhash
from twins import NATIVE, needs_native

pytestmark = needs_native
MOST = 4096


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(MOST + 64)


@pytest.mark.parametrize("by_table", [False, True], ids=["instruction", "table"])
def test_crc32c_of_every_length(data: bytes, by_table: bool) -> None:
    view = memoryview(data)
    for size in range(MOST + 1):
        start = size * 0x9E3779B1 & 0xFFFFFFFF if size % 3 else 0
        part = view[size % 32 : size % 32 + size]
        assert NATIVE.crc32c(part, start, by_table=by_table) == crc32c_library.crc32c(part, start)


@pytest.mark.parametrize("by_table", [False, True], ids=["instruction", "table"])
def test_crc32c_at_every_alignment(data: bytes, by_table: bool) -> None:
    view = memoryview(data)
    lengths = [*range(40), 255, 256, 257, 767, 768, 769, 775, 1535, 1536, 1537, 2304, 4000]
    for at in range(33):
        for size in lengths:
            part = view[at : at + size]
            expected = crc32c_library.crc32c(part, 5)
            assert NATIVE.crc32c(part, 5, by_table=by_table) == expected


def test_crc32c_is_chained(data: bytes) -> None:
    for cut in (0, 1, 7, 8, 9, 767, 768, 3000, len(data)):
        for by_table in (False, True):
            head = NATIVE.crc32c(data[:cut], by_table=by_table)
            whole = NATIVE.crc32c(data[cut:], head, by_table=not by_table)
            assert whole == crc32c_library.crc32c(data)


def test_xxh64_of_every_length(data: bytes) -> None:
    for size in range(MOST + 1):
        part = data[size % 32 : size % 32 + size]
        assert NATIVE.key_hash(part) == xxhash.xxh64_intdigest(part)


@pytest.mark.parametrize("wrong", [None, "text", 5, [1]])
def test_what_is_no_bytes_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError):
        NATIVE.crc32c(wrong)
    with pytest.raises(TypeError):
        NATIVE.key_hash(wrong)


def test_numbers_out_of_range_are_refused() -> None:
    for start in (-1, 1 << 32, 1 << 70):
        with pytest.raises(OverflowError):
            NATIVE.crc32c(b"", start)
    with pytest.raises((ValueError, BufferError)):
        NATIVE.crc32c(memoryview(b"12345678")[::2])

"""CRC-32C and XXH64 in C against the libraries, at every length and alignment."""

from __future__ import annotations

import ctypes
import random
from itertools import product

import crc32c as crc32c_library
import pytest
import xxhash
from twins import NATIVE, needs_native

pytestmark = needs_native
MOST = 4096


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(MOST + 64)


ways = pytest.mark.parametrize("way", [0, 1, 2], ids=["table", "instruction", "folding"])


def needs_way(way: int) -> None:
    if way >= NATIVE.CRC_WAYS:
        pytest.skip("this machine has no instruction for it")


@ways
def test_crc32c_of_every_length(data: bytes, way: int) -> None:
    needs_way(way)
    view = memoryview(data)
    for size in range(MOST + 1):
        start = size * 0x9E3779B1 & 0xFFFFFFFF if size % 3 else 0
        part = view[size % 32 : size % 32 + size]
        assert NATIVE.crc32c(part, start, way=way) == crc32c_library.crc32c(part, start)


@ways
def test_crc32c_at_every_alignment(data: bytes, way: int) -> None:
    needs_way(way)
    view = memoryview(data)
    around = (256, 320, 512, 768, 1536)
    lengths = [*range(40), *(n + by for n in around for by in (-1, 0, 1)), 775, 2304, 4000]
    for at in range(33):
        for size in lengths:
            part = view[at : at + size]
            expected = crc32c_library.crc32c(part, 5)
            assert NATIVE.crc32c(part, 5, way=way) == expected


def test_crc32c_is_chained(data: bytes) -> None:
    for cut in (0, 1, 7, 8, 9, 767, 768, 3000, len(data)):
        for first, second in product(range(NATIVE.CRC_WAYS), repeat=2):
            head = NATIVE.crc32c(data[:cut], way=first)
            whole = NATIVE.crc32c(data[cut:], head, way=second)
            assert whole == crc32c_library.crc32c(data)


def test_crc32c_of_zeros_and_ones() -> None:
    """What cancels out in random bytes does not in these."""
    for size in (256, 319, 320, 512, 767, 768, 1024, 4095, 4096, 65_537, 1 << 20):
        for byte in (b"\0", b"\xff", b"\x80", b"\x01"):
            expected = crc32c_library.crc32c(byte * size, 7)
            for way in range(NATIVE.CRC_WAYS):
                assert NATIVE.crc32c(byte * size, 7, way=way) == expected


@ways
def test_what_is_copied_is_what_was_summed(data: bytes, way: int) -> None:
    needs_way(way)
    view = memoryview(data)
    for size in (*range(1100), *range(1100, MOST + 1, 61)):
        part = view[size % 32 : size % 32 + size]
        found, copy = NATIVE.crc32c_copied(part, 5, way=way)
        assert found == crc32c_library.crc32c(part, 5)
        assert copy == part
        assert ctypes.string_at(copy, size + 1)[size] == 0  # what is behind it


def test_folding_puts_the_upper_halves_away(data: bytes) -> None:
    """All that follows is several times slower otherwise, in the interpreter and in libraries."""
    needs_way(2)
    for size in (256, 257, 511, 1024, 1052, 4096):
        assert not NATIVE.crc32c_leaves_halves(data[:size])


def test_ways_that_are_none(data: bytes) -> None:
    for way in (-1, -(1 << 31), 3, (1 << 31) - 1):
        assert NATIVE.crc32c(data, way=way) == crc32c_library.crc32c(data)
        assert NATIVE.crc32c_copied(data, way=way) == (crc32c_library.crc32c(data), data)


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

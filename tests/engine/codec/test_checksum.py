"""The checksum is CRC-32C, continues, and takes what files hand it."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.codec.checksum import crc32c


def bit_by_bit(data: bytes, start: int = 0) -> int:
    """The definition: reflected polynomial 82f63b78."""
    crc = start ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_values(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


@given(st.binary(max_size=100), st.integers(0, 0xFFFFFFFF))
def test_is_the_definition_from_any_start(data: bytes, start: int) -> None:
    assert crc32c(data, start) == bit_by_bit(data, start)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_continues_where_it_stopped(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


def test_takes_views_and_mappings() -> None:
    with mmap.mmap(-1, 4096) as mapping:
        mapping[:9] = b"123456789"
        with memoryview(mapping) as whole, whole[:9] as view:
            assert crc32c(view) == 0xE3069283
        assert crc32c(mapping) == crc32c(b"123456789" + bytes(4087))


def test_comes_without_the_command_line_of_the_library() -> None:
    """It would be a quarter of a worker's boot, for whose end others wait."""
    text = (
        "import sys, meles.engine.codec.checksum; "
        "print({'argparse', 'crc32c', 'email', 'importlib.metadata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", text], check=True, stdout=subprocess.PIPE)
    assert done.stdout == b"set()\n"


def test_leaves_the_library_as_it_is_for_others() -> None:
    text = (
        "from meles.engine.codec.checksum import crc32c as ours; from crc32c import crc32c; "
        "print(crc32c(b'a', ours(b'b')))"
    )
    done = subprocess.run([sys.executable, "-c", text], check=True, stdout=subprocess.PIPE)
    assert int(done.stdout) == crc32c(b"ba")

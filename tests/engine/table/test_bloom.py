"""The filter: no key is denied, the wanted rate is met, the same keys make the same bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.kernel import bloom_build
from meles.engine.table.bloom import decode_bloom, encode_bloom, expected_rate, key_hash, shape


def section_of(hashes: list[int], wanted: float, offset: int) -> bytes:
    lines, bits = shape(len(hashes), wanted)
    return encode_bloom(bloom_build(hashes, lines, bits) if lines else b"", bits, offset)


@pytest.mark.parametrize("wanted", [0.5, 0.1, 0.01, 0.001])
def test_rate(wanted: float) -> None:
    """Measured over 100,000 absent keys; seldom off by more than a tenth."""
    count = 20_000
    hashes = [key_hash(b"present%08d" % number) for number in range(count)]
    probe = decode_bloom(section_of(hashes, wanted, 0), 0, "t")
    assert all(map(probe, hashes))
    passed = sum(probe(key_hash(b"absent%08d" % number)) for number in range(100_000))
    assert passed / 100_000 <= wanted * 1.2


def test_one_percent_takes_eleven_bits() -> None:
    lines, _ = shape(100_000, 0.01)
    assert 10 < lines * 512 / 100_000 < 11.5


def test_expected_rate_falls_with_room() -> None:
    rates = [expected_rate(512 / bits, 4) for bits in (6, 8, 10, 12, 16, 24)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 5 * rates[3]


@given(
    st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=200),
    st.floats(1e-6, 0.5),
    st.integers(64, 1 << 20),
)
def test_no_false_negative(hashes: list[int], wanted: float, offset: int) -> None:
    section = section_of(hashes, wanted, offset)
    probe = decode_bloom(section, offset, "t")
    assert all(map(probe, hashes))
    assert section_of(hashes[::-1], wanted, offset) == section


@pytest.mark.parametrize("offset", [64, 65, 100, 111, 112, 113, 127, 128])
def test_lines_lie_on_cache_lines(offset: int) -> None:
    section = section_of([1 << 63 | 5], 0.01, offset)
    lines, _ = shape(1, 0.01)
    assert (offset + len(section) - 64 * lines) % 64 == 0
    assert 16 <= len(section) - 64 * lines < 80


def test_no_filter_wanted() -> None:
    assert section_of([1, 2, 3], 0.0, 64) == b""
    assert decode_bloom(b"", 64, "t")(99)
    assert shape(3, 0.0) == (0, 0)
    assert shape(0, 0.01) == (0, 0)


def test_hash_is_xxh64() -> None:
    """The file format names it; this is the published value for the empty input."""
    assert key_hash(b"") == 0xEF46DB3751D8E999

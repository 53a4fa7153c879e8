"""The kernel's functions against definitions that are slow and obvious."""

from __future__ import annotations

import struct
from itertools import accumulate

import meles.engine.kernel as kernel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.kernel import reference

parts_of_any_length = st.lists(st.binary(max_size=5), min_size=1, max_size=50)
parts_of_one_length = st.integers(1, 5).flatmap(
    lambda length: st.lists(st.binary(min_size=length, max_size=length), min_size=1, max_size=50)
)
parts = parts_of_any_length | parts_of_one_length


@given(parts)
def test_offsets(items: list[bytes]) -> None:
    ends = [0, *accumulate(map(len, items))]
    assert kernel.offsets(items) == struct.pack(f"<{len(ends)}I", *ends)


@given(parts)
def test_split_undoes_join(items: list[bytes]) -> None:
    assert kernel.split(kernel.offsets(items), b"".join(items)) == items


@pytest.mark.parametrize("count", [1024, 1025, 5000])
def test_many_parts_of_one_length(count: int) -> None:
    items = [b"%06d" % number for number in range(count)]
    words = struct.pack(f"<{count + 1}I", *range(0, 6 * count + 1, 6))
    assert kernel.offsets(items) == words
    assert kernel.split(words, b"".join(items)) == items


@given(
    st.lists(st.integers(0, 20) | st.integers(0, (1 << 32) - 1), min_size=2, max_size=9),
    st.binary(max_size=20),
)
def test_split_refuses_what_are_no_offsets(ends: list[int], region: bytes) -> None:
    valid = ends[0] == 0 and ends[-1] == len(region) and ends == sorted(ends)
    pieces = kernel.split(struct.pack(f"<{len(ends)}I", *ends), region)
    assert (pieces is not None) == valid
    if pieces is not None:
        assert b"".join(pieces) == region


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=30), st.binary(max_size=4), st.data())
def test_find_part(items: list[bytes], other: bytes, data: st.DataObject) -> None:
    wanted = data.draw(st.sampled_from(items) | st.just(other))
    words = kernel.offsets(items)
    raw = words + b"".join(items) + b"behind"
    found = kernel.find_part(
        raw, wanted, words_at=0, count=len(items), start=len(words), end=len(raw) - 6
    )
    if found == -2:
        assert any(wanted in a + b for a, b in zip(items, [*items[1:], b""], strict=True)) or (
            wanted in b"".join(items)
        )
    elif found == -1:
        assert wanted not in items
    else:
        assert items[found] == wanted
        assert all(item != wanted for item in items[:found] if item)


def test_find_part_is_sure_of_keys_of_one_length() -> None:
    items = [b"key%04d" % number for number in range(40)]
    words = kernel.offsets(items)
    raw = words + b"".join(items)
    for number, item in enumerate(items):
        assert (
            kernel.find_part(raw, item, words_at=0, count=40, start=len(words), end=len(raw))
            == number
        )


def pattern(number: int, bits: int) -> set[int]:
    mixed = (number + 1) * 0x9E3779B97F4A7C15 % (1 << 64)
    return {(mixed >> (64 - 9 * nth)) % 512 for nth in range(1, bits + 1)}


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_bloom_bits_are_those_the_format_names(bits: int) -> None:
    for h in (0, 1, 4095, 4096, 1 << 52, (1 << 64) - 1, 0x0123456789ABCDEF):
        lines = 7
        data = kernel.bloom_build([h], lines, bits)
        assert len(data) == 64 * lines
        line = data[h % lines * 64 : h % lines * 64 + 64]
        set_bits = {bit for bit in range(512) if line[bit // 8] >> bit % 8 & 1}
        assert set_bits == pattern(h % 4096, bits) | pattern(h >> 52, bits)
        assert sum(map(int.bit_count, data)) == len(set_bits)
        assert kernel.bloom_prober(data, bits)(h)


def test_patterns_are_nearly_all_different() -> None:
    patterns = reference.bloom_patterns(4)
    assert len(patterns) == 4096
    assert len(set(patterns)) > 4090
    assert sum(mask.bit_count() for mask in patterns) / 4096 > 3.95


@given(st.lists(st.binary(max_size=2), max_size=60))
def test_key_order_is_stable(keys: list[bytes]) -> None:
    assert kernel.key_order(keys) == [
        nth for _, nth in sorted((key, nth) for nth, key in enumerate(keys))
    ]

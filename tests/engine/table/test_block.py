"""Blocks: what goes in comes out, searches find it, and damage is a CorruptionError."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meles.engine.codec.columns import Columns
from meles.engine.errors import CorruptionError
from meles.engine.table.block import Block, encode_block
from meles.engine.table.layout import (
    FLAG_EXPIRY,
    FLAG_META,
    FLAG_MULTI,
    FLAG_POINTER,
    FLAG_TOMBSTONE,
    FLAG_USER,
)

entry = st.tuples(
    st.binary(min_size=1, max_size=6),
    st.integers(0, (1 << 63) - 1),
    st.integers(0, 15) | st.integers(0, (1 << 16) - 1),
    st.just(0) | st.integers(0, (1 << 64) - 1),
    st.binary(max_size=12),
)


def in_order(entries: list[tuple[bytes, int, int, int, bytes]]) -> Columns:
    """Columns of the entries, sorted, each (key, version) once."""
    unique = {
        (key, -version): (meta, expiry, value) for key, version, meta, expiry, value in entries
    }
    columns = Columns()
    for (key, version), (meta, expiry, value) in sorted(unique.items()):
        columns.append(key, -version, meta, expiry, value)
    return columns


def newest(columns: Columns, key: bytes, ts: int) -> tuple[int, int, int, bytes] | None:
    """What `find` must answer, by looking at every entry."""
    rows = zip(columns.versions, columns.metas, columns.expiries, columns.values, strict=True)
    for found, row in zip(columns.keys, rows, strict=True):
        if found == key and row[0] <= ts:
            return row
    return None


@given(st.lists(entry, min_size=1, max_size=40))
def test_round_trip(entries: list[tuple[bytes, int, int, int, bytes]]) -> None:
    columns = in_order(entries)
    block = Block(encode_block(columns, 0, len(columns)))
    assert block.columns() == columns
    assert block.count == len(columns)
    assert block.keys() == columns.keys
    assert (block.max_version, block.min_version) == (max(columns.versions), min(columns.versions))


@given(st.lists(entry, min_size=1, max_size=40), st.data())
def test_find_agrees_with_a_walk(
    entries: list[tuple[bytes, int, int, int, bytes]], data: st.DataObject
) -> None:
    columns = in_order(entries)
    raw = encode_block(columns, 0, len(columns))
    key = data.draw(st.sampled_from(columns.keys) | st.binary(max_size=7))
    ts = data.draw(st.sampled_from(columns.versions) | st.integers(0, (1 << 63) - 1))
    block = Block(raw)
    expected = newest(columns, key, ts)
    assert block.find(key, ts) == expected, "searched in place"
    assert block.find(key, ts) == expected, "searched in decoded keys"
    decoded = Block(raw)
    decoded.keys()
    assert decoded.find(key, ts) == expected


def test_key_bytes_that_straddle_two_keys_are_not_a_key() -> None:
    columns = in_order([(key, 1, 0, 0, key) for key in (b"aa", b"ab", b"ba", b"bab", b"zz")])
    block = encode_block(columns, 0, 5)
    for key in (b"aba", b"abb", b"a", b"b", b"bb", b"z", b"aaab"):
        assert Block(block).find(key, 9) is None, key
    for key in columns.keys:
        assert Block(block).find(key, 9) == (1, 0, 0, key)


def test_part_of_the_columns() -> None:
    columns = in_order([(b"k%d" % n, n, 0, 0, b"v%d" % n) for n in range(9)])
    assert Block(encode_block(columns, 2, 5)).columns() == columns.slice(2, 5)


def one(meta: int = 0, expiry: int = 0, value: bytes = b"") -> Columns:
    return in_order([(b"k", 1, meta, expiry, value)])


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        (one(), 0),
        (one(meta=1), FLAG_META | FLAG_TOMBSTONE),
        (one(meta=2, value=bytes(12)), FLAG_META | FLAG_POINTER),
        (one(meta=4), FLAG_META),
        (one(meta=7 << 8), FLAG_USER),
        (one(meta=7 << 8 | 1), FLAG_USER | FLAG_META | FLAG_TOMBSTONE),
        (one(expiry=5), FLAG_EXPIRY),
        (in_order([(b"k", 1, 0, 0, b""), (b"k", 2, 0, 0, b"")]), FLAG_MULTI),
    ],
)
def test_flags(columns: Columns, flags: int) -> None:
    assert Block(encode_block(columns, 0, len(columns))).flags == flags


def test_a_key_that_goes_on_in_the_next_block_is_flagged() -> None:
    assert Block(encode_block(one(), 0, 1, continues=True)).flags == FLAG_MULTI


def test_pointers_are_those_of_pointer_entries_only() -> None:
    entries = [(b"k%d" % n, 1, 2 * (n % 2), 0, bytes([n]) * 12) for n in range(6)]
    block = Block(encode_block(in_order(entries), 0, 6))
    assert block.pointers() == b"".join(bytes([n]) * 12 for n in (1, 3, 5))
    assert Block(encode_block(one(), 0, 1)).pointers() == b""


def test_a_pointer_of_the_wrong_size_is_damage() -> None:
    columns = in_order([(b"a", 1, 2, 0, bytes(11)), (b"b", 1, 2, 0, bytes(13))])
    with pytest.raises(CorruptionError, match="12 bytes"):
        Block(encode_block(columns, 0, 2)).pointers()


def use(raw: bytes) -> None:
    """Everything a reader may do with a payload."""
    block = Block(raw, "some.sst", 64)
    for key in (b"", b"key1", b"zzz"):
        block.find(key, 1 << 62)
        block.find(key, 0)
    Block(raw).columns()
    block.columns()
    block.pointers()


@settings(max_examples=300)
@given(st.data())
def test_hostile_payloads_raise_nothing_but_corruption(data: st.DataObject) -> None:
    entries = [(b"key%d" % (n % 5), n, n % 3 + (n % 2 << 8), n % 4, b"v" * n) for n in range(12)]
    raw = bytearray(encode_block(in_order(entries), 0, 12))
    for _ in range(data.draw(st.integers(1, 4))):
        word = data.draw(st.sampled_from([0, 1, 12, 13, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
        at = data.draw(st.integers(0, len(raw) - 4))
        raw[at : at + 4] = word.to_bytes(4, "little")
    cut = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    with contextlib.suppress(CorruptionError):
        use(bytes(raw[:cut]))


@pytest.mark.parametrize(
    ("at", "change"),
    [
        (0, b"\0\0\0\0"),  # no entries
        (0, b"\xff\xff\xff\xff"),  # more than there is room for
        (4, b"\x40\0"),  # an unknown flag
        (6, b"\1\0"),  # reserved
        (24 + 2 * 8 + 2 * 4, b"\1"),  # keys end too early
        (24 + 2 * 8 + 5 * 4, b"\2"),  # values end too early
    ],
)
def test_header_and_ends_are_checked(at: int, change: bytes) -> None:
    columns = in_order([(b"a", 1, 0, 0, b"xy"), (b"b", 1, 0, 0, b"z")])
    raw = bytearray(encode_block(columns, 0, 2))
    raw[at : at + len(change)] = change
    with pytest.raises(CorruptionError):
        Block(bytes(raw))


@pytest.mark.parametrize("size", [0, 23, 24, 50])
def test_short_payload(size: int) -> None:
    with pytest.raises(CorruptionError):
        Block(encode_block(one(value=b"value"), 0, 1)[:size])


def test_bytes_behind_the_values_are_damage() -> None:
    with pytest.raises(CorruptionError, match="do not fill"):
        Block(encode_block(one(), 0, 1) + b"x")


@pytest.mark.parametrize("value_offsets", [[0, 9, 3], [0, 4, 3], [1, 2, 3]])
def test_value_offsets_out_of_order_are_damage(value_offsets: list[int]) -> None:
    columns = in_order([(b"a", 1, 0, 0, b"xy"), (b"b", 1, 0, 0, b"z")])
    raw = bytearray(encode_block(columns, 0, 2))
    at = 24 + 2 * 8 + 3 * 4
    raw[at : at + 12] = struct.pack("<3I", *value_offsets)
    with pytest.raises(CorruptionError, match="value offsets"):
        Block(bytes(raw)).values()
    if value_offsets[1] > value_offsets[2]:
        with pytest.raises(CorruptionError, match="value offsets"):
            Block(bytes(raw)).find(b"b", 9)


def test_every_version_of_a_long_chain_is_found() -> None:
    versions = random.Random(7).sample(range(1, 10_000), 300)
    columns = in_order([(b"k", version, 0, 0, b"%d" % version) for version in versions])
    block = Block(encode_block(columns, 0, 300))
    for version in versions:
        assert block.find(b"k", version) == (version, 0, 0, b"%d" % version)
    assert block.find(b"k", min(versions) - 1) is None

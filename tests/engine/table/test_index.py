"""The index and the properties: round trips, and each rule of a sound index is enforced."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meles.engine.errors import CorruptionError
from meles.engine.manifest.version import TableMeta
from meles.engine.table.index import Index, decode_index, decode_properties, encode_properties

END = 64 + 100 + 200 + 300


def sound() -> Index:
    return Index(
        offsets=[64, 164, 364],
        max_versions=[5, (1 << 63) - 1, 7],
        sizes=[100, 200, 300],
        entries=[1, 2, 3],
        flags=[0, 0x3F, 8],
        last_keys=[b"b", b"bb", b"bb"],
    )


def decode(data: bytes, blocks: int = 3, end: int = END) -> Index:
    return decode_index(data, blocks, end, 999, "some.sst")


def test_round_trip() -> None:
    assert decode(sound().encode()) == sound()


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=30))
def test_round_trip_of_any_keys(keys: list[bytes]) -> None:
    count = len(keys)
    index = Index(
        [64 + 20 * n for n in range(count)], [0] * count, [20] * count, [1] * count, [0] * count,
        sorted(keys),
    )  # fmt: skip
    assert decode(index.encode(), count, 64 + 20 * count) == index


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("offsets", [64, 165, 364]),
        ("offsets", [65, 164, 364]),
        ("sizes", [100, 200, 301]),
        ("entries", [1, 0, 3]),
        ("flags", [0, 0x40, 8]),
        ("last_keys", [b"b", b"a", b"bb"]),
        ("last_keys", [b"", b"a", b"bb"]),
    ],
)
def test_unsound(column: str, values: list[int]) -> None:
    index = sound()
    setattr(index, column, values)
    with pytest.raises(CorruptionError) as caught:
        decode(index.encode())
    assert (caught.value.path, caught.value.offset) == ("some.sst", 999)


def test_a_block_has_more_than_its_header() -> None:
    index = Index([64, 80], [1, 1], [16, 100], [1, 1], [0, 0], [b"a", b"b"])
    with pytest.raises(CorruptionError, match="join"):
        decode(index.encode(), 2, 180)


@pytest.mark.parametrize("end", [END - 1, END + 1, 0])
def test_blocks_end_where_the_filter_begins(end: int) -> None:
    with pytest.raises(CorruptionError, match="join"):
        decode(sound().encode(), end=end)


@pytest.mark.parametrize("head", [(2, 0), (4, 0), (3, 1)])
def test_head(head: tuple[int, int]) -> None:
    with pytest.raises(CorruptionError, match="number of blocks"):
        decode(struct.pack("<II", *head) + sound().encode()[8:])


META = TableMeta(
    7, 1000, 99, 3, b"a", b"z", 1, 9, 1, 2, 30, 40, ((1, 100, 2), (5, 7, 1)), "lz4", 0, 1.5, False
)


def test_properties_round_trip() -> None:
    data = encode_properties(META)
    assert decode_properties(data, size=1000, crc=99, offset=0, path="") == META


def test_properties_know_neither_size_nor_checksum() -> None:
    data = encode_properties(META)
    read = decode_properties(data, size=5, crc=6, offset=0, path="")
    assert (read.size, read.crc) == (5, 6)


def test_what_is_known_is_kept_where_the_properties_say_the_same() -> None:
    data = encode_properties(META)
    known = replace(META)
    assert decode_properties(data, size=1000, crc=99, offset=0, path="", known=known) is known
    for other in (replace(META, count=4), replace(META, size=1001), replace(META, crc=98)):
        found = decode_properties(data, size=1000, crc=99, offset=0, path="", known=other)
        assert found == META


@pytest.mark.parametrize("change", [{"count": 0}, {"min_key": b""}, {"min_key": b"zz"}])
def test_what_is_known_may_contradict_itself(change: dict[str, Any]) -> None:
    known = replace(META, **change)
    data = encode_properties(known)
    with pytest.raises(CorruptionError, match="contradict"):
        decode_properties(data, size=1000, crc=99, offset=0, path="", known=known)


def test_properties_without_expiry_times_assume_nothing() -> None:
    """As of a table that was made before there were such times."""
    assert b"x" not in msgpack.unpackb(encode_properties(META))
    assert META.expiries == ()
    timed = replace(META, expiries=(5, 5, 9))
    data = encode_properties(timed)
    assert decode_properties(data, size=1000, crc=99, offset=0, path="") == timed


@pytest.mark.parametrize("times", [5, "12", None, [2, 1], [-1], [1.5], [b"1"], [[1]]])
def test_expiry_times_that_are_none(times: object) -> None:
    plain = msgpack.unpackb(encode_properties(META))
    data = msgpack.packb({**plain, "x": times})
    with pytest.raises(CorruptionError, match="properties do not parse"):
        decode_properties(data, size=1, crc=1, offset=0, path="")

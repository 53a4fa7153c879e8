"""FORMAT.md says what the code does; whatever else is in a frame is refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import meles.engine.backup
import pytest
from meles.engine.backup import format as stream
from meles.engine.backup.format import KEPT, End, Place, Start, reference
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import FORMAT_VERSION, HEADER_BYTES
from meles.engine.errors import CorruptionError, FormatVersionError

TEXT = Path(meles.engine.backup.__path__[0], "FORMAT.md").read_text()
EXAMPLE = bytes.fromhex(TEXT.split("```hex stream\n")[1].split("```")[0])
SIZES = {"u16": 2, "u32": 4, "u64": 8}
HERE = Place("f", 0)
START = Start(2, 4, (7,))
ENTRIES = Columns(
    [b"a", b"a", b"b", b"c"],
    [4, 1, 3, 2],
    [0x0504, KEPT, 0x01, 0x0900 | KEPT],
    [1000, 0, 0, 2000],
    [b"xy", reference(3), b"", reference(70_000)],
)
LIMITS = [stream.MAX_FRAME_BYTES, stream.FRAME_TARGET, stream.PART_BYTES, stream.MAX_VALUE_BYTES]


def cells(title: str, first: str) -> list[list[str]]:
    """The rows of a section's tables whose first cell looks like `first`."""
    section = TEXT.split(f"\n## {title}")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in row] for row in rows]
    return [row for row in found if re.match(first, row[0])]


def frames(data: bytes) -> list[bytes]:
    """The payloads of a stream, each checked."""
    seed = stream.read_header(data[:HEADER_BYTES], "f").seed
    at, found = HEADER_BYTES, []
    while at < len(data):
        head = data[at : at + stream.HEAD.size]
        length = stream.payload_bytes(head, len(found) + 1, HERE)
        at += stream.HEAD.size + length
        payload = data[at - length : at]
        stream.check_payload(head, payload, seed, HERE)
        found.append(payload)
    return found


def test_the_example_is_what_is_written() -> None:
    header = stream.make_header(bytes(range(16)))
    size = sum(map(len, ENTRIES.keys)) + sum(map(len, ENTRIES.values))
    payloads = [
        stream.encode_start(START),
        stream.encode_entries(ENTRIES),
        stream.encode_end(End(4, size, 4)),
    ]
    made = [stream.encode_frame(p, n, header.seed) for n, p in enumerate(payloads, 1)]
    assert header.encode() + b"".join(made) == EXAMPLE


def test_the_example_is_read() -> None:
    first, second, third = frames(EXAMPLE)
    assert stream.decode_start(first, HERE) == START
    assert stream.decode_entries(second, START, HERE) == ENTRIES
    assert stream.decode_end(third, HERE) == End(4, 14, 4)


@pytest.mark.parametrize(
    ("title", "size"),
    [("Frame", stream.HEAD.size), ("Payload", 8), ("Row", stream.ROW_BYTES)],
)
def test_fields_follow_each_other_without_a_gap(title: str, size: int) -> None:
    at = 0
    for offset, width, *_ in [row for row in cells(title, r"\d") if len(row) == 4]:
        assert int(offset) == at
        at += SIZES.get(width) or (int(width) if width.isdigit() else 0)
    assert at == size


def test_a_frame_is_what_the_page_says() -> None:
    seed = int.from_bytes(EXAMPLE[60:64], "little")
    places = {name: HEADER_BYTES + int(at) for at, _, name, _ in cells("Frame", r"\d")}
    length = int.from_bytes(EXAMPLE[places["length"] :][:4], "little")
    numbered = EXAMPLE[places["number"] : places["payload"] + length]
    assert int.from_bytes(EXAMPLE[places["crc"] :][:4], "little") == crc32c(numbered, seed ^ length)
    assert EXAMPLE[places["number"] :][:8] == (1).to_bytes(8, "little")


def test_the_kinds_are_listed() -> None:
    listed = {
        name: int(kind) for kind, name, *_ in [r for r in cells("Payload", r"\d") if len(r) == 5]
    }
    assert listed == {
        "start": stream.START, "entries": stream.ENTRIES, "large": stream.LARGE,
        "part": stream.PART, "end": stream.END,
    }  # fmt: skip


def test_the_bounds_are_stated() -> None:
    for limit in LIMITS:
        assert f"{limit:,}" in TEXT
    assert stream.FRAME_TARGET + stream.ROW_BYTES + 65_000 + 8 <= stream.MAX_FRAME_BYTES


def test_the_newest_version_is_listed() -> None:
    assert int(cells("History", r"\d")[-1][0]) == FORMAT_VERSION


def test_no_byte_of_the_example_can_be_another() -> None:
    for at in range(len(EXAMPLE)):
        for bit in (1, 0x80):
            changed = EXAMPLE[:at] + bytes([EXAMPLE[at] ^ bit]) + EXAMPLE[at + 1 :]
            with pytest.raises((CorruptionError, FormatVersionError)):
                frames(changed)


# -- frames whose checksum holds, with what nobody wrote -----------------------------------------


@pytest.mark.parametrize("length", [0, 7, stream.MAX_FRAME_BYTES + 1, (1 << 32) - 1])
def test_a_length_is_judged_before_anything_is_read(length: int) -> None:
    head = stream.HEAD.pack(length, 0, 1)
    with pytest.raises(CorruptionError, match="a frame of"):
        stream.payload_bytes(head, 1, HERE)
    assert stream.payload_bytes(stream.HEAD.pack(stream.MAX_FRAME_BYTES, 0, 1), 1, HERE)


def row(**other: int) -> bytes:
    """A payload of one entry in which some fields are not as they should be."""
    fields = {"version": 4, "expiry": 0, "key": 1, "value": 2, "meta": 0, "zero": 0, "count": 1}
    fields |= other
    count = fields.pop("count")
    return struct.pack("<B3xI", 2, count) + struct.pack("<QQIIHH", *fields.values()) + b"kvv"


def test_a_plain_row_is_read() -> None:
    assert stream.decode_entries(row(), START, HERE).keys == [b"k"]
    assert stream.decode_entries(row(meta=0xFF0C), START, HERE).metas == [0xFF0C]


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0}, {"count": 2}, {"count": (1 << 32) - 1},
        {"key": 0, "value": 3}, {"key": 2}, {"key": (1 << 32) - 1}, {"value": 1}, {"value": 3},
        {"value": (1 << 32) - 1}, {"zero": 1},
        {"version": 0}, {"version": 5}, {"version": 1 << 63}, {"version": 2},
        {"expiry": 1 << 63}, {"expiry": (1 << 64) - 1},
        {"meta": 0x10}, {"meta": 0x80}, {"meta": 0x01}, {"meta": 0x02}, {"meta": 0x03},
        {"meta": 0x02, "version": 2}, {"meta": 0x03, "version": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_entry_may_be(fields: dict[str, int]) -> None:
    with pytest.raises(CorruptionError):
        stream.decode_entries(row(**fields), START, HERE)


@pytest.mark.parametrize("key", [b"", b"k" * 65_001, b"!meles!x"], ids=len)
def test_a_key_no_entry_may_have(key: bytes) -> None:
    made = stream.encode_entries(Columns([key], [4], [0], [0], [b""]))
    with pytest.raises(CorruptionError, match="key"):
        stream.decode_entries(made, START, HERE)


@pytest.mark.parametrize(
    "columns",
    [
        Columns([b"k"], [2], [KEPT], [0], [reference(1)]),
        Columns([b"k"], [1], [KEPT | 0xFF00], [5], [reference(0)]),
        Columns([b"k"], [1], [0x01], [0], [b""]),
        Columns([b"k"], [4], [0x0F & ~KEPT & ~1], [0], [b""]),
    ],
)
def test_what_an_increment_may_have(columns: Columns) -> None:
    made = stream.encode_entries(columns)
    assert stream.decode_entries(made, START, HERE) == columns


def test_a_full_stream_has_no_references() -> None:
    made = stream.encode_entries(Columns([b"k"], [2], [KEPT], [0], [reference(1)]))
    with pytest.raises(CorruptionError, match="reference"):
        stream.decode_entries(made, Start(0, 4), HERE)


@pytest.mark.parametrize(
    "payload",
    [
        stream.encode_start(Start(5, 4)),
        stream.encode_start(Start(0, (1 << 63) - 1)),
        stream.encode_start(Start(0, 4, (7, 7))),
        stream.encode_start(Start(0, 4, (8, 7))),
        stream.encode_start(START)[:-1],
        stream.encode_start(START) + b"\0",
        stream.encode_start(START)[:8],
        struct.pack("<B3xI", 1, 1 << 31) + bytes(24),
        b"\1\0\1\0" + stream.encode_start(START)[4:],
        stream.encode_end(End(1, 1, 1)),
    ],
)
def test_no_start(payload: bytes) -> None:
    with pytest.raises(CorruptionError):
        stream.decode_start(payload, HERE)


@pytest.mark.parametrize(
    "payload",
    [
        stream.encode_end(End(1, 1, 1))[:-1],
        stream.encode_end(End(1, 1, 1)) + b"\0",
        b"\5\0\0\0\1\0\0\0" + bytes(24),
        stream.encode_start(Start(0, 1)),
    ],
)
def test_no_end(payload: bytes) -> None:
    with pytest.raises(CorruptionError):
        stream.decode_end(payload, HERE)


def test_a_large_value() -> None:
    made = stream.encode_large(b"key", 4, 0x0704, 9, 300_000)
    columns, size = stream.decode_large(made, START, HERE)
    assert (columns, size) == (Columns([b"key"], [4], [0x0704], [9], [b""]), 300_000)
    for payload in (
        made[:-1], made + b"\0", made[:20], b"\3\0\0\0\2" + made[5:],
        stream.encode_large(b"key", 4, 0, 0, 0), stream.encode_large(b"key", 4, 0, 0, 1 << 31),
        stream.encode_large(b"key", 4, 1, 0, 9), stream.encode_large(b"key", 1, KEPT, 0, 9),
        stream.encode_large(b"key", 2, 0, 0, 9), stream.encode_large(b"", 4, 0, 0, 9),
    ):  # fmt: skip
        with pytest.raises(CorruptionError):
            stream.decode_large(payload, START, HERE)


def test_a_part() -> None:
    made = stream.encode_part(b"abc")
    assert stream.decode_part(made, 3, HERE) == b"abc"
    for payload, left in ((made, 2), (made[:8], 3), (b"\4\0\0\0\1" + made[5:], 3), (row(), 99)):
        with pytest.raises(CorruptionError):
            stream.decode_part(payload, left, HERE)


def test_order_is_by_key_and_then_from_new_to_old() -> None:
    def ordered(*places: tuple[bytes, int]) -> bool:
        keys, versions = zip(*places, strict=True)
        columns = Columns(list(keys), list(versions))
        return stream.in_order(columns, (b"b", -5))

    assert ordered((b"b", 4), (b"b", 3), (b"c", 9))
    for wrong in (
        [(b"b", 5)], [(b"b", 6)], [(b"a", 1)], [(b"c", 1), (b"c", 1)], [(b"c", 1), (b"c", 2)],
        [(b"d", 1), (b"c", 1)],
    ):  # fmt: skip
        assert not ordered(*wrong)


def test_a_reference_is_to_the_same_entry() -> None:
    kept = (0x0504 | KEPT, 9, reference(3))
    assert stream.refers_to(kept, (0x0504, 9, b"abc"))
    for other in ((0x0604, 9, b"abc"), (0x0504, 8, b"abc"), (0x0504, 9, b"abcd")):
        assert not stream.refers_to(kept, other)

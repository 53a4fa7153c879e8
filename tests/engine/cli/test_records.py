"""Lines to records: values byte for byte, refused lines with their number, chunks cut there."""

from __future__ import annotations

import json
import re

import pytest
from meles.engine.cli.records import BadRecord, Chunk, JsonLines, LineRecords, PlainLines
from meles.engine.cli.sources import source_format


def plain(limit: int = 100) -> PlainLines:
    return PlainLines("f", b"f", source_format("lines", None, limit).key, limit)


def jsonl(key: str | None = None, limit: int = 1000) -> JsonLines:
    return JsonLines("f", b"f", source_format("jsonl", key, limit).key, limit)


def flat(records: LineRecords, lines: list[bytes], first: int = 1) -> list[object]:
    """Entries as (line, key, value) and refused records, in order."""
    out: list[object] = []
    for chunk in records.chunks(lines, first):
        out += zip(chunk.lines, chunk.keys, chunk.values, strict=True)
        out += [chunk.bad] if chunk.bad else []
    return out


def sizes(chunks: list[Chunk]) -> int:
    return sum(chunk.size for chunk in chunks)


def test_a_line_is_its_value_and_number_counts_on() -> None:
    assert flat(plain(), [b"one\r", b"", b"\xff"], 10) == [
        (10, b"f:10", b"one\r"),
        (11, b"f:11", b""),
        (12, b"f:12", b"\xff"),
    ]
    assert flat(plain(), []) == []


def test_too_long_lines_are_refused_where_they_stand() -> None:
    lines = [b"a", b"x" * 6, b"b", b"y" * 7, b"c" * 5]
    assert flat(plain(5), lines) == [
        (1, b"f:1", b"a"),
        BadRecord("f", 2, "longer than 5 bytes"),
        (3, b"f:3", b"b"),
        BadRecord("f", 4, "longer than 5 bytes"),
        (5, b"f:5", b"c" * 5),
    ]


def test_json_value_is_the_line_as_it_stands() -> None:
    lines = [b'\xef\xbb\xbf{"id": 1 }', b"", b'  {"id": "two"}\r']
    assert flat(jsonl("id"), lines) == [
        (1, b"1", b'\xef\xbb\xbf{"id": 1 }'),
        (3, b"two", b'{"id": "two"}'),
    ]
    assert flat(jsonl(), [b"[1]", b"2"]) == [(1, b"f:1", b"[1]"), (2, b"f:2", b"2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": 1', "not JSON: "),
        (b'{"id": NaN}', "NaN"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b'{"other": 1}', "'id' is missing"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "longer than"),
        (b'{"id": ' + b"[" * 900 + b"]" * 900 + b"}", "longer than|a list"),
    ],
)
def test_bad_json_is_refused_and_the_next_line_taken(line: bytes, reason: str) -> None:
    good = json.dumps({"id": 2}).encode()
    first, second = flat(jsonl("id"), [line, good])
    assert isinstance(first, BadRecord)
    assert re.search(reason, first.reason), first.reason
    assert second == (2, b"2", good)


def test_deeply_nested_json_is_refused_not_crashed_on() -> None:
    (only,) = flat(jsonl("id", 10**6), [b'{"id": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"])
    assert isinstance(only, BadRecord)


def test_chunk_sizes_add_up_to_the_source() -> None:
    lines = [b'{"id": 1}', b"bad", b"", b'{"id": 2}']
    assert sizes(list(jsonl("id").chunks(lines, 1))) == sum(len(line) + 1 for line in lines)
    assert sizes(list(plain().chunks(lines, 1))) == sum(len(line) + 1 for line in lines)


def test_bad_record_reads_as_source_line_reason() -> None:
    assert str(BadRecord("a.csv", 7, "why")) == "a.csv, line 7: why"
    assert str(BadRecord("a", 0, "why")) == "a: why"

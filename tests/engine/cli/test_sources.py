"""Sources: what each format makes of real files and directories."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from meles.engine.cli.records import BadRecord
from meles.engine.cli.sources import SourceError, open_sources, source_format, walk
from meles.engine.errors import ConfigError

LIMIT = 1 << 20


def read(kind: str, path: Path | str, key: str | None = None, limit: int = LIMIT) -> list[object]:
    """Everything a source gives: (line, key, value) and refused records, in order."""
    (source,) = open_sources([os.fspath(path)], source_format(kind, key, limit))
    out: list[object] = []
    for chunk in source.chunks():
        out += zip(chunk.lines, chunk.keys, chunk.values, strict=True)
        out += [chunk.bad] if chunk.bad else []
    return out


def test_lines_of_a_large_file_come_complete_and_in_order(tmp_path: Path) -> None:
    lines = [b"%d" % number * (number % 50) for number in range(60_000)]
    path = tmp_path / "in.txt"
    path.write_bytes(b"\n".join(lines))
    name = os.fsencode(path)
    expected = [(n, b"%s:%d" % (name, n), line) for n, line in enumerate(lines, 1)]
    assert read("lines", path) == expected


def test_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    for kind in ("lines", "jsonl"):
        assert read(kind, path) == []
    (only,) = read("csv", path)
    assert only == BadRecord(str(path), 1, "no header row")


def test_standard_input_is_called_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))
    assert read("lines", "-") == [(1, b"stdin:1", b"a"), (2, b"stdin:2", b"b")]


def test_csv_rows_become_json_objects(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes('\ufeffid,text\r\n7,"two\nlines, ü"\r\n\r\n8,""\r\n'.encode())
    first, second = read("csv", path, "id")
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert first[:2] == (2, b"7")
    assert json.loads(first[2]) == {"id": "7", "text": "two\nlines, ü"}
    assert second == (5, b"8", b'{"id":"8","text":""}')
    assert read("csv", path, "{n}/{id}")[1] == (5, b"5/8", b'{"id":"8","text":""}')


@pytest.mark.parametrize(
    ("row", "line", "reason"),
    [
        (b"1", 2, "1 fields under a header of 2"),
        (b"1,2,3", 2, "3 fields under a header of 2"),
        (b"1,\xff", 2, "not UTF-8"),
        (b'1,"a"b', 2, "not CSV: "),
        (b"1," + b"x" * 2000, 2, "field limit|longer than"),
    ],
)
def test_bad_csv_row_is_refused_and_the_next_taken(
    tmp_path: Path, row: bytes, line: int, reason: str
) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"id,text\n" + row + b"\n9,good\n")
    refused, good = read("csv", path, "id", limit=1000)[0], read("csv", path, "id", limit=1000)[-1]
    assert isinstance(refused, BadRecord)
    assert refused.line == line
    assert any(part in refused.reason for part in reason.split("|"))
    assert isinstance(good, tuple)
    assert good[1] == b"9"


@pytest.mark.parametrize(
    ("header", "reason"),
    [(b"a,a", "same name"), (b"a,b", "no column 'id'"), (b'a,"b"c', "not CSV")],
)
def test_csv_header_that_gives_no_key_ends_the_source(
    tmp_path: Path, header: bytes, reason: str
) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(header + b"\n1,2\n")
    (only,) = read("csv", path, "id")
    assert isinstance(only, BadRecord)
    assert reason in only.reason


def test_many_csv_rows_cross_chunks(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id\n" + "".join(f"{n}\n" for n in range(5000)))
    assert [row[1] for row in read("csv", path, "id")] == [b"%d" % n for n in range(5000)]


def tree_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return root


def test_tree_takes_regular_files_in_order_and_follows_no_link(tmp_path: Path) -> None:
    files = {"b.txt": b"B", "a/z": b"", "a/b/c": b"\x00" * 5000, "a.txt": b"A"}
    root = tree_of(tmp_path / "root", files)
    (root / "link").symlink_to(root / "b.txt")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "fifo")
    entries = read("tree", root)
    assert [entry[1] for entry in entries] == [b"a.txt", b"b.txt", b"a/z", b"a/b/c"]
    assert {entry[1].decode(): entry[2] for entry in entries} == files


def test_tree_reports_too_long_files_and_unreadable_directories(tmp_path: Path) -> None:
    root = tree_of(tmp_path / "root", {"big": b"x" * 11, "small": b"x" * 10})
    refused, small = read("tree", root, limit=10)
    assert refused == BadRecord(str(root / "big"), 0, "longer than 10 bytes")
    assert isinstance(small, tuple)
    ((name, problem),) = walk(str(root / "gone"))
    assert name == ""
    assert isinstance(problem, FileNotFoundError)


def test_tree_key_may_use_name_and_number(tmp_path: Path) -> None:
    root = tree_of(tmp_path / "root", {"d/x": b"1"})
    assert read("tree", root, "{n}/{name}/{path}") == [(1, b"1/x/d/x", b"1")]
    with pytest.raises(ConfigError, match="unknown"):
        source_format("tree", "{size}", LIMIT)


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("lines", "missing", "No such file"),
        ("lines", "", "is a directory"),
        ("tree", "file", "not a directory"),
        ("tree", "-", "No such file"),
    ],
)
def test_a_source_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, kind: str, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    path = name if name == "-" else os.path.join(tmp_path, name)
    with pytest.raises(SourceError, match=reason):
        open_sources([path], source_format(kind, None, LIMIT))


def test_closing_the_chunks_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"line\n" * 1_000_000)
    (source,) = open_sources([str(path)], source_format("lines", None, LIMIT))
    chunks: Iterator[object] = source.chunks()
    next(chunks)
    assert str(path) in open_files()
    source_chunks = chunks
    source_chunks.close()  # type: ignore[attr-defined]
    assert str(path) not in open_files()


def open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return found

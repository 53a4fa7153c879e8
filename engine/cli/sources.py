"""Sources of one ingest run: files, standard input and directory trees, as chunks of records.

Runs in: supervisor.
Owns: the file it is reading; closed when its chunks end or their iterator is closed.
Invariants: (1) memory is bounded by the read size and the longest record; (2) `{n}` of a record is
the number of the line it begins on, in a tree the file's number; (3) a tree is walked in sorted
order, follows no link and takes regular files only.
Fails with: `SourceError` for a source that cannot be opened, `OSError` while reading.
"""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BufferedReader
from typing import Final, cast

from meles.engine.cli.key_template import KeyTemplate, RecordError
from meles.engine.cli.lines import LineSplitter
from meles.engine.cli.records import (
    DEFAULT_KEY,
    BadRecord,
    Chunk,
    JsonLines,
    LineRecords,
    PlainLines,
    open_chunk,
)
from meles.engine.errors import Error

FORMATS: Final = ("lines", "csv", "jsonl", "tree")
TREE_COLUMNS: Final = frozenset({"path", "name"})
STDIN: Final = "-"
READ_BYTES: Final = 1 << 20
CSV_ROWS: Final = 2000  # rows in one chunk
TREE_BYTES: Final = 4 << 20  # file bodies in one chunk


class SourceError(Error):
    """A source that cannot be read at all."""

    hint = "check the path and the format"


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """How sources are read: `kind` is one of `FORMATS`, `max_record` is in bytes."""

    kind: str
    key: KeyTemplate
    max_record: int


@dataclass(frozen=True)
class Source:
    """One source. `size` in bytes where it is known beforehand."""

    name: str
    size: int | None
    format: SourceFormat

    def chunks(self) -> Generator[Chunk, None, None]:
        if self.format.kind == "tree":
            return _tree_chunks(self)
        if self.format.kind == "csv":
            return _csv_chunks(self)
        return _line_chunks(self)

    @property
    def key_name(self) -> bytes:
        """What `{source}` stands for."""
        return b"stdin" if self.name == STDIN else os.fsencode(self.name)


def source_format(kind: str, key: str | None, max_record: int) -> SourceFormat:
    """How to read `kind`, with the key template given or the format's own. `ConfigError`."""
    known = {"lines": frozenset[str](), "tree": TREE_COLUMNS}.get(kind)
    template = key or ("{path}" if kind == "tree" else DEFAULT_KEY)
    return SourceFormat(kind=kind, key=KeyTemplate(template, known=known), max_record=max_record)


def open_sources(names: Sequence[str], how: SourceFormat) -> list[Source]:
    """Check every source before anything is written. `SourceError` names the first bad one."""
    sources = []
    for name in names:
        if name == STDIN and how.kind != "tree":
            sources.append(Source(name, None, how))
            continue
        try:
            info = os.stat(name)
        except OSError as error:
            raise SourceError(f"{name}: {error.strerror}") from error
        is_directory = stat.S_ISDIR(info.st_mode)
        if is_directory != (how.kind == "tree"):
            what = "a directory" if is_directory else "not a directory"
            wanted = "use --format tree" if is_directory else "--format tree takes directories"
            raise SourceError(f"{name} is {what}", hint=wanted)
        size = info.st_size if stat.S_ISREG(info.st_mode) else None
        sources.append(Source(name, size, how))
    return sources


def line_records(how: SourceFormat, source: str, name: bytes) -> LineRecords:
    """The record maker of a line-based format."""
    kind = JsonLines if how.kind == "jsonl" else PlainLines
    return kind(source, name, how.key, how.max_record)


def _open(name: str) -> AbstractContextManager[BufferedReader]:
    if name == STDIN:
        return nullcontext(cast(BufferedReader, sys.stdin.buffer))
    return open(name, "rb")


def _line_chunks(source: Source) -> Generator[Chunk, None, None]:
    records = line_records(source.format, source.name, source.key_name)
    splitter = LineSplitter(source.format.max_record)
    number = 1
    with _open(source.name) as file:
        while data := file.read1(READ_BYTES):
            lines = splitter.feed(data)
            yield from records.chunks(lines, number)
            number += len(lines)
        for chunk in records.chunks(splitter.finish(), number):
            chunk.size -= 1  # no newline ended this one
            yield chunk


class _CountedLines:
    """Text lines of a file for `csv.reader`, counting lines and bytes."""

    def __init__(self, file: BufferedReader, longest: int) -> None:
        self._file = file
        self._longest = longest
        self.size = 0
        self.number = 0

    def __iter__(self) -> _CountedLines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(self._longest)
        if not line:
            raise StopIteration
        first = self.size == 0
        self.size += len(line)
        self.number += line.endswith(b"\n")
        return line.decode("utf-8-sig" if first else "utf-8", "surrogateescape")


def _csv_chunks(source: Source) -> Generator[Chunk, None, None]:
    """Rows under a header row; the value is the row as a JSON object of texts."""
    how = source.format
    csv.field_size_limit(how.max_record)
    with _open(source.name) as file:
        lines = _CountedLines(file, how.max_record)
        rows = csv.reader(lines, strict=True)
        header = next(_rows(rows, lines), (1, []))[1]
        problem = _header_problem(header, how.key)
        if problem:
            yield Chunk([], [], [], lines.size, BadRecord(source.name, 1, problem))
            return
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        name, taken = source.key_name, 0
        chunk, numbers = open_chunk()
        for number, row in _rows(rows, lines):
            try:
                if isinstance(row, str):
                    raise RecordError(row)
                if len(row) != len(header):
                    raise RecordError(f"{len(row)} fields under a header of {len(header)}")
                record = dict(zip(header, row, strict=True))
                value = encode(record).encode()
                if len(value) > how.max_record:
                    raise RecordError(f"longer than {how.max_record:,} bytes")
                key = how.key.render(name, number, record)
            except (RecordError, UnicodeEncodeError) as error:
                reason = str(error) if isinstance(error, RecordError) else "not UTF-8"
                chunk.bad = BadRecord(source.name, number, reason)
            else:
                chunk.keys.append(key)
                chunk.values.append(value)
                numbers.append(number)
            if chunk.bad is not None or len(numbers) == CSV_ROWS:
                chunk.size, taken = lines.size - taken, lines.size
                yield chunk
                chunk, numbers = open_chunk()
        chunk.size = lines.size - taken
        if chunk.size:
            yield chunk


def _rows(rows: Iterator[list[str]], lines: _CountedLines) -> Iterator[tuple[int, list[str] | str]]:
    """(number of the line it begins on, row) or, for a malformed row, what is wrong with it."""
    while True:
        number = lines.number + 1
        try:
            row: list[str] | str = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            row = f"not CSV: {error}"
        if row:
            yield number, row


def _header_problem(header: list[str] | str, key: KeyTemplate) -> str | None:
    if not header:
        return "no header row"
    if isinstance(header, str):
        return header
    if len(set(header)) != len(header):
        return "two columns have the same name"
    missing = sorted(key.columns.difference(header))
    return f"no column {missing[0]!r} for the key" if missing else None


def _tree_chunks(source: Source) -> Generator[Chunk, None, None]:
    """One entry per file: the key is the relative path, the value the whole body."""
    how = source.format
    chunk, numbers = open_chunk()
    for number, (relative, problem) in enumerate(walk(source.name), 1):
        try:
            if problem is not None:
                raise problem
            body = read_file(os.path.join(source.name, relative), how.max_record)
            row = {"path": relative, "name": os.path.basename(relative)}
            key = how.key.render(source.key_name, number, row)
        except (OSError, RecordError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            path = os.path.join(source.name, relative)
            chunk.bad = BadRecord(path, 0, reason or "cannot be read")
        else:
            chunk.keys.append(key)
            chunk.values.append(body)
            numbers.append(number)
            chunk.size += len(body)
        if chunk.bad is not None or chunk.size >= TREE_BYTES:
            yield chunk
            chunk, numbers = open_chunk()
    if chunk.keys:
        yield chunk


def walk(root: str) -> Iterator[tuple[str, OSError | None]]:
    """Relative paths of the regular files below `root`: a directory's files, then its directories,
    each sorted by name. A directory that cannot be listed comes with its error."""
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            with os.scandir(os.path.join(root, directory)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield directory, error
            continue
        for entry in listed:
            if entry.is_file(follow_symlinks=False):
                yield os.path.join(directory, entry.name), None
        pending.extend(
            os.path.join(directory, entry.name)
            for entry in reversed(listed)
            if entry.is_dir(follow_symlinks=False)
        )


def read_file(path: str, limit: int) -> bytes:
    """The whole body. `RecordError` when it is longer than `limit` bytes."""
    with open(path, "rb") as file:
        body = file.read(limit + 1)
    if len(body) > limit:
        raise RecordError(f"longer than {limit:,} bytes")
    return body

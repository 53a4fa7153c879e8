"""Lines to records: keys, values, and what is wrong with a line that is no record.

Runs in: supervisor.
Invariants: (1) entries come in the order of their lines and each line is an entry, a `BadRecord` or
blank (jsonl only); (2) a chunk ends at its bad record, so "everything before it" is well defined;
(3) a record of a `lines` source costs no Python statement of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from meles.engine.cli.key_template import KeyTemplate, RecordError

DEFAULT_KEY: Final = "{source}:{n}"
MAX_RECORD: Final = 64 << 20  # bytes; a longer line is hardly a line
_BOM: Final = b"\xef\xbb\xbf"


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


_DECODE: Final = json.JSONDecoder(parse_constant=_no_constant).decode


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that was refused: where it stood and why. `line` counts from 1."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.reason}" if self.line else (
            f"{self.source}: {self.reason}"
        )  # fmt: skip


@dataclass(slots=True)
class Chunk:
    """Entries in order, then perhaps one refused record. `lines` are the entries' line numbers,
    `size` the bytes of the source the chunk stands for."""

    keys: list[bytes]
    values: list[bytes]
    lines: Sequence[int]
    size: int
    bad: BadRecord | None = None


def open_chunk() -> tuple[Chunk, list[int]]:
    """An empty chunk to append to, and its line numbers."""
    numbers: list[int] = []
    return Chunk([], [], numbers, 0), numbers


class LineRecords(Protocol):
    """Makes records of consecutive lines of one source."""

    def chunks(self, lines: list[bytes], first: int) -> Iterator[Chunk]:
        """The records of `lines`, whose first one is line number `first` of the source."""


class PlainLines:
    """Format `lines`: the value is the line, byte for byte, without its newline."""

    def __init__(self, source: str, name: bytes, key: KeyTemplate, max_record: int) -> None:
        self._source = source
        self._max = max_record
        self._pattern, self._count = key.numbered(name)

    def chunks(self, lines: list[bytes], first: int) -> Iterator[Chunk]:
        start = 0
        if lines and max(map(len, lines)) > self._max:
            for at, line in enumerate(lines):
                if len(line) > self._max:
                    bad = BadRecord(self._source, first + at, f"longer than {self._max:,} bytes")
                    yield self._chunk(lines[start:at], first + start, bad)
                    start = at + 1
        if start < len(lines):
            yield self._chunk(lines[start:] if start else lines, first + start, None)

    def _chunk(self, lines: list[bytes], first: int, bad: BadRecord | None) -> Chunk:
        numbers = range(first, first + len(lines))
        pattern, count = self._pattern, self._count
        if count == 1:
            keys = list(map(pattern.__mod__, numbers))
        else:
            keys = [pattern % ((number,) * count) for number in numbers]
        size = sum(map(len, lines)) + len(lines)
        return Chunk(keys, lines, numbers, size, bad)


class JsonLines:
    """Format `jsonl`: the value is the line as it stands, its ends stripped of white space."""

    def __init__(self, source: str, name: bytes, key: KeyTemplate, max_record: int) -> None:
        self._source = source
        self._name = name
        self._key = key
        self._max = max_record

    def chunks(self, lines: list[bytes], first: int) -> Iterator[Chunk]:
        chunk, numbers = open_chunk()
        for number, line in enumerate(lines, first):
            chunk.size += len(line) + 1
            value = line.strip()
            if not value:
                continue
            try:
                key = self._key_of(value, number)
            except RecordError as error:
                chunk.bad = BadRecord(self._source, number, str(error))
                yield chunk
                chunk, numbers = open_chunk()
                continue
            chunk.keys.append(key)
            chunk.values.append(value)
            numbers.append(number)
        if chunk.size:
            yield chunk

    def _key_of(self, value: bytes, number: int) -> bytes:
        if len(value) > self._max:
            raise RecordError(f"longer than {self._max:,} bytes")
        try:
            row = _DECODE(value.removeprefix(_BOM).decode())
        except UnicodeDecodeError:
            raise RecordError("not UTF-8") from None
        except json.JSONDecodeError as error:
            raise RecordError(f"not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise RecordError(f"not JSON that can be read: {error}") from None
        if not isinstance(row, dict):
            if self._key.columns:
                raise RecordError("not a JSON object, so it has no key field")
            row = {}
        return self._key.render(self._name, number, row)

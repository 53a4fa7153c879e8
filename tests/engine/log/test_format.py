"""FORMAT.md's example is what the code writes, and its tables say where the fields lie."""

from __future__ import annotations

import re
from pathlib import Path

import meles.engine.log
import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import FORMAT_VERSION, HEADER_BYTES
from meles.engine.fs.files import Directory
from meles.engine.log import frame
from meles.engine.log.reader import LogReader
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.memtable import Memtable

TEXT = Path(meles.engine.log.__path__[0], "FORMAT.md").read_text()
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
EXAMPLE = bytes.fromhex(TEXT.split("```hex 00007.mem\n")[1].split("```")[0])


def rows(title: str) -> list[list[str]]:
    """The cells of the table rows of a section that begin with a number."""
    section = TEXT.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("title", "size"), [("Frame", frame.FRAME_BYTES), ("Record", frame.RECORD_BYTES)]
)
def test_fields_follow_each_other_without_a_gap(title: str, size: int) -> None:
    at = 0
    for offset, width, *_ in rows(title):
        assert int(offset) == at
        at += SIZES.get(width, 0)
    assert at == size


def test_the_example_is_what_is_written(directory: Directory) -> None:
    table = Memtable.create(LogWriter(directory, 7))
    log = table.log
    assert log is not None
    table.put(b"k", b"v1", 0, 9, 0, 41)
    table.put_many([b"k", b"gone"], [b"v2", b""], [0, 1], [1_000_000, 0], 42)
    table.last_ts = 42
    table.seal()
    log.close()
    assert directory.read("00007.mem") == EXAMPLE


def test_the_example_is_read() -> None:
    reader = LogReader(EXAMPLE, "f")
    found = [
        (f.ts, [(r.key, EXAMPLE[r.value_at : r.stop], r.version, r.meta, r.user, r.expiry)
                for r in reader.records(f)])
        for f in reader.frames()
    ]  # fmt: skip
    assert found == [
        (41, [(b"k", b"v1", 41, 0, 9, 0)]),
        (42, [(b"k", b"v2", 42, 0, 0, 1_000_000), (b"gone", b"", 42, 1, 0, 0)]),
    ]
    assert reader.tail is not None
    assert (reader.tail.sealed, reader.tail.end) == (True, len(EXAMPLE))


def test_the_example_fields_lie_where_the_tables_say() -> None:
    places = {name: int(offset) for offset, _, name, *_ in rows("Frame")}
    fields = {name: (int(offset), SIZES[width]) for offset, width, name, *_ in rows("Record")[:8]
              if width in SIZES}  # fmt: skip
    seed = int.from_bytes(EXAMPLE[HEADER_BYTES - 4 : HEADER_BYTES], "little")

    def number(at: int, size: int = 4) -> int:
        return int.from_bytes(EXAMPLE[at : at + size], "little")

    second = frame.aligned(HEADER_BYTES + 8 + number(HEADER_BYTES))
    length = number(second + places["length"])
    body = EXAMPLE[second + 8 : second + 8 + length]
    assert number(second + places["crc"]) == crc32c(body, seed ^ length)
    assert number(second + places["ts"], 8) == 42
    assert number(second + places["records"]) == 2
    assert number(second + places["kind"], 2) == frame.KIND_TXN
    record = second + frame.FRAME_BYTES
    found = {name: number(record + at, size) for name, (at, size) in fields.items()}
    assert found == {
        "version": 42, "expiry": 1_000_000, "value length": 2, "previous": 88, "key length": 1,
        "meta": 0, "user": 0,
    }  # fmt: skip
    assert EXAMPLE[88 + 28 : 88 + 31] == b"kv1"
    end = frame.aligned(second + 8 + length)
    assert (number(end + places["kind"], 2), number(end + places["records"])) == (2, 3)


def test_the_newest_version_is_listed() -> None:
    assert int(rows("History")[-1][0]) == FORMAT_VERSION

"""Reading a stream: short reads, large values, what is no file of bytes, and where damage is."""

from __future__ import annotations

import io

import pytest
from backups import columns, made_of, stream_of
from meles.engine.backup.format import (
    MAX_FRAME_BYTES,
    MAX_VALUE_BYTES,
    End,
    Start,
    encode_end,
    encode_large,
    encode_part,
    encode_start,
)
from meles.engine.backup.reading import StreamReader
from meles.engine.codec.columns import Columns
from meles.engine.errors import ConfigError, CorruptionError

ROWS = columns((b"a", 2, 0, 0, b"x"), (b"a", 1, 0x0104, 9, b""), (b"b", 3, 1, 0, b""))
WHOLE = stream_of(ROWS.slice(0, 2), ROWS.slice(2, 3))


def reader(data: bytes, largest: int = MAX_VALUE_BYTES) -> StreamReader:
    return StreamReader(io.BytesIO(data), "f", largest=largest)


def all_of(found: StreamReader) -> Columns:
    out = Columns()
    for batch in found.batches():
        out.extend(batch)
    return out


def test_what_is_in_a_stream() -> None:
    found = reader(WHOLE)
    assert (found.start, found.end) == (Start(0, 3), None)
    assert all_of(found) == ROWS
    assert found.end == End(3, 4, 3)
    assert found.read_bytes == len(WHOLE)


class Sips(io.BytesIO):
    """Gives a byte or three at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 1 + self.tell() % 3))


def test_reads_may_be_short() -> None:
    assert all_of(StreamReader(Sips(WHOLE), "f", largest=9)) == ROWS


@pytest.mark.parametrize("gives", [None, "text", bytearray(64), 7])
def test_a_file_that_gives_no_bytes(gives: object) -> None:
    class Odd:
        def read(self, size: int, /) -> object:
            return gives

    with pytest.raises(ConfigError, match="f cannot be read as a backup"):
        StreamReader(Odd(), "f", largest=9)


def test_never_more_is_asked_for_than_a_frame_takes() -> None:
    asked = []

    class Asked(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size)
            return super().read(size)

    size = 3 * MAX_FRAME_BYTES
    parts = [encode_part(b"v" * (MAX_FRAME_BYTES - 8)) for _ in range(3)] + [encode_part(b"v" * 24)]
    data = made_of(
        encode_start(Start(0, 1)), encode_large(b"k", 1, 0, 0, size), *parts,
        encode_end(End(1, 1 + size, 1)),
    )  # fmt: skip
    found = all_of(StreamReader(Asked(data), "f", largest=size))
    assert found.values == [b"v" * size]
    assert max(size or 0 for size in asked) == MAX_FRAME_BYTES
    assert -1 not in asked


def test_a_value_too_large_for_the_options() -> None:
    data = made_of(encode_start(Start(0, 1)), encode_large(b"k", 1, 0, 0, 1000))
    with pytest.raises(ConfigError, match="1,000 bytes; value_log_file_size allows 999"):
        all_of(reader(data, 999))
    with pytest.raises(CorruptionError, match="ends before its end"):
        all_of(reader(data, 1000))


def test_damage_says_where() -> None:
    at = WHOLE.rindex(b"b", 0, len(WHOLE) - 40)
    broken = WHOLE[:at] + b"c" + WHOLE[at + 1 :]
    with pytest.raises(CorruptionError) as caught:
        all_of(reader(broken))
    error = caught.value
    assert (error.path, error.kind) == ("f", "backup stream")
    assert 64 < error.offset < at < error.offset + 60  # where its frame begins
    with pytest.raises(CorruptionError, match=f"f at byte {len(WHOLE) - 5}: the stream ends"):
        all_of(reader(WHOLE[:-5]))
    with pytest.raises(CorruptionError, match=f"f at byte {len(WHOLE)}: there is something behind"):
        all_of(reader(WHOLE + b"x"))


@pytest.mark.parametrize("data", [b"", b"MELESBAK", b"\x7fELF" + bytes(100)], ids=len)
def test_what_is_no_stream(data: bytes) -> None:
    with pytest.raises(CorruptionError) as caught:
        reader(data)
    assert "doctor" not in caught.value.hint


def test_it_is_not_read_before_it_is_asked_for() -> None:
    """A stream that is refused by how it begins may be endless."""
    file = io.BytesIO(WHOLE)
    StreamReader(file, "f", largest=9)
    assert file.tell() == 64 + 16 + 24

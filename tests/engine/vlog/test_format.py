"""FORMAT.md's example is what the code writes, and the layout refuses what contradicts it."""

from __future__ import annotations

import re
from array import array
from pathlib import Path

import meles.engine.vlog
import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.jobs import RelocateJob
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.layout import (
    TRAILER_BYTES,
    Trailer,
    decode_maps,
    decode_trailer,
    encode_maps,
    maps_bytes,
)
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.relocate import live_entries, relocate
from meles.engine.vlog.writer import ValueLogWriter


class Calm:
    def progress(self, done_bytes: int) -> None:
        pass


def example(name: str) -> bytes:
    text = Path(meles.engine.vlog.__path__[0], "FORMAT.md").read_text()
    match = re.search(rf"```hex {re.escape(name)}\n(.*?)```", text, re.DOTALL)
    assert match is not None
    return bytes.fromhex(match[1])


def test_the_example_is_what_is_written(directory: Directory, tmp_path: Path) -> None:
    writer = ValueLogWriter(directory, 7)
    writer.append(b"dead", 41)
    live = writer.append(b"meles", 42)
    writer.seal()
    writer.close()
    assert (tmp_path / "000007.vlog").read_bytes() == example("000007.vlog")
    job = RelocateJob(((7, (7,)),), (), 9, 0, 0)
    relocate(job, live_entries([7], [live.encode()]), directory, Calm())
    assert (tmp_path / "000009.vlog").read_bytes() == example("000009.vlog")


def test_the_example_is_read(directory: Directory, tmp_path: Path) -> None:
    for name in ("000007.vlog", "000009.vlog"):
        (tmp_path / name).write_bytes(example(name))
    pointer = bytes.fromhex("07000000 54000000 05000000")
    assert load_meta(directory, 7) == VlogMeta(7, (7,), True, 169, 2)
    assert load_meta(directory, 9) == VlogMeta(9, (7,), True, 165, 1)
    for file_id in (7, 9):
        file = ValueLogFile(directory, load_meta(directory, file_id))
        assert file.fetch(pointer, 42) == b"meles"
        file.close()


def test_the_example_fields_lie_where_the_tables_say() -> None:
    data = example("000009.vlog")
    address = bytes.fromhex("07000000 54000000 05000000")
    assert int.from_bytes(data[64:68], "little") == crc32c(address + data[72:85])
    assert data[85:101] == array("I", [7, 1, 84, 64]).tobytes()
    trailer = data[-TRAILER_BYTES:]
    seed = int.from_bytes(data[HEADER_BYTES - 4 : HEADER_BYTES], "little")
    assert int.from_bytes(trailer[36:40], "little") == crc32c(data[85:101], seed)
    assert int.from_bytes(trailer[52:56], "little") == crc32c(trailer[:52], seed)
    assert [int.from_bytes(trailer[at : at + 8], "little") for at in (0, 8, 16, 24)] == [
        85,
        1,
        85,
        16,
    ]


def test_a_trailer_is_bound_to_its_file() -> None:
    trailer = Trailer(200, 3, 200)
    data = trailer.encode(seed=5)
    assert decode_trailer(data, 5, 264, "f") == trailer
    with pytest.raises(CorruptionError, match="checksum"):
        decode_trailer(data, 6, 264, "f")


@pytest.mark.parametrize(
    ("trailer", "size"),
    [
        (Trailer(200, 3, 200), 265),
        (Trailer(200, 3, 199), 263),
        (Trailer(63, 0, 63, maps_length=1), 128),
        (Trailer(200, 9, 200), 264),
        (Trailer(200, 8, 200, lost=9), 264),
        (Trailer(1 << 63, 0, 1 << 63), 264),
        (Trailer(200, 3, 200, maps_length=(1 << 64) - 64), 264),
    ],
)
def test_a_trailer_that_contradicts_itself_is_damage(trailer: Trailer, size: int) -> None:
    with pytest.raises(CorruptionError, match="contradicts"):
        decode_trailer(trailer.encode(1), 1, size, "f")


def maps_of(section: bytes, count: int, entries: int) -> object:
    trailer = Trailer(1000, entries, 1000, len(section), count, crc32c(section, 1))
    return decode_maps(memoryview(section), trailer, 1, "f")


def test_maps_come_back_as_they_were() -> None:
    first = (3, array("I", [64, 90]), array("I", [64, 80]))
    second = (5, array("I", [70]), array("I", [96]))
    section = encode_maps([first, second])
    assert len(section) == maps_bytes(2, 3)
    maps = maps_of(section, 2, 3)
    assert isinstance(maps, dict)
    assert {key: [column.tolist() for column in value] for key, value in maps.items()} == {
        3: [[64, 90], [64, 80]],
        5: [[70], [96]],
    }


def test_maps_with_impossible_counts_are_damage() -> None:
    one = array("I", [64])
    section = encode_maps([(3, one, one), (5, one, one)])
    for count, entries in ((1, 2), (2, 1), (2, 3), (1 << 31, 2), (0, 2), (3, 1)):
        with pytest.raises(CorruptionError):
            maps_of(section, count, entries)
    for ids in ((5, 3), (3, 3)):
        with pytest.raises(CorruptionError, match="order"):
            maps_of(encode_maps([(ids[0], one, one), (ids[1], one, one)]), 2, 2)
    lying = bytearray(section)
    lying[4:8], lying[12:16] = (3).to_bytes(4, "little"), b"\xff" * 4
    with pytest.raises(CorruptionError, match="cover"):
        maps_of(bytes(lying), 2, 2)

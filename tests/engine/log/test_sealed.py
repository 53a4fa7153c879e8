"""The log of an encrypted directory, read as the plain one is: the same frames, the same damage."""

from __future__ import annotations

import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.header import HEADER_BYTES, MAGIC_WAL, decode_header
from meles.engine.crypt.file_cipher import TAG_BYTES
from meles.engine.crypt.keys import DataKey, KeyRing
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.log.frame import BODY, KIND_END, KIND_TXN, PREFIX, PREFIX_BYTES, RECORD
from meles.engine.log.reader import LogReader
from meles.engine.log.sealed import map_log, new_log

NAME = "00001.mem"


def body_of(ts: int, key: bytes, value: bytes) -> bytes:
    record = RECORD.pack(ts, 0, len(value), 0, len(key), 0, 0) + key + value
    return BODY.pack(ts, 1, KIND_TXN, 0) + record


@pytest.fixture
def sealing(directory: Directory) -> Directory:
    directory.keys = KeyRing([DataKey.fresh(1, 0.0)], 1)
    return directory


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_whole_frame_is_found_behind_a_damaged_one(sealing: Directory, size: int) -> None:
    """Also behind one that is larger than what is searched byte by byte."""
    log = new_log(sealing, 1)
    for ts, (key, value) in enumerate([(b"a", b"1"), (b"b", b"x" * size), (b"c", b"3")], 1):
        log.append_body(body_of(ts, key, value))
    log.close()
    with map_log(sealing, NAME) as plain:
        frames = list(LogReader(plain, NAME).frames())
    assert [frame.ts for frame in frames] == [1, 2, 3]
    with sealing.open(NAME, write=True) as file:
        file.pwrite(b"damaged", frames[1].stop - 7)
    with map_log(sealing, NAME) as plain:
        reader = LogReader(plain, NAME)
        assert [frame.ts for frame in reader.frames()] == [1]
        assert reader.whole_frame_after(frames[1].offset) == frames[2].offset


def test_the_end_record_is_readable_and_cannot_be_another(sealing: Directory) -> None:
    """Another last timestamp or number of records, under a checksum that fits."""
    log = new_log(sealing, 1)
    log.append_body(body_of(7, b"a", b"1"))
    at = log.end
    log.seal(7)
    log.close()
    whole = sealing.read(NAME)
    seed = decode_header(whole[:HEADER_BYTES], MAGIC_WAL, NAME).seed
    start = at + PREFIX_BYTES
    ts, records, kind, _ = BODY.unpack_from(whole, start)
    assert (ts, kind) == (7, KIND_END)
    for wrong in ((8, records, KIND_END, 0), (7, 9, KIND_END, 0), (7, records, KIND_TXN, 0)):
        stored = BODY.pack(*wrong) + whole[start + BODY.size : start + BODY.size + TAG_BYTES]
        prefix = PREFIX.pack(BODY.size, crc32c(stored, seed ^ BODY.size))
        with sealing.open(NAME, write=True) as file:
            file.pwrite(prefix + stored, at)
        with pytest.raises(CorruptionError, match="the seal is broken") as caught:
            map_log(sealing, NAME)
        assert caught.value.offset == at
    with sealing.open(NAME, write=True) as file:
        file.pwrite(whole[at:], at)
    map_log(sealing, NAME).close()

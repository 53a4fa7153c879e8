"""The log of an encrypted directory, read as the plain one is: the same frames, the same damage."""

from __future__ import annotations

import pytest
from meles.engine.crypt.keys import DataKey, KeyRing
from meles.engine.fs.files import Directory
from meles.engine.log.frame import BODY, KIND_TXN, RECORD
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

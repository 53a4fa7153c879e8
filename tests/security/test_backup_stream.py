"""S14: a backup stream that nobody wrote makes nothing: a typed error, an absent directory, and no
more memory than a frame takes. What checks out in every way and is hostile all the same has no
means: there are no names in it.
"""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from itertools import chain, permutations
from pathlib import Path
from typing import Any

import meles
import pytest
from backups import (
    CALM,
    backup,
    beside,
    columns,
    content_of,
    entries,
    files,
    made_of,
    payloads,
    restored,
    split,
    stream_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.backup import format as stream
from meles.engine.backup.format import End, Start
from meles.engine.codec.columns import Columns
from meles.engine.fs.names import parse_name

REFUSED = (meles.CorruptionError, meles.FormatVersionError)
MOST_MEMORY = 24 << 20  # bytes, some fifty frames: what claims gigabytes would take those
fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A small full stream of several frames, and its increment, which has tombstones, references,
    expiry times, and bans."""
    path = tmp_path_factory.mktemp("sample") / "db"
    with meles.open(path, namespace_offset=0, num_versions_to_keep=3, **CALM) as db:
        for number in range(4):
            db.set(b"k%d" % number, b"value %d" % number, meta=number, ttl=1e6 if number else None)
        db[b"k1"] = b"again"
        full = backup(db)
        since = db.max_version()
        del db[b"k2"]
        db[b"l"] = b"new"
        db.ban_namespace(7)
        more = backup(db, since=since)
    batch = stream.decode_entries(payloads(full)[1], Start(0, since), stream.Place("f", 0))
    assert len(batch) == 5
    return stream_of(*(batch.slice(at, at + 1) for at in range(5))), more


def refused(path: Path, *streams: bytes) -> None:
    """A typed error that names a place in a stream, nothing at the path and nothing beside it."""
    before = beside(path)
    with pytest.raises(REFUSED) as caught:
        restored(path, *streams)
    assert not path.exists()
    assert beside(path) == before
    if isinstance(caught.value, meles.CorruptionError):
        assert caught.value.kind in ("backup stream", "bak header")
        assert 0 <= caught.value.offset <= max(map(len, streams))
        assert "another copy" in caught.value.hint


def test_a_flipped_byte_anywhere(sample: tuple[bytes, bytes], shm_path: Path) -> None:
    full, more = sample
    for at in range(len(full)):
        refused(shm_path / "new", full[:at] + bytes([full[at] ^ 0x41]) + full[at + 1 :])
    for at in range(len(more)):
        refused(
            shm_path / "new", full, more[:at] + bytes([more[at] ^ 1 << at % 8]) + more[at + 1 :]
        )


def test_a_stream_cut_anywhere(sample: tuple[bytes, bytes], shm_path: Path) -> None:
    full, more = sample
    for length in range(len(full)):
        refused(shm_path / "new", full[:length])
    for length in range(len(more)):
        refused(shm_path / "new", full, more[:length])
    for length in range(0, len(full), 7):
        refused(shm_path / "new", full[:length], more)


def test_something_behind_the_end(sample: tuple[bytes, bytes], shm_path: Path) -> None:
    for extra in (b"\0", b"MELESBAK", sample[0], split(sample[0])[-1]):
        refused(shm_path / "new", sample[0] + extra)
        refused(shm_path / "new", *sample[:1], sample[1] + extra)


def test_frames_in_another_order(sample: tuple[bytes, bytes], shm_path: Path) -> None:
    """Left out, repeated, moved: as they are, and with numbers and checksums of their new place."""
    header, *frames = split(sample[0])
    inside = payloads(sample[0])
    assert len(frames) == 7
    orders = [
        *([*range(at), *range(at + 1, 7)] for at in range(7)),
        *([*range(at), at, *range(at, 7)] for at in range(7)),
        *([*range(at), at + 1, at, *range(at + 2, 7)] for at in range(6)),
        *([0, *order, 6] for order in permutations(range(1, 6)) if order != (1, 2, 3, 4, 5)),
        [*range(7), *range(7)], [*range(7), 0], [6], [0], [], [0, 0, *range(1, 7)],
    ]  # fmt: skip
    for order in orders:
        refused(shm_path / "new", header + b"".join(frames[at] for at in order))
        refused(shm_path / "new", made_of(*(inside[at] for at in order)))
    restored(shm_path / "new", made_of(*inside))


def test_parts_of_a_value_in_another_order(tmp_path: Path) -> None:
    """Nothing but their numbers tells parts of one size apart."""
    parts = [stream.encode_part(bytes([at]) * 2) for at in range(3)]
    whole = made_of(
        OPEN, stream.encode_large(b"k", 3, 0, 0, 6), *parts, stream.encode_end(End(1, 7, 3))
    )
    frames = split(whole)
    for order in permutations(range(3)):
        mixed = b"".join([*frames[:3], *(frames[3 + at] for at in order), *frames[6:]])
        if mixed != whole:
            refused(tmp_path / "new", mixed)
    for at in range(3):  # one twice in the place of another
        mixed = b"".join([*frames[:3], *[frames[3 + at]] * 3, *frames[6:]])
        refused(tmp_path / "new", mixed)
    restored(tmp_path / "new", whole)
    assert content_of(tmp_path / "new")[0][2] == b"\0\0\1\1\2\2"


def test_a_frame_of_another_stream(sample: tuple[bytes, bytes], shm_path: Path) -> None:
    ours, theirs = made_of(*payloads(sample[0])), made_of(*payloads(sample[0]), salt=b"t" * 16)
    for at in range(1, 8):
        mixed = [*split(ours)[:at], split(theirs)[at], *split(ours)[at + 1 :]]
        refused(shm_path / "new", b"".join(mixed))


PLAIN = columns((b"k", 3, 0, 0, b"v"))
LARGE = stream.encode_large(b"k", 3, 0, 0, 5)
OPEN, CLOSED = stream.encode_start(Start(0, 3)), stream.encode_end(End(1, 6, 3))
ROW = stream.encode_entries(PLAIN)


@pytest.mark.parametrize(
    "frames",
    [
        (OPEN, LARGE, CLOSED),
        (OPEN, LARGE, stream.encode_part(b"vvvv"), CLOSED),
        (OPEN, LARGE, stream.encode_part(b"vvvvvv"), CLOSED),
        (OPEN, LARGE, stream.encode_part(b""), stream.encode_part(b"vvvvv"), CLOSED),
        (OPEN, LARGE, ROW, CLOSED),
        (OPEN, LARGE, LARGE, CLOSED),
        (OPEN, LARGE, stream.encode_part(b"vvvvv"), LARGE, stream.encode_part(b"vvvvv"), CLOSED),
        (OPEN, stream.encode_part(b"vvvvv"), CLOSED),
        (OPEN, OPEN, ROW, CLOSED),
        (ROW, CLOSED),
        (OPEN, ROW),
        (OPEN, ROW, CLOSED, CLOSED),
        (OPEN, b"\6" + ROW[1:], CLOSED),
        (OPEN, b"\0" + ROW[1:], CLOSED),
        (OPEN, ROW, stream.encode_end(End(1, 6, 3))),
        (OPEN, ROW, stream.encode_end(End(2, 2, 3))),
        (OPEN, ROW, stream.encode_end(End(1, 2, 4))),
        (stream.encode_start(Start(0, 2)), ROW, stream.encode_end(End(1, 2, 2))),
    ],
    ids=range(18),
)
def test_frames_that_check_out_and_make_no_sense(frames: tuple[bytes, ...], tmp_path: Path) -> None:
    refused(tmp_path / "new", made_of(*frames))


def test_frames_that_make_sense(tmp_path: Path) -> None:
    """What the cases before differ from."""
    restored(tmp_path / "a", made_of(OPEN, LARGE, stream.encode_part(b"vvvvv"), CLOSED))
    parts = map(stream.encode_part, (b"v", b"vv", b"vv"))
    restored(tmp_path / "b", made_of(OPEN, LARGE, *parts, CLOSED))
    restored(tmp_path / "c", made_of(OPEN, ROW, stream.encode_end(End(1, 2, 3))))
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


@pytest.mark.parametrize(
    "increment",
    [
        columns((b"x", 2, stream.KEPT, 0, stream.reference(1))),
        columns((b"k", 2, stream.KEPT, 0, stream.reference(1))),
        columns((b"k", 3, stream.KEPT, 0, stream.reference(2))),
        columns((b"k", 3, stream.KEPT, 9, stream.reference(1))),
        columns((b"k", 3, stream.KEPT | 0x100, 0, stream.reference(1))),
        columns((b"k", 3, stream.KEPT | 0x04, 0, stream.reference(1))),
    ],
)
def test_references_to_nothing(increment: Columns, tmp_path: Path) -> None:
    full = stream_of(PLAIN)
    refused(tmp_path / "new", full, stream_of(increment, start=Start(3, 9)))
    fitting = columns((b"k", 3, stream.KEPT, 0, stream.reference(1)))
    restored(tmp_path / "new", full, stream_of(fitting, start=Start(3, 9)))


# -- drawn ---------------------------------------------------------------------------------------


def fresh(home: Path) -> Path:
    """A path nothing is at."""
    return home / os.urandom(8).hex()


@fuzzed
@given(data=st.data())
def test_whatever_is_done_to_the_bytes(
    sample: tuple[bytes, bytes], shm_path: Path, data: st.DataObject
) -> None:
    path, whole = fresh(shm_path), list(sample)
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, 1))
        found = whole[which]
        at, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(found))] * 2)))
        what = data.draw(st.sampled_from(["cut", "zero", "repeat", "write", "drop", "move"]))
        extra = data.draw(st.binary(min_size=1, max_size=24))
        whole[which] = {
            "cut": found[:at],
            "zero": found[:at] + bytes(stop - at) + found[stop:],
            "repeat": found[:stop] + found[at:],
            "write": found[:at] + extra + found[at + len(extra) :],
            "drop": found[:at] + found[stop:],
            "move": found[stop:] + found[at:stop] + found[:at],
        }[what]
    if whole == list(sample):
        return
    refused(path, *whole)


plain_row = st.tuples(
    st.binary(min_size=1, max_size=2), st.integers(1, 5), st.sampled_from([0, 4, 8, 0xFF00]),
    st.sampled_from([0, 5, 1 << 62]), st.binary(max_size=5),
)  # fmt: skip
kept_row = st.tuples(
    st.binary(min_size=1, max_size=2), st.integers(1, 3), st.just(2), st.just(0),
    st.just(stream.reference(1)),
)  # fmt: skip
odd_row = st.tuples(
    st.one_of(st.binary(max_size=3), st.just(b"!meles!x")),
    st.one_of(st.integers(0, 9), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.sampled_from([0, 1, 2, 4, 8]), st.integers(0, 0xFFFF)),
    st.one_of(st.just(0), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.binary(max_size=5), st.just(stream.reference(1))),
)
batches = st.lists(st.one_of(plain_row, plain_row, kept_row, odd_row), min_size=1, max_size=3)
junk = st.one_of(
    st.binary(max_size=60),
    st.tuples(st.integers(0, 7), st.binary(max_size=80)).map(
        lambda p: bytes((p[0], 0, 0, 0)) + p[1]
    ),
    odd_row.map(lambda r: stream.encode_large(*r[:4], len(r[4]))),
    st.binary(max_size=5).map(stream.encode_part),
    st.tuples(*[st.integers(0, 9)] * 3).map(lambda end: stream.encode_end(End(*end))),
    st.tuples(*[st.integers(0, 9)] * 2).map(lambda start: stream.encode_start(Start(*start))),
)


@fuzzed
@given(
    since=st.sampled_from([0, 3]),
    token=st.integers(3, 9),
    inside=st.lists(batches, max_size=3),
    odd=st.lists(st.tuples(st.integers(0, 4), junk), max_size=1),
    sort=st.booleans(),
)
def _frames_of_anything(
    home: Path, taken: list[Path], since: int, token: int, inside: list[Any], odd: list[Any],
    sort: bool,
) -> None:  # fmt: skip
    path = fresh(home)
    if sort:
        rows = sorted({r[:2]: r for r in chain(*inside)}.values(), key=lambda r: (r[0], -r[1]))
        inside = [rows[at : at + 2] for at in range(0, len(rows), 2)]
    whole = stream_of(*(columns(*rows) for rows in inside), start=Start(since, token))
    frames = payloads(whole)
    for at, extra in odd:
        frames.insert(at, extra)
    base = stream_of(columns((b"a", 3, 0, 0, b"v"), (b"k", 2, 0, 0, b"w"))) if since else None
    try:
        restored(path, *filter(None, (base, made_of(*frames))))
    except (*REFUSED, meles.ConfigError):
        assert not path.exists()
    else:
        content_of(path)
        taken.append(path)


def test_frames_of_anything(shm_path: Path) -> None:
    """With checksums that hold: refused, or a database in which everything checks out."""
    taken: list[Path] = []
    _frames_of_anything(home=shm_path, taken=taken)
    assert taken


@fuzzed
@given(data=st.binary(max_size=300))
def test_a_stream_of_anything(data: bytes, shm_path: Path) -> None:
    refused(fresh(shm_path), data)
    refused(fresh(shm_path), stream.make_header(bytes(16)).encode() + data)


# -- bombs ---------------------------------------------------------------------------------------


class Endless(io.RawIOBase):
    """What it begins with, then the same again for ever; counts what was taken."""

    def __init__(self, begins: bytes, goes_on: bytes = b"\0" * 4096) -> None:
        self._left = begins
        self._again = goes_on
        self.taken = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert 0 <= size <= stream.MAX_FRAME_BYTES, "it would take anything"
        while len(self._left) < size:
            self._left += self._again
        data, self._left = self._left[:size], self._left[size:]
        self.taken += size
        return data


HEADER = stream.make_header(bytes(16))


def crafted(*contents: bytes) -> bytes:
    return made_of(*contents, salt=bytes(16))


BOMBS = {
    "a frame of 4 GiB": HEADER.encode() + stream.HEAD.pack((1 << 32) - 1, 0, 1),
    "a frame a byte too long": HEADER.encode() + stream.HEAD.pack(stream.MAX_FRAME_BYTES + 1, 0, 1),
    "no frame at all": HEADER.encode(),
    "zeros": b"",
    "many bans": crafted(struct.pack("<B3xIQQ", 1, (1 << 32) - 1, 0, 3)),
    "many entries": crafted(OPEN, struct.pack("<B3xI", 2, (1 << 32) - 1) + bytes(1000)),
    "a long key": crafted(
        OPEN, struct.pack("<B3xIQQIIHH", 2, 1, 3, 0, (1 << 32) - 1, 1, 0, 0) + bytes(1000)
    ),
    "a long value": crafted(
        OPEN, struct.pack("<B3xIQQIIHH", 2, 1, 3, 0, 1, (1 << 32) - 1, 0, 0) + bytes(1000)
    ),
    "a value in parts that do not come": crafted(
        OPEN, stream.encode_large(b"k", 3, 0, 0, (1 << 30) - 1)
    ),
    "a value that is too large": crafted(OPEN, stream.encode_large(b"k", 3, 0, 0, 1 << 30)),
    "short rows": crafted(
        OPEN,
        stream.encode_entries(Columns(*([part] * 18_000 for part in (b"k", 3, 0, 0, b"")))),
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_takes_no_more_memory_than_some_frames(what: str, tmp_path: Path) -> None:
    file = Endless(BOMBS[what])
    tracemalloc.start()
    try:
        with pytest.raises((*REFUSED, meles.ConfigError)):
            meles.restore(file, tmp_path / "new")
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert file.taken < 4 << 20
    assert beside(tmp_path / "new") == []


def test_a_long_stream_takes_no_more_memory_than_some_frames(tmp_path: Path) -> None:
    """40 MB of entries and an increment of references, with a batch in hand at a time."""
    value = b"v" * 2000
    frames = [
        columns(*((b"k%05d" % number, 1 + number, 0, 0, value) for number in range(at, at + 100)))
        for at in range(0, 20_000, 100)
    ]
    kept = [
        Columns(
            batch.keys, batch.versions, [stream.KEPT] * 100, batch.expiries,
            [stream.reference(2000)] * 100,
        )
        for batch in frames[::2]
    ]  # fmt: skip
    full = tmp_path / "full"
    full.write_bytes(stream_of(*frames))
    (tmp_path / "more").write_bytes(stream_of(*kept, start=Start(20_000, 20_000)))
    del frames, kept
    tracemalloc.start()
    try:
        report = meles.restore([full, tmp_path / "more"], tmp_path / "new", value_threshold="1MiB")
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
    assert report.entries == 10_000


# -- names ---------------------------------------------------------------------------------------


def test_nothing_in_a_stream_becomes_a_name(tmp_path: Path) -> None:
    """Whatever keys and values look like: the files are numbers, in the new directory alone."""
    names = [b"../../x", b"/tmp/x", b"MANIFEST", b"000001.sst\0", b"KEYREGISTRY", b"LOCK", b"\0"]
    rows = sorted((name, at, 0, 0, name * 300) for at, name in enumerate(names, 1))
    place = tmp_path / "deep" / "new"
    place.parent.mkdir()
    restored(place, stream_of(columns(*rows)))
    assert beside(place) == []
    assert beside(place.parent) == []
    for path in place.iterdir():
        assert path.name == "MANIFEST" or parse_name(path.name)
        assert path.stat().st_mode & 0o777 == 0o600
    with meles.open(place, mode="read_only") as db:
        assert [entry[0] for entry in entries(db)] == sorted(names)


def test_errors_hold_no_key_and_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = (b"canary-key", 3, 0, 0, b"canary-value" * 50)
    whole = stream_of(columns(row))
    bad = stream_of(columns((b"canary-key", 3, 0x10, 0, b"canary-value" * 50)))
    twice = stream_of(columns(row), columns(row))
    kept = stream_of(
        columns((b"canary-key", 3, stream.KEPT, 0, stream.reference(7))), start=Start(3, 4)
    )
    cases = [[whole[:-9]], [bad], [twice], [whole, kept], [whole[:150] + b"?" + whole[151:]]]
    said = [caplog.text]
    for case in cases:
        with pytest.raises(REFUSED) as caught:
            restored(tmp_path / "new", *case)
        error: BaseException | None = caught.value
        while error is not None:
            said += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    assert "canary" not in "".join(chain(said, [caplog.text]))
    assert meles.check_backup(files([whole])).entries == 1

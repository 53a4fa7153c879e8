"""What is written into a stream, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import meles
import pytest
from backups import CALM, backup, content_of, entries, payloads, restored
from meles.engine.backup import format as stream
from meles.engine.backup.format import FRAME_TARGET, KEPT, PART_BYTES, Place, Start

HERE = Place("f", 0)
KINDS = {1: "start", 2: "entries", 3: "large", 4: "part", 5: "end"}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[meles.DB]:
    with meles.open(tmp_path / "db", num_versions_to_keep=9, **CALM) as opened:
        yield opened


def kinds(data: bytes) -> list[str]:
    return [KINDS[payload[0]] for payload in payloads(data)]


def rows(data: bytes) -> list[tuple[bytes, int, int, int, bytes]]:
    first, *inside, _ = payloads(data)
    start = stream.decode_start(first, HERE)
    found = []
    for payload in inside:
        batch = stream.decode_entries(payload, start, HERE)
        found += zip(
            batch.keys, batch.versions, batch.metas, batch.expiries, batch.values, strict=True
        )
    return found


def test_every_version_with_all_that_is_said_of_it(db: meles.DB) -> None:
    db.set(b"a", b"1", meta=7, discard_earlier=True)
    db.set(b"a", b"x" * 5000, ttl=1e6)
    db.delete(b"b")
    found = rows(backup(db))
    expiry = found[0][3]
    assert found == [
        (b"a", 2, 0, expiry, b"x" * 5000), (b"a", 1, 0x0704, 0, b"1"), (b"b", 3, 1, 0, b""),
    ]  # fmt: skip
    assert expiry > 0


def test_an_increment_refers_to_what_is_older(db: meles.DB) -> None:
    db.set(b"a", b"1", meta=7)
    db.set(b"b", b"x" * 5000)
    db.delete(b"c")
    db.set(b"a", b"2")
    assert rows(backup(db, since=3)) == [
        (b"a", 4, 0, 0, b"2"), (b"a", 1, 0x0700 | KEPT, 0, stream.reference(1)),
        (b"b", 2, KEPT, 0, stream.reference(5000)), (b"c", 3, 1, 0, b""),
    ]  # fmt: skip
    assert stream.decode_start(payloads(backup(db, since=3))[0], HERE) == Start(3, 4)


def test_what_a_drop_hides_is_not_in_it(db: meles.DB) -> None:
    db[b"a/1"] = db[b"b/1"] = b"v"
    db.drop_prefix(b"a/")
    db[b"a/2"] = b"v"
    assert [row[0] for row in rows(backup(db))] == [b"a/2", b"b/1"]


def test_an_empty_one(db: meles.DB) -> None:
    assert kinds(backup(db)) == ["start", "end"]


def test_frames_are_ended_in_time(db: meles.DB) -> None:
    """Also where entries are as large as they may be in a frame."""
    key = b"k" * 64_000
    for number in range(12):
        db[key + b"%02d" % number] = os.urandom(PART_BYTES - 1 - number % 2)
    for number in range(3000):
        db[b"l%04d" % number] = b"v" * 300
    data = backup(db)
    sizes = [len(payload) for payload in payloads(data)]
    assert max(sizes) <= stream.MAX_FRAME_BYTES
    assert max(sizes) > FRAME_TARGET
    assert kinds(data) == ["start", *["entries"] * (len(sizes) - 2), "end"]
    assert 12 + 3 <= len(sizes) - 2 <= 12 + 8


@pytest.mark.parametrize("size", [PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 5])
def test_large_values_come_in_parts(db: meles.DB, tmp_path: Path, size: int) -> None:
    db[b"a"] = b"v"
    db.set(b"b", os.urandom(size), meta=9, ttl=1e6)
    db[b"c"] = b"v"
    data = backup(db)
    found = kinds(data)
    if size < PART_BYTES:
        assert set(found) == {"start", "entries", "end"}
    else:
        parts = ["part"] * -(-size // PART_BYTES)
        assert found == ["start", "entries", "large", *parts, "entries", "end"]
    for threshold in (100, "1MiB"):
        path = tmp_path / str(threshold)
        restored(path, data, value_threshold=threshold)
        assert content_of(path) == entries(db)


def test_a_large_value_that_is_older_is_referred_to(db: meles.DB) -> None:
    db[b"a"] = os.urandom(PART_BYTES)
    assert len(backup(db, since=1)) < 1000


def test_streams_of_one_snapshot_are_alike_but_for_their_checksums(db: meles.DB) -> None:
    db[b"a"] = b"v"
    one, other = backup(db), backup(db)
    assert payloads(one) == payloads(other)
    assert one != other


def test_damage_in_the_database_is_no_backup(db: meles.DB, tmp_path: Path) -> None:
    db[b"a"] = b"v" * 5000
    db.flush()
    db.close()
    (values,) = (tmp_path / "db").glob("*.vlog")
    data = bytearray(values.read_bytes())
    data[1000] ^= 1
    values.write_bytes(data)
    with meles.open(tmp_path / "db", mode="read_only") as again:
        with pytest.raises(meles.CorruptionError, match="vlog"):
            backup(again)
        assert backup(again, since=1)  # which has no need of the value

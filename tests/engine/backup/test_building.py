"""The files that entries become: tables of the deepest level, value-log files, the MANIFEST."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import meles
import pytest
from backups import CALM, columns, content_of, restored, stream_of
from meles.engine.backup import building
from meles.engine.codec.columns import Columns
from meles.engine.fs.names import MANIFEST, parse_name


def many(count: int, versions: int, value: bytes) -> Columns:
    return columns(
        *(
            (b"k%06d" % number, version, 0, 0, value)
            for number in range(count)
            for version in range(versions, 0, -1)
        )
    )


def batches(whole: Columns, size: int) -> list[Columns]:
    return [whole.slice(at, at + size) for at in range(0, len(whole), size)]


def test_tables_end_at_their_size_and_never_within_a_key(tmp_path: Path) -> None:
    """Batches that end anywhere, also between the versions of a key."""
    stream = stream_of(*batches(many(300, 7, b"v" * 100), 50))
    restored(tmp_path / "new", stream, base_table_size="16KiB")
    with meles.open(tmp_path / "new", mode="read_only") as db:
        tables = db.tables()
        assert {table.level for table in tables} == {6}
        assert len(tables) > 5
        for left, right in pairwise(tables):
            assert left.max_key < right.min_key
    assert len(content_of(tmp_path / "new")) == 2100


def test_tables_are_larger_where_there_are_more(tmp_path: Path) -> None:
    """As further down in any database, so that a large one does not have too many."""
    stream = stream_of(*batches(many(9000, 1, b"v" * 100), 50))
    options = {"base_table_size": "16KiB", "base_level_size": "64KiB", "level_size_multiplier": 2}
    restored(tmp_path / "new", stream, **options)
    with meles.open(tmp_path / "new", mode="read_only") as db:
        sizes = [table.size for table in db.tables()]
    assert sizes[0] < 32 << 10
    assert max(sizes) > 128 << 10
    assert len(sizes) < 30
    assert len(content_of(tmp_path / "new")) == 9000


def test_a_key_with_more_versions_than_a_table_has_room(tmp_path: Path) -> None:
    stream = stream_of(*batches(many(3, 3000, b"v" * 20), 100))
    restored(tmp_path / "new", stream, base_table_size="16KiB")
    with meles.open(tmp_path / "new", mode="read_only") as db:
        assert len(db.tables()) == 3
        with db.view(at=1500) as txn:
            item = txn.item(b"k000001")
            assert item is not None
            assert item.version == 1500
    assert len(content_of(tmp_path / "new")) == 9000


def test_more_of_a_key_than_a_table_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_MOST_OF_A_KEY", 200_000)
    stream = stream_of(*batches(many(1, 3000, b"v" * 100), 100))
    with pytest.raises(meles.Error, match="more than 200,000 bytes of versions"):
        restored(tmp_path / "new", stream)
    assert not (tmp_path / "new").exists()
    restored(tmp_path / "new", stream, value_threshold=100)
    assert len(content_of(tmp_path / "new")) == 3000


def test_value_log_files_are_ended(tmp_path: Path) -> None:
    stream = stream_of(*batches(many(40, 1, b"v" * 100_000), 2))
    restored(tmp_path / "size", stream, value_log_file_size="1MiB")
    assert len(list((tmp_path / "size").glob("*.vlog"))) == 4
    restored(tmp_path / "entries", stream, value_log_max_entries=10)
    assert len(list((tmp_path / "entries").glob("*.vlog"))) == 4
    restored(tmp_path / "none", stream, value_threshold="1MiB")
    assert list((tmp_path / "none").glob("*.vlog")) == []
    for name in ("size", "entries", "none"):
        assert len(content_of(tmp_path / name)) == 40


@pytest.mark.parametrize("key", [None, bytes(32)])
def test_only_files_of_ours_0600(tmp_path: Path, key: bytes | None) -> None:
    restored(tmp_path / "new", stream_of(many(9, 1, b"v" * 2000)), encryption_key=key)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "new").iterdir():
        assert path.name in (MANIFEST, "KEYREGISTRY") or parse_name(path.name)
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "KEYREGISTRY").exists() == (key is not None)


def test_it_goes_on_as_any_database(tmp_path: Path) -> None:
    """Ids, compactions, collections, deletions: nothing knows that it was restored."""
    restored(tmp_path / "new", stream_of(*batches(many(500, 3, b"v" * 1500), 100)))
    with meles.open(tmp_path / "new", **CALM) as db:
        for number in range(0, 500, 2):
            db.delete(b"k%06d" % number)
        db[b"k000001"] = b"w" * 3000
        db.flush()
        db.flatten()
        db.gc(0.1)
        assert db.verify(values=True).problems == []
        found = dict(db.items())
    assert len(found) == 250
    assert found[b"k000001"] == b"w" * 3000
    with meles.open(tmp_path / "new", **CALM) as db:
        assert dict(db.items()) == found
    assert meles.doctor(tmp_path / "new").ok


def test_external_magic_and_levels(tmp_path: Path) -> None:
    stream = stream_of(many(9, 1, b"v"))
    restored(tmp_path / "new", stream, external_magic_version=7, max_levels=3)
    with meles.open(tmp_path / "new", external_magic_version=7, max_levels=3, **CALM) as db:
        assert db.tables()[0].level == 2
        assert len(list(db)) == 9
    with pytest.raises(meles.ConfigError):
        meles.open(tmp_path / "new", mode="read_only")

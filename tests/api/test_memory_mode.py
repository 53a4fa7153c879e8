"""`mode="memory"`: the same engine on a private directory that goes with the handle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import meles
import pytest

pytestmark = pytest.mark.leak_guard
OpenDB = Callable[..., meles.DB]


@pytest.mark.parametrize("workers", ["inline", "process"])
def test_the_directory_is_private_and_removed_on_close(open_db: OpenDB, workers: str) -> None:
    db = open_db(None, mode="memory", workers=workers)
    path = Path(db.path)
    assert path.is_dir()
    assert path.stat().st_mode & 0o777 == 0o700
    assert Path("/dev/shm") in path.parents
    for n in range(100):
        db[b"%03d" % n] = b"v" * 2000
    db.flush()
    assert db[b"007"] == b"v" * 2000
    assert len(list(db.items())) == 100
    assert db.health().status == "ok"
    assert db.close().clean
    assert not path.exists()
    with pytest.raises(meles.ClosedError):
        db.get(b"007")


def test_two_have_nothing_in_common(open_db: OpenDB) -> None:
    one, two = open_db(None, mode="memory"), open_db(None, mode="memory")
    one[b"k"] = b"v"
    assert one.path != two.path
    assert two.get(b"k") is None


def test_without_tmpfs_a_temporary_directory_serves(
    open_db: OpenDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meles.engine.opening._MEMORY_HOME", str(tmp_path / "absent"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_db(None, mode="memory") as db:
        assert Path(db.path).parent == tmp_path
        db[b"k"] = b"v"
    assert list(tmp_path.iterdir()) == []


def test_a_value_directory_of_its_own_would_outlive_it(open_db: OpenDB, tmp_path: Path) -> None:
    with pytest.raises(meles.ConfigError, match="value_dir"):
        open_db(None, mode="memory", value_dir=tmp_path / "values")
    assert list(tmp_path.iterdir()) == []


def test_large_values_are_as_welcome_as_elsewhere(open_db: OpenDB) -> None:
    """Badger refuses more than 1 MiB here, and dies of exactly 1 MiB."""
    with open_db(None, mode="memory") as db:
        for size in ((1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20):
            db[b"k"] = bytes(size)
            assert len(db[b"k"]) == size

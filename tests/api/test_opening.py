"""`meles.open`: the directory it makes, who wins, and that a failure leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import meles
import pytest
from meles.engine.codec.header import MAGIC_MANIFEST, decode_header

pytestmark = pytest.mark.leak_guard
OpenDB = Callable[..., meles.DB]


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def test_the_handle_tells_path_options_and_whether_it_is_closed(
    open_db: OpenDB, tmp_path: Path
) -> None:
    db = open_db(memtable_size="1MiB")
    assert (db.path, db.closed) == (str(tmp_path / "db"), False)
    assert isinstance(db.options, meles.Options)
    assert db.options.memtable_size == 1 << 20
    assert "db" in repr(db)
    db.close()
    assert db.closed
    assert db.path == str(tmp_path / "db")


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_path_is_a_str_bytes_or_a_path(
    open_db: OpenDB, tmp_path: Path, kind: Callable[[str], Any]
) -> None:
    db = open_db(kind(str(tmp_path / "some" / "where")))
    db[b"k"] = b"v"
    assert Path(db.path) == tmp_path / "some" / "where"


def test_a_relative_path_is_where_it_was(
    open_db: OpenDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    db = open_db("db")
    monkeypatch.chdir("/")
    assert db.path == str(tmp_path / "db")
    db[b"k"] = b"v" * 5000
    db.flush()
    assert tree(tmp_path)[0] == "db"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_directories_are_0700_and_files_0600_whatever_the_umask(
    open_db: OpenDB, tmp_path: Path, mask: int
) -> None:
    with umask(mask):
        db = open_db(
            tmp_path / "made" / "db", value_dir=tmp_path / "made" / "values", value_threshold=10
        )
        for n in range(100):
            db[b"%d" % n] = b"v" * 100
        db.flush()
        db[b"more"] = b"v" * 100
        modes = {p: p.stat().st_mode & 0o777 for p in (tmp_path / "made").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert {path.suffix for path in modes} >= {".mem", ".sst", ".vlog", ""}
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700


def test_what_was_written_is_there_after_reopening(open_db: OpenDB) -> None:
    with open_db() as db:
        db[b"small"], db[b"large"] = b"s", b"l" * 5000
    with open_db() as db:
        assert (db[b"small"], db[b"large"]) == (b"s", b"l" * 5000)
        assert db.max_version() == 2


def test_values_may_have_a_directory_of_their_own(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(value_dir=tmp_path / "values") as db:
        db[b"k"] = b"v" * 5000
    assert [name for name in tree(tmp_path) if name.endswith(".vlog")] == ["values/000001.vlog"]
    with open_db(value_dir=tmp_path / "values") as db:
        assert db[b"k"] == b"v" * 5000


# -- one owner -----------------------------------------------------------------------------------


def test_a_second_owner_is_refused_and_told_who_the_first_is(
    open_db: OpenDB, tmp_path: Path
) -> None:
    began = time.time()
    open_db()
    for mode in ("own", "read_only"):
        with pytest.raises(meles.LockedError) as caught:
            open_db(mode=mode)
        error = caught.value
        assert isinstance(error, OSError)
        assert (error.path, error.pid) == (str(tmp_path / "db"), os.getpid())
        assert str(os.getpid()) in str(error)
        assert error.command is not None
        assert error.since is not None
        assert began - 60 < error.since < time.time() + 60


def test_waiting_for_the_lock(open_db: OpenDB) -> None:
    first = open_db()
    threading.Timer(0.2, first.close).start()
    with open_db(wait=timedelta(seconds=30)) as second:
        assert first.closed
        assert not second.closed
        with pytest.raises(meles.LockedError):
            open_db(wait=0.01)


def test_two_databases_on_one_value_directory_exclude_each_other(
    open_db: OpenDB, tmp_path: Path
) -> None:
    values = tmp_path / "values"
    first = open_db(tmp_path / "a", value_dir=values)
    first[b"k"] = b"v" * 5000
    before = tree(tmp_path)
    for other in ("b", "values"):
        with pytest.raises(meles.LockedError) as caught:
            open_db(tmp_path / other, value_dir=values)
        assert caught.value.path == str(values)
    assert tree(tmp_path) == before
    assert first[b"k"] == b"v" * 5000


def test_the_value_directory_of_another_database_is_left_alone(
    open_db: OpenDB, tmp_path: Path
) -> None:
    values = tmp_path / "values"
    with open_db(tmp_path / "a", value_dir=values) as first:
        first[b"k"] = b"v" * 5000
    before = tree(tmp_path)
    with pytest.raises(meles.CorruptionError):
        open_db(tmp_path / "b", value_dir=values)
    assert tree(tmp_path) == before
    with open_db(tmp_path / "a", value_dir=values) as first:
        assert first[b"k"] == b"v" * 5000


def test_a_value_directory_that_is_the_directory_itself(open_db: OpenDB, tmp_path: Path) -> None:
    with open_db(value_dir=tmp_path / "db" / ".." / "db") as db:
        db[b"k"] = b"v" * 5000
    with open_db() as db:
        assert db[b"k"] == b"v" * 5000


# -- what cannot be opened -----------------------------------------------------------------------

BAD = {
    "mode": {"mode": "write"},
    "mode of another type": {"mode": 5},
    "no path": {"path": None},
    "path in memory": {"mode": "memory"},
    "empty path": {"path": ""},
    "path with a NUL": {"path": "a\0b"},
    "unknown option": {"memtable": 5},
    "bad option": {"memtable_size": "64KiB - 1"},
    "small memtable": {"memtable_size": (64 << 10) - 1},
    "small value log": {"value_log_file_size": (1 << 20) - 1},
    "no versions": {"num_versions_to_keep": 0},
    "stall before it is due": {"num_level_zero_tables": 5, "num_level_zero_tables_stall": 5},
    "huge cache": {"block_cache_size": 1 << 60},
    "huge index cache": {"index_cache_size": "9999999TiB"},
    "config that is none": {"config": "/nowhere/meles.toml"},
    "config of another type": {"config": 5},
    "key of a wrong length": {"encryption_key": b"0123456789"},
}


@pytest.mark.parametrize("given", BAD.values(), ids=BAD)
def test_misuse_is_a_config_error_and_leaves_nothing(
    open_db: OpenDB, tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(meles.ConfigError) as caught:
        open_db(**{"path": tmp_path / "new" / "db", **given})
    assert isinstance(caught.value, ValueError)
    assert caught.value.hint
    assert tree(tmp_path) == []


def test_a_file_is_no_directory(open_db: OpenDB, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    for path, options in (
        (file, {}), (file / "below", {}), (tmp_path / "db", {"value_dir": file}),
    ):  # fmt: skip
        with pytest.raises(meles.ConfigError, match="no directory"):
            open_db(path, **options)
    assert tree(tmp_path) == ["file"]
    assert file.read_bytes() == b"mine"


def test_what_is_no_path_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        meles.open(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        meles.open("db", "own")  # type: ignore[misc]


@pytest.mark.parametrize("wait", ["1", None, True, [], float("nan")])
def test_waiting_takes_seconds(open_db: OpenDB, tmp_path: Path, wait: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="wait"):
        open_db(wait=wait)
    assert tree(tmp_path) == []


def damaged_manifest(path: Path) -> None:
    manifest = path / "MANIFEST"
    data = bytearray(manifest.read_bytes())
    data[80] ^= 1
    manifest.write_bytes(data)


def missing_manifest(path: Path) -> None:
    (path / "MANIFEST").unlink()


def missing_table(path: Path) -> None:
    next(path.glob("*.sst")).unlink()


def missing_values(path: Path) -> None:
    next(path.glob("*.vlog")).unlink()


def newer_manifest(path: Path) -> None:
    manifest = path / "MANIFEST"
    data = manifest.read_bytes()
    header = decode_header(data, MAGIC_MANIFEST, str(manifest))
    newer = replace(header, version=header.version + 1).encode()
    manifest.write_bytes(newer + data[len(newer) :])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damaged_manifest, meles.CorruptionError),
        (missing_manifest, meles.CorruptionError),
        (missing_table, meles.CorruptionError),
        (missing_values, meles.CorruptionError),
        (newer_manifest, meles.FormatVersionError),
    ],
)
def test_damage_is_reported_and_nothing_is_touched(
    open_db: OpenDB,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[meles.Error],
) -> None:
    with open_db() as db:
        db[b"k"] = b"v" * 5000
    damage(tmp_path / "db")
    before = {path: path.read_bytes() for path in (tmp_path / "db").iterdir()}
    for mode in ("own", "read_only"):
        with pytest.raises(error) as caught:
            open_db(mode=mode)
        if isinstance(caught.value, meles.CorruptionError):
            assert caught.value.path.startswith(str(tmp_path / "db"))
            assert isinstance(caught.value.offset, int)
            assert caught.value.kind
        assert {path: path.read_bytes() for path in (tmp_path / "db").iterdir()} == before


def test_another_external_magic_is_refused(open_db: OpenDB) -> None:
    open_db(external_magic_version=7).close()
    with pytest.raises(meles.ConfigError):
        open_db(external_magic_version=8)
    open_db(external_magic_version=7).close()


def test_a_failing_open_can_be_followed_by_a_good_one(open_db: OpenDB, tmp_path: Path) -> None:
    with pytest.raises(meles.ConfigError):
        open_db(encryption_key=bytes(15))
    assert tree(tmp_path) == []
    with open_db(encryption_key=b"") as db:  # no key
        db[b"k"] = b"v"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memtable_size": "1GiB", "num_memtables": 100, "value_log_file_size": (2 << 30) - 1},
        {"block_cache_size": "64GiB", "workers": "process", "base_table_size": "1GiB"},
    ],
)
def test_an_idle_database_is_small_whatever_its_options(
    open_db: OpenDB, tmp_path: Path, options: dict[str, Any]
) -> None:
    db = open_db(**options)
    db[b"k"] = b"v" * 5000
    db[b"small"] = b"v"
    db.wait_idle(timeout=30)
    for path in (tmp_path / "db").rglob("*"):
        assert path.stat().st_size < 8 << 20, path
    stats = [path.stat() for path in (tmp_path / "db").rglob("*")]
    assert sum(stat.st_size for stat in stats) < 16 << 20
    assert sum(stat.st_blocks * 512 for stat in stats) < 16 << 20


WITHOUT_LZ4 = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lz4":
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
import meles
path, mode, compression = sys.argv[1:]
try:
    meles.open(path, mode=mode, compression=compression).close()
except meles.ConfigError as error:
    print(error.message)
"""


def open_without_lz4(path: Path, mode: str, compression: str) -> str:
    command = [sys.executable, "-P", "-c", WITHOUT_LZ4, str(path), mode, compression]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_codec_that_is_not_installed_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    assert "module 'lz4.block' is missing" in open_without_lz4(tmp_path / "db", "own", "lz4")
    assert tree(tmp_path) == []
    assert open_without_lz4(tmp_path / "db", "own", "zstd") == ""


def test_tables_whose_codec_is_not_installed_are_refused_untouched(
    open_db: OpenDB, tmp_path: Path
) -> None:
    with open_db(compression="lz4") as db:
        db[b"k"] = b"v" * 500
        db.flush()
    before = {path: path.read_bytes() for path in (tmp_path / "db").iterdir()}
    for mode in ("own", "read_only"):
        assert "'lz4.block' is missing" in open_without_lz4(tmp_path / "db", mode, "none")
        assert {path: path.read_bytes() for path in (tmp_path / "db").iterdir()} == before
    with open_db() as db:
        assert db[b"k"] == b"v" * 500

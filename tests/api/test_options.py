"""The options table of the contract: every field, its default, its bounds, and where it is from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import meles
import pytest

OpenDB = Callable[..., meles.DB]
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

DEFAULTS = {
    "value_dir": None,
    "sync": "interval",
    "sync_interval": 0.1,
    "num_versions_to_keep": 1,
    "zstd_level": 1,
    "memtable_size": 64 * MIB,
    "num_memtables": 5,
    "base_table_size": 2 * MIB,
    "base_level_size": 10 * MIB,
    "level_size_multiplier": 10,
    "table_size_multiplier": 2,
    "max_levels": 7,
    "value_threshold": KIB,
    "vlog_percentile": 0.0,
    "value_log_file_size": GIB - 1,
    "value_log_max_entries": 1_000_000,
    "block_size": 4 * KIB,
    "bloom_false_positive": 0.01,
    "block_cache_size": 256 * MIB,
    "index_cache_size": 0,
    "num_level_zero_tables": 5,
    "num_level_zero_tables_stall": 15,
    "num_compactors": max(1, min(4, (os.cpu_count() or 1) - 1)),
    "compact_l0_on_close": False,
    "lmax_compaction": True,
    "detect_conflicts": True,
    "namespace_offset": -1,
    "encryption_key": None,
    "encryption_key_rotation": 10 * 86400.0,
    "bypass_lock_guard": False,
    "trust_directory": False,
    "external_magic_version": 0,
    "metrics_enabled": True,
    "managed": False,
    "workers": "process",
    "gc": True,
    "gc_discard_ratio": 0.5,
    "worker_heartbeat": 1.0,
    "worker_hang_timeout": 30.0,
    "worker_memory_limit": None,
    "close_timeout": 10.0,
}
SECONDS = (
    "sync_interval", "encryption_key_rotation", "worker_heartbeat", "worker_hang_timeout",
    "close_timeout",
)  # fmt: skip
SIZES = (
    "memtable_size", "base_table_size", "base_level_size", "value_threshold",
    "value_log_file_size", "block_size", "block_cache_size", "index_cache_size",
    "worker_memory_limit",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MELES_"):
            monkeypatch.delenv(name)


def test_options_are_a_frozen_dataclass_of_keywords() -> None:
    options = meles.Options()
    assert dataclasses.is_dataclass(options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.sync = "none"  # type: ignore[misc]
    with pytest.raises(TypeError):
        meles.Options("values")  # type: ignore[misc]


@pytest.mark.parametrize("name", [*DEFAULTS, "compression"])
def test_every_option_is_a_field_with_its_default(name: str) -> None:
    names = {field.name for field in dataclasses.fields(meles.Options)}
    assert name in names
    found = getattr(meles.Options(), name)
    if name == "compression":
        assert found in ("none", "snappy", "lz4", "zstd")
    else:
        assert found == DEFAULTS[name]
        assert type(found) is type(DEFAULTS[name])


@pytest.mark.parametrize("name", SECONDS)
def test_times_are_seconds_or_a_timedelta(name: str) -> None:
    assert getattr(meles.Options(**{name: timedelta(seconds=5)}), name) == 5.0
    assert getattr(meles.Options(**{name: 5}), name) == 5.0
    for bad in (0, -1, float("nan"), float("inf"), 10**400, "soon", None, True):
        with pytest.raises(meles.ConfigError, match=name):
            meles.Options(**{name: bad})


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_bytes_or_a_text(name: str) -> None:
    smaller = {"block_size": "128KiB"} if name == "base_table_size" else {}
    for text, size in (("64MiB", 64 * MIB), ("64M", 64 * MIB), ("0.0625GiB", 64 * MIB)):
        if name == "block_size":
            text, size = text.replace("MiB", "KiB").replace("M", "KiB"), size // KIB
            if "GiB" in text:
                continue
        assert getattr(meles.Options(**{**smaller, name: text}), name) == size
    for bad in ("64 megs", "-1", -1, 1 << 60, 1.5, [], "MiB"):
        with pytest.raises(meles.ConfigError, match=name):
            meles.Options(**{name: bad})


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("memtable_size", 64 * KIB),
        ("value_log_file_size", MIB),
        ("num_versions_to_keep", 1),
        ("num_compactors", 0),
        ("value_threshold", 0),
        ("index_cache_size", 0),
        ("block_cache_size", 0),
        ("namespace_offset", -1),
        ("external_magic_version", 0),
    ],
)
def test_the_least_that_is_allowed(name: str, least: int) -> None:
    assert getattr(meles.Options(**{name: least}), name) == least
    with pytest.raises(meles.ConfigError, match=name):
        meles.Options(**{name: least - 1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sync", ("none", "interval", "commit")),
        ("compression", ("none", "snappy", "lz4", "zstd")),
        ("workers", ("process", "thread", "inline")),
    ],
)
def test_words(name: str, words: tuple[str, ...]) -> None:
    for word in words:
        assert getattr(meles.Options(**{name: word}), name) == word
    for bad in ("", "other", words[0].upper(), None, True, 1, b"none"):
        with pytest.raises(meles.ConfigError, match=name):
            meles.Options(**{name: bad})


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.1, float("nan"), "half", None, True])
def test_a_ratio_lies_between(ratio: object) -> None:
    with pytest.raises(meles.ConfigError, match="gc_discard_ratio"):
        meles.Options(gc_discard_ratio=ratio)  # type: ignore[arg-type]


def test_a_bad_option_names_itself_its_value_what_is_allowed_and_its_origin(
    open_db: OpenDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(meles.ConfigError, match=r"sync='often' \(from keyword\).*'interval'"):
        open_db(sync="often")
    config = tmp_path / "meles.toml"
    config.write_text('[meles]\nsync = "often"\n')
    with pytest.raises(meles.ConfigError, match=r"sync='often'.*meles\.toml.*'interval'"):
        open_db(config=config, sync="none")
    monkeypatch.setenv("MELES_MEMTABLE_SIZE", "tiny")
    with pytest.raises(meles.ConfigError, match=r"'tiny'.*MELES_MEMTABLE_SIZE.*bytes"):
        open_db()


def test_keywords_beat_the_environment_beats_the_file(
    open_db: OpenDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "meles.toml"
    config.write_text(
        '[meles]\nmemtable_size = "1MiB"\nblock_size = "1KiB"\nzstd_level = 7\n[other]\nx = 1\n'
    )
    monkeypatch.setenv("MELES_MEMTABLE_SIZE", "2MiB")
    monkeypatch.setenv("MELES_BLOCK_SIZE", "2KiB")
    options = open_db(config=config, memtable_size="3MiB").options
    assert (options.memtable_size, options.block_size, options.zstd_level) == (
        3 * MIB, 2 * KIB, 7,
    )  # fmt: skip


def test_unknown_variables_are_ignored_and_unknown_options_are_not(
    open_db: OpenDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MELES_NO_SUCH_OPTION", "5")
    open_db().close()
    with pytest.raises(meles.ConfigError, match="no_such_option"):
        open_db(no_such_option=5)
    config = tmp_path / "meles.toml"
    config.write_text("[meles]\nno_such_option = 5\n")
    with pytest.raises(meles.ConfigError, match="no_such_option"):
        open_db(config=config)


def test_a_handle_shows_its_options(open_db: OpenDB) -> None:
    db = open_db(value_threshold="2KiB")
    assert db.options.value_threshold == 2 * KIB
    assert db.options == meles.Options(value_threshold=2048, workers="inline", sync="none")


# -- what they do --------------------------------------------------------------------------------


def test_a_threshold_of_0_puts_every_value_in_the_value_log(open_db: OpenDB) -> None:
    with open_db(value_threshold=0) as db:
        db[b"empty"], db[b"one"] = b"", b"1"
        with db.update() as txn:
            txn[b"two"] = b"22"
        report = db.verify(values=True)
        assert (report.ok, report.values) == (True, 3)
        db.flush()
        assert db.verify(values=True).values == 3
        assert db.size().value_log_bytes > 0
    with open_db(value_threshold=0) as db:
        assert list(db.items()) == [(b"empty", b""), (b"one", b"1"), (b"two", b"22")]


def test_values_under_the_threshold_stay_out_of_the_value_log(open_db: OpenDB) -> None:
    db = open_db(value_threshold=100)
    db[b"k"] = b"v" * 99
    assert db.size().value_log_bytes == 0
    db[b"k"] = b"v" * 100
    assert db.size().value_log_bytes > 100


@pytest.mark.parametrize("compression", ["none", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("cache", ["256MiB", 0])
def test_compression(open_db: OpenDB, compression: str, cache: str | int) -> None:
    """Badger panics without a block cache."""
    options = {"compression": compression, "block_cache_size": cache}
    with open_db(base_table_size="64KiB", **options) as db:
        for n in range(2000):
            db[b"%04d" % n] = b"same" * 20
        db.flush()
        assert {table.compression for table in db.tables()} == {compression}
        small = sum(table.size for table in db.tables()) < 100_000
        assert small == (compression != "none")
        assert db[b"1000"] == b"same" * 20
    with open_db(compression="none") as db:
        assert len(list(db.items())) == 2000


@pytest.mark.parametrize("sync", ["none", "interval", "commit"])
@pytest.mark.parametrize("workers", ["inline", "thread"])
def test_every_way_to_sync(open_db: OpenDB, sync: str, workers: str) -> None:
    with open_db(sync=sync, workers=workers, sync_interval=0.01) as db:
        for n in range(10):
            db[b"%d" % n] = b"v"
        if sync == "commit":
            assert db.stats().syncs >= 10
        db.sync()
        assert db.stats().syncs >= 1
    with open_db() as db:
        assert len(list(db.keys())) == 10


def test_versions_are_kept_as_asked(open_db: OpenDB) -> None:
    db = open_db(num_versions_to_keep=3)
    for n in range(6):
        db[b"k"] = b"%d" % n
    db.flush()
    db.flatten()
    kept = [item.value for item in db.iterate(all_versions=True)]
    assert kept[:3] == [b"5", b"4", b"3"]
    assert len(kept) == 3


def test_no_compactors_no_compaction(open_db: OpenDB) -> None:
    db = open_db(num_compactors=0, num_level_zero_tables=1, num_level_zero_tables_stall=1000)
    for n in range(8):
        db[b"%d" % n] = b"v"
        db.flush()
    assert db.wait_idle(timeout=30)
    assert (db.stats().compactions, db.levels()[0].tables) == (0, 8)


def test_level_zero_is_compacted_on_close_if_asked(open_db: OpenDB) -> None:
    with open_db(compact_l0_on_close=True) as db:
        db[b"k"] = b"v"
        stages = {stage.name: stage.outcome for stage in db.close().stages}
        assert stages["compact_level_zero"] == "done"
    with open_db() as db:
        assert db.levels()[0].tables == 0
        assert db[b"k"] == b"v"

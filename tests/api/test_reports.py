"""What the calls about the whole database answer with: shapes and figures that add up."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

import meles
import pytest

OpenDB = Callable[..., meles.DB]


@pytest.fixture
def filled(open_db: OpenDB) -> meles.DB:
    db = open_db(value_threshold=1000, value_log_file_size="1MiB")
    for n in range(200):
        db[b"a%03d" % n] = b"v" * (2000 if n % 2 else 20)
    db.flush()
    for n in range(50):
        db[b"b%03d" % n] = b"v" * 100
    return db


def test_stats(filled: meles.DB) -> None:
    stats = filled.stats()
    assert isinstance(stats, meles.Stats)
    assert dataclasses.is_dataclass(stats)
    for name in (
        "levels", "memtables", "value_log", "workers", "recovery", "flushes", "compactions",
        "gc_runs", "stalls", "bytes_written", "write_amplification", "space_amplification",
    ):  # fmt: skip
        assert hasattr(stats, name), name
    assert stats.levels == filled.levels()
    assert [worker.kind for worker in stats.workers] == [w.kind for w in filled.workers()]
    assert stats.flushes == 1
    assert (stats.compactions, stats.gc_runs) == (0, 0)
    user = 100 * 2004 + 100 * 24 + 50 * 104
    assert stats.bytes_written == user
    assert stats.entries_written == 250
    assert stats.write_amplification > 1
    assert stats.space_amplification > 0
    assert stats.memtables[0].keys == 50
    assert stats.value_log.files == 1
    assert stats.recovery.logs == 0
    json.dumps(dataclasses.asdict(stats), default=str)


def test_counters_count(open_db: OpenDB) -> None:
    db = open_db(value_log_file_size="1MiB", value_threshold=100)
    for _ in range(3):
        for n in range(20):
            db[b"%02d" % n] = bytes(60_000)
        db.flush()
    db.flatten()
    db.gc(0.1)
    stats = db.stats()
    assert stats.flushes == 3
    assert stats.compactions >= 1
    assert stats.gc_runs >= 1


def test_recovery_is_told(open_db: OpenDB) -> None:
    with open_db() as db:
        db[b"k"] = b"v"
    with open_db() as db:
        recovery = db.stats().recovery
        assert (recovery.logs, recovery.problems, recovery.set_aside) == (0, [], [])
        assert recovery.seconds > 0


def test_levels(filled: meles.DB) -> None:
    levels = filled.levels()
    assert [level.level for level in levels] == list(range(filled.options.max_levels))
    assert sum(level.tables for level in levels) == len(filled.tables()) == 1
    assert sum(level.size for level in levels) == sum(table.size for table in filled.tables())
    assert sum(level.is_base for level in levels) == 1
    for level in levels:
        assert level.target_size >= 0
        assert level.target_table_size > 0
        assert level.score >= 0


def test_tables(filled: meles.DB) -> None:
    (table,) = filled.tables()
    assert (table.min_key, table.max_key) == (b"a000", b"a199")
    assert (table.entries, table.level, table.max_version) == (200, 0, 200)
    assert table.size > 0
    assert table.id >= 1
    filled.drop_all()
    assert filled.tables() == []


def test_size_is_what_lies_on_disk(filled: meles.DB) -> None:
    """Badger's is refreshed each minute, and 0 right after opening."""
    size = filled.size()
    assert isinstance(size, meles.Size)
    assert [f.name for f in dataclasses.fields(size)] == ["lsm_bytes", "value_log_bytes"]
    files = list(Path(filled.path).iterdir())
    tables = sum(path.stat().st_size for path in files if path.suffix == ".sst")
    values = sum(path.stat().st_size for path in files if path.suffix == ".vlog")
    logs = sum(path.stat().st_size for path in files if path.suffix == ".mem")
    assert tables < size.lsm_bytes <= tables + logs
    assert size.value_log_bytes == values > 100 * 2000
    before = size.lsm_bytes
    filled[b"more"] = b"v" * 900
    assert filled.size().lsm_bytes > before + 900


def test_size_right_after_opening(open_db: OpenDB, filled: meles.DB) -> None:
    filled.close()
    again = open_db()
    assert again.size().value_log_bytes > 100 * 2000
    assert again.size().lsm_bytes > 0


def test_estimate_size(filled: meles.DB) -> None:
    everything = filled.estimate_size(b"")
    assert isinstance(everything, int)
    assert everything >= 100 * 2000
    assert filled.estimate_size(b"a") >= 100 * 2000
    assert filled.estimate_size(b"a") < everything
    assert 50 * 104 <= filled.estimate_size(b"b") < 50 * 104 * 3  # Badger ignores what is in memory
    assert filled.estimate_size(b"a00") < filled.estimate_size(b"a")
    assert filled.estimate_size(b"zzz") == filled.estimate_size(b"x" * 70_000) == 0


def test_max_version_is_the_newest_commit(open_db: OpenDB) -> None:
    db = open_db()
    assert db.max_version() == 0
    for n in range(1, 4):
        db[b"k"] = b"v"
        assert db.max_version() == n
    db.close()
    assert open_db().max_version() == 3


@pytest.mark.leak_guard
@pytest.mark.parametrize("workers", ["inline", "thread", "process"])
def test_workers(open_db: OpenDB, workers: str) -> None:
    db = open_db(workers=workers, num_compactors=2)
    db[b"k"] = b"v"
    db.flush(timeout=60)
    assert db.wait_idle(timeout=60)
    infos = db.workers()
    assert {info.kind for info in infos} == {"flusher", "compactor", "value_gc"}
    assert len({info.name for info in infos}) == len(infos)
    for info in infos:
        assert isinstance(info, meles.WorkerInfo)
        assert info.state in ("starting", "idle", "busy", "hung", "restarting", "stopped")
        assert info.job is None or info.state == "busy"
        assert info.restarts == 0
        assert info.rss_bytes >= 0
        assert info.cpu_seconds >= 0
        assert (info.pid is not None) == (workers == "process") or info.state == "starting"
    names = [field.name for field in dataclasses.fields(meles.WorkerInfo)]
    assert names == [
        "kind", "name", "pid", "state", "job", "rss_bytes", "cpu_seconds", "restarts",
    ]  # fmt: skip


def test_health(open_db: OpenDB) -> None:
    db = open_db()
    assert db.health() == meles.Health("ok", [])
    db.close()
    health = db.health()
    assert (health.status, bool(health.reasons)) == ("closed", True)
    with open_db(mode="read_only") as db:
        assert db.health().status == "read_only"


# -- verify --------------------------------------------------------------------------------------


def test_verify_counts_what_it_checked(filled: meles.DB) -> None:
    report = filled.verify()
    assert isinstance(report, meles.VerifyReport)
    assert (report.ok, report.problems, report.tables, report.values) == (True, [], 1, 0)
    assert report.blocks > 1
    whole = filled.verify(values=True)
    assert (whole.ok, whole.values) == (True, 100)
    filled[b"unflushed"] = b"v" * 5000
    assert filled.verify(values=True).values == 101
    filled.drop_all()
    filled.flush()
    assert filled.verify(values=True) == meles.VerifyReport(True, [], 0, 0, 0)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, 0 if at >= 0 else 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x10]))


@pytest.mark.parametrize(("suffix", "at"), [(".sst", 3000), (".mem", 200), (".vlog", 150_000)])
def test_verify_finds_damage_wherever_it_is(filled: meles.DB, suffix: str, at: int) -> None:
    """In tables, in logs not flushed yet, and in values; and Badger may panic."""
    (path,) = Path(filled.path).glob(f"*{suffix}")
    flip(path, at)
    report = filled.verify(values=True)
    assert not report.ok
    assert any(str(path) in problem for problem in report.problems)
    assert all(isinstance(problem, str) for problem in report.problems)


def test_verify_goes_on_behind_damage(filled: meles.DB) -> None:
    (path,) = Path(filled.path).glob("*.vlog")
    for at in (30_000, 90_000, 150_000):
        flip(path, at)
    report = filled.verify(values=True)
    assert report.values == 100
    assert len(report.problems) >= 3


def test_damaged_values_raise_and_are_never_made_up(filled: meles.DB) -> None:
    """Badger gives nil and no error."""
    (path,) = Path(filled.path).glob("*.vlog")
    flip(path, 150_000)
    errors: list[meles.CorruptionError] = []
    for key in filled.keys(b"a"):
        try:
            assert filled[key] == b"v" * (2000 if int(key[1:]) % 2 else 20)
        except meles.CorruptionError as error:
            errors.append(error)
    (error,) = errors
    assert error.path == str(path)
    assert 0 < error.offset < 150_001
    assert error.kind


def test_the_sums_of_background_work(open_db: OpenDB) -> None:
    db = open_db(value_threshold=100, value_log_file_size="1MiB", compression="lz4")
    for round_ in range(3):
        for n in range(300):
            db[b"%03d" % n] = b"%d" % round_ * (60 if n % 2 else 5000)
        db.flush()
    fresh = db.stats()
    assert fresh.flush_written_bytes == sum(table.size for table in db.tables())
    assert (fresh.compaction_read_bytes, fresh.dropped_entries, fresh.moves) == (0, 0, 0)
    assert fresh.published_ts == fresh.discard_ts == db.max_version() == 900
    with db.view() as txn:
        db[b"000"] = b"newest"
        stats = db.stats()
        assert (stats.readers, stats.discard_ts, stats.published_ts) == (1, txn.read_ts, 901)
    db.flush()
    db.flatten()
    db.gc(0.1)
    stats = db.stats()
    assert stats.compaction_read_bytes > stats.compaction_written_bytes > 0
    assert stats.dropped_entries >= 600
    assert stats.value_log.gc_freed_bytes > 150 * 5000
    assert stats.value_log.gc_dropped_files + stats.value_log.gc_relocated_files > 0
    assert (stats.gc_written_bytes > 0) == (stats.value_log.gc_relocated_files > 0)
    assert (stats.stalls.count, stats.stalls.seconds, stats.stalls.slowdowns) == (0, 0, 0)
    for _ in range(2):
        assert db[b"001"] == b"2" * 60
    after = db.stats()
    assert after.cache_misses > 0
    assert after.cache_hits > stats.cache_hits
    assert 0 < after.cache_bytes <= db.options.block_cache_size


def test_the_caches_say_what_they_did(open_db: OpenDB) -> None:
    sizes = {"block_cache_size": "64KiB", "index_cache_size": "64KiB", "base_table_size": "64KiB"}
    keys = [b"%05d" % n for n in range(8000)]
    with open_db(**sizes, compression="zstd", block_size=1024, memtable_size="256KiB") as db:
        for key in keys:
            db[key] = key * 20
        db.flush()
        before = db.stats()
        assert before.cache_hit_ratio == before.cache_evictions == 0
        assert all(db[key] == key * 20 for key in keys)
        after = db.stats()
    hits, misses = after.cache_hits, after.cache_misses
    assert after.cache_hit_ratio == hits / (hits + misses) > 0.5
    assert after.cache_evictions > 100
    assert 0 < after.index_cache_bytes < 128 << 10
    assert after.index_cache_loads > before.index_cache_loads
    assert after.index_cache_evictions > 0


def test_a_table_that_overlaps_nothing_is_moved(open_db: OpenDB) -> None:
    db = open_db()
    for n in range(100):
        db[b"%03d" % n] = b"v" * 100
    db.flush()
    db.flatten()
    stats = db.stats()
    assert (stats.moves, stats.compactions, stats.compaction_read_bytes) == (1, 0, 0)
    assert [level.tables for level in db.levels()].count(1) == 1


def test_space_says_what_holds_each_byte(filled: meles.DB) -> None:
    for n in range(100):
        filled[b"a%03d" % n] = b"w" * 20
    with filled.view() as txn:
        filled.delete(b"a000")
        filled.flush()
        space = filled.space()
        assert [pin.read_ts for pin in space.pins] == [txn.read_ts]
        assert space.pins[0].age_seconds >= 0
        assert space.pins[0].owner == threading.current_thread().name
    assert isinstance(space, meles.SpaceReport)
    size = filled.size()
    assert space.total_bytes == space.log_bytes + sum(space.table_bytes.values()) + sum(
        space.value_log_bytes.values()
    )
    assert abs(space.total_bytes - size.lsm_bytes - size.value_log_bytes) < 4096
    assert space.table_bytes["live"] > 0
    assert space.table_bytes["superseded"] > 100 * 20
    assert space.value_log_bytes["live"] + space.value_log_bytes["superseded"] > 100 * 2000
    assert space.table_bytes["tombstone"] > 0


def test_the_caches_tell_how_they_do(open_db: OpenDB) -> None:
    db = open_db(compression="zstd", block_cache_size="64KiB", index_cache_size="256KiB")
    for n in range(3000):
        db.set(b"%05d" % n, b"v%d" % n * 20)
    db.flush(60)
    for n in (*range(0, 3000, 7), *range(0, 3000, 7)):
        assert db.get(b"%05d" % n) == b"v%d" % n * 20
    stats = db.stats()
    assert stats.cache_misses > 0
    assert stats.cache_evictions > 0
    assert stats.cache_bytes <= 64 << 10
    asked = stats.cache_hits + stats.cache_misses
    assert stats.cache_hit_ratio == pytest.approx(stats.cache_hits / asked)
    assert stats.index_cache_loads > 0
    assert stats.index_cache_evictions >= 0
    assert stats.index_cache_bytes >= 0

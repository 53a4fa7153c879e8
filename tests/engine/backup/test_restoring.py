"""A restored database is the one that was backed up: every version, however it is read."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import meles
import pytest
from backups import CALM, backup, beside, content_of, entries, restored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.backup import building
from meles.engine.clock import now_ms
from waiting import wait_until

KEYS = [b"k", b"ka", b"kb/1", b"kb/2", b"kb/3", b"k" + b"\xff" * 9]


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """What is done to a database: (name, arguments)."""
    key = st.sampled_from(KEYS)
    value = st.one_of(st.binary(max_size=40), st.integers(100, 3000).map(lambda n: b"x" * n))
    one = st.one_of(
        st.tuples(
            st.just("set"), key, value, st.sampled_from([None, None, 0.001, 1e6]),
            st.sampled_from([0, 7, 255]), st.booleans(),
        ),
        st.tuples(st.just("delete"), key),
        st.tuples(st.just("add"), key, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("drop"), st.sampled_from([b"kb/", b"ka"])),
        st.sampled_from([("flush",), ("flatten",), ("gc",), ("backup",)]),
    )  # fmt: skip
    return draw(st.lists(one, min_size=1, max_size=30))


OPTIONS = st.fixed_dictionaries(
    {
        "num_versions_to_keep": st.sampled_from([1, 3]),
        "value_threshold": st.sampled_from([0, 100, 1 << 20]),
        "compression": st.sampled_from(["none", "zstd"]),
    }
)


class Source:
    """A database while a story is told, and the backups it makes on the way."""

    def __init__(self, db: meles.DB) -> None:
        self.db = db
        self.chain: list[bytes] = []
        self.since = 0
        self._operators: dict[bytes, meles.MergeOperator] = {}

    def do(self, name: str, *args: Any) -> None:
        getattr(self, name)(*args)

    def set(self, key: bytes, value: bytes, ttl: float | None, meta: int, discard: bool) -> None:
        self.db.set(key, value, ttl=ttl, meta=meta, discard_earlier=discard)

    def delete(self, key: bytes) -> None:
        self.db.delete(key)

    def add(self, key: bytes, value: bytes) -> None:
        if key not in self._operators:
            self._operators[key] = self.db.merge_operator(key, lambda a, b: a + b, every=1e6)
        self._operators[key].add(value)

    def drop(self, prefix: bytes) -> None:
        self.db.drop_prefix(prefix)

    def flush(self) -> None:
        self.db.flush()

    def flatten(self) -> None:
        self.db.flush()
        self.db.flatten()

    def gc(self) -> None:
        self.db.gc(0.01)

    def backup(self) -> None:
        sink = io.BytesIO()
        report = self.db.backup(sink, since=self.since)
        assert report.since == self.since
        self.since = report.version
        self.chain.append(sink.getvalue())


def histories(db: meles.DB) -> Iterator[list[tuple[bytes, bytes]]]:
    """What readers at each timestamp see, in both directions."""
    for ts in range(db.max_version() + 1):
        with db.view(at=ts) as txn:
            yield list(txn.items())
            yield list(txn.items(reverse=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(story=stories(), of=OPTIONS, into=OPTIONS)
def test_whatever_was_done(
    shm_path: Path, story: list[tuple[Any, ...]], of: dict[str, Any], into: dict[str, Any]
) -> None:
    """A chain of increments, made wherever the story has them, adds up to the source."""
    home = shm_path / os.urandom(4).hex()
    home.mkdir()
    with meles.open(home / "a", **CALM, **of) as db:
        source = Source(db)
        for step in [*story, ("backup",)]:
            source.do(*step)
        now = now_ms()
        wait_until(lambda now=now: now_ms() > now + 1, what="what expires soon to have expired")
        wanted, newest = entries(db), db.max_version()
        seen = None if any(step[0] == "drop" for step in story) else list(histories(db))
        full = backup(db)
    report = restored(home / "b", *source.chain, **into)
    assert (report.version, report.entries) == (newest, len(wanted))
    assert beside(home / "b") == ["a"]
    with meles.open(home / "b", mode="read_only", **into) as db:
        assert entries(db) == wanted
        assert entries(db, reverse=True) == reversed_keys(wanted)
        assert seen is None or list(histories(db)) == seen
        again = backup(db)
        assert db.verify(values=True).problems == []
    assert again[64:] != full[64:] or not wanted  # its checksums are its own
    restored(home / "c", full)
    restored(home / "d", again)
    assert content_of(home / "c") == content_of(home / "d") == wanted


def reversed_keys(found: list[Any]) -> list[Any]:
    """Keys descending, the versions of each as they were: newest first."""
    keys = sorted({entry[0] for entry in found}, reverse=True)
    return [entry for key in keys for entry in found if entry[0] == key]


def small_backup(home: Path) -> bytes:
    with meles.open(home / "db", **CALM) as db:
        db[b"k"] = b"v"
        return backup(db)


def test_what_a_killed_restore_left_is_told_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = small_backup(tmp_path)
    left = tmp_path / ".new.restoring-01234567"
    left.mkdir()
    (left / "000001.sst").write_bytes(b"half")
    with caplog.at_level(logging.WARNING, "meles.restore"):
        report = restored(tmp_path / "new", stream)
    assert report.leftovers == (str(left),)
    assert f"{left} is left of a restore that was cut short" in caplog.text
    assert (left / "000001.sst").exists()


def test_a_value_at_the_limit_of_the_options(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", value_log_file_size="2MiB", **CALM) as db:
        db[b"k"] = b"v" * (1 << 20)
        stream, wanted = backup(db), entries(db)
        db[b"k"] = b"v" * ((1 << 20) + 1)
        larger = backup(db)
    restored(tmp_path / "new", stream, value_log_file_size="1MiB")
    assert content_of(tmp_path / "new", value_log_file_size="1MiB") == wanted
    with pytest.raises(meles.ConfigError, match="value_log_file_size allows 1,048,576"):
        restored(tmp_path / "other", larger, value_log_file_size="1MiB")
    assert not (tmp_path / "other").exists()


def test_a_codec_that_is_not_there_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = small_backup(tmp_path)

    def missing(codec: str) -> None:
        raise meles.ConfigError(f"option compression={codec!r}: not installed")

    monkeypatch.setattr(building, "require", missing)
    with pytest.raises(meles.ConfigError, match="not installed"):
        restored(tmp_path / "new", stream, compression="zstd")
    assert beside(tmp_path / "new") == ["db"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", **CALM) as db:
        for number in range(100):
            db[b"k%03d" % number] = b"v" * 9000
        stream = backup(db)

    class Interrupts(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 500_000:
                raise KeyboardInterrupt
            return super().read(size)

    with pytest.raises(KeyboardInterrupt):
        meles.restore(Interrupts(stream), tmp_path / "new")
    assert beside(tmp_path / "new") == ["db"]


def test_at_most_so_many_streams(tmp_path: Path) -> None:
    with pytest.raises(meles.ConfigError, match="1,001 backups"):
        meles.restore([io.BytesIO()] * 1001, tmp_path / "new")
    assert beside(tmp_path / "new") == []


def test_a_long_chain(tmp_path: Path) -> None:
    """More increments than calls may be nested."""
    with meles.open(tmp_path / "db", **CALM) as db:
        chain, since = [], 0
        for number in range(520):
            db[b"k%02d" % (number % 20)] = b"%d" % number
            if number % 3 == 0:
                del db[b"k%02d" % (number * 7 % 20)]
            chain.append(backup(db, since=since))
            since = db.max_version()
        wanted = entries(db)
    restored(tmp_path / "new", *chain)
    assert content_of(tmp_path / "new") == wanted

"""The ingest run against a real database: everything in, or an exact account of what is."""

from __future__ import annotations

import errno
import io
from collections.abc import Generator, Iterator
from pathlib import Path

import meles
import pytest
from meles.engine.cli.ingest import Ingest, IngestReport
from meles.engine.cli.progress import PlainProgress
from meles.engine.cli.records import BadRecord, Chunk
from meles.engine.cli.sources import open_sources, source_format


@pytest.fixture
def db(tmp_path: Path) -> Iterator[meles.DB]:
    with meles.open(tmp_path / "db", workers="inline", memtable_size="64KiB") as opened:
        yield opened


def ingest(
    db: meles.DB, *paths: Path, kind: str = "lines", key: str | None = None, skip: bool = False
) -> tuple[IngestReport, str]:
    log = io.StringIO()
    progress = PlainProgress("ingest", log, db.workers, interval=float("inf"))
    sources = open_sources([str(path) for path in paths], source_format(kind, key, 1 << 20))
    return Ingest(db, progress, skip=skip).run(sources), log.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_every_line_of_every_source_is_in(db: meles.DB, tmp_path: Path) -> None:
    first = write(tmp_path / "a", b"".join(b"line %d\n" % n for n in range(20_000)))
    second = write(tmp_path / "b", b"x\ny")
    report, log = ingest(db, first, second)
    assert report.complete
    assert log == ""
    assert report.tally.records == report.tally.committed == 20_002
    assert report.tally.size == report.tally.total == first.stat().st_size + 3
    assert report.last == (str(second), 2)
    assert len(list(db)) == 20_002
    assert db.get(b"%s:20000" % bytes(first)) == b"line 19999"
    assert db.get(b"%s:2" % bytes(second)) == b"y"


def test_stops_in_front_of_a_bad_record_with_all_before_it_committed(
    db: meles.DB, tmp_path: Path
) -> None:
    good = b"".join(b'{"id": %d}\n' % n for n in range(3000))
    bad = write(tmp_path / "in", good + b'{"id": \n{"id": 9999}\n')
    after = write(tmp_path / "after", b'{"id": 7777}\n')
    report, log = ingest(db, bad, after, kind="jsonl", key="id")
    assert report.stopped_at is not None
    assert (report.stopped_at.source, report.stopped_at.line) == (str(bad), 3001)
    assert report.tally.committed == 3000
    assert report.last == (str(bad), 3000)
    assert not report.complete
    assert f"{bad}, line 3001: not JSON" in log
    assert sorted(db.keys()) == sorted(b"%d" % n for n in range(3000))


def test_skips_bad_records_when_told_to(db: meles.DB, tmp_path: Path) -> None:
    path = write(tmp_path / "in", b'{"id": 1}\nbad\n{"id": ""}\n{"id": 2}\n')
    report, log = ingest(db, path, kind="jsonl", key="id", skip=True)
    assert report.tally.committed == 2
    assert report.tally.bad == 2
    assert not report.complete
    assert "line 2: not JSON" in log
    assert "line 3: " in log
    assert list(db.keys()) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [("", "1 to 65,000"), ("!meles!x", "!meles!"), ("k" * 65_001, "65,001")],
)
def test_a_key_the_database_refuses_is_a_bad_record(
    db: meles.DB, tmp_path: Path, key: str, reason: str
) -> None:
    path = write(tmp_path / "in", b'{"id": "a"}\n{"id": "%s"}\n{"id": "b"}\n' % key.encode())
    report, log = ingest(db, path, kind="jsonl", key="id", skip=True)
    assert list(db.keys()) == [b"a", b"b"]
    assert report.tally.bad == 1
    assert "line 2: " in log
    assert reason in log
    report, _ = ingest(db, path, kind="jsonl", key="id")
    assert report.stopped_at is not None
    assert report.stopped_at.line == 2
    assert report.last == (str(path), 1)


def test_a_value_too_large_for_the_database_is_a_bad_record(db: meles.DB, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    write(root / "large", b"x" * (1 << 20))
    write(root / "small", b"y")
    how = source_format("tree", None, 1 << 30)
    with meles.open(tmp_path / "other", workers="inline", value_log_file_size="1MiB",
                    value_threshold="2MiB") as small:  # fmt: skip
        progress = PlainProgress("ingest", io.StringIO(), small.workers)
        report = Ingest(small, progress, skip=True).run(open_sources([str(root)], how))
        assert list(small.keys()) == [b"large", b"small"]
        write(root / "large", b"x" * ((1 << 20) + 1))
        report = Ingest(small, progress, skip=True).run(open_sources([str(root)], how))
        assert report.tally.bad == 1
        assert report.tally.committed == 1


class Failing:
    """A source whose file cannot be read any further after two records."""

    name = "failing"
    size = None

    def chunks(self) -> Generator[Chunk, None, None]:
        yield Chunk([b"a", b"b"], [b"1", b"2"], [1, 2], 4)
        raise OSError(errno.EIO, "Input/output error")


def test_a_source_that_fails_while_read_ends_the_run_with_what_was_read_committed(
    db: meles.DB,
) -> None:
    progress = PlainProgress("ingest", io.StringIO(), db.workers)
    report = Ingest(db, progress, skip=True).run([Failing()])
    assert report.stopped_at == BadRecord("failing", 0, "cannot be read: Input/output error")
    assert report.tally.committed == 2
    assert list(db.keys()) == [b"a", b"b"]


class ClosingTheDatabase:
    """A source that closes the database after its first chunk: an error of the database."""

    name = "closing"
    size = None

    def __init__(self, db: meles.DB) -> None:
        self._db = db

    def chunks(self) -> Generator[Chunk, None, None]:
        count = 10_000
        keys = [b"%06d" % number for number in range(count)]
        yield Chunk(keys, [b"v"] * count, range(count), count)
        self._db.close()
        yield Chunk([b"x"], [b"1"], [1], 1)


def test_an_error_of_the_database_leaves_an_account_of_what_is_in(tmp_path: Path) -> None:
    db = meles.open(tmp_path / "db", workers="inline")
    run = Ingest(db, PlainProgress("ingest", io.StringIO(), db.workers), skip=True)
    with pytest.raises(meles.ClosedError):
        run.run([ClosingTheDatabase(db)])
    with meles.open(tmp_path / "db", mode="read_only") as again:
        stored = len(list(again))
    assert 0 < stored < 10_000, "the batch committed a part by itself"
    assert run.report.tally.committed == stored

"""What a crash leaves is opened again: a prefix of what was committed, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import meles
import pytest
from fault_fs import FaultDisk, Operation
from meles.engine.codec.entry import META_POINTER, ValuePointer
from meles.engine.codec.header import HEADER_BYTES
from meles.engine.fs.files import Directory
from meles.engine.log.frame import END_FRAME_BYTES, FRAME_BYTES
from meles.engine.log.reader import LogReader
from meles.engine.log.writer import LogWriter
from meles.engine.memtable.memtable import Memtable
from meles.engine.reports import Recovery

OPTIONS: dict[str, Any] = {"workers": "inline", "sync": "none", "value_threshold": 100}
Data = dict[bytes, bytes]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where there is such a place: how long a sync takes is not what is tested."""
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="meles-test-", dir=home) as path:
        yield Path(path)


def files(path: Path) -> Data:
    return {os.fsencode(file): (path / file).read_bytes() for file in sorted(os.listdir(path))}


def read(path: Path, **options: Any) -> Data:
    with meles.open(path, mode="read_only", **{**OPTIONS, **options}) as db:
        return dict(db.items())


def image_of(db: meles.DB, target: Path) -> Path:
    """What would be there if the owner were killed now."""
    shutil.copytree(db.path, target)
    (target / "LOCK").unlink()
    return target


def key(n: int) -> bytes:
    return b"k%04d" % n


def prefix(count: int) -> Data:
    """What `logs` and `torn` have after so many transactions."""
    return {key(n): b"v%d" % n for n in range(1, count + 1)}


Logs = Callable[..., Path]


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    """`logs(3, 5, ...)`: a directory with logs of so many transactions each, the last one open."""

    def make(*counts: int, seal_last: bool = False) -> Path:
        home = tmp_path / "db"
        meles.open(home, **OPTIONS).close()
        with meles.open(home, mode="read_only", **OPTIONS) as db:
            first = db._store.version.min_mem
        ts = 0
        with Directory(str(home)) as directory:
            for nth, count in enumerate(counts):
                log = LogWriter(directory, first + nth)
                table = Memtable.create(log)
                for _ in range(count):
                    ts += 1
                    table.put(key(ts), b"v%d" % ts, 0, 0, 0, ts)
                    table.last_ts = ts
                if nth < len(counts) - 1 or seal_last:
                    table.seal()
                log.close()
        return home

    return make


def log_paths(home: Path) -> list[Path]:
    return sorted(home.glob("*.mem"))


def frames(path: Path) -> list[int]:
    """Where each transaction of a log begins."""
    return [frame.offset for frame in LogReader(path.read_bytes(), "f").frames()]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def recovered(home: Path, **options: Any) -> tuple[Data, Recovery]:
    """Open as owner, look, and be killed: the directory stays as a second crash leaves it."""
    db = meles.open(home, **{**OPTIONS, **options})
    found, report = dict(db.items()), db.stats().recovery
    db[b"new"] = b"x"
    assert db[b"new"] == b"x"
    db.close()
    assert read(home, **options) == {**found, b"new": b"x"}
    return found, report


# -- nothing is lost -----------------------------------------------------------------------------


def test_every_operation_before_the_crash_is_there(tmp_path: Path) -> None:
    chance, model = random.Random(3), {}
    options = {**OPTIONS, "memtable_size": "64KiB", "value_log_file_size": "1MiB"}
    images: list[tuple[Path, Data]] = []
    with meles.open(tmp_path / "db", **options) as db:
        for step in range(400):
            name = b"%02d" % chance.randrange(50)
            if chance.random() < 0.2:
                db.delete(name)
                model.pop(name, None)
            else:
                model[name] = db[name] = b"%d" % step * chance.choice([1, 40, 4000])
            if step % 20 == 0:
                images.append((image_of(db, tmp_path / f"image{step}"), dict(model)))
            if step % 90 == 0:
                db.flush()
    for path, expected in images:
        assert read(path, **options) == expected
        before = files(path)
        assert read(path, **options) == expected
        assert files(path) == before
        with meles.open(path, **options) as db:
            assert dict(db.items()) == expected
            assert db.verify(values=True).ok
            db[b"more"] = b"x"
        assert read(path, **options) == {**expected, b"more": b"x"}


def test_the_report_tells_what_was_done(tmp_path: Path, logs: Logs) -> None:
    home = logs(3, 5)
    (home / "000001.sst").write_bytes(b"half a table")
    found, report = recovered(home)
    assert found == prefix(8)
    assert (report.logs, report.transactions, report.entries) == (2, 8, 8)
    assert (report.cut_bytes, report.manifest_cut_bytes, report.value_log_cut_bytes) == (0, 0, 0)
    assert (report.removed_files, report.set_aside, report.problems) == (1, [], [])
    assert report.seconds > 0
    with meles.open(home, **OPTIONS) as db:
        clean = db.stats().recovery
        clean.seconds = 0
        assert clean == Recovery()


def test_timestamps_go_on_above_everything_recovered(logs: Logs) -> None:
    home = logs(3, 5)
    with meles.open(home, **OPTIONS) as db:
        assert db.max_version() == 8
        db[b"k"] = b"v"
        assert db.max_version() == 9


def test_timestamps_go_on_after_a_close_with_nothing_left_in_the_logs(tmp_path: Path) -> None:
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        for _ in range(7):
            db[b"k"] = b"v"
        db.drop_all()
        db.flatten()
        assert db.tables() == []
        assert db.max_version() == 8
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        assert db.max_version() == 8


# -- torn tails ----------------------------------------------------------------------------------


def test_a_log_torn_anywhere_gives_a_prefix_and_takes_new_writes(
    logs: Logs, tmp_path: Path
) -> None:
    home = logs(4, 6)
    last = log_paths(home)[-1]
    data, starts = last.read_bytes(), frames(last)
    end = len(data.rstrip(b"\0"))
    ends = [*starts[1:], end]
    cuts = [*range(0, HEADER_BYTES, 16), *range(HEADER_BYTES, end + 1, 5)]
    for nth, cut in enumerate(cuts):
        copy = Path(shutil.copytree(home, tmp_path / "torn" / str(nth)))
        torn = copy / last.name
        for content in (data[:cut], data[:cut] + bytes(len(data) - cut)):
            torn.write_bytes(content)
            if 0 < cut < HEADER_BYTES:
                if content == data[:cut] and any(content):
                    with pytest.raises(meles.CorruptionError):
                        read(copy)
                continue
            whole = sum(
                content[start:stop].rstrip(b"\0") == data[start:stop].rstrip(b"\0")
                for start, stop in zip(starts, ends, strict=True)
            )
            assert read(copy) == prefix(4 + whole)
        if nth % 6 == 0 and not 0 < cut < HEADER_BYTES:
            found, report = recovered(copy)
            assert found == prefix(4 + whole)
            assert report.set_aside == []
            assert (report.cut_bytes > 0) == (len(report.problems) > 0)


def test_a_log_with_a_frame_lost_in_the_middle_gives_a_prefix(logs: Logs) -> None:
    home = logs(10)
    (path,) = log_paths(home)
    starts = frames(path)
    flip(path, starts[6] + FRAME_BYTES)
    lost = path.read_bytes()[starts[6] :]
    found, report = recovered(home)
    assert found == prefix(6)
    (aside,) = report.set_aside
    assert (home / aside).read_bytes() == lost
    assert report.cut_bytes == len(lost.rstrip(b"\0"))
    assert len(report.problems) == 1


def test_a_log_damaged_in_its_first_frame_is_kept_for_a_human(logs: Logs) -> None:
    home = logs(10)
    (path,) = log_paths(home)
    flip(path, frames(path)[0] + FRAME_BYTES)
    data = path.read_bytes()
    found, report = recovered(home)
    assert found == {}
    (aside,) = report.set_aside
    assert (home / aside).read_bytes() == data


# -- several logs --------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_logs_behind_damage_are_set_aside(logs: Logs, damaged: int) -> None:
    counts = [4, 3, 5, 2]
    home = logs(*counts)
    paths = log_paths(home)
    contents = {path.name: path.read_bytes() for path in paths}
    flip(paths[damaged], frames(paths[damaged])[1] + FRAME_BYTES)
    found, report = recovered(home)
    kept = sum(counts[:damaged]) + 1
    assert found == prefix(kept)
    for path in paths[damaged + 1 :]:
        assert f"{path.name}.aside" in report.set_aside
        assert (home / f"{path.name}.aside").read_bytes() == contents[path.name]
        assert any(problem.startswith(path.name) for problem in report.problems)
    found, report = recovered(home)
    assert found == {**prefix(kept), b"new": b"x"}
    assert report.set_aside == []


def test_a_sealed_log_that_lost_its_end_record_hides_what_follows(logs: Logs) -> None:
    """What was in it is whole, but that nothing is missing can not be told."""
    home = logs(4, 3)
    first, second = log_paths(home)
    data = first.read_bytes()
    first.write_bytes(data[:-END_FRAME_BYTES] + bytes(END_FRAME_BYTES))
    found, report = recovered(home)
    assert found == prefix(4)
    assert report.set_aside == [f"{second.name}.aside"]


@pytest.mark.parametrize("content", ["empty", "zeros", "header"])
@pytest.mark.parametrize("trailing", [1, 2])
def test_a_log_prepared_and_never_used_is_no_hole(logs: Logs, content: str, trailing: int) -> None:
    """Behind an open log; and its id is used by the next one, so that crashing again is fine."""
    home = logs(4, *[0] * trailing)
    paths = log_paths(home)
    for path in paths[1:]:
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "zeros": bytes(len(data)), "header": data}[content])
    unsealed = paths[0].read_bytes()[:-END_FRAME_BYTES] + bytes(5000)
    paths[0].write_bytes(unsealed)
    assert read(home) == prefix(4)
    assert recovered(home)[0] == prefix(4)


def test_crashing_again_and_again_before_anything_is_flushed(
    logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life ends with its log open and an unused one beside it, and leaves no gap."""
    monkeypatch.setattr("meles.engine.background.flushing.Flushing.start_due", lambda self: None)
    home, expected = logs(4, 0), prefix(4)
    for life in range(6):
        db = meles.open(home, **OPTIONS)
        assert dict(db.items()) == expected
        if life % 3:
            expected[b"life%d" % life] = db[b"life%d" % life] = b"x"
        if life % 2:
            db._store.prepare_spares(values=False)
        home = image_of(db, tmp_path / f"life{life}")
        db.close(timeout=1)
    monkeypatch.undo()
    assert recovered(home)[0] == expected


def test_a_log_whose_beginning_was_lost_is_set_aside(logs: Logs) -> None:
    """A power cut keeps some sectors and loses others: without the first there is no prefix."""
    home = logs(4, 100)
    last = log_paths(home)[-1]
    data = last.read_bytes()
    last.write_bytes(bytes(512) + data[512:])
    assert read(home) == prefix(4)
    found, report = recovered(home)
    assert found == prefix(4)
    assert report.set_aside == [f"{last.name}.aside"]


def test_a_blank_log_before_one_with_data_hides_it(logs: Logs) -> None:
    home = logs(4, 2, 3)
    paths = log_paths(home)
    paths[1].write_bytes(bytes(4096))
    found, report = recovered(home)
    assert found == prefix(4)
    assert sorted(report.set_aside) == [f"{path.name}.aside" for path in paths[1:]]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_log_is_refused_and_nothing_touched(logs: Logs, missing: int) -> None:
    home = logs(4, 2, 3)
    path = log_paths(home)[missing]
    path.unlink()
    before = files(home)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError, match="missing") as caught:
            meles.open(home, mode=mode, **OPTIONS)
        assert caught.value.path == str(path)
        assert files(home) == before


def test_a_log_with_a_damaged_header_is_refused_and_nothing_touched(logs: Logs) -> None:
    home = logs(4, 2)
    flip(log_paths(home)[0], 20)
    before = files(home)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError, match="header"):
            meles.open(home, mode=mode, **OPTIONS)
        assert files(home) == before


def test_a_log_swapped_with_its_sibling_is_refused(logs: Logs) -> None:
    home = logs(4, 4)
    first, second = log_paths(home)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(meles.CorruptionError, match="log says it is"):
        read(home)


def test_a_log_that_was_flushed_before_the_crash_is_removed(logs: Logs) -> None:
    home = logs(4)
    old = log_paths(home)[0].read_bytes()
    name = log_paths(home)[0].name
    recovered(home)
    (home / name).write_bytes(old)
    found, report = recovered(home)
    assert found == {**prefix(4), b"new": b"x"}
    assert report.removed_files == 1
    assert report.logs == 0


# -- tables and MANIFEST -------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A closed database with tables and value-log files."""
    with meles.open(tmp_path / "db", **OPTIONS) as db:
        for n in range(30):
            db[key(n)] = b"v" * n * 20
            if n % 10 == 0:
                db.flush()
    return tmp_path / "db"


@pytest.mark.parametrize("name", ["000001.sst", "000001.vlog"])
@pytest.mark.parametrize("torn_log", [False, True])
def test_a_missing_file_is_named_and_nothing_touched(
    tables: Path, name: str, torn_log: bool
) -> None:
    (tables / name).unlink()
    if torn_log:  # something recovery would like to change
        with Directory(str(tables)) as directory:
            LogWriter(directory, 50).close()
    before = files(tables)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError, match="missing") as caught:
            meles.open(tables, mode=mode, **OPTIONS)
        assert caught.value.path == str(tables / name)
        assert files(tables) == before


@pytest.mark.parametrize("name", ["000001.sst", "000001.vlog"])
@pytest.mark.parametrize("how", ["short", "empty", "flipped"])
def test_a_damaged_file_is_named_and_nothing_touched(tables: Path, name: str, how: str) -> None:
    data = (tables / name).read_bytes()
    damaged = {"short": data[:-1], "empty": b"", "flipped": data[:-5] + b"!" + data[-4:]}[how]
    (tables / name).write_bytes(damaged)
    with Directory(str(tables)) as directory:
        LogWriter(directory, 60).close()
    (tables / "000200.sst").write_bytes(b"half a table")
    before = files(tables)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError) as caught:
            meles.open(tables, mode=mode, **OPTIONS)
        assert caught.value.path == str(tables / name)
        assert files(tables) == before


def test_no_manifest_beside_files_of_ours_is_refused(tables: Path) -> None:
    (tables / "MANIFEST").unlink()
    before = files(tables)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError, match="no MANIFEST beside"):
            meles.open(tables, mode=mode, **OPTIONS)
        assert files(tables) == before


def test_an_older_manifest_is_refused(tables: Path, tmp_path: Path) -> None:
    """It would name too little, and what it does not name would be removed."""
    old = (tables / "MANIFEST").read_bytes()
    with meles.open(tables, num_compactors=0, **OPTIONS) as db:
        db._store.reserve_tables(300)  # as if so many had been made meanwhile
        db[key(1)] = b"x"
    (tables / "MANIFEST").write_bytes(old)
    before = files(tables)
    with pytest.raises(meles.CorruptionError):
        meles.open(tables, **OPTIONS)
    assert files(tables) == before


def test_an_older_manifest_of_the_same_ids_is_refused(tables: Path) -> None:
    """It had handed out all numbers it sees; a table with unknown commits gives it away."""
    with meles.open(tables, num_compactors=0, **OPTIONS) as db:
        db[b"new"] = b"x"
        db.flush()
        old = (tables / "MANIFEST").read_bytes()
        db[b"newer"] = b"x"
    (tables / "MANIFEST").write_bytes(old)
    before = files(tables)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError, match="older copy"):
            meles.open(tables, mode=mode, **OPTIONS)
        assert files(tables) == before


def test_a_value_log_a_log_needs_is_never_removed(tables: Path, tmp_path: Path) -> None:
    """The MANIFEST is an older copy, from before the file was made; the directory was not closed.

    Logs are all there, so nothing else shows that it is old.
    """
    with meles.open(tables, **OPTIONS) as db:
        old = (tables / "MANIFEST").read_bytes()
        db[b"newer"] = b"x" * 500
        home = image_of(db, tmp_path / "image")
    (home / "MANIFEST").write_bytes(old)
    before = files(home)
    for mode in ("own", "read_only"):
        with pytest.raises(meles.CorruptionError, match="older copy"):
            meles.open(home, mode=mode, **OPTIONS)
        assert files(home) == before


def test_files_of_other_kinds_are_let_be(tables: Path) -> None:
    names = ["notes.txt", "1.sst", "000001.sst.bak", "x000009.sst", "0000001.mem", "core"]
    for name in names:
        (tables / name).write_text("mine")
    (tables / "folder").mkdir()
    recovered(tables)
    assert {(tables / name).read_text() for name in names} == {"mine"}


def test_outputs_of_jobs_that_never_ended_are_removed(tables: Path) -> None:
    for name in ("000100.sst", "000101.vlog"):
        (tables / name).write_bytes(b"half")
    _, report = recovered(tables)
    assert report.removed_files == 2
    assert not (tables / "000100.sst").exists()
    assert not (tables / "000101.vlog").exists()


def test_another_number_of_levels(tables: Path) -> None:
    expected = read(tables)
    for levels in (2, 16, 3):
        with meles.open(tables, max_levels=levels, **OPTIONS) as db:
            assert dict(db.items()) == expected
            assert len(db.levels()) >= levels
            db.flatten()
    assert read(tables) == expected


# -- the value log -------------------------------------------------------------------------------


@pytest.fixture
def valued(tmp_path: Path) -> tuple[Path, Data, Path]:
    """An open value-log file and a log that points into it: 12 values, a plain entry before each.

    Three of the values are flushed, so they must be there.
    """
    data: Data = {}
    with meles.open(tmp_path / "live", **OPTIONS) as db:
        for n in range(12):
            data[b"p%02d" % n] = db[b"p%02d" % n] = b"plain"
            data[b"v%02d" % n] = db[b"v%02d" % n] = b"%02d" % n * 60
            if n == 2:
                db.flush()
        home = image_of(db, tmp_path / "db")
    return home, data, home / "000001.vlog"


def first(data: Data, count: int) -> Data:
    return dict(list(data.items())[:count])


def test_a_value_log_torn_anywhere_gives_a_prefix(
    valued: tuple[Path, Data, Path], tmp_path: Path
) -> None:
    home, data, vlog = valued
    content = vlog.read_bytes()
    size = 16 + 120
    assert len(content) == HEADER_BYTES + 12 * size
    for nth, cut in enumerate(range(HEADER_BYTES, len(content) + 1, 23)):
        whole = (cut - HEADER_BYTES) // size
        vlog.write_bytes(content[:cut])
        if whole < 3:
            before = files(home)
            with pytest.raises(meles.CorruptionError):
                read(home)
            with pytest.raises(meles.CorruptionError):
                meles.open(home, **OPTIONS)
            assert files(home) == before
            continue
        expected = first(data, 2 * whole + (whole < 12))
        assert read(home) == expected
        if nth % 9 == 0:
            copy = Path(shutil.copytree(home, tmp_path / "torn" / str(nth)))
            found, report = recovered(copy)
            assert found == expected
            assert report.value_log_cut_bytes == cut - HEADER_BYTES - whole * size
            assert report.problems or whole == 12
            with meles.open(copy, **OPTIONS) as db:
                assert db.verify(values=True).ok


def test_damage_in_the_value_log_ends_the_prefix_and_costs_nothing_else(
    valued: tuple[Path, Data, Path],
) -> None:
    """What lies behind it stays in the file, though no transaction that needs it comes back."""
    home, data, vlog = valued
    content = vlog.read_bytes()
    flip(vlog, HEADER_BYTES + 5 * 136 + 50)
    assert read(home) == first(data, 11)
    found, report = recovered(home, gc=False)
    assert found == first(data, 11)
    assert report.problems
    assert report.value_log_cut_bytes > 0
    assert (
        vlog.read_bytes()[HEADER_BYTES + 6 * 136 : len(content)]
        == (content[HEADER_BYTES + 6 * 136 :])
    )
    with meles.open(home, **OPTIONS) as db:
        assert db.verify(values=True).ok


def test_damage_in_what_was_durable_costs_only_that(valued: tuple[Path, Data, Path]) -> None:
    home, data, vlog = valued
    flip(vlog, HEADER_BYTES + 1 * 136 + 50)
    with meles.open(home, **OPTIONS) as db:
        assert db.stats().recovery.transactions == 18
        for name, value in data.items():
            if name == b"v01":
                with pytest.raises(meles.CorruptionError):
                    db[name]
            else:
                assert db[name] == value
        assert not db.verify(values=True).ok


def test_an_open_value_log_with_nothing_in_it_goes(tmp_path: Path) -> None:
    with meles.open(tmp_path / "live", **OPTIONS) as db:
        db[b"k"] = b"v"
        db._store.prepare_spares(values=True)
        home = image_of(db, tmp_path / "db")
    (home / "000001.vlog").write_bytes(b"")  # made, and its header not written
    assert read(home) == {b"k": b"v"}
    assert recovered(home)[0] == {b"k": b"v"}
    assert not (home / "000001.vlog").exists()


def test_a_pointer_into_a_value_log_that_never_was(logs: Logs) -> None:
    """A frame that checks out and points nowhere: nothing is made up, the error says where."""
    home = logs(2)
    with Directory(str(home)) as directory:
        log = LogWriter(directory, int(log_paths(home)[0].stem) + 1)
        table = Memtable.create(log)
        table.put(b"k", ValuePointer(77, 64, 5).encode(), META_POINTER, 0, 0, 3)
        table.seal()
        log.close()
    first_log = log_paths(home)[0]
    reader = LogReader(first_log.read_bytes(), "f")
    assert len(list(reader.frames())) == 2
    with Directory(str(home)) as directory, directory.open(first_log.name, write=True) as file:
        assert reader.tail is not None
        file.truncate(reader.tail.end)
    with meles.open(home, **OPTIONS) as db:
        assert db.stats().recovery.set_aside or db.get(b"k1") is None


# -- crashing in the middle ----------------------------------------------------------------------


class CopyEach:
    """A plan that keeps the directory as it is before every operation that changes it."""

    def __init__(self, disk: FaultDisk, source: Path, target: Path) -> None:
        self.disk, self.source, self.target = disk, source, target
        self.taken: list[Path] = []

    def __call__(self, operation: Operation) -> None:
        if operation.kind in ("open", "read", "map", "map_read"):
            return
        copy = self.target / str(len(self.taken))
        shutil.copytree(self.source, copy)
        (copy / "LOCK").unlink(missing_ok=True)
        self.taken.append(copy)


@pytest.mark.parametrize("case", ["torn", "damaged", "beginning", "several", "values"])
def test_a_crash_anywhere_in_recovery_changes_nothing(
    case: str, logs: Logs, tmp_path: Path, fault_disk: FaultDisk, request: pytest.FixtureRequest
) -> None:
    if case == "values":
        home, data, vlog = request.getfixturevalue("valued")
        vlog.write_bytes(vlog.read_bytes()[:-300])
        expected = first(data, 19)
    else:
        home = logs(4, 3, 5)
        paths = log_paths(home)
        at = {"torn": -1, "damaged": 1, "beginning": 1, "several": -1}[case]
        starts = frames(paths[at])
        if case == "torn":
            paths[at].write_bytes(paths[at].read_bytes()[: starts[-1] + 20])
        elif case != "several":
            flip(paths[at], starts[case == "damaged"] + FRAME_BYTES)
        expected = prefix({"torn": 11, "damaged": 5, "beginning": 4, "several": 12}[case])
        (home / "000001.sst").write_bytes(b"half a table")
    plan = CopyEach(fault_disk, home, tmp_path / "copies")
    fault_disk.plan = plan
    db = meles.open(home, **OPTIONS)
    fault_disk.plan = None
    assert dict(db.items()) == expected
    db.close()
    assert len(plan.taken) > 5
    for copy in plan.taken:
        assert read(copy) == expected
        assert recovered(copy)[0] == expected

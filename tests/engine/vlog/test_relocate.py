"""GC by relocation: live values stay readable under their addresses, dead ones go."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.entry import META_POINTER, ValuePointer
from meles.engine.errors import CorruptionError, DiskFullError, InvariantError, JobCancelledError
from meles.engine.fs.files import Buffer, Directory, File
from meles.engine.jobs import BuildOptions, JobResult, RelocateJob
from meles.engine.manifest.version import VlogMeta
from meles.engine.table.builder import TableBuilder
from meles.engine.vlog import relocate as relocate_module
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.relocate import live_entries, relocate, run_relocation
from meles.engine.vlog.value_log import ValueLogView
from meles.engine.vlog.writer import ValueLogWriter

Entry = tuple[bytes, int, bytes]  # pointer, version, value


class Calm:
    def __init__(self) -> None:
        self.reports: list[int] = []

    def progress(self, done_bytes: int) -> None:
        self.reports.append(done_bytes)


class Cancel:
    """Cancels at report number `after`."""

    def __init__(self, after: int) -> None:
        self.left = after

    def progress(self, done_bytes: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise JobCancelledError("told to stop")


def sealed(directory: Directory, file_id: int, values: list[bytes]) -> list[Entry]:
    writer = ValueLogWriter(directory, file_id)
    pointers = [
        writer.append(value, file_id * 1000 + number).encode()
        for number, value in enumerate(values)
    ]
    writer.seal()
    writer.close()
    return [
        (pointer, file_id * 1000 + number, value)
        for number, (pointer, value) in enumerate(zip(pointers, values, strict=True))
    ]


def table(directory: Directory, table_id: int, entries: list[Entry]) -> None:
    """A table whose values are these addresses, with inline values between them."""
    builder = TableBuilder(directory, table_id, BuildOptions(block_size=256), created_ms=1)
    columns = Columns()
    for number, (pointer, version, _) in enumerate(entries):
        columns.append(b"%08d" % number, version, META_POINTER, 0, pointer)
        columns.append(b"%08d-inline" % number, version, 0, 0, b"twelve bytes")
    builder.add(columns)
    builder.finish()


def job(
    sources: dict[int, tuple[int, ...]], tables: tuple[int, ...], output: int, rate: int = 0
) -> RelocateJob:
    return RelocateJob(tuple(sources.items()), tables, output, rate, 0)


def direct(
    directory: Directory, sources: dict[int, tuple[int, ...]], live: list[Entry], output: int
) -> JobResult:
    """Relocation with the addresses given instead of read from tables."""
    logical = [file_id for ids in sources.values() for file_id in ids]
    found = live_entries(logical, [b"".join(pointer for pointer, *_ in live)])
    return relocate(job(sources, (), output), found, directory, Calm())


def opened(directory: Directory, file_id: int) -> ValueLogFile:
    return ValueLogFile(directory, load_meta(directory, file_id))


def test_what_tables_refer_to_moves_and_the_rest_goes(directory: Directory, tmp_path: Path) -> None:
    one = sealed(directory, 1, [b"a%d" % n * 50 for n in range(100)])
    two = sealed(directory, 2, [b"b%d" % n * 70 for n in range(100)])
    other = sealed(directory, 3, [b"c"] * 10)
    table(directory, 1, one[::3] + two[10:20] + other)
    table(directory, 2, two[50:60] + one[:6])
    live = set(one[::3] + one[:6] + two[10:20] + two[50:60])
    context = Calm()
    result = run_relocation(job({1: (1,), 2: (2,)}, (1, 2), 7), directory, directory, context)

    data = (tmp_path / "000007.vlog").read_bytes()
    (made,) = result.files
    assert (made.id, made.size, made.crc) == (7, len(data), crc32c(data))
    live_bytes = sum(16 + len(value) for *_, value in live)
    assert result.counters == {
        "live_entries": len(live),
        "live_bytes": live_bytes,
        "read_bytes": live_bytes,
        "written_bytes": len(data),
    }
    assert len(data) == 64 + live_bytes + 2 * 8 + 8 * len(live) + 64
    assert load_meta(directory, 7) == VlogMeta(7, (1, 2), True, len(data), len(live))
    file = opened(directory, 7)
    assert file.verify() == len(live)
    assert file.file_crc() == made.crc
    for entry in one + two:
        pointer, version, value = entry
        if entry in live:
            assert file.fetch(pointer, version) == value
        else:
            with pytest.raises(CorruptionError, match="no value of address"):
                file.fetch(pointer, version)
    file.close()
    assert context.reports[-1] == len(data)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.lists(st.lists(st.binary(max_size=90), max_size=12), min_size=1, max_size=4),
    data=st.data(),
)
def test_generations_of_relocation_lose_nothing_live(
    directory: Directory, files: list[list[bytes]], data: st.DataObject
) -> None:
    """Files are relocated together, then what came of it again, each time with less that lives."""
    for name in directory.names():
        directory.unlink(name)
    entries = [entry for n, values in enumerate(files, 1) for entry in sealed(directory, n, values)]
    where: dict[int, tuple[int, ...]] = {n: (n,) for n in range(1, len(files) + 1)}
    view = ValueLogView(directory.path, [opened(directory, n) for n in where])
    live = entries
    for output in range(10, 14):
        keep = data.draw(st.lists(st.booleans(), min_size=len(live), max_size=len(live)))
        live = [entry for entry, stays in zip(live, keep, strict=True) if stays]
        sources = {f: ids for f, ids in where.items() if data.draw(st.booleans())}
        result = direct(directory, sources, data.draw(st.permutations(live)), output)
        logical = {file_id for ids in sources.values() for file_id in ids}
        moved = {int.from_bytes(p[:4], "little") for p, *_ in live} & logical
        assert bool(result.files) == bool(moved)
        made = [opened(directory, output)] if moved else []
        assert [file.logical for file in made] == [tuple(sorted(moved))] * len(made)
        assert all(file.verify() == result.counters["live_entries"] for file in made)
        view = view.replaced(made, sources)
        for file_id in sources:
            del where[file_id]
            directory.unlink(f"{file_id:06d}.vlog")
        where.update((file.file_id, file.logical) for file in made)
        for pointer, version, value in live:
            assert view.read(pointer, version) == value
    view.close()


def test_nothing_live_makes_no_file(directory: Directory) -> None:
    one = sealed(directory, 1, [b"a", b"b"])
    other = sealed(directory, 2, [b"c"])
    table(directory, 1, other)
    result = run_relocation(job({1: (1,)}, (1,), 7), directory, directory, Calm())
    assert result == JobResult(
        (), {"live_entries": 0, "live_bytes": 0, "read_bytes": 0, "written_bytes": 0}
    )
    assert "000007.vlog" not in directory.names()
    assert opened(directory, 1).fetch(one[0][0]) == b"a"


def test_entries_are_copied_byte_for_byte(directory: Directory, tmp_path: Path) -> None:
    entries = sealed(directory, 1, [b"first", b"second", b"third"])
    direct(directory, {1: (1,)}, entries, 7)
    before = (tmp_path / "000001.vlog").read_bytes()[64:-64]
    assert (tmp_path / "000007.vlog").read_bytes()[64 : 64 + len(before)] == before


def test_values_larger_than_a_write(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocate_module, "_WRITE_BYTES", 1000)
    monkeypatch.setattr(relocate_module, "_SYNC_BYTES", 3000)
    monkeypatch.setattr(relocate_module, "_BATCH", 3)
    sizes = [0, 5, 999, 1000, 5000, 1, 2, 3, 4, 5, 10_000, 0, 984, 983, 985]
    entries = sealed(directory, 1, [bytes([n]) * size for n, size in enumerate(sizes)])
    result = direct(directory, {1: (1,)}, entries, 7)
    file = opened(directory, 7)
    assert file.verify() == len(sizes)
    assert file.file_crc() == result.files[0].crc
    for pointer, version, value in entries:
        assert file.fetch(pointer, version) == value
    file.close()


@pytest.mark.parametrize("part", ["crc", "length", "version", "value"])
def test_a_damaged_live_value_fails_the_job_and_a_dead_one_does_not(
    directory: Directory, tmp_path: Path, part: str
) -> None:
    entries = sealed(directory, 1, [b"first", b"second", b"third"])
    at = 64 + 21 + {"crc": 0, "length": 4, "version": 8, "value": 18}[part]
    data = bytearray((tmp_path / "000001.vlog").read_bytes())
    data[at] ^= 1
    (tmp_path / "000001.vlog").write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        direct(directory, {1: (1,)}, entries, 7)
    assert (caught.value.kind, caught.value.offset) == ("value", 64 + 21)
    assert directory.names() == ["000001.vlog"]
    assert (tmp_path / "000001.vlog").read_bytes() == data
    direct(directory, {1: (1,)}, [entries[0], entries[2]], 7)
    file = opened(directory, 7)
    assert [file.fetch(entries[0][0]), file.fetch(entries[2][0])] == [b"first", b"third"]
    file.close()


def test_addresses_that_no_entry_has_fail_the_job(directory: Directory) -> None:
    (entry, *_) = sealed(directory, 1, [b"first", b"second"])
    good = ValuePointer.decode(entry[0])
    for wrong in (
        good._replace(offset=0),
        good._replace(offset=63),
        good._replace(offset=66),
        good._replace(offset=(1 << 32) - 1),
        good._replace(length=4),
        good._replace(length=1 << 31),
    ):
        with pytest.raises((CorruptionError, InvariantError)):
            direct(directory, {1: (1,)}, [entry, (wrong.encode(), 0, b"")], 7)
        assert directory.names() == ["000001.vlog"]
    direct(directory, {1: (1,)}, [entry], 7)
    with pytest.raises(CorruptionError, match="no value of address"):
        direct(directory, {7: (1,)}, [entry, (good._replace(offset=85).encode(), 0, b"")], 8)
    assert "000008.vlog" not in directory.names()


def test_sources_that_are_not_what_the_job_says(directory: Directory, tmp_path: Path) -> None:
    entries = sealed(directory, 1, [b"first", b"second"])
    with pytest.raises(CorruptionError, match="logical files"):
        direct(directory, {1: (1, 5)}, entries, 7)
    unsealed = ValueLogWriter(directory, 2)
    pointer = unsealed.append(b"v", 1).encode()
    unsealed.close()
    with pytest.raises(CorruptionError, match="trailer"):
        direct(directory, {2: (2,)}, [(pointer, 1, b"v")], 7)
    (tmp_path / "000001.vlog").unlink()
    with pytest.raises(CorruptionError, match="missing"):
        direct(directory, {1: (1,)}, entries, 7)
    assert "000007.vlog" not in directory.names()


def test_a_damaged_map_fails_the_job(directory: Directory, tmp_path: Path) -> None:
    entries = sealed(directory, 1, [b"first", b"second"])
    direct(directory, {1: (1,)}, entries, 7)
    data = bytearray((tmp_path / "000007.vlog").read_bytes())
    data[-64 - 3] ^= 1
    (tmp_path / "000007.vlog").write_bytes(data)
    with pytest.raises(CorruptionError, match="map checksum"):
        direct(directory, {7: (1,)}, entries, 8)


def test_a_cancel_at_any_report_leaves_no_file(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocate_module, "_WRITE_BYTES", 100)
    entries = sealed(directory, 1, [b"v" * 60] * 20)
    table(directory, 1, entries)
    before = directory.names()
    after = 0
    while True:
        try:
            run_relocation(job({1: (1,)}, (1,), 7), directory, directory, Cancel(after))
        except JobCancelledError:
            assert directory.names() == before
            after += 1
            continue
        break
    assert after > 20
    assert "000007.vlog" in directory.names()


def test_waiting_for_the_rate_hears_a_cancel(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocate_module, "_PAUSE", 0.001)
    entries = sealed(directory, 1, [b"v" * 60])
    table(directory, 1, entries)
    before = directory.names()
    with pytest.raises(JobCancelledError):
        run_relocation(job({1: (1,)}, (1,), 7, rate=1), directory, directory, Cancel(30))
    assert directory.names() == before


def test_a_rate_only_delays(directory: Directory) -> None:
    entries = sealed(directory, 1, [b"v" * 600] * 3)
    table(directory, 1, entries)
    result = run_relocation(job({1: (1,)}, (1,), 7, rate=20_000), directory, directory, Calm())
    assert result.counters["live_entries"] == 3
    assert opened(directory, 7).verify() == 3


def test_a_taken_output_name_is_left_alone(directory: Directory, tmp_path: Path) -> None:
    entries = sealed(directory, 1, [b"v"])
    (tmp_path / "000007.vlog").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        direct(directory, {1: (1,)}, entries, 7)
    assert (tmp_path / "000007.vlog").read_bytes() == b"precious"


class CountingFile(File):
    """Fails operation number `fail_at` of those counted, and keeps their order."""

    log: ClassVar[list[str]] = []
    fail_at: ClassVar[int] = -1

    @classmethod
    def count(cls, what: str) -> None:
        if len(cls.log) == cls.fail_at:
            cls.fail_at = -1
            raise DiskFullError(f"no space to {what}")
        cls.log.append(what)

    def pwrite(self, data: Buffer, offset: int) -> None:
        self.count("write")
        super().pwrite(data, offset)

    def sync(self) -> None:
        self.count("sync")
        super().sync()


class CountingDirectory(Directory):
    file_class = CountingFile

    def sync(self) -> None:
        CountingFile.count("sync directory")
        super().sync()


def test_the_output_is_synced_before_its_name_and_any_failure_removes_it(tmp_path: Path) -> None:
    with Directory(str(tmp_path)) as plain:
        entries = sealed(plain, 1, [b"first", b"second"])
    with CountingDirectory(str(tmp_path)) as directory:
        CountingFile.log.clear()
        direct(directory, {1: (1,)}, entries, 7)
        steps = list(CountingFile.log)
        assert steps == ["write", "write", "write", "write", "sync", "sync directory"]
        directory.unlink("000007.vlog")
        for fail_at in range(len(steps)):
            CountingFile.log.clear()
            CountingFile.fail_at = fail_at
            with pytest.raises(DiskFullError):
                direct(directory, {1: (1,)}, entries, 7)
            assert directory.names() == ["000001.vlog"]


def test_a_long_copy_is_synced_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relocate_module, "_WRITE_BYTES", 1000)
    monkeypatch.setattr(relocate_module, "_SYNC_BYTES", 3000)
    with CountingDirectory(str(tmp_path)) as directory:
        entries = sealed(directory, 1, [b"v" * 500] * 30)
        CountingFile.log.clear()
        direct(directory, {1: (1,)}, entries, 7)
        runs = "".join(step[0] for step in CountingFile.log).split("s")
        assert max(map(len, runs)) <= 7  # the header, and entries for 3,000 bytes


def test_pointers_must_be_whole() -> None:
    with pytest.raises(InvariantError, match="whole pointers"):
        live_entries([1], [bytes(13)])


def test_an_output_beyond_what_offsets_can_say_is_refused(directory: Directory) -> None:
    live = live_entries([1], [ValuePointer(1, 64 + n, 1 << 31).encode() for n in range(3)])
    with pytest.raises(InvariantError, match="offsets"):
        relocate(job({1: (1,)}, (), 7), live, directory, Calm())
    assert directory.names() == []

"""Appending: addresses, bulk, what a failed write leaves, reading beside a writer."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.codec.entry import ValuePointer
from meles.engine.errors import ClosedError, CorruptionError, DiskFullError, InvariantError
from meles.engine.fs.files import Buffer, Directory, File
from meles.engine.ids import MAX_FILE_BYTES
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.writer import ValueLogWriter

VALUES = st.lists(st.lists(st.binary(max_size=200), max_size=6), max_size=6)


class FullFile(File):
    """Writes `room` more bytes, then the device is full."""

    room: ClassVar[int] = 1 << 40

    def pwrite(self, data: Buffer, offset: int) -> None:
        part = memoryview(data)[: FullFile.room]
        super().pwrite(part, offset)
        FullFile.room -= len(part)
        if len(part) < len(data):
            raise DiskFullError(f"no space to write {self.name}")


class FullDirectory(Directory):
    file_class = FullFile


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(groups=VALUES)
def test_what_is_appended_reads_back_before_and_after_sealing(
    directory: Directory, groups: list[list[bytes]]
) -> None:
    directory.unlink("000001.vlog")
    writer = ValueLogWriter(directory, 1)
    written: list[tuple[bytes, int, bytes]] = []
    for version, values in enumerate(groups, 1):
        if len(values) == 1:
            pointers = [writer.append(values[0], version).encode()]
        else:
            pointers = writer.append_many(values, version)
        written += zip(pointers, [version] * len(values), values, strict=True)
    assert [writer.fetch(pointer, version) for pointer, version, _ in written] == [
        value for *_, value in written
    ]
    meta = writer.seal()
    assert meta == load_meta(directory, 1)
    assert meta.entries == writer.entries == len(written)
    assert [writer.fetch(pointer) for pointer, *_ in written] == [value for *_, value in written]
    writer.close()
    file = ValueLogFile(directory, meta)
    for pointer, version, value in written:
        assert file.fetch(pointer, version) == value
    assert file.verify() == len(written)
    file.close()


def test_bulk_writes_the_same_bytes_as_single_appends(directory: Directory, tmp_path: Path) -> None:
    values = [b"", b"a", b"bc" * 700, b"d" * 70_000]
    one = ValueLogWriter(directory, 1)
    singles = [one.append(value, 9).encode() for value in values]
    one.close()
    first = (tmp_path / "000001.vlog").read_bytes()
    (tmp_path / "000001.vlog").unlink()
    many = ValueLogWriter(directory, 1)
    assert many.append_many(values, 9) == singles
    many.close()
    assert (tmp_path / "000001.vlog").read_bytes() == first


def test_large_values_take_the_piecewise_way_and_read_back(directory: Directory) -> None:
    big = bytes(range(256)) * 8192
    writer = ValueLogWriter(directory, 1)
    pointer = writer.append(big, 3)
    assert pointer == ValuePointer(1, 64, len(big))
    pointers = writer.append_many([b"x", big, b"y"], 4)
    assert writer.read(pointer) == big
    assert [writer.fetch(p, 4) for p in pointers] == [b"x", big, b"y"]
    writer.close()


def test_an_address_is_checked(directory: Directory) -> None:
    writer = ValueLogWriter(directory, 1)
    pointer = writer.append(b"value", 3)
    writer.append(b"other", 3)
    for wrong in (
        pointer._replace(offset=63),
        pointer._replace(offset=writer.end),
        pointer._replace(length=6),
        pointer._replace(length=4),
        pointer._replace(length=1 << 31),
        pointer._replace(file_id=2),
    ):
        with pytest.raises(CorruptionError) as caught:
            writer.read(wrong)
        assert caught.value.kind == "value"
        assert caught.value.path.endswith("/000001.vlog")
    with pytest.raises(CorruptionError, match="version 3"):
        writer.fetch(pointer.encode(), 4)
    unpublished = writer.append(b"unpublished", 5)
    writer.appender.end = unpublished.offset
    with pytest.raises(CorruptionError, match="outside"):
        writer.read(unpublished)
    writer.close()
    with pytest.raises(ClosedError):
        writer.read(pointer)


def test_an_existing_file_is_left_alone(directory: Directory, tmp_path: Path) -> None:
    (tmp_path / "000001.vlog").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        ValueLogWriter(directory, 1)
    assert (tmp_path / "000001.vlog").read_bytes() == b"precious"


def test_a_file_whose_header_cannot_be_written_is_removed(tmp_path: Path) -> None:
    FullFile.room = 10
    with FullDirectory(str(tmp_path)) as directory, pytest.raises(DiskFullError):
        ValueLogWriter(directory, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 5, 16, 40])
@pytest.mark.parametrize("size", [30, 3 << 20])
@pytest.mark.parametrize("bulk", [False, True])
def test_a_full_disk_takes_nothing_away(tmp_path: Path, room: int, size: int, bulk: bool) -> None:
    FullFile.room = 1 << 40
    with FullDirectory(str(tmp_path)) as directory:
        writer = ValueLogWriter(directory, 1)
        before = writer.append(b"before", 1)
        end = writer.end
        FullFile.room = room
        values = [b"v" * size, b"w" * size]
        with pytest.raises(DiskFullError):
            _ = writer.append_many(values, 2) if bulk else writer.append(values[0], 2)
        assert (writer.end, writer.entries) == (end, 1)
        assert (tmp_path / "000001.vlog").stat().st_size == end
        FullFile.room = 1 << 40
        after = writer.append(b"after", 3)
        assert after.offset == end
        assert [writer.read(before), writer.read(after)] == [b"before", b"after"]
        assert writer.seal().entries == 2
        writer.close()


def test_growing_past_what_offsets_can_say_is_refused(directory: Directory) -> None:
    writer = ValueLogWriter(directory, 1)
    writer.appender.end = MAX_FILE_BYTES - 100
    assert writer.room == 36
    with pytest.raises(InvariantError, match="rotate"):
        writer.append(b"v" * 30, 1)
    with pytest.raises(InvariantError, match="rotate"):
        writer.append_many([b"v" * 3, b"w" * 3], 1)
    writer.close()
    with pytest.raises(InvariantError, match="pointer"):
        ValueLogWriter(directory, 1 << 32)


def test_a_sealed_file_takes_nothing(directory: Directory) -> None:
    writer = ValueLogWriter(directory, 1)
    pointer = writer.append(b"v", 1)
    size = writer.seal().size
    for refused in (
        lambda: writer.append(b"w", 2),
        lambda: writer.append_many([b"w"], 2),
        writer.seal,
    ):
        with pytest.raises(InvariantError, match="sealed"):
            refused()
    assert directory.size_of("000001.vlog") == size
    assert writer.read(pointer) == b"v"
    assert writer.append_many([], 2) == []
    writer.close()


def test_a_failing_sync_is_passed_on(tmp_path: Path) -> None:
    class BadFile(File):
        def sync(self) -> None:
            raise OSError(errno.EIO, "medium error")

    class BadDirectory(Directory):
        file_class = BadFile

    with BadDirectory(str(tmp_path)) as directory:
        writer = ValueLogWriter(directory, 1)
        for call in (writer.sync, writer.seal):
            with pytest.raises(OSError, match="medium error"):
                call()
        writer.close()


def test_readers_beside_an_appending_thread(directory: Directory, reading: Any) -> None:
    writer = ValueLogWriter(directory, 1)
    published: list[tuple[bytes, bytes]] = []

    def read_everything() -> None:
        for pointer, value in list(published):
            assert writer.fetch(pointer) == value

    with reading(read_everything):
        for number in range(300):
            value = bytes([number % 256]) * (number * 7)
            published.append((writer.append(value, number).encode(), value))
    writer.close()


def test_the_last_reference_closes_the_file(directory: Directory) -> None:
    writer = ValueLogWriter(directory, 1)
    fd = writer._file.fd
    fetch = writer.fetch
    pointer = writer.append(b"v", 1).encode()
    del writer
    assert fetch(pointer) == b"v"
    del fetch
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)

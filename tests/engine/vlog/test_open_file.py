"""The file still appended to, as the compiled kernel reads it: in place where it is mapped."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meles.engine.codec.entry import ValuePointer
from meles.engine.errors import ClosedError, CorruptionError
from meles.engine.fs.files import Directory, File
from meles.engine.fs.pages import Pages
from meles.engine.vlog import writer as module
from meles.engine.vlog.value_log import ValueLogView
from meles.engine.vlog.writer import ValueLogWriter
from twins import NATIVE, needs_native_run

pytestmark = needs_native_run

VERSION = 7
VALUE = bytes(range(250)) * 20


class CountingFile(File):
    """Counts what is read by a call, and maps nothing when it is told so."""

    preads: ClassVar[int] = 0
    refused: ClassVar[bool] = False

    def pread(self, length: int, offset: int) -> bytes:
        CountingFile.preads += 1
        return super().pread(length, offset)

    def map(self, length: int, *, write: bool = False) -> mmap.mmap:
        if CountingFile.refused:
            raise OSError(errno.EMFILE, "too many open files")
        return super().map(length, write=write)


class CountingDirectory(Directory):
    file_class = CountingFile


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Directory]:
    CountingFile.preads, CountingFile.refused = 0, False
    with CountingDirectory(str(tmp_path)) as opened:
        yield opened


def filled(directory: Directory, count: int = 1000, **more: Pages) -> tuple[ValueLogWriter, list]:
    """A file of several MiB, and the address of each value in it."""
    writer = ValueLogWriter(directory, 1, **more)
    return writer, [writer.append(VALUE, VERSION).encode() for _ in range(count)]


def is_mapped(directory: Directory) -> bool:
    """Whether a file of it is mapped in this process."""
    with open("/proc/self/maps") as maps:
        return any(directory.path in line for line in maps)


def read_of(writer: ValueLogWriter):
    return ValueLogView("here", [writer]).compiled


@settings(
    deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)  # fmt: skip
@given(groups=st.lists(st.lists(st.binary(max_size=3000), max_size=8), max_size=8))
def test_it_reads_back_whatever_is_mapped(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, groups: list[list[bytes]]
) -> None:
    monkeypatch.setattr(module, "_LEAST_MAPPED", 100)
    directory.unlink("000001.vlog")
    writer = ValueLogWriter(directory, 1)
    read, written = read_of(writer), []
    for version, values in enumerate(groups, 1):
        pointers = writer.append_many(values, version)
        written += zip(pointers, [version] * len(values), values, strict=True)
        assert [read(pointer, v) for pointer, v, _ in written] == [value for *_, value in written]
    writer.seal()
    assert [read(pointer, v) for pointer, v, _ in written] == [value for *_, value in written]
    writer.close()


def test_it_is_read_in_place(counting: Directory) -> None:
    """The last eighth at most is read by calls: what was written after the last mapping."""
    writer, pointers = filled(counting)
    read = read_of(writer)
    assert [read(pointer, VERSION) for pointer in pointers] == [VALUE] * len(pointers)
    assert CountingFile.preads == 1
    while len(pointers) < 1120:
        pointers.append(writer.append(VALUE, VERSION).encode())
    assert all(read(pointer, VERSION) == VALUE for pointer in pointers)
    assert CountingFile.preads == 121
    pointers += [writer.append(VALUE, VERSION).encode() for _ in range(100)]
    assert all(read(pointer, VERSION) == VALUE for pointer in pointers)
    assert CountingFile.preads == 122
    writer.close()


def test_it_is_read_without_a_mapping(counting: Directory) -> None:
    """No descriptor, say."""
    writer, pointers = filled(counting)
    CountingFile.refused = True
    assert all(read_of(writer)(pointer, VERSION) == VALUE for pointer in pointers)
    assert CountingFile.preads == len(pointers)
    writer.close()


def test_what_is_resident_of_it_is_watched(directory: Directory) -> None:
    pages = Pages(lambda: 1 << 40)
    writer, pointers = filled(directory, pages=pages)
    read = read_of(writer)
    for pointer in pointers:
        read(pointer, VERSION)
    assert pages.marked() >= (len(pointers) - 1) * len(VALUE)
    writer.close()


@pytest.mark.parametrize("nth", [0, 500, 999])
@pytest.mark.parametrize("at", [0, 4, 8, 16, 17, 16 + len(VALUE) - 1])
def test_damage_in_the_mapped_part(directory: Directory, nth: int, at: int) -> None:
    writer, pointers = filled(directory)
    read = read_of(writer)
    assert read(pointers[0], VERSION) == VALUE
    place = ValuePointer.decode(pointers[nth]).offset + at
    with directory.open("000001.vlog", write=True) as file:
        file.pwrite(bytes([file.pread(1, place)[0] ^ 4]), place)
    with pytest.raises(CorruptionError) as caught:
        read(pointers[nth], VERSION)
    assert caught.value.path == writer.path
    assert caught.value.offset == place - at
    assert read(pointers[nth - 1], VERSION) == VALUE
    writer.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_addresses_of_nothing(directory: Directory, mapped: bool) -> None:
    writer, pointers = filled(directory)
    read = read_of(writer)
    if mapped:
        read(pointers[0], VERSION)
    for offset, length in ((0, 10), (writer.end, 1), (writer.end - 4, 1), (40, 1 << 31), (41, 10)):
        with pytest.raises(CorruptionError):
            read(ValuePointer(1, offset, length).encode(), VERSION)
    with pytest.raises(CorruptionError):
        read(pointers[3], VERSION + 1)
    writer.close()


def test_a_mapping_is_replaced_by_a_longer_one_only(directory: Directory) -> None:
    writer, pointers = filled(directory)
    read_of(writer)(pointers[0], VERSION)
    (compiled,) = writer.compiled()
    with mmap.mmap(-1, mmap.PAGESIZE) as shorter:
        compiled.reach(shorter, 100)  # another thread has mapped more
        with pytest.raises(ValueError, match="behind the mapping"):
            compiled.reach(shorter, writer.end + 1)
    assert read_of(writer)(pointers[-1], VERSION) == VALUE
    compiled.close()
    with mmap.mmap(-1, mmap.PAGESIZE) as other:
        compiled.reach(other, 100)  # too late
    with pytest.raises(ClosedError):
        read_of(writer)(pointers[0], VERSION)
    writer.close()


def test_after_closing_nothing_is_read_and_nothing_is_mapped(directory: Directory) -> None:
    writer, pointers = filled(directory)
    view = ValueLogView("here", [writer])
    assert view.compiled(pointers[0], VERSION) == VALUE
    writer.append(VALUE, VERSION)
    view.close()
    for pointer in (pointers[0], pointers[-1]):
        with pytest.raises(ClosedError):
            view.compiled(pointer, VERSION)
    assert not is_mapped(directory)


def test_a_map_keeps_the_file_and_the_file_no_map(directory: Directory) -> None:
    """In no cycle of references: descriptor and mapping go with the last user."""
    writer, pointers = filled(directory)
    view = ValueLogView("here", [writer])
    read = view.compiled
    assert read(pointers[0], VERSION) == VALUE
    late = writer.append(VALUE, VERSION).encode()
    before = len(os.listdir("/proc/self/fd"))
    del view, writer
    assert read(pointers[-1], VERSION) == VALUE
    assert read(late, VERSION) == VALUE
    del read
    assert len(os.listdir("/proc/self/fd")) < before
    assert not is_mapped(directory)


def test_readers_beside_an_appending_thread(directory: Directory, reading: Any) -> None:
    writer = ValueLogWriter(directory, 1)
    read = read_of(writer)
    published: list[bytes] = []

    def read_some() -> None:
        for pointer in published[:: max(1, len(published) // 50)]:
            assert read(pointer, VERSION) == VALUE

    with reading(read_some):
        for _ in range(3000):
            published.append(writer.append(VALUE, VERSION).encode())
    assert all(read(pointer, VERSION) == VALUE for pointer in published)
    writer.close()


def test_of_two_that_map_more_the_longer_mapping_stays(directory: Directory) -> None:
    """Also if the other thread comes while the mapping before is let go of, which takes a while."""
    value, part = bytes((1 << 18) - 16), 1 << 18
    writer = ValueLogWriter(directory, 1)
    last = [writer.append(value, VERSION).encode() for _ in range(200)][-1]
    whole = writer.end
    for _ in range(100):
        file = NATIVE.ValueFile(
            None, 0, 1, None, None, None, None, beyond=lambda _pointer, _version: b"beyond"
        )
        before = writer._file.map(100 * part)
        assert before[:: mmap.PAGESIZE]  # so that there is something to let go of
        file.reach(before, 100 * part)
        del before
        shorter, longer = writer._file.map(101 * part), writer._file.map(whole)
        begun = threading.Event()

        def second(file=file, shorter=shorter, begun=begun) -> None:
            begun.wait(60)
            file.reach(shorter, 101 * part)

        thread = threading.Thread(target=second)
        thread.start()
        begun.set()
        file.reach(longer, whole)
        thread.join(60)
        assert NATIVE.ValueMap([file], None)(last, VERSION) == value
    writer.close()

"""Pages that readers made resident stay within their room, the coldest go first."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from meles.engine.fs import pages as module
from meles.engine.fs.files import Directory
from meles.engine.fs.page_clock import CHUNK_BYTES
from meles.engine.fs.pages import PageMarks, Pages
from resident import resident_of

MIB = 1 << 20
FILE_BYTES = 4 * MIB + 100


@pytest.fixture
def mappings(tmp_path: Path) -> Iterator[list[mmap.mmap]]:
    """Eight files of a little over 4 MiB, in pieces: the cache holds none in large pages."""
    data = random.Random(2).randbytes(FILE_BYTES)
    with Directory(str(tmp_path)) as directory:
        for nth in range(8):
            with directory.create(f"file{nth}") as file:
                for at in range(0, FILE_BYTES, CHUNK_BYTES):
                    file.pwrite(data[at : at + CHUNK_BYTES], at)
        opened = [directory.map(f"file{nth}") for nth in range(8)]
        yield opened
        for mapping in opened:
            mapping.close()


def look(marks: PageMarks, mapping: mmap.mmap, at: int) -> int:
    byte = mapping[at]
    marks.used(at, at + 1)
    return byte


@pytest.mark.parametrize("told", [True, False], ids=["measured", "by the marks"])
def test_what_is_resident_stays_within_the_room(
    tmp_path: Path, mappings: list[mmap.mmap], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    if not told:
        monkeypatch.setattr(module, "resident_of_files", lambda: None)
    room = 6 * MIB
    pages = Pages(lambda: room)
    watched = [(pages.watch(mapping), mapping) for mapping in mappings]
    expected = mappings[0][:]
    rng = random.Random(3)
    most = 0
    for nth in range(3000):
        marks, mapping = rng.choice(watched)
        at = rng.randrange(FILE_BYTES)
        assert look(marks, mapping, at) == expected[at]
        if nth % 50 == 0:
            most = max(most, resident_of(tmp_path))
    above = 2 * MIB if told else room  # pages are mapped by address, marks are by offset
    assert 2 * MIB < most <= room + above
    assert pages.marked() <= room + 2 * MIB
    room = 1 * MIB  # there is less, all of a sudden
    pages.shrink()
    assert resident_of(tmp_path) <= room + above


def test_what_is_used_again_and_again_stays(tmp_path: Path, mappings: list[mmap.mmap]) -> None:
    pages = Pages(lambda: 8 * MIB)
    hot, *cold = [(pages.watch(mapping), mapping) for mapping in mappings]
    there = []
    for round_ in range(100):
        for at in range(0, 2 * MIB, CHUNK_BYTES):
            look(*hot, at)
        look(*cold[round_ % 7], round_ // 7 % 64 * CHUNK_BYTES)
        there.append(resident_of(tmp_path / "file0"))
    kept = sum(size >= 1.9 * MIB for size in there)
    assert kept >= 0.95 * len(there)
    assert resident_of(tmp_path) <= 10 * MIB


def test_files_of_others_do_not_take_the_room(tmp_path: Path, mappings: list[mmap.mmap]) -> None:
    pages = Pages(lambda: 2 * MIB)
    theirs = mappings[:6]
    assert sum(len(bytes(mapping)) for mapping in theirs) > 24 * MIB  # the host's own, mapped later
    marks = pages.watch(mappings[7])
    most = 0
    for at in range(0, 4 * MIB, CHUNK_BYTES):
        look(marks, mappings[7], at)
        most = max(most, resident_of(tmp_path / "file7"))
    assert MIB <= most <= 3 * MIB
    assert resident_of(tmp_path) >= 24 * MIB


def test_files_that_are_gone_are_no_longer_listed(mappings: list[mmap.mmap]) -> None:
    pages = Pages(lambda: 64 * MIB)
    closed, dropped, kept = (pages.watch(mapping) for mapping in mappings[:3])
    for marks, mapping in ((closed, mappings[0]), (dropped, mappings[1]), (kept, mappings[2])):
        look(marks, mapping, 0)
        look(marks, mapping, FILE_BYTES - 1)
    assert pages.marked() == 6 * CHUNK_BYTES
    closed.release()
    del dropped, marks
    assert pages.marked() == 2 * CHUNK_BYTES
    mappings[0].close()
    closed.used(0, 1)  # a reader that is not done yet
    pages.shrink()
    assert pages.marked() == 3 * CHUNK_BYTES

"""Which chunks of a file readers mark, in both kernels: those they looked at, and no others."""

from __future__ import annotations

import random

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.fs.files import Directory
from meles.engine.fs.page_clock import CHUNK_BYTES, USED
from meles.engine.fs.pages import Pages
from meles.engine.jobs import BuildOptions
from meles.engine.table.builder import TableBuilder
from meles.engine.table.reader import Table
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.writer import ValueLogWriter
from twins import NATIVE, needs_native_run

COUNT = 4000
VALUE = random.Random(1).randbytes(500)


def used(table: Table | ValueLogFile) -> list[int]:
    marks = table._marks
    assert marks is not None
    return [nth for nth, mark in enumerate(marks.marks) if mark == USED]


@pytest.fixture
def pages() -> Pages:
    return Pages(lambda: 1 << 30)


@pytest.fixture(params=["none", "zstd"])
def filled(request: pytest.FixtureRequest, directory: Directory) -> Directory:
    builder = TableBuilder(directory, 1, BuildOptions(compression=request.param), created_ms=0)
    zeros = [0] * COUNT
    keys = [b"%06d" % nth for nth in range(COUNT)]
    builder.add(Columns(keys, [1] * COUNT, zeros, zeros, [VALUE] * COUNT))
    builder.finish()
    return directory


def test_lookups_mark_the_chunks_of_their_blocks(filled: Directory, pages: Pages) -> None:
    with Table(filled, 1, pages=pages) as table:
        assert used(table) == []
        for wanted in (b"%06d" % (COUNT // 2), b"000000"):
            assert table.get(wanted, 5)
        index = table.index
        places = [index.offsets[nth] for nth in range(len(index.offsets))]
        found = used(table)
        assert found[0] == 0
        assert 1 <= len(found) <= 4
        assert pages.marked() == len(found) * CHUNK_BYTES
        joined = [columns.keys[0] for columns in table.scan()]
        assert used(table) == list(range((places[-1] + index.sizes[-1] - 1) // CHUNK_BYTES + 1))
        assert len(joined) == len(places)
    assert pages.marked() == 0


@needs_native_run
def test_both_kernels_mark_alike(filled: Directory, pages: Pages) -> None:
    rng = random.Random(4)
    with Table(filled, 1, pages=pages) as python, Table(filled, 1, pages=pages) as native:
        blocks = native.blocks()
        for _ in range(40):
            key = b"%06d" % rng.randrange(COUNT)
            assert python.get(key, 5) == blocks.get(key, 5)
            assert used(python) == used(native)
        assert 1 < len(used(native)) < COUNT * len(VALUE) // CHUNK_BYTES + 2


@needs_native_run
def test_both_kernels_mark_values_alike(directory: Directory, pages: Pages) -> None:
    writer = ValueLogWriter(directory, 1)
    pointers = [writer.append(VALUE * 20, nth + 1).encode() for nth in range(100)]
    writer.seal()
    writer.close()
    meta = load_meta(directory, 1)
    python, native = (ValueLogFile(directory, meta, pages=pages) for _ in range(2))
    read = NATIVE.ValueMap(native.compiled(), lambda *_: None)
    for nth in (0, 50, 7, 99):
        value = python.fetch(pointers[nth], nth + 1)
        assert value == VALUE * 20 == read(pointers[nth], nth + 1)
        assert used(python) == used(native)
    assert 4 <= len(used(native)) <= 8
    python.close()
    native.close()
    assert pages.marked() == 0


@needs_native_run
def test_marks_that_are_too_few_are_refused(filled: Directory, pages: Pages) -> None:
    with Table(filled, 1, pages=pages) as table:
        marks = table._marks
        assert marks is not None
        marks.marks = marks.marks[:0]
        with pytest.raises((ValueError, Exception), match="fewer marks"):
            table.blocks()

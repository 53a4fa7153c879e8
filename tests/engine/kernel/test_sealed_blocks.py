"""Compiled readers and sealed tables: no block is ever taken where it lies.

A sealed block is longer than what is in it, so by its head alone it passes for one with a codec and
goes through `fetch` anyway. One that is *not* sealed, put there by somebody, looks like one to be
read in place: that it is not is for `sealed` alone to see to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from meles.engine.codec.columns import Columns
from meles.engine.compaction.execute import run_compaction
from meles.engine.crypt.keys import DataKey, KeyRing
from meles.engine.errors import CorruptionError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions, CompactJob
from meles.engine.table.block import Block
from meles.engine.table.builder import TableBuilder
from meles.engine.table.in_place import open_in_place
from meles.engine.table.layout import BLOCK_HEAD
from meles.engine.table.reader import Table
from sealed_files import FORGED, SealedTable, forge_plain_blocks
from twins import KERNELS, NATIVE, needs_native

ASKED = 1 << 62


class NotedTable(Table):
    """Knows which of its blocks were fetched."""

    def __init__(self, directory: Directory, table_id: int) -> None:
        self.fetched: list[int] = []
        super().__init__(directory, table_id)

    def load(self, number: int) -> Block:
        self.fetched.append(number)
        return super().load(number)


class Quiet:
    def progress(self, done_bytes: int) -> None:
        pass


@pytest.fixture
def columns() -> Columns:
    keys = [b"key%05d" % number for number in range(300)]
    zeros = [0] * len(keys)
    values = [b"value %d" % number for number in range(300)]
    return Columns(keys, [1] * len(keys), zeros, zeros.copy(), values)


@pytest.fixture
def sealed(directory: Directory, columns: Columns) -> Directory:
    """A directory with a sealed table of many blocks, stored without a codec."""
    directory.keys = KeyRing([DataKey.fresh(1, 0.0)], 1)
    builder = TableBuilder(directory, 1, BuildOptions(block_size=512), created_ms=0)
    builder.add(columns)
    builder.finish()
    return directory


def scan_of(blocks: Any) -> list[Any]:
    run = type("Run", (), {"blocks": lambda self: blocks})()
    scan = NATIVE.Scan([[run]], None, None, ASKED, 0, 0, None, details=True)
    return list(iter(scan.next_batch, None))


def blocks_of(table: Table) -> int:
    return len(table.index.offsets)


@needs_native
def test_lookups_go_through_the_fetcher(sealed: Directory, columns: Columns) -> None:
    with NotedTable(sealed, 1) as table:
        blocks = open_in_place(table, NATIVE)
        for key, value in zip(columns.keys, columns.values, strict=True):
            assert blocks.get(key, ASKED) == (1, 0, 0, value)
        assert set(table.fetched) == set(range(blocks_of(table)))
        assert len(table.fetched) == len(columns)
        assert blocks.checks == 0
        del blocks


@needs_native
def test_scans_go_through_the_fetcher(sealed: Directory, columns: Columns) -> None:
    with NotedTable(sealed, 1) as table:
        blocks = open_in_place(table, NATIVE)
        batches = scan_of(blocks)
        assert [key for batch in batches for key in batch[0]] == columns.keys
        assert [value for batch in batches for value in batch[4]] == columns.values
        assert table.fetched == list(range(blocks_of(table)))
        assert blocks.checks == 0
        del blocks


@needs_native
def test_what_is_not_sealed_is_neither_looked_up_nor_scanned(
    sealed: Directory, columns: Columns
) -> None:
    offsets = forge_plain_blocks(sealed, 1)
    assert len(offsets) > 10
    with NotedTable(sealed, 1) as table:
        blocks = open_in_place(table, NATIVE)
        met = set()
        for key in columns.keys:
            with pytest.raises(CorruptionError, match="the seal is broken") as caught:
                blocks.get(key, ASKED)
            met.add(caught.value.offset)
        assert met == set(offsets)
        with pytest.raises(CorruptionError, match="the seal is broken"):
            scan_of(blocks)
        assert blocks.checks == 0
        del blocks


def test_a_forged_block_is_one_that_could_be_read(sealed: Directory, columns: Columns) -> None:
    """Or the tests here would show nothing: without a seal to look for it is whole, and lies."""
    forge_plain_blocks(sealed, 1)
    with Table(sealed, 1) as table:
        assert table.index.offsets
        table._cipher = None
        found = [value for batch in table.scan() for value in batch.values]
    assert len(found) == len(columns)
    assert sum(value.startswith(FORGED) for value in found) > 10


@needs_native
@pytest.mark.parametrize("mended", [True, False])
def test_damage_is_found(sealed: Directory, columns: Columns, mended: bool) -> None:
    """By the seal when the checksum was put right, else by that."""
    path = Path(sealed.path) / "000001.sst"
    file = SealedTable(path)
    whole = bytes(file.data)
    for nth, (offset, length) in enumerate(file.parts):
        file.data[:] = whole
        if mended:
            file.flip(offset + length // 2)
        else:
            file.data[offset + length // 2] ^= 1
        path.write_bytes(file.data)
        with NotedTable(sealed, 1) as table:
            blocks, key = open_in_place(table, NATIVE), table.index.last_keys[nth]
            what = "the seal is broken" if mended else "checksum does not match"
            with pytest.raises(CorruptionError, match=what) as caught:
                blocks.get(key, ASKED)
            assert caught.value.offset == offset
            del blocks


@needs_native
@pytest.mark.parametrize("change", [(4, 0), (0, 3), (-1, 0)])
def test_a_block_is_bound_to_its_codec_and_length(
    sealed: Directory, columns: Columns, change: tuple[int, int]
) -> None:
    path = Path(sealed.path) / "000001.sst"
    file = SealedTable(path)
    offset = file.parts[0][0]
    stored, _, raw, codec, zero = BLOCK_HEAD.unpack_from(file.data, offset)
    head = BLOCK_HEAD.pack(stored, 0, raw + change[0], codec + change[1], zero)
    file.data[offset : offset + BLOCK_HEAD.size] = head
    file.mend(offset)
    file.save()
    with NotedTable(sealed, 1) as table:
        blocks = open_in_place(table, NATIVE)
        with pytest.raises(CorruptionError, match="the seal is broken"):
            blocks.get(columns.keys[0], ASKED)
        del blocks


def job(*inputs: tuple[int, ...]) -> CompactJob:
    return CompactJob(
        inputs=inputs, from_level=1, level=2, start=None, stop=None, first_table_id=100,
        max_tables=50, target_size=1 << 20, discard_ts=1000, versions_to_keep=1, now_ms=0,
        below=(), build=BuildOptions(block_size=512), created_ms=0,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_merge_opens_every_seal(sealed: Directory, columns: Columns, kernel: Any) -> None:
    done = run_compaction(job((1,)), sealed, Quiet(), kernel)
    with Table(sealed, done.files[0].id) as table:
        assert table.meta.key_id == 1
        assert [key for batch in table.scan() for key in batch.keys] == columns.keys
        assert [value for batch in table.scan() for value in batch.values] == columns.values


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_merge_takes_nothing_that_is_not_sealed(sealed: Directory, kernel: Any) -> None:
    forge_plain_blocks(sealed, 1)
    with pytest.raises(CorruptionError, match="the seal is broken"):
        run_compaction(job((1,)), sealed, Quiet(), kernel)
    assert sealed.names() == ["000001.sst"]

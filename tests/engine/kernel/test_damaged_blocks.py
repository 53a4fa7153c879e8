"""Damage in a table as the compiled kernel meets it: an error or an answer, never a crash.

Where a checksum tells, it is `CorruptionError`. Damage under a checksum that was made to fit may
answer wrongly, as long as nothing outside of the block is read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.columns import Columns
from meles.engine.codec.header import HEADER_BYTES, MAGIC_TABLE, FileHeader
from meles.engine.errors import CorruptionError, FormatVersionError
from meles.engine.fs.files import Directory
from meles.engine.jobs import BuildOptions
from meles.engine.table.bloom import bloom_lines
from meles.engine.table.builder import TableBuilder
from meles.engine.table.layout import (
    BLOCK_HEAD_BYTES,
    FLAG_EXPIRY,
    FLAG_META,
    FLAG_MULTI,
    FLAG_USER,
    FOOTER_BYTES,
    decode_footer,
    place_seed,
)
from meles.engine.table.reader import Table
from twins import NATIVE, needs_native, needs_native_run

pytestmark = needs_native
SEED = FileHeader(MAGIC_TABLE, 1).seed
NAME = "000001.sst"
COMBINATIONS = range(16)


def columns_with(combination: int) -> Columns:
    """Entries whose blocks have these optional columns: expiry, meta, user byte, versions."""
    columns = Columns()
    for number in range(9):
        for version in range(4 if combination & 8 and number % 3 == 1 else 1, 0, -1):
            meta = 4 if combination & 2 and number % 2 else 0
            user = number if combination & 4 else 0
            columns.append(
                b"key%d" % number, version, user << 8 | meta,
                5000 + number if combination & 1 else 0, b"v" * (number % 4),
            )  # fmt: skip
    return columns


def _damaged(what: str, offset: int) -> CorruptionError:
    return CorruptionError(what, path="table", offset=offset, kind="table block")


class Opened:
    """A table's blocks over bytes in memory, of which no byte more than the blocks is there."""

    def __init__(self, data: bytes) -> None:
        footer = decode_footer(data[-FOOTER_BYTES:], SEED, 1, len(data), "")
        self.count, self.end = footer.blocks, footer.bloom.offset
        self.index = data[footer.index.offset : footer.index.end]
        bloom = data[footer.bloom.offset : footer.bloom.end]
        self.lines, self.bits = bloom_lines(bloom, footer.bloom.offset, "")
        self.data = data[: self.end]

    def blocks(self, **changed: Any) -> Any:
        given = {
            "mapping": self.data, "seed": SEED, "index": self.index, "count": self.count,
            "blocks_end": self.end, "filter": self.lines, "pattern_bits": self.bits,
            "fetch": self._fetch, "damaged": _damaged, "closed": LookupError, **changed,
        }  # fmt: skip
        return NATIVE.TableBlocks(**given)

    def _fetch(self, number: int, scanning: bool) -> bytes:
        raise _damaged("a block with a codec", number)


class Run:
    """What a scan asks of a table."""

    def __init__(self, blocks: Any) -> None:
        self._blocks = blocks

    def blocks(self) -> Any:
        return self._blocks


def ask_everything(blocks: Any, keys: list[bytes]) -> list[Any]:
    """Lookups and scans, each until it raises."""
    found: list[Any] = []

    def attempt(ask: Callable[[], Any]) -> None:
        try:
            found.append(ask())
        except CorruptionError as error:
            found.append(error)

    for key in keys:
        for ts in (0, 2, 1 << 62):
            attempt(lambda key=key, ts=ts: blocks.get(key, ts))
    for low, high in ((None, None), (b"key3", None), (None, b"key6"), (b"a", b"z")):
        scan = NATIVE.Scan([[Run(blocks)]], low, high, 1 << 62, 0, 0, None, details=True)
        attempt(lambda scan=scan: list(iter(scan.next_batch, None)))
    return found


@pytest.fixture
def built(directory: Directory) -> Callable[..., tuple[Opened, Columns]]:
    def make(combination: int, **options: Any) -> tuple[Opened, Columns]:
        columns = columns_with(combination)
        settings = BuildOptions(**{"block_size": 120, **options})
        if NAME in directory.names():
            directory.unlink(NAME)
        builder = TableBuilder(directory, 1, settings, created_ms=1)
        builder.add(columns)
        builder.finish()
        return Opened(directory.read(NAME)), columns

    return make


def resealed(data: bytes, offset: int, size: int) -> bytes:
    crc = crc32c(
        data[offset + 8 : offset + size], place_seed(SEED, offset, size - BLOCK_HEAD_BYTES)
    )
    return data[: offset + 4] + crc.to_bytes(4, "little") + data[offset + 8 :]


def places(opened: Opened) -> Iterator[tuple[int, int]]:
    """Offset and size of every block, from the index."""
    count, index = opened.count, opened.index
    for nth in range(count):
        yield (
            int.from_bytes(index[8 + 8 * nth :][:8], "little"),
            int.from_bytes(index[8 + 16 * count + 4 * nth :][:4], "little"),
        )


def test_the_combinations_are_what_they_say(built: Any) -> None:
    flags = set()
    for combination in COMBINATIONS:
        opened, columns = built(combination)
        assert opened.count > 1
        start = 8 + opened.count * 24 + 4 * opened.count + 4
        words = opened.index[start : start + 2 * opened.count]
        union = 0
        for at in range(0, len(words), 2):
            union |= int.from_bytes(words[at : at + 2], "little")
        flags.add(union & (FLAG_EXPIRY | FLAG_META | FLAG_USER | FLAG_MULTI))
        answers = ask_everything(opened.blocks(), columns.keys)
        assert not any(isinstance(answer, Exception) for answer in answers)
        assert sum(len(batch[0]) for batch in answers[-1]) == len(set(columns.keys))
    assert len(flags) == 16


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_byte_of_a_block_under_a_fitting_checksum(built: Any, combination: int) -> None:
    opened, columns = built(combination)
    whole, rng = opened.data, random.Random(combination)
    names = sorted(set(columns.keys))[::2]
    for offset, size in places(opened):
        for at in range(offset + 8, offset + size):
            for byte in (0, 0xFF, whole[at] ^ 1 << rng.randrange(8)):
                changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
                opened.data = resealed(changed, offset, size)
                ask_everything(opened.blocks(), names)


@pytest.mark.parametrize("combination", [0, 15])
def test_every_byte_of_a_block_under_its_checksum(built: Any, combination: int) -> None:
    opened, columns = built(combination)
    whole = opened.data
    right = ask_everything(opened.blocks(), columns.keys)
    for at in range(HEADER_BYTES, len(whole)):
        opened.data = whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]
        answers = ask_everything(opened.blocks(), columns.keys)
        met = [isinstance(answer, CorruptionError) for answer in answers]
        assert met[-4]  # the scan over everything
        for answer, expected, failed in zip(answers, right, met, strict=True):
            assert failed or answer == expected


@pytest.mark.parametrize("combination", [0, 15])
def test_every_byte_of_the_index(built: Any, combination: int) -> None:
    """It is taken apart whole when a table is opened: `ValueError`, or nothing that matters."""
    opened, columns = built(combination)
    whole, refused = opened.index, 0
    for at in range(len(whole)):
        for byte in (0, 0xFF, 0x80, whole[at] ^ 1):
            changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
            try:
                blocks = opened.blocks(index=changed)
            except ValueError:
                refused += 1
                continue
            ask_everything(blocks, columns.keys[::3])
    assert refused > len(whole)
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match=r"index|keys|blocks"):
            opened.blocks(index=whole[:cut])


def test_blocks_that_begin_before_the_file(built: Any) -> None:
    """Offsets that run over the end of their 64 bits and join all the same."""
    opened, _ = built(0, block_size=1 << 16)
    assert opened.count == 1
    end, back = opened.end, 1 << 20
    index = bytearray(opened.index)
    index[8:16] = ((1 << 64) - back).to_bytes(8, "little")
    index[24:28] = (back + end).to_bytes(4, "little")
    with pytest.raises(ValueError, match="join"):
        opened.blocks(index=bytes(index))


@pytest.mark.parametrize("bits", [0, 1, 7])
def test_any_filter(built: Any, bits: int) -> None:
    opened, columns = built(15)
    rng = random.Random(3)
    for size in (0, 64, 128, 192, 6400):
        ask_everything(opened.blocks(filter=rng.randbytes(size), pattern_bits=bits), columns.keys)


def test_arguments_that_fit_nothing(built: Any) -> None:
    opened, columns = built(15)
    for changed in (
        {"count": 0}, {"count": -1}, {"count": 1 << 62}, {"count": 1 << 64}, {"count": 1},
        {"blocks_end": 0}, {"blocks_end": 1 << 64}, {"blocks_end": (1 << 64) - 1},
        {"mapping": opened.data[:-1]}, {"mapping": b""}, {"mapping": None}, {"mapping": "text"},
        {"index": None}, {"index": bytearray(opened.index)}, {"index": b""}, {"filter": None},
        {"filter": bytes(63)}, {"filter": bytes(65)}, {"pattern_bits": -1}, {"pattern_bits": 8},
        {"pattern_bits": 1 << 40}, {"seed": -1}, {"seed": 1 << 32},
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, OverflowError)):
            opened.blocks(**changed)
    blocks = opened.blocks()
    for key, ts in (
        (None, 1),
        ("key1", 1),
        (bytearray(b"key1"), 1),
        (b"key1", -1),
        (b"k", 1 << 64),
    ):
        with pytest.raises((TypeError, OverflowError)):
            blocks.get(key, ts)
    assert blocks.get(columns.keys[0], 1 << 62) is not None


@pytest.mark.parametrize("payload", [None, "text", b"", bytes(24), b"\xff" * 24, b"\xff" * 300])
def test_payloads_with_a_codec_that_are_none(built: Any, payload: Any) -> None:
    opened, columns = built(15, compression="zstd")
    blocks = opened.blocks(fetch=lambda number, scanning: payload)
    for key in columns.keys:
        with pytest.raises((TypeError, CorruptionError)):
            blocks.get(key, 1 << 62)


def test_every_byte_of_a_payload_with_a_codec(built: Any, directory: Directory) -> None:
    opened, columns = built(15, compression="zstd")
    with Table(directory, 1) as table:
        raws = [table.load(number).raw for number in range(opened.count)]
    for number, raw in enumerate(raws):
        for at in range(len(raw)):
            for byte in (0, 0xFF, raw[at] ^ 1):
                changed = raws.copy()
                changed[number] = raw[:at] + bytes([byte]) + raw[at + 1 :]
                ask_everything(
                    opened.blocks(fetch=lambda nth, _scanning, raws=changed: raws[nth]),
                    columns.keys[::4],
                )


def test_a_fetch_that_closes_the_table(built: Any) -> None:
    opened, columns = built(0, compression="zstd")

    def fetch(number: int, scanning: bool) -> bytes:
        blocks.close()
        return b"\xff" * 100

    blocks = opened.blocks(fetch=fetch)
    with pytest.raises(CorruptionError):
        blocks.get(columns.keys[0], 1 << 62)
    with pytest.raises(LookupError):
        blocks.get(columns.keys[0], 1 << 62)


@needs_native_run
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_any_flipped_bit_of_a_file(directory: Directory, built: Any, compression: str) -> None:
    """The whole way: file, table, blocks. An error, or what was written."""
    opened, columns = built(15, compression=compression)
    right = ask_everything(opened.blocks(), columns.keys) if compression == "none" else None
    whole, rng = directory.read(NAME), random.Random(5)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        directory.unlink(NAME)
        with directory.create(NAME) as file:
            file.pwrite(bytes(damaged), 0)
        try:
            with Table(directory, 1) as table:
                answers = ask_everything(table.blocks(), columns.keys)
        except (CorruptionError, FormatVersionError):
            continue
        met = [isinstance(answer, CorruptionError) for answer in answers]
        assert any(met)
        if right is not None:
            for answer, expected, failed in zip(answers, right, met, strict=True):
                assert failed or answer == expected

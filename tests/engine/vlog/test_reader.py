"""Reading old files: right values or a typed error, whatever happened to the bytes."""

from __future__ import annotations

import contextlib
import os
import sys
from array import array
from pathlib import Path

import pytest
from meles.engine.codec.checksum import crc32c
from meles.engine.codec.entry import ValuePointer
from meles.engine.codec.header import MAGIC_VLOG, FileHeader
from meles.engine.errors import (
    ClosedError,
    CorruptionError,
    EncryptionKeyError,
    Error,
    FormatVersionError,
)
from meles.engine.fs.files import Directory
from meles.engine.jobs import RelocateJob
from meles.engine.manifest.version import VlogMeta
from meles.engine.vlog.layout import Trailer, encode_maps
from meles.engine.vlog.reader import ValueLogFile, load_meta
from meles.engine.vlog.relocate import live_entries, relocate
from meles.engine.vlog.writer import ValueLogWriter

VALUES = [b"alpha", b"", b"gamma-gamma", b"delta"]
TYPED = (CorruptionError, FormatVersionError)


class Calm:
    def progress(self, done_bytes: int) -> None:
        pass


def sealed(directory: Directory, file_id: int = 1, values: list[bytes] = VALUES) -> VlogMeta:
    """A sealed file; value i has version i + 1."""
    writer = ValueLogWriter(directory, file_id)
    for version, value in enumerate(values, 1):
        writer.append(value, version)
    meta = writer.seal()
    writer.close()
    return meta


def pointers(file_id: int = 1, values: list[bytes] = VALUES) -> list[ValuePointer]:
    found, at = [], 64
    for value in values:
        found.append(ValuePointer(file_id, at, len(value)))
        at += 16 + len(value)
    return found


def relocated(directory: Directory, keep: list[int], file_id: int = 9) -> VlogMeta:
    """File 1 made anew as `file_id`, with only these of its values."""
    sealed(directory)
    live = b"".join(pointers()[i].encode() for i in keep)
    job = RelocateJob(((1, (1,)),), (), file_id, 0, 0)
    relocate(job, live_entries([1], [live]), directory, Calm())
    return load_meta(directory, file_id)


def check_all(directory: Directory, meta: VlogMeta) -> None:
    assert load_meta(directory, meta.id) == meta
    file = ValueLogFile(directory, meta)
    try:
        file.verify()
    finally:
        file.close()


def read_all(directory: Directory, meta: VlogMeta, keep: list[int]) -> list[bytes | None]:
    """Each kept value; None where a typed error was raised instead."""
    try:
        file = ValueLogFile(directory, meta)
    except TYPED:
        return [None] * len(keep)
    found: list[bytes | None] = []
    for number in keep:
        try:
            found.append(file.read(pointers()[number], number + 1))
        except CorruptionError as error:
            found.append(None if error.kind == "value" else error.kind.encode())
    file.close()
    return found


@pytest.mark.parametrize("kind", ["appended", "relocated", "unsealed"])
def test_every_flipped_bit_gives_the_right_value_or_a_typed_error(
    directory: Directory, tmp_path: Path, kind: str
) -> None:
    keep = [0, 2, 3] if kind == "relocated" else [0, 1, 2, 3]
    meta = relocated(directory, keep) if kind == "relocated" else sealed(directory)
    if kind == "unsealed":
        meta = VlogMeta(1, (1,), size=meta.size - 64)
    path = tmp_path / f"{meta.id:06d}.vlog"
    data = path.read_bytes()
    right = [VALUES[number] for number in keep]
    assert read_all(directory, meta, keep) == right
    seen_damage = 0
    for at in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            found = read_all(directory, meta, keep)
            assert all(value in (None, wanted) for value, wanted in zip(found, right, strict=True))
            seen_damage += None in found
            if kind != "unsealed":
                with pytest.raises(TYPED):
                    check_all(directory, meta)
    assert seen_damage == 8 * (len(data) - (64 if kind == "unsealed" else 0))


@pytest.mark.parametrize("kind", ["appended", "relocated"])
def test_a_file_of_another_length_is_refused(
    directory: Directory, tmp_path: Path, kind: str
) -> None:
    meta = relocated(directory, [0, 2]) if kind == "relocated" else sealed(directory)
    path = tmp_path / f"{meta.id:06d}.vlog"
    data = path.read_bytes()
    for wrong in [data[:length] for length in range(len(data))] + [data + b"\0", data + data]:
        path.write_bytes(wrong)
        with pytest.raises(CorruptionError):
            ValueLogFile(directory, meta)
        with pytest.raises(CorruptionError):
            load_meta(directory, meta.id)


def test_a_missing_file_is_named(directory: Directory) -> None:
    with pytest.raises(CorruptionError, match=r"000005\.vlog.*missing"):
        ValueLogFile(directory, VlogMeta(5, (5,), True, 200, 1))
    with pytest.raises(CorruptionError, match=r"000005\.vlog.*missing"):
        load_meta(directory, 5)


def test_two_swapped_files_are_told_apart(directory: Directory, tmp_path: Path) -> None:
    metas = [sealed(directory, 1), sealed(directory, 2)]
    one, two = tmp_path / "000001.vlog", tmp_path / "000002.vlog"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    for meta in metas:
        with pytest.raises(CorruptionError, match="number"):
            ValueLogFile(directory, meta)
    one.write_bytes(first[:64] + second[64:])
    with pytest.raises(CorruptionError, match="trailer"):
        ValueLogFile(directory, metas[0])
    one.write_bytes(first[:64] + second[64:-64] + first[-64:])
    file = ValueLogFile(directory, metas[0])
    for pointer in pointers(1):
        with pytest.raises(CorruptionError, match="checksum"):
            file.read(pointer)
    file.close()


def test_two_entries_of_one_size_that_changed_places_are_damage(
    directory: Directory, tmp_path: Path
) -> None:
    meta = sealed(directory)
    path = tmp_path / "000001.vlog"
    data = path.read_bytes()
    first, last = pointers()[0].offset, pointers()[3].offset
    size = 16 + 5
    swapped = bytearray(data)
    swapped[first : first + size] = data[last : last + size]
    swapped[last : last + size] = data[first : first + size]
    path.write_bytes(swapped)
    assert read_all(directory, meta, [0, 1, 2, 3]) == [None, VALUES[1], VALUES[2], None]


@pytest.mark.parametrize("sealed_file", [True, False])
def test_an_address_is_checked(directory: Directory, sealed_file: bool) -> None:
    meta = sealed(directory)
    end = meta.size - 64
    file = ValueLogFile(directory, meta if sealed_file else VlogMeta(1, (1,), size=end))
    good = pointers()[0]
    for wrong in (
        good._replace(offset=0),
        good._replace(offset=65),
        good._replace(offset=(1 << 32) - 1),
        good._replace(length=4),
        good._replace(length=(1 << 32) - 1),
        good._replace(file_id=2),
        ValuePointer(1, end, 0),
    ):
        with pytest.raises(CorruptionError) as caught:
            file.read(wrong)
        assert caught.value.kind == "value"
    with pytest.raises(CorruptionError, match="version 1, expected 2"):
        file.read(good, 2)
    assert file.read(good) == VALUES[0]
    file.close()


def test_a_dead_address_of_a_relocated_file_is_damage(directory: Directory) -> None:
    meta = relocated(directory, [0, 2])
    file = ValueLogFile(directory, meta)
    for number in (1, 3):
        with pytest.raises(CorruptionError, match="no value of address"):
            file.read(pointers()[number])
    with pytest.raises(CorruptionError, match="no value of address"):
        file.read(pointers(2)[0])
    file.close()


def test_the_manifest_and_the_file_must_agree(directory: Directory) -> None:
    meta = sealed(directory)
    for wrong in (
        VlogMeta(1, (1,), True, meta.size, meta.entries + 1),
        VlogMeta(1, (1,), True, meta.size + 1, meta.entries),
        VlogMeta(1, (1, 2), True, meta.size, meta.entries),
        VlogMeta(1, (2,), True, meta.size, meta.entries),
        VlogMeta(1, (1,), False, meta.size + 1, 0),
    ):
        with pytest.raises(CorruptionError):
            ValueLogFile(directory, wrong)
    ValueLogFile(directory, meta).close()


def test_a_newer_format_and_an_encrypted_file_are_refused(
    directory: Directory, tmp_path: Path
) -> None:
    meta = sealed(directory)
    path = tmp_path / "000001.vlog"
    rest = path.read_bytes()[64:]
    path.write_bytes(FileHeader(MAGIC_VLOG, 1, version=2).encode() + rest)
    with pytest.raises(FormatVersionError):
        ValueLogFile(directory, meta)
    path.write_bytes(FileHeader(MAGIC_VLOG, 1, key_id=3).encode() + rest)
    with pytest.raises(EncryptionKeyError):
        ValueLogFile(directory, meta)


@pytest.mark.parametrize("kind", ["appended", "relocated", "unsealed"])
def test_an_unlinked_file_stays_readable(directory: Directory, tmp_path: Path, kind: str) -> None:
    meta = relocated(directory, [0, 2]) if kind == "relocated" else sealed(directory)
    if kind == "unsealed":
        meta = VlogMeta(1, (1,))
    file = ValueLogFile(directory, meta)
    (tmp_path / f"{meta.id:06d}.vlog").unlink()
    assert file.read(pointers()[2], 3) == VALUES[2]
    file.close()


@pytest.mark.parametrize("kind", ["appended", "relocated", "unsealed"])
def test_a_closed_file_says_so(directory: Directory, kind: str) -> None:
    meta = relocated(directory, [0, 2]) if kind == "relocated" else sealed(directory)
    if kind == "unsealed":
        meta = VlogMeta(1, (1,))
    file = ValueLogFile(directory, meta)
    file.close()
    file.close()
    for call in (
        lambda: file.read(pointers()[0]),
        file.verify,
        lambda: file.entries(1, [64], [5]),
        file.file_crc,
    ):
        with pytest.raises(ClosedError):
            call()


def held(directory: Path) -> list[str]:
    """Value-log files this process has open or mapped."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [line for line in maps + links if f"{directory}/" in line]


def test_nothing_outlives_its_file(directory: Directory, tmp_path: Path) -> None:
    meta = sealed(directory)
    (tmp_path / "000002.vlog").write_bytes(b"damaged" * 20)
    files = [ValueLogFile(directory, meta), ValueLogFile(directory, VlogMeta(1, (1,)))]
    kept = sys.version_info < (3, 13)  # by a mapping: a descriptor
    assert len(held(tmp_path)) == 2 + kept  # a mapping, an unsealed file
    for kind in (True, False):
        with pytest.raises(Error):
            ValueLogFile(directory, VlogMeta(2, (2,), kind, 140, 0))
    del files
    assert held(tmp_path) == []


def test_an_unsealed_file_ends_where_its_entries_do(directory: Directory) -> None:
    sealed(directory)
    end = pointers()[3].offset
    file = ValueLogFile(directory, VlogMeta(1, (1,), size=end))
    assert file.verify() == 3
    assert file.read(pointers()[2], 3) == VALUES[2]
    with pytest.raises(CorruptionError, match="outside"):
        file.read(pointers()[3])
    file.close()
    empty = ValueLogWriter(directory, 2)
    file = ValueLogFile(directory, VlogMeta(2, (2,)))
    assert file.verify() == 0
    file.close()
    empty.close()


def made_by_hand(
    directory: Directory, entries: bytes, count: int, old: list[int], new: list[int]
) -> VlogMeta:
    """File 9, whose checksums hold whatever its map says."""
    header = FileHeader(MAGIC_VLOG, 9)
    section = encode_maps([(1, array("I", old), array("I", new))])
    end = 64 + len(entries)
    trailer = Trailer(end, count, end, len(section), 1, crc32c(section, header.seed))
    with directory.create("000009.vlog") as file:
        file.pwrite(header.encode() + entries + section + trailer.encode(header.seed), 0)
    return VlogMeta(9, (1,), True, trailer.file_size, count)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([85, 64], [64, 85]),
        ([64, 64], [64, 85]),
        ([64, 85], [85, 64]),
        ([64, 85], [64, 64]),
        ([63, 85], [64, 85]),
        ([64, 85], [63, 85]),
        ([64, 85], [64, 94]),
        ([64, 85], [64, 1 << 31]),
    ],
)
def test_a_map_that_makes_no_sense_is_not_installed(
    directory: Directory, tmp_path: Path, old: list[int], new: list[int]
) -> None:
    sealed(directory, values=[b"alpha", b"delta"])
    entries = (tmp_path / "000001.vlog").read_bytes()[64:-64]
    meta = made_by_hand(directory, entries, 2, [64, 85], [64, 85])
    assert load_meta(directory, 9) == meta
    directory.unlink("000009.vlog")
    meta = made_by_hand(directory, entries, 2, old, new)
    with pytest.raises(CorruptionError, match="offsets"):
        load_meta(directory, 9)
    file = ValueLogFile(directory, meta)
    with pytest.raises(CorruptionError):
        file.verify()
    for pointer in pointers(values=[b"alpha", b"delta"]):
        with contextlib.suppress(CorruptionError):
            assert file.read(pointer) in (b"alpha", b"delta")
    file.close()


def test_verify_sees_bytes_that_no_map_names(directory: Directory, tmp_path: Path) -> None:
    sealed(directory, values=[b"alpha", b"delta"])
    entries = (tmp_path / "000001.vlog").read_bytes()[64:-64]
    for old, new in (([64], [64]), ([85], [85])):
        file = ValueLogFile(directory, made_by_hand(directory, entries, 1, old, new))
        with pytest.raises(CorruptionError):
            file.verify()
        file.close()
        directory.unlink("000009.vlog")


def test_verify_names_the_damaged_entry(directory: Directory, tmp_path: Path) -> None:
    meta = sealed(directory)
    path = tmp_path / "000001.vlog"
    data = bytearray(path.read_bytes())
    data[pointers()[2].offset + 20] ^= 1
    path.write_bytes(data)
    file = ValueLogFile(directory, meta)
    with pytest.raises(CorruptionError) as caught:
        file.verify()
    assert (caught.value.offset, caught.value.kind) == (pointers()[2].offset, "value")
    assert file.read(pointers()[3], 4) == VALUES[3]
    file.close()
